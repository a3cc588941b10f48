"""Hardware-aware architecture search for MobileNet-like networks."""

import importlib.metadata

try:
    __version__ = importlib.metadata.version("mobilenet-nas")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
