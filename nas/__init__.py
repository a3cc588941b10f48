"""Hardware-aware architecture search for MobileNet-like networks."""

import importlib.metadata
import sys

if sys.platform == "win32":  # files are locked by fcntl, boards reached through ssh's control sockets
    sys.exit("mobilenet-nas runs on Linux and macOS; on Windows, use it within WSL (wsl --install)")

try:
    __version__ = importlib.metadata.version("mobilenet-nas")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
