"""Energy of the processor's packages, from the counters (RAPL) that Linux shows in its powercap folder.

A counter is of everything that a package does, idle cores and other programs included. It is written about
once a millisecond, so a network runs again and again between two readings.

Standard library only: this file also runs on boards, inside the portable kit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
# How long a network runs between two readings.
_SHORTEST_S = 0.2


class EnergyError(RuntimeError):
    """Energy that cannot be read here. The message is the reason."""


class EnergyMeter:
    """Reads what the processor's packages use, for as long as they show it.

    Args:
        folder: where Linux shows its counters.
        say: told in one line when a counter that could be read no longer can be.

    Attributes:
        source: the counters that are read, or why none is, for the record of a session.
    """

    def __init__(self, folder: Path = POWERCAP, say: Callable[[str], None] = lambda line: None) -> None:
        self._say = say
        self._zones: list[Path] = []
        self._used_uj = 0
        try:
            # Other zones are parts of a package, or hold several.
            zones = {zone: _read(zone / "name") for zone in sorted(folder.glob("intel-rapl:*"))}
            packages = {zone: name for zone, name in zones.items() if name.startswith("package")}
            if not packages:
                raise EnergyError(f"no counters of energy in {folder}")
            self._ranges = [_number(zone / "max_energy_range_uj") for zone in packages]
            self._last = [_number(zone / "energy_uj") for zone in packages]
            self._zones = [*packages]
            self.source = f"RAPL, {', '.join(packages.values())}"
        except EnergyError as error:
            self.source = f"not read: {error}"

    def used_mj(self) -> float:
        """Millijoules since the meter was made; to be asked before a counter wraps twice.

        Raises:
            EnergyError: if a counter can no longer be read.
        """
        now = [_number(zone / "energy_uj") for zone in self._zones]
        for before, after, largest in zip(self._last, now, self._ranges, strict=True):
            self._used_uj += after - before if after >= before else after + largest - before
        self._last = now
        return self._used_uj / 1e3

    def inference_mj(self, run: Callable[[], object], shortest_s: float = _SHORTEST_S) -> float | None:
        """Millijoules an inference, the mean of as many as fit; None where energy is not read.

        Args:
            run: a network once.
            shortest_s: how long to run it again and again.
        """
        if not self._zones:
            return None
        try:
            before, start, runs = self.used_mj(), time.monotonic(), 0
            while runs == 0 or time.monotonic() - start < shortest_s:
                run()
                runs += 1
            return (self.used_mj() - before) / runs
        except EnergyError as error:
            self._zones = []
            self.source = f"not read to the end: {error}"
            self._say(f"warning: energy is missing from here on: {error}")
            return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except PermissionError:
        raise EnergyError(f"{path} may be read by root alone") from None
    except OSError as error:
        raise EnergyError(f"{path} cannot be read: {error.strerror}") from None


def _number(path: Path) -> int:
    text = _read(path)
    if not text.isdecimal():
        raise EnergyError(f"{path} holds no number")
    return int(text)
