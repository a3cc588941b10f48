"""Commands as they are typed, remembered and printed: what is printed runs when it is typed again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from search_spaces.errors import masked

# What a later command needs to be about the same thing.
_CARRIED = ("hardware", "runtime", "search_space", "profile.folder")

DEFAULT_RUNTIME = "onnxruntime"

_typed: list[str] = []


def remember(words: Sequence[str]) -> None:
    """Keep the command that is running, word by word as it was typed."""
    _typed[:] = words


def typed(section: str) -> str | None:
    """The first key that was typed of a section of settings, or the section itself; None if none was."""
    keys = (word.partition("=")[0] for word in _typed)
    return next((key for key in keys if key == section or key.startswith(f"{section}.")), None)


def command_line() -> str:
    """The command as it was typed, quoted for a shell: typed again it does the same.

    Passwords are masked: this is kept in studies and shown in reports. They belong into the environment
    (``PGPASSWORD``) or into a file (``~/.pgpass``).
    """
    return shlex.join(masked(word) for word in _typed)


def measuring_line(
    command: str, hardware: str, runtime: str, precision: str, threads: int, **settings: object
) -> str:
    """A command to print that measures, or is about what was measured, on one hardware and runtime.

    Args:
        command: ``profile``, ``validate`` or ``search``.
        hardware: name of the hardware config.
        runtime: name of what runs the layers; as all that follows, left out where it is the default.
        precision: ``fp32`` or ``int8``.
        threads: threads within an operator.
        settings: further ones, see :func:`shell_line`.
    """
    return shell_line(
        f"nas.{command}",
        carry=True,
        hardware=hardware,
        runtime=runtime if runtime != DEFAULT_RUNTIME else None,
        runtime__precision=precision if precision != "fp32" else None,
        hardware__threads=threads if threads != 1 else None,
        **settings,
    )


def board_lines(hardware: str, runtime: str, precision: str, threads: int) -> str:
    """The two commands that measure a board: over SSH and by kit.

    Args:
        hardware: see :func:`measuring_line`, as all that follows.
        runtime: name of what runs the layers.
        precision: ``fp32`` or ``int8``.
        threads: threads within an operator.
    """
    over_ssh, kit = (
        measuring_line("profile", hardware, runtime, precision, threads, **{key: value})
        for key, value in (("hardware.host", "USER@BOARD"), ("profile.kit", f"{hardware}-kit.zip"))
    )
    return f"{over_ssh}, or without network: {kit}"


def shell_line(command: str, carry: bool = False, **settings: object) -> str:
    """A command to print for people to type, quoted for a shell.

    Args:
        command: e.g. ``nas.export``.
        carry: repeat what was typed of hardware, runtime and search space, in place of settings of the same
            key: a file of one's own has a path, a board a host.
        settings: values by key, with ``__`` for the dot; None leaves a key out.
    """
    words = {
        key.replace("__", "."): masked(str(value)) for key, value in settings.items() if value is not None
    }
    for word in _typed if carry else ():
        key, equals, value = word.partition("=")
        if equals and key.startswith(tuple(_CARRIED)) and not key.startswith("-"):
            words[key] = value
    return shlex.join(["python", "-m", command, *(f"{key}={value}" for key, value in words.items())])


def file_word(path: Path | str) -> str:
    """A file's name for a command to print, quoted for a shell; no program takes it for an option.

    Args:
        path: of the file.
    """
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))
