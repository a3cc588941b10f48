"""Saving in one step, whenever the process dies, the power goes or the disk is full; one writer at a time.

    write_atomically(path, text)                    # the old file or the new one
    with hold(folder, "the latency table"):         # one process at a time
        finish(folder)                              # what a killed process had decided to do
        write_together(folder, {"table.csv": rows, "table.json": header}, moved={"partial": "samples"})

Several files change together by a redo log: the new ones are written beside the old ones and brought to the
disk, then one rename puts the list of what is to be moved into place. From then on the change counts,
and whoever comes next finishes it; before, nothing has changed.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from nas.disk import cannot_write, remedy
from search_spaces.errors import InputError, masked, printable, shorten
from search_spaces.gate import MEGABYTE, Gate, is_plain_name

_COMMIT = ".commit.json"
# Also the wide signs of East Asian keyboards.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_POLL_INTERVAL_S = 0.2


class SaveError(InputError):
    """Something that cannot be written. The message names the file and the reason."""


class HeldError(InputError):
    """Something that another process is writing. The message says which one."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, on the disk, and nothing between.

    Raises:
        SaveError: if it cannot be written; the old one is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(temporary) as descriptor:
            try:
                _fill(descriptor, content)
                temporary.replace(path)
            except OSError:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        _synchronise(path.parent)


def write_together(
    folder: Path,
    contents: Mapping[str, str | bytes],
    moved: Mapping[str, str] | None = None,
    removed: Iterable[str] = (),
) -> None:
    """Change several files of a folder at once: all of it happens, or nothing.

    Args:
        folder: made if it is not there.
        contents: new files by name.
        moved: files of the folder that get other names; they must be on the disk already.
        removed: files of the folder that go.

    Raises:
        SaveError: if they cannot be written; nothing has changed then.
    """
    moves = {f".{name}.new": name for name in contents}
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        commit = folder / f"{_COMMIT}.tmp"
        try:
            for name, content in contents.items():
                with saving(folder / name):
                    _write(folder / f".{name}.new", content)
            _write(commit, json.dumps({"moved": moves | dict(moved or {}), "removed": list(removed)}))
            commit.replace(folder / _COMMIT)
        except (OSError, SaveError):
            for name in (*moves, commit.name):
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
            raise
        _synchronise(folder)
    finish(folder)


def is_half_written(folder: Path) -> bool:
    """True if a process died over :func:`write_together`, once it had decided what to do."""
    return (folder / _COMMIT).exists()


def finish(folder: Path) -> None:
    """Finish what :func:`write_together` had decided when its process died.

    Raises:
        SaveError: if the folder cannot be written, or the list of changes is not one of ours.
    """
    path = folder / _COMMIT
    if not is_half_written(folder):
        return
    gate = Gate(str(path), SaveError, "delete it to go on without the last change")
    changes = gate.mapping(gate.json(gate.text(path, MEGABYTE)))
    moves = gate.mapping(changes.get("moved"), "moved")
    removed = gate.sequence(changes.get("removed"), "removed", 100)

    def checked(name: object) -> Path:
        # It may have come with a folder from elsewhere.
        if not isinstance(name, str) or not is_plain_name(name.removeprefix(".")):
            gate.fail(f"names {name!r}, which is no file of this folder")
        return folder / name

    moving = [(checked(name), checked(new_name)) for name, new_name in moves.items()]
    removing = [checked(name) for name in removed]
    with saving(folder):
        for before, after in moving:
            with suppress(FileNotFoundError):
                before.replace(after)
        for each in removing:
            each.unlink(missing_ok=True)
        _synchronise(folder)
        path.unlink(missing_ok=True)
        _synchronise(folder)


def check_output(
    path: Path, setting: str, overwrite: bool = False, size_bytes: int = 0, otherwise: str = "move it away"
) -> None:
    """Refuse an output before hours are spent on what is to be written there.

    Args:
        path: the file.
        setting: that names it, for the message.
        overwrite: whether a file that is there may be replaced.
        size_bytes: about how much will be written.
        otherwise: what to do about a file that may not, besides naming another.

    Raises:
        SaveError: if it is a folder, exists, cannot be written, or there is no room for it.
    """
    try:
        if path.is_dir():
            raise SaveError(f"{setting}={path} is a folder: name a file in it")
        if path.exists() and not path.is_file():
            raise SaveError(f"{setting}={path} is no file: nothing is written in its place")
        if path.exists() and not overwrite:
            raise SaveError(f"{path} exists already: give another {setting}, or {otherwise}")
        parent = _check_place(path, path.absolute().parent, setting)
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise SaveError(f"{setting}={path} cannot be written: {error.strerror}{remedy(error)}") from None
    if free < size_bytes:
        needed, left = size_bytes / MEGABYTE, free / MEGABYTE
        raise SaveError(
            f"{setting}={path} needs about {needed:,.1f} MB, {parent} has {left:,.1f} left: make room there, "
            "or name another place"
        )


