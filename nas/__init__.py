"""Hardware-aware architecture search for MobileNet-like networks."""

import os
import sys
from types import TracebackType

# As `python -m nas.search`, which is still to be found, or `mobilenet-nas search`: to import all that they
# need takes seconds.
if sys.argv and sys.argv[0].rpartition("/")[2] in ("-m", "mobilenet-nas"):

    def _say_in_a_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Say in a line what ends a command before it has begun: Ctrl-C, no place for temporary files."""
        from nas.disk import NO_TEMPORARY, cannot_write

        if isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
            os._exit(130)
        if isinstance(error, OSError) and NO_TEMPORARY in str(error):
            print(f"error: {cannot_write(error, 'a temporary file')}", file=sys.stderr)
            os._exit(2)
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = _say_in_a_line

import importlib.metadata

if sys.platform == "win32":  # files are locked by fcntl, boards reached through ssh's control sockets
    sys.exit("mobilenet-nas runs on Linux and macOS; on Windows, use it within WSL (wsl --install)")

try:
    __version__ = importlib.metadata.version("mobilenet-nas")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
