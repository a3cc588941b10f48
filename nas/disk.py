"""Lines on what a disk refuses: which file, why, what to do.

Needs Python 3.9 alone: this file also runs on boards, inside the portable kit.
"""

from __future__ import annotations

import errno
from pathlib import Path

# What a disk says, and what to do then; without the name of a file anything else is a fault of ours.
DISK_ERRORS = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EROFS: "name a place that can be written to",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EIO: "look after the disk",
    errno.EFBIG: "name a place on another file system",
}
# Python says so where no file can be made in any place for temporary ones.
NO_TEMPORARY = "No usable temporary directory"
_REMEDIES = {
    **DISK_ERRORS,
    errno.EISDIR: "move the folder away",
    errno.ELOOP: "move the link away",
    errno.ENXIO: "delete it, it is no file",
}


def cannot_write(error: OSError, path: Path | str, doing: str = "write") -> str:
    """A line on a file that could not be written: why, and what to do.

    Args:
        error: of the system.
        path: what was being written, where the error does not say.
        doing: what was tried, where it may have been something else.
    """
    # Of a file that is moved, the one in whose place it was to come.
    file = error.filename2 or error.filename or path
    return f"cannot {doing} {file}: {error.strerror or error}{remedy(error)}"


def remedy(error: OSError) -> str:
    """Advice to be put behind what was refused; empty where nothing is known."""
    what_to_do = _REMEDIES.get(error.errno or 0)
    if NO_TEMPORARY in str(error):
        what_to_do = "make room there, or set TMPDIR to another place"
    return f"; {what_to_do}, then type the same command again" if what_to_do else ""
