"""``mobilenet-nas COMMAND ...`` or ``python -m nas COMMAND ...``: the commands by one name."""

from __future__ import annotations

import difflib
import runpy
import sys

from nas import __version__
from nas.help import purposes


def main() -> None:
    """Run the command named first, as ``python -m nas.COMMAND`` does; without one, list them.

    Raises:
        SystemExit: with 2 and one line if there is no such command.
    """
    known = purposes()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name == "--version":
        print(f"mobilenet-nas {__version__}")
    elif name in ("-h", "--help"):
        width = max(map(len, known))
        print("mobilenet-nas COMMAND [KEY=VALUE ...]; each explains itself with COMMAND --help\n")
        for command, purpose in known.items():
            print(f"  {command:{width}}  {purpose}")
    elif name in known:
        sys.argv[1:] = arguments
        runpy.run_module(f"nas.{name}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        sys.exit(f"error: there is no command {name!r}{hint} known are: {', '.join(known)}")


if __name__ == "__main__":
    main()
