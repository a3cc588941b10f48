"""Processes that die just before one of their file operations: for tests of what they leave behind.

python -m tools.dying 7 results nas.search hardware=rpi4     # dies before the 7th change below results/
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

# Renames and removals, and openings for writing.
_CHANGES = {"os.rename", "os.remove", "os.truncate", "os.mkdir"}
DIED = 137


def die_before(number: int, folder: Path) -> None:
    """Let this process end without a word before its ``number``-th change of files in a folder."""
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        writes = event in _CHANGES or (event == "open" and _for_writing(arguments[1], arguments[2]))
        if writes and _path(arguments[0]).startswith(str(folder)):
            count += 1
            if count == number:
                os._exit(DIED)

    sys.addaudithook(watch)


def _path(given: object) -> str:
    """Where an operation takes place; of a file that is open already, where that one lies."""
    if isinstance(given, int):
        given = Path("/proc/self/fd", str(given)).readlink()
    assert isinstance(given, str | bytes | os.PathLike)
    return str(Path(os.fsdecode(given)).absolute())


def _for_writing(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def run_dying(work: Callable[[], object], number: int, folder: Path) -> bool:
    """Do some work in a process of its own that dies before a change of files; whether it died.

    Args:
        work: what is done.
        number: of the change before which it dies, from 1.
        folder: whose files count.

    Raises:
        AssertionError: if the process ended in another way than by dying or by finishing.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_before(number, folder)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, DIED)
    return code == DIED


def main() -> None:
    """Run a command that dies; the arguments are the number, the folder, the module and what it is told."""
    number, folder, module, *arguments = sys.argv[1:]
    die_before(int(number), Path(folder).absolute())
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