def check_folder(folder: Path, setting: str, overwrite: bool = False) -> None:
    """Refuse a folder before hours are spent on what is to be written in it.

    Args:
        folder: that files are to go into.
        setting: that names it, for the message.
        overwrite: whether files in it may be replaced.

    Raises:
        SaveError: if it is a file, cannot be written, or holds something that may not be replaced.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise SaveError(f"{setting}={folder} is a file: name a folder")
        if not overwrite and folder.exists() and any(folder.iterdir()):
            raise SaveError(f"{folder} holds files already: name another folder in {setting}, or empty it")
        _check_place(folder, folder.absolute(), setting)
    except OSError as error:
        raise SaveError(f"{setting}={folder} cannot be written: {error.strerror}{remedy(error)}") from None


def check_apart(outputs: Mapping[str, Path | None]) -> None:
    """Refuse one place for several outputs, of which the last one would be left.

    Args:
        outputs: by the settings that name them; None where there is none.

    Raises:
        SaveError: naming two settings.
    """
    seen: dict[Path, str] = {}
    for setting, path in outputs.items():
        if path is not None and (other := seen.setdefault(path.resolve(), setting)) != setting:
            raise SaveError(f"{other} and {setting} both name {path}: give each a place of its own")


def _check_place(path: Path, folder: Path, setting: str) -> Path:
    """The folder that is there already of those that a file is to lie in.

    Raises:
        OSError: if a name is too long, or the folder cannot be written.
        SaveError: if it is no folder.
    """
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SaveError(f"{setting}={path} cannot be written: {folder} is no folder that can be written to")
    # A name as it is while the file is being written.
    longest = max((len(os.fsencode(each)) for each in path.absolute().relative_to(folder).parts), default=0)
    if 0 < os.pathconf(folder, "PC_NAME_MAX") < longest + len("..tmp"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    with tempfile.TemporaryFile(dir=folder):  # what permissions do not say: root's, of kernels' folders
        return folder


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Say in one line what could not be written, and why.

    Raises:
        SaveError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise SaveError(cannot_write(error, path)) from None


@contextmanager
def hold(
    folder: Path,
    what: str,
    say: Callable[[str], None] | None = None,
    name: str = ".lock",
    remedy: str = "wait for it to end",
) -> Iterator[None]:
    """Keep other processes from writing a folder; a process that died holds nothing any longer.

    Args:
        folder: made if it is not there.
        what: what is held, for the message.
        say: waits for the other process and tells who that is; without it the second one is refused.
        name: of the lock file.
        remedy: what the one that is refused is told to do.

    Raises:
        HeldError: if another process holds it, saying which.
    """
    path = folder.resolve() / name  # the name itself may be a link out of the folder
    key = (os.getpid(), path)
    if key in _held:  # by this process, further out
        yield
        return
    descriptor = _locked(path, f"{what} in {folder}", say, remedy)
    try:
        note_holder(descriptor)
        _held.add(key)
        yield
    finally:
        _held.discard(key)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


_held: set[tuple[int, Path]] = set()


def _locked(path: Path, what: str, say: Callable[[str], None] | None, remedy: str) -> int:
    """The descriptor of a lock file that this process holds."""
    told = False
    while True:
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            # The kernel lets go of it when the process ends, however it ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = holder(descriptor)
            os.close(descriptor)
            if say is None:
                raise HeldError(f"{what} is in use by {who}: {remedy}") from None
            if not told:
                say(f"waiting for {who}, which uses {what}")
                told = True
            time.sleep(_POLL_INTERVAL_S)
            continue
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)


def note_holder(descriptor: int) -> None:
    """Write into a lock file who holds it."""
    command = masked(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:200]
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    note = {"process": os.getpid(), "host": socket.gethostname(), "command": command, "since": since}
    with suppress(OSError):  # a full disk keeps nobody from holding a lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)


def holder(descriptor: int) -> str:
    """Who holds a lock file, in words."""
    try:
        note = json.loads(os.pread(descriptor, 10_000, 0))
        since = str(note["since"])[:19].replace("T", " ")
        return shorten(f"process {note['process']} on {note['host']} ({note['command']}, since {since})")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "another process"


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """The descriptor of a file that no other process is filling; it waits for one that is."""
    # Never through a link nor into a pipe, which may have come with a folder from elsewhere.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        descriptor = os.open(path, flags, 0o644)
        try:
            with suppress(OSError):  # some network drives know no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """True unless whoever held the file before has moved it into place, or taken it away."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _fill(descriptor: int, content: str | bytes) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        file.truncate()
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(descriptor)


def _write(path: Path, content: str | bytes) -> None:
    with _alone(path) as descriptor:
        _fill(descriptor, content)


def _synchronise(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def spreadsheet_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula, and that moves no cursor where the file is shown."""
    text = printable(text, kept="\t\r\n")
    return f"'{text}" if text.startswith(_FORMULA) else text


def markdown_text(text: str) -> str:
    """A text as one line of Markdown that shows it as it is: no markup, no HTML, no new cell."""
    line = printable(" ".join(text.split()))
    return "".join(f"\\{each}" if each in "\\`*[]<>|&#!" else each for each in line)


def within(folder: Path, *names: str) -> Path:
    """The place of a file or folder in a folder that may have come from elsewhere, with links in it.

    Args:
        folder: that nothing is to be written out of.
        names: of folders in it, and of the file.

    Raises:
        SaveError: if it leads out of the folder.
    """
    path = folder.joinpath(*names)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise SaveError(f"{path} leads out of {folder}: nothing is written through it; move the link away")
    return path
