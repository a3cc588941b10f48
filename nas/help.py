"""Help and completion of the commands, read from the commented YAML files under ``conf/``.

The comments in those files are the documentation: ``--help`` prints them, so they cannot drift apart.
Importing this costs nothing but YAML, so that completion answers at once.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

# In a checkout the configs lie beside the package, in a wheel inside it.
_INSIDE = Path(__file__).parent / "conf"
CONFIG_FOLDER = _INSIDE if _INSIDE.is_dir() else Path(__file__).parent.parent / "conf"

# Groups for which a path to a YAML file of one's own may stand in place of a name.
FILE_GROUPS = ("hardware", "search_space")

_SETTINGS = "Type KEY=VALUE to change a key"
_GROUPS = ", GROUP=CHOICE to change a group; GROUP=CHOICE --help shows that choice's keys"
_FOOTER = """\
  --cfg job           the whole configuration as it would be used; nothing runs
  --info defaults     which files it is made of
  --hydra-help        Hydra's own options

Completion in bash:  eval "$(python -m nas.completion)"
"""


def commands() -> list[str]:
    """Names of the commands that have a YAML file."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml") if path.stem != "hydra_base")


def purposes() -> dict[str, str]:
    """The purpose of each command of the package, from the first sentence of its YAML file."""
    return {
        name: " ".join(_parts(Path(f"{name}.yaml"))[0].split("\n\n")[0].split())
        for name in commands()
        if (Path(__file__).parent / f"{name}.py").is_file()
    }


def groups_of(command: str) -> dict[str, str]:
    """The groups a command chooses from, each with its default choice."""
    loaded = yaml.safe_load(_text(Path(f"{command}.yaml")))
    return {
        group: choice
        for entry in loaded["defaults"]
        if isinstance(entry, Mapping)
        for group, choice in entry.items()
        if not group.startswith("override ")
    }


def choices_of(group: str) -> list[str]:
    """The choices a group offers."""
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


def keys_of(command: str, chosen: Mapping[str, str] | None = None) -> list[str]:
    """Dotted names of the keys of a command, given the choices of its groups that differ from the default."""
    loaded = yaml.safe_load(_text(Path(f"{command}.yaml")))
    for group, choice in {**groups_of(command), **(chosen or {})}.items():
        if choice in choices_of(group):
            own = yaml.safe_load(_text(Path(group, f"{choice}.yaml")))
            loaded[group] = {**own, **(loaded.get(group) or {})}
    return sorted(_dotted(loaded))


def completions(words: Sequence[str]) -> list[str]:
    """Completions of the last of some words, which follow ``python -m nas.`` and begin with the command.

    >>> completions(["search", "hardware=rpi"])
    ['hardware=rpi3', 'hardware=rpi4', 'hardware=rpi5']
    """
    command, *arguments = words
    if command not in commands() or not arguments:
        return []
    *before, last = arguments
    groups = groups_of(command)
    chosen = {group: choice for group, choice in _overrides(before).items() if group in groups}
    group, equals, _ = last.partition("=")
    if equals:
        found = [f"{group}={choice}" for choice in choices_of(group)] if group in groups else []
    else:
        found = [f"{name}=" for name in (*groups, *keys_of(command, chosen))]
    return [each for each in found if each.startswith(last)]


def help_text(command: str, arguments: Sequence[str] = ()) -> str:
    """The help of a command: its purpose, groups with their choices, keys with defaults and comments.

    Args:
        command: its name.
        arguments: what else was typed: the keys of choices named there are shown too.
    """
    header, keys = _parts(Path(f"{command}.yaml"))
    groups = groups_of(command)
    for group, choice in list(groups.items()):
        if len(choices_of(group)) == 1:
            # Nothing to choose: keys that several commands share.
            del groups[group]
            shared = textwrap.indent(_parts(Path(group, f"{choice}.yaml"))[1], "  ")
            before, _, own = keys.partition(f"{group}:\n")
            keys = f"{before.rstrip()}\n{group}:\n{shared}\n{own}".strip()
    blocks = [header]
    if groups:
        blocks.append("Groups, * marks the default:\n\n" + "\n".join(_group_lines(groups)))
    if keys:
        blocks.append("Keys with their defaults:\n\n" + textwrap.indent(keys, "  "))
    for group, choice in _overrides(arguments).items():
        if group in groups and choice in choices_of(group):
            header, keys = _parts(Path(group, f"{choice}.yaml"))
            shown = f"{header}\n\n{group}:\n{textwrap.indent(keys, '  ')}"
            blocks.append(f"Keys of {group}={choice}:\n\n{textwrap.indent(shown, '  ')}")
    return "\n\n".join([*blocks, f"{_SETTINGS}{_GROUPS if groups else ''}.", _FOOTER])


def _group_lines(groups: Mapping[str, str]) -> Iterator[str]:
    width = max(len(choice) for group in groups for choice in choices_of(group))
    for group, default in groups.items():
        shown = group
        for choice in sorted(choices_of(group), key=lambda name: name != default):
            header, _ = _parts(Path(group, f"{choice}.yaml"))
            sentence = re.split(r"(?<=\.)\s", header, maxsplit=1)[0].rstrip(".")
            start = f"  {shown:<13}{'*' if choice == default else ' '} {choice:<{width}} "
            yield textwrap.fill(
                " ".join(sentence.split()),
                110,
                initial_indent=start,
                subsequent_indent=" " * len(start),
                break_on_hyphens=False,
            )
            shown = ""
        if group in FILE_GROUPS:
            yield f"  {'':<15}{'FILE.yaml':<{width}} a file of your own"


def _parts(path: Path) -> tuple[str, str]:
    """The comment that heads a file, and its keys without the list of defaults."""
    lines = _text(path).splitlines()
    size = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    header = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:size])
    body = lines[size:]
    if "defaults:" in body:
        start = body.index("defaults:")
        end = next((n for n in range(start + 1, len(body)) if not body[n].startswith("- ")), len(body))
        del body[start:end]
    return header.strip(), "\n".join(body).strip()


def _overrides(arguments: Sequence[str]) -> dict[str, str]:
    return {name: value for name, equals, value in (each.partition("=") for each in arguments) if equals}


def _dotted(loaded: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in loaded.items():
        if name == "defaults":
            continue
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _text(path: Path) -> str:
    return (CONFIG_FOLDER / path).read_text(encoding="utf-8")
