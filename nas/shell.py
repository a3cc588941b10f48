"""Commands as they are typed, remembered and printed: what is printed runs when it is typed again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from search_spaces.errors import masked

# What a later command needs to be about the same thing.
_CARRIED = ("hardware", "runtime", "search_space", "profile.folder")

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
