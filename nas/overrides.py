"""Typed words made into Hydra's overrides: values mean what they say, whatever characters they hold.

Hydra has a grammar of its own for values: a comma asks for a sweep, ``$`` for an interpolation, and a
bracket, a tilde or an umlaut is a syntax error. Settings that take text or a path are quoted for it here.
Files of one's own (``search_space=my.yaml``) are never Hydra configurations: they are read as plain data,
checked against the schema of their group, and know no directives, no interpolations, no keys of other groups.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nas.help import FILE_GROUPS, choices_of, groups_of
from nas.settings import ACCURACY_SCHEMAS, RENAMED_SAMPLERS, Chosen, HardwareConfig
from nas.shell import remember
from search_spaces.errors import InputError, is_text
from search_spaces.gate import MAX_YAML_BYTES, Gate, JsonObject
from search_spaces.space import SearchSpace

_ENDINGS = (".yaml", ".yml")
# Values that need no quoting in Hydra's grammar and that no shell or grammar takes for something else.
_HARMLESS = re.compile(r"[A-Za-z0-9_./:@+-]*")
# Values that the grammar takes for a number or a truth: a folder may be called so.
_TYPED = re.compile(r"true|false|[+-]?(?:nan|inf|[0-9._]+(?:e[+-]?[0-9]+)?)", re.IGNORECASE)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_LISTED = re.compile(r"\[(.*)\]", re.DOTALL)
# Of another machine: its home folder is not this one's.
_ELSEWHERE = ("hardware.python", "hardware.host")
# What a dataclass cannot call a field.
_RENAMED = {"profile.import": "profile.import_file", "validate.import": "validate.import_file"}

_numbers = itertools.count(1)


def overrides_of(
    command: str, schema: type, arguments: Sequence[str], positional: Sequence[str] = ()
) -> list[str]:
    """Hydra's overrides and options for what was typed: the overrides first, for Hydra takes none behind.

    Args:
        command: its YAML file in ``conf/``, without its ending.
        schema: what that file is checked against.
        arguments: as typed, options of Hydra's anywhere among them.
        positional: keys whose values may stand alone, in this order.

    Raises:
        InputError: for an option or a key that does not exist, and for a file of one's own that cannot be
            used.
    """
    _check_text(arguments)
    remember(["python", "-m", _module(command), *arguments])
    kinds, groups = key_kinds(schema), groups_of(command)
    typed = vars(_Words().parse_intermixed_args(arguments))
    words, several = typed.pop("words"), typed["multirun"]
    unnamed = iter(positional)
    result: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            key, value = next(unnamed, ""), word
            if not key:
                raise InputError(f"{word!r} is no setting{_meant(word, kinds, groups)}")
        key = _RENAMED.get(key, key)
        bare = key.lstrip("+~")
        if not bare.startswith("hydra"):
            _check_key(command, key, kinds, groups)
        if key == "sampler":
            value = _sampler(value)
        if key in groups and "/" in value and not (key in FILE_GROUPS and _names_files(value)):
            # Hydra would compose any YAML file it leads to, directives included.
            ready = ", ".join(choices_of(key))
            own = "; a file of one's own ends in .yaml" if key in FILE_GROUPS else ""
            raise InputError(f"{key}={value} is a path; ready choices are {ready}{own}")
        if key in groups and not (key in FILE_GROUPS and _names_files(value)):
            _check_choice(key, value, several)
        if key in FILE_GROUPS and _names_files(value):
            options = [_own_file(key, each) for each in _files(value, several)]
            result.append(f"{key}={','.join(options)}")
        else:
            result.append(f"{key}={_quoted(key, value, kinds.get(key, ''), several)}")
    given = {f"--{name.replace('_', '-')}": value for name, value in typed.items() if value}
    return [*result, *(name if value is True else f"{name}={value}" for name, value in given.items())]


def key_kinds(schema: type) -> dict[str, str]:
    """Every key of a command with its kind: ``text``, ``texts`` (a list), ``other``.

    Keys of groups that are free (a search space) are not listed.
    """
    found: dict[str, str] = {}
    for field in dataclasses.fields(schema):
        hint = get_type_hints(schema)[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= {f"{field.name}.{key}": kind for key, kind in key_kinds(hint).items()}
        elif field.name == "accuracy" and hint is Chosen:
            for node in ACCURACY_SCHEMAS.values():
                found |= {f"accuracy.{key}": kind for key, kind in key_kinds(node).items()}
        elif hint is not Chosen:
            found[field.name] = _kind(hint)
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the known name that is nearest, or nothing."""
    names = list(known)
    last = {each.rsplit(".", 1)[-1]: each for each in names}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:
        found = difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1, cutoff=0.7)
        close = [last[each] for each in found]
    return f"; did you mean {close[0]}?" if close else ""


