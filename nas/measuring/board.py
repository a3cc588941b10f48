"""Runs on the board: measures what a kit holds and writes a result file. ``python3 rpi4-kit.zip``.

Needs Python 3.9, numpy and the runtime, nothing else. The kit is a zip file that Python runs as it is:
this file, ``nas.measuring.rounds`` (the same interleaved rounds as everywhere), ``nas.measuring.conditions``,
and the graphs without their weights, which are made here from a seed. Every round is on disk before the
next one begins: after a power cut the same command goes on where it stopped.

On a Raspberry Pi, measuring pauses above a temperature limit, rounds in which the board was throttled
do not count, and under-voltage is warned of.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from nas.disk import DISK_ERRORS, cannot_write
from nas.ending import Ending
from nas.measuring import conditions
from nas.measuring.energy import EnergyMeter

if TYPE_CHECKING:  # numpy may be missing on the board, which is to be said in one line
    from nas.measuring.models import WeightShape

RESULT_SCHEMA = 1
MANIFEST = "manifest.json"
COOL_BY_C = 5.0
PAUSE_S = 10.0
LONGEST_PAUSE_S = 30 * 60.0

# Bits of `vcgencmd get_throttled` (Raspberry Pi documentation): now; 16 bits further up: since boot.
THROTTLED_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
_SYSFS_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")


class KitSubject(TypedDict, total=False):
    """A layer or network of a kit: where its graph lies in it, and which weights that lacks; or a reason.

    The reason is why the converter refused it where the kit was made.
    """

    graph: str
    weights: list[WeightShape]
    refused: str


class Manifest(TypedDict, total=False):
    """The manifest of a kit; kits of older versions lack some of it."""

    kit: str
    hardware: str
    runtime: str
    precision: str
    threads: int
    protocol: int
    rounds: int
    precise: list[str]
    seed: int
    temperature_limit_c: float
    affinity: list[int]
    anchor: str
    groups: list[list[str]]
    networks: dict[str, dict[str, object]]
    subjects: dict[str, KitSubject]


class BoardError(RuntimeError):
    """A failure that stops measuring on the board. The message is one line that says what to do."""


def decode_throttled(bits: int) -> dict[str, list[str]]:
    """The names of the set bits, those that hold now and those seen since boot."""
    return {
        "now": [name for bit, name in THROTTLED_BITS.items() if bits >> bit & 1],
        "since_boot": [name for bit, name in THROTTLED_BITS.items() if bits >> (bit + 16) & 1],
    }


def read_throttled() -> int | None:
    """The bits of ``vcgencmd get_throttled``, None where there is neither that nor its kernel file."""
    command = shutil.which("vcgencmd")
    if command:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(  # noqa: S603  # the board's own tool, found on its own PATH
                [command, "get_throttled"], capture_output=True, text=True, timeout=10, check=False
            )
            found = re.search(r"throttled=(0x[0-9a-fA-F]+)", done.stdout)
            if found:
                return int(found[1], 16)
    with contextlib.suppress(OSError, ValueError):
        return int(_SYSFS_THROTTLED.read_text().strip(), 16)
    return None


class Watch:
    """Reads the conditions after each round, and holds the next one back while the board is hot.

    Args:
        limit_c: no round begins above this temperature.
        report: takes lines for the user.
        pause: waits for some seconds.
    """

    def __init__(
        self, limit_c: float, report: Callable[[str], None], pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._limit_c = limit_c
        self._report = report
        self._pause = pause
        self._bits = read_throttled() or 0
        self._warned = False
        if self._bits & 0x10001:
            self._warn_of_voltage()

    def snapshot(self) -> dict[str, object]:
        """Conditions at the end of a round; ``throttled`` lists what disturbed it."""
        measured = conditions.snapshot()
        state: dict[str, object] = dict(measured)
        bits = read_throttled()
        if bits is not None:
            before, self._bits = self._bits, bits
            # Throttled when the round began, when it ended, or for a moment in between.
            disturbed = before | bits | (bits & ~before) >> 16
            throttled = decode_throttled(disturbed)["now"]
            state["throttled"] = throttled
            state["throttled_since_boot"] = decode_throttled(bits)["since_boot"]
            if "under-voltage" in throttled:
                self._warn_of_voltage()
        self.cool_down(measured["temperature_c"])
        return state

    def cool_down(self, temperature_c: float | None) -> None:
        """Wait until the board is some degrees below the limit, if it is above.

        Raises:
            BoardError: if it does not cool down.
        """
        if temperature_c is None or temperature_c <= self._limit_c:
            return
        target, waited_s = self._limit_c - COOL_BY_C, 0.0
        self._report(f"{temperature_c:.0f} °C: pausing until {target:.0f} °C")
        while temperature_c is not None and temperature_c > target:
            if waited_s >= LONGEST_PAUSE_S:
                raise BoardError(
                    f"the board did not cool below {target:.0f} °C in {LONGEST_PAUSE_S / 60:.0f} minutes: "
                    "cool it and run the same command again; what was measured is kept"
                )
            self._pause(PAUSE_S)
            waited_s += PAUSE_S
            temperature_c = conditions.snapshot()["temperature_c"]
        self._bits = read_throttled() or 0  # what happened while pausing disturbed no round

    def _warn_of_voltage(self) -> None:
        if not self._warned:
            self._report("warning: under-voltage; use the board's own power supply, or rounds will not count")
            self._warned = True


def run(kit_path: Path, folder: Path, groups: int | None, report: Callable[[str], None]) -> Path:
    """Measure a kit and write its result file.

    Args:
        kit_path: the zip file.
        folder: where rounds and result go.
        groups: measure only so many groups; all where None.
        report: takes lines for the user.

    Returns:
        The result file.

    Raises:
        BoardError: on anything that the user can set right.
    """
    with contextlib.ExitStack() as stack:
        kit = stack.enter_context(zipfile.ZipFile(kit_path))
        journals = stack.enter_context(_locked(folder, kit_path.stem, report))
        manifest: Manifest = json.loads(kit.read(MANIFEST))
        stack.enter_context(conditions.affine_to(manifest.get("affinity", [])))
        cores = conditions.usable_cores()
        if manifest["threads"] > cores:
            raise BoardError(
                f"the kit measures with {manifest['threads']} threads, but may use {cores} core(s) here: "
                "make one with fewer (hardware.threads)"
            )
        result = folder / f"{kit_path.stem}-result.jsonl"
        watch = Watch(manifest["temperature_limit_c"], report)
        meter = EnergyMeter(say=report)
        check_packages(manifest["runtime"])
        board = _describe_board(manifest["runtime"])
        report(f"{board['cpu']}, {manifest['runtime']} {board['runtime_version']}, kit {manifest['kit']}")
        watch.cool_down(conditions.snapshot()["temperature_c"])
        wanted = len(manifest["groups"]) if groups is None else min(groups, len(manifest["groups"]))
        for number in range(wanted):
            try:
                _measure_group(kit, manifest, number, journals, watch, meter, report)
            finally:
                board["energy"] = meter.source
                if _journal_path(journals, number).exists():
                    _write_result(result, manifest, board, journals, number + 1)
        board["throttled_at_end"] = decode_throttled(read_throttled() or 0)
        _write_result(result, manifest, board, journals, wanted)
    report(f"done: {result}")
    return result


@contextlib.contextmanager
def _locked(folder: Path, name: str, report: Callable[[str], None]) -> Iterator[Path]:
    """The folder of rounds, for one process at a time: two would disturb each other's timing."""
    journals = folder / f"{name}-rounds"
    journals.mkdir(parents=True, exist_ok=True)
    with (journals / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another run of this kit to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield journals


def _measure_group(
    kit: zipfile.ZipFile,
    manifest: Manifest,
    number: int,
    journals: Path,
    watch: Watch,
    meter: EnergyMeter,
    report: Callable[[str], None],
) -> None:
    from nas.measuring import models, rounds

    names: list[str] = manifest["groups"][number]
    identity = {"kit": manifest["kit"], "group": number}
    journal = rounds.Journal(_journal_path(journals, number), names, identity)
    wanted: int = manifest["rounds"]
    label = f"group {number + 1}/{len(manifest['groups'])}"
    if len(rounds.steady(journal.rounds)) >= wanted and not manifest["precise"]:
        report(f"{label}: {wanted} of {wanted} rounds, measured before")
        return
    if journal.rounds:
        report(f"{label}: going on after {len(journal.rounds)} rounds")

    def runner(name: str) -> rounds.Runner:
        subject, seed = manifest["subjects"][name], manifest["seed"]
        if "refused" in subject:
            raise rounds.RefusedError(subject["refused"])
        model = models.Model(kit.read(subject["graph"]), models.random_weights(subject["weights"], seed))
        try:
            return models.runner_of(manifest["runtime"], model, manifest["threads"], seed)
        except MemoryError:
            raise
        except Exception as error:  # every runtime has exceptions of its own
            raise rounds.RefusedError(rounds.reason_of(error)) from error

    try:
        anchor = runner(manifest["anchor"])
    except rounds.RefusedError as error:
        raise BoardError(f"the {manifest['runtime']} here does not even run the anchor: {error}") from None
    start, begun = time.monotonic(), len(rounds.steady(journal.rounds))

    def on_round(done: int, wanted: int) -> None:
        left_s = (time.monotonic() - start) / max(1, done - begun) * (wanted - done)
        temperature = journal.rounds[-1].conditions.get("temperature_c")
        heat = "" if temperature is None else f", {temperature:.0f} °C"
        report(f"{label}: {done} of {wanted} rounds, {left_s:.0f} s left{heat}")

    schedule = rounds.Schedule(wanted, manifest["seed"], precise=manifest["precise"])
    rounds.measure(runner, anchor, journal, schedule, watch.snapshot, on_round, meter)
    if refused := journal.refused:
        name, reason = next(iter(refused.items()))
        report(
            f"{label}: {len(refused)} of {len(names)} left out, which the runtime refuses: {name}: {reason}"
        )


def _journal_path(journals: Path, number: int) -> Path:
    return journals / f"group-{number:04}.jsonl"


def _write_result(
    path: Path, manifest: Manifest, board: dict[str, object], journals: Path, groups: int
) -> None:
    """All journals in one file: a header, then each group's own lines, then a line that says it is whole."""
    described = {name: value for name, value in manifest.items() if name not in ("subjects", "groups")}
    header = {"result": RESULT_SCHEMA, **described, "groups": len(manifest["groups"]), "board": board}
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(header) + "\n")
            for number in range(groups):
                file.write(_journal_path(journals, number).read_text(encoding="utf-8"))
            file.write(json.dumps({"measured_groups": groups}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise BoardError(f"{cannot_write(error, path)}; what was measured is kept") from None


def _describe_board(runtime: str) -> dict[str, object]:
    package = conditions.PACKAGES[runtime]
    installed = conditions.versions(["numpy", package])
    throttled = read_throttled()
    return {
        **conditions.describe(),
        **conditions.snapshot(),
        "numpy": installed["numpy"],
        "runtime_version": installed[package],
        "throttled": None if throttled is None else decode_throttled(throttled),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def check_packages(runtime: str) -> None:
    """Refuse to start without what is needed.

    Raises:
        BoardError: with the line that installs it.
    """
    needed = ["numpy", conditions.PACKAGES[runtime]]
    missing = [name for name, version in conditions.versions(needed).items() if version is None]
    if missing:
        raise BoardError(
            f"{' and '.join(missing)} missing; install with: "
            f"{sys.executable} -m pip install {' '.join(missing)} (if pip refuses: python3 -m venv ~/nas && "
            f"~/nas/bin/pip install {' '.join(needed)}, then use ~/nas/bin/python)"
        )


def main() -> None:
    """Entry point of the kit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="where the result file goes")
    parser.add_argument("--groups", type=int, default=None, help="measure only the first so many groups")
    arguments = parser.parse_args()
    ending = Ending()
    try:
        run(Path(sys.argv[0]), arguments.folder, arguments.groups, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print(f"{ending.how}; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(ending.code)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            sys.exit(cannot_write(error, "the standard output"))  # files are named
        sys.exit(f"{error}; run the same command again to go on")
    except (RuntimeError, MemoryError) as error:
        sys.exit(str(error) or "out of memory: make the kit with fewer layers (profile.max_keys)")
