"""Hardware-aware architecture search for MobileNet-like networks."""

import os
import sys
from types import TracebackType

# As `python -m nas.search`, which is still to be found, or `mobilenet-nas search`: to import all that they
# need takes seconds.
if sys.argv and sys.argv[0].rpartition("/")[2] in ("-m", "mobilenet-nas"):

    def _say_interrupted(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Say Ctrl-C in a line, also before a command has begun."""
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        print("interrupted", file=sys.stderr)
        os._exit(130)

    sys.excepthook = _say_interrupted

import importlib.metadata

if sys.platform == "win32":  # files are locked by fcntl, boards reached through ssh's control sockets
    sys.exit("mobilenet-nas runs on Linux and macOS; on Windows, use it within WSL (wsl --install)")

try:
    __version__ = importlib.metadata.version("mobilenet-nas")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
