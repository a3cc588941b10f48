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
    """Reads what the processor's packages have used since it was made.

    Args:
        folder: where Linux shows its counters.

    Attributes:
        domains: names of the counters, e.g. ``package-0``.

    Raises:
        EnergyError: if there are none, or this user may not read them.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._zones: list[Path] = []
        names: list[str] = []
        for zone in sorted(folder.glob("intel-rapl:*")):
            name = _read(zone / "name")
            if name.startswith("package"):  # the others are parts of it
                self._zones.append(zone)
                names.append(name)
        if not self._zones:
            raise EnergyError(f"no counters of energy in {folder}")
        self.domains = tuple(names)
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = self._counters()
        self._used_uj = 0

    def used_mj(self) -> float:
        """Millijoules since the meter was made; to be asked before a counter wraps twice."""
        now = self._counters()
        for before, after, largest in zip(self._last, now, self._ranges, strict=True):
            self._used_uj += after - before if after >= before else after + largest - before
        self._last = now
        return self._used_uj / 1e3

    def inference_mj(self, run: Callable[[], object], shortest_s: float = _SHORTEST_S) -> float:
        """Millijoules an inference, the mean of as many as fit.

        Args:
            run: a network once.
            shortest_s: how long to run it again and again.
        """
        before, start, runs = self.used_mj(), time.monotonic(), 0
        while runs == 0 or time.monotonic() - start < shortest_s:
            run()
            runs += 1
        return (self.used_mj() - before) / runs

    def _counters(self) -> list[int]:
        return [_number(zone / "energy_uj") for zone in self._zones]


def energy_source(folder: Path = POWERCAP) -> str:
    """The counters that energy is read from here, or the reason why it is not, for the record of a session.

    Args:
        folder: where Linux shows its counters.
    """
    try:
        return f"RAPL, {', '.join(EnergyMeter(folder).domains)}"
    except EnergyError as error:
        return f"not read: {error}"


def energy_meter(folder: Path = POWERCAP) -> EnergyMeter | None:
    """A meter, None where energy cannot be read (:func:`energy_source` says why).

    Args:
        folder: where Linux shows its counters.
    """
    try:
        return EnergyMeter(folder)
    except EnergyError:
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