def read_own_file(group: str, path: Path) -> JsonObject:
    """A search space or a board of one's own, as plain data that fits its group.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    gate = Gate(str(path))
    data = gate.mapping(gate.yaml(gate.text(path, MAX_YAML_BYTES)))
    for text in _texts(data):
        if "${" in text:
            gate.fail(f"holds {text!r}: values are read as they stand, interpolations are not known here")
    if group == "hardware":
        known = [field.name for field in dataclasses.fields(HardwareConfig)]
        for name in data:
            if name not in known:
                gate.fail(f"has an unknown key {name!r}{nearest(name, known)} (known: {', '.join(known)})")
        try:
            OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(HardwareConfig), data))
        except (OmegaConfBaseException, InputError) as error:
            gate.fail(f"is no board: {str(error).splitlines()[0]}")
    else:
        try:
            SearchSpace.from_dict(data)
        except InputError as error:
            gate.fail(f"is no search space: {error}")
    return data


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no text: studies, pages and notes of weights repeat what was typed.

    Raises:
        InputError: naming the word.
    """
    for word in arguments:
        if not is_text(word):
            encoding = sys.getfilesystemencoding()
            remedy = "rename it" if encoding == "utf-8" else "rename it, or set PYTHONUTF8=1"
            raise InputError(f"{word} is no text in {encoding}: {remedy}")


class _Words(argparse.ArgumentParser):
    """The words of a command line: settings, and those of Hydra's options that are of use here."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.add_argument("words", nargs="*")
        self.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
        info = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
        self.add_argument("--info", "-i", nargs="?", const="all", choices=info)
        self.add_argument("--package", "-p")
        for flag in (("--multirun", "-m"), ("--resolve",), ("--hydra-help",)):
            self.add_argument(*flag, action="store_true")

    def error(self, message: str) -> NoReturn:
        """One line, as of any other input.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message}; settings are typed without dashes: KEY=VALUE")


def _meant(word: str, kinds: Mapping[str, str], groups: Mapping[str, str]) -> str:
    if word in kinds or word in groups:
        return f": give it a value, {word}=VALUE"
    chosen = [f"{group}={word}" for group in groups if word in choices_of(group)]
    return f"; did you mean {chosen[0]}?" if chosen else ": type KEY=VALUE"


def _module(command: str) -> str:
    inside = Path(__file__).parent / f"{command}.py"
    return f"nas.{command}" if inside.is_file() else f"tools.{command}"


def _kind(hint: object) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = {_kind(each) for each in get_args(hint) if each is not type(None)}
        return kinds.pop() if len(kinds) == 1 else "other"
    if get_origin(hint) is list:
        return "texts" if get_args(hint) == (str,) else "other"
    return "text" if hint is str else "other"


def _check_key(command: str, key: str, kinds: Mapping[str, str], groups: Mapping[str, str]) -> None:
    bare = key.lstrip("+~")
    top = bare.split(".", 1)[0].split("@", 1)[0]
    known = bare in kinds or bare in groups or bare.startswith(("search_space.", "hydra"))
    if known and bare == key:
        return
    # A part of a group, e.g. `search`, or a list's element.
    if bare == key and any(each.startswith(f"{bare}.") for each in kinds):
        return
    if known:
        raise InputError(f"{key}: settings are changed without a sign before them: {bare}=VALUE")
    hint = nearest(bare, [*kinds, *groups])
    listed = ", ".join(each for each in kinds if each.startswith(f"{top}.")) or ", ".join(
        dict.fromkeys([*groups, *(each.split(".", 1)[0] for each in kinds)])
    )
    raise InputError(
        f"there is no setting {bare}{hint or ';'} known: {listed}; "
        f"python -m {_module(command)} --help explains them"
    )


