"""The end of a command that is told to stop: by Ctrl-C, by a service manager, by a terminal that closes.

    ending = Ending()
    try: ...
    except KeyboardInterrupt:
        print(ending.how)
        sys.exit(ending.code)

Needs Python 3.9 alone: this file also runs on boards, inside the portable kit.
"""

from __future__ import annotations

import signal
from types import FrameType


class Ending:
    """Takes SIGTERM and SIGHUP for Ctrl-C: temporary files go, locks are given back, workers are ended.

    Attributes:
        how: it was told, in a word.
        code: exit code, as shells have it.
    """

    def __init__(self) -> None:
        self.how, self.code = "interrupted", 128 + signal.SIGINT
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.how, self.code = "terminated", 128 + number
        raise KeyboardInterrupt