def _check_choice(group: str, value: str, several: bool) -> None:
    known = choices_of(group)
    for each in map(str.strip, _unquoted(value).split(",") if several else [_unquoted(value)]):
        if each not in known:
            own = ", or a YAML file of your own" if group in FILE_GROUPS else ""
            raise InputError(
                f"there is no {group}={each} ({group}/{each}.yaml){nearest(each, known) or ';'} "
                f"known: {', '.join(known)}{own}"
            )


def _unquoted(value: str) -> str:
    if _QUOTED.fullmatch(value):
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def _names_files(value: str) -> bool:
    return _unquoted(value).endswith(_ENDINGS)


def _files(value: str, several: bool) -> list[str]:
    """One file, or those of a sweep."""
    value = _unquoted(value)
    if several and not Path(value).expanduser().is_file():
        return re.split(r",(?=[^,]*\.ya?ml(?:,|$))", value) if "," in value else [value]
    return [value]


def _own_file(group: str, value: str) -> str:
    """The option by which Hydra knows a file of one's own from now on."""
    path = Path(_unquoted(value)).expanduser()
    if not path.is_file():
        others = ", ".join(choices_of(group))
        raise InputError(f"{group}={value}: there is no such file; ready choices are {others}")
    data = read_own_file(group, path)
    option = f"own_file_{next(_numbers)}"
    ConfigStore.instance().store(group=group, name=option, node=data)
    return option


def _sampler(value: str) -> str:
    """A sampler, or several to try one after the other, by today's names."""
    names = value.split(",")
    for old in [each for each in names if each in RENAMED_SAMPLERS]:
        print(f"warning: sampler={old} is called sampler={RENAMED_SAMPLERS[old]} now", file=sys.stderr)
    return ",".join(RENAMED_SAMPLERS.get(each, each) for each in names)


def _quoted(key: str, value: str, kind: str, several: bool) -> str:
    """The value so that Hydra reads it as it was typed."""
    if kind == "text" and value not in ("null", "") and not _QUOTED.fullmatch(value):
        if several and "," in value and _parses(key, value):
            return value  # a sweep
        if value.startswith("~") and key not in _ELSEWHERE:
            with contextlib.suppress(RuntimeError):  # no such user: a name that begins so
                value = str(Path(value).expanduser())
        return value if _HARMLESS.fullmatch(value) and not _TYPED.fullmatch(value) else literal(value)
    if kind == "texts" and (listed := _LISTED.fullmatch(value)):
        parts = [each.strip() for each in _entries(listed[1]) if each.strip()]
        return f"[{','.join(_quoted(key, each, 'text', False) for each in parts)}]"
    return value if _parses(key, value) else literal(value)


def _entries(text: str) -> list[str]:
    """Entries of a list; a comma within the name of a file or folder that is there parts nothing."""
    pieces = text.split(",")
    found = []
    while pieces:
        count = len(pieces)
        while count > 1 and not _is_there(",".join(pieces[:count]).strip()):
            count -= 1
        found.append(",".join(pieces[:count]))
        del pieces[:count]
    return found


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _parses(key: str, value: str) -> bool:
    try:
        OverridesParser.create().parse_override(f"{key}={value}")
    except (OverrideParseException, ValueError):  # of a number of five thousand digits
        return False
    return True


def literal(value: str) -> str:
    """A text in the quotes of Hydra's grammar, whatever characters it holds.

    Args:
        value: the text.
    """
    # In quotes Hydra knows two escapes: the quote itself, and what begins an interpolation.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return "'" + re.sub(r"(\\*)\$\{", r"\1\1\\${", escaped) + "'"


def _texts(data: object) -> Iterable[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from _texts(value)
