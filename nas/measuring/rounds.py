"""Measuring: everything once per round, in shuffled order, every sample kept.

A block timed alone in a hot loop is not what it is inside a network: its weights lie in the cache
and the branch predictors know it by heart. Here layers and whole networks take turns, one run each
per round, so that weights arrive as cold as in a real network and a change of clock speed hits all
alike. One network, the *anchor*, runs several times in every round and shows whether the machine
held still; rounds in which it did not are measured again.

Where a model's memory happens to lie is part of its speed: loaded anew the same network is 1 to 2 %
faster or slower, and stays so however often it runs (``results/README.md``). So everything is loaded
several times in the course of a measurement, in another order each time.

Needs only Python 3.9 and numpy: this file also runs on boards, inside the portable kit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.disk import cannot_write
from nas.measuring.energy import EnergyMeter

JOURNAL_SCHEMA = 1
ANCHOR_RUNS_PER_ROUND = 3
# A round counts if its anchor lies within this share of the median anchor of its group. On a shared server
# clock speed wanders by a fifth within seconds, which :func:`without_drift` takes out; only what it cannot
# repair disqualifies a round.
STEADY_TOLERANCE = 0.30
# Subjects whose neighbours in time tell how fast the machine was just then: about 20 ms of layers.
_DRIFT_WINDOW = 41
# How often everything is loaded in the course of a measurement.
LOADS = 5
_FEWEST_ROUNDS_A_LOAD = 4
# Of subjects that stand for themselves: how well nine in ten of them must be known (standard error), and
# how many times the rounds asked for that may take.
PRECISION = 0.01
_MOST_PRECISE_FACTOR = 2
# At most this many rounds are measured in one go per round asked for.
_MAX_ROUNDS_FACTOR = 2
# Bounds of what can be meant: a day for one run, anchors of many runs, files of thousands of layers.
_SHORTEST_MS = 1e-9
_LONGEST_MS = 86_400_000.0
_LARGEST_MJ = 1e12
_MOST_ANCHORS = 1_000
_MOST_LOADS = 1_000_000
_MOST_BYTES = 256_000_000

Runner = Callable[[], object]
Samples = NDArray[np.float64]


class MeasurementError(RuntimeError):
    """A measurement that cannot be used or continued."""


class JournalError(MeasurementError):
    """A file of rounds that is damaged, or holds another measurement."""


class RefusedError(RuntimeError):
    """A model that a runtime does not take. The message is its reason."""


@dataclass(frozen=True)
class Round:
    """One pass over all subjects.

    Attributes:
        samples_ms: one latency per subject, in the order of the journal's names.
        anchor_ms: the anchor's runs in this round.
        conditions: clock, temperature, load when the round ended.
        shuffle: seed of the order in which the subjects ran, see :func:`round_order`.
        load: which loading of the models it ran on, counted from 0.
        energy_mj: millijoules an inference of subjects by name, in the first round of a loading where they
            were read.
    """

    samples_ms: list[float]
    anchor_ms: list[float]
    conditions: Mapping[str, object]
    shuffle: int = 0
    load: int = 0
    energy_mj: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """The number of rounds, and the order in them.

    Attributes:
        rounds: steady rounds wanted.
        seed: of the shuffled order.
        loads: how often everything is loaded; less often where that would leave few rounds for each.
        precise: subjects for which to load and measure on, up to twice the rounds, until
            :data:`PRECISION` is reached.
    """

    rounds: int
    seed: int = 0
    loads: int = LOADS
    precise: Sequence[str] = ()


class Journal:
    """Rounds on disk, one JSON line each, written as they happen; a torn last line is forgotten.

    Args:
        path: the file; made on the first round.
        names: subjects in the order of the samples.
        identity: whatever must not differ when the measurement is continued.

    Attributes:
        names: of the subjects that are measured.
        refused: reason by name of those that the runtime does not take: they are left out of the names.
        rounds: what is on disk.

    Raises:
        JournalError: if the file belongs to other subjects or conditions, or is damaged.
    """

    def __init__(self, path: Path, names: Sequence[str], identity: Mapping[str, object]) -> None:
        self.path = path
        self.names = tuple(names)
        self.refused: dict[str, str] = {}
        self.rounds: list[Round] = []
        self._header = {"schema": JOURNAL_SCHEMA, "names": list(names), "identity": dict(identity)}
        if path.exists():
            self._load()

    def leave_out(self, name: str, reason: str) -> None:
        """Go on without a subject; only before the first round.

        Args:
            name: of the subject.
            reason: why it is refused.

        Raises:
            MeasurementError: if there are rounds already.
        """
        if self.rounds:
            raise MeasurementError(f"{name} cannot be loaded any more: {reason}")
        self._refuse({**self.refused, name: reason})

    def _refuse(self, refused: Mapping[str, str]) -> None:
        self.refused = dict(refused)
        self.names = tuple(name for name in self.names if name not in refused)
        self._header |= {"names": list(self.names), "refused": self.refused}

    def append(self, measured: Round) -> None:
        """Keep a round, on disk before this returns.

        Raises:
            MeasurementError: if the disk takes no more; the rounds before are still there.
        """
        lines = json.dumps(measured.__dict__) + "\n"
        size = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Never through a link, which may have come with a folder from elsewhere.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with open(os.open(self.path, flags, 0o644), "ab", buffering=0) as file:  # noqa: PTH123
                size = file.tell()
                if not size:
                    lines = json.dumps(self._header) + "\n" + lines
                content = lines.encode()
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
        except OSError as error:
            if size is not None:
                os.truncate(self.path, size)
            raise MeasurementError(cannot_write(error, self.path)) from None
        self.rounds.append(measured)

    def _load(self) -> None:
        # Cutting off a torn line changes the file, and a pipe would keep us for ever.
        if self.path.is_symlink() or not self.path.is_file():
            raise JournalError(f"{self.path} is no ordinary file; delete it to measure anew")
        size = self.path.stat().st_size
        if size > _MOST_BYTES:
            raise JournalError(f"{self.path} is too large ({size:,} bytes); delete it to measure anew")
        content = self.path.read_bytes()
        kept = content[: content.rfind(b"\n") + 1]
        if len(kept) < len(content):
            # The power went while the last round was being written.
            os.truncate(self.path, len(kept))
        lines = kept.splitlines()
        if not lines:
            self.path.unlink()
            return
        header = self._parsed(lines[0])
        if isinstance(header, dict) and (refused := _read_refused(header.get("refused"))):
            self._refuse(refused)
        for field, value in self._header.items():
            if not isinstance(header, dict) or header.get(field) != value:
                raise JournalError(
                    f"{self.path} holds another measurement (its {field} differs); delete it to measure anew"
                )
        try:
            self.rounds = [read_round(self._parsed(line), len(self.names)) for line in lines[1:]]
        except ValueError as error:
            raise JournalError(f"{self.path} is damaged ({error}); delete it to measure anew") from None

    def _parsed(self, line: bytes) -> object:
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise JournalError(f"{self.path} is damaged; delete it to measure anew") from None


def _read_refused(data: object) -> dict[str, str]:
    """Reasons by refused subject from a journal's header; none where it says something else."""
    if not isinstance(data, dict) or not all(isinstance(each, str) for pair in data.items() for each in pair):
        return {}
    return dict(data)


def read_round(data: object, subjects: int) -> Round:
    """A round of so many subjects from plain values, as a journal or the result of a kit holds it.

    Raises:
        ValueError: if something in it is no latency, or of another kind than it should be.
    """
    if not isinstance(data, dict) or not {"samples_ms", "anchor_ms", "conditions"} <= set(data):
        raise ValueError("a line is no round")
    if set(data) - set(Round.__dataclass_fields__):
        raise ValueError("a round has fields that do not belong there")
    samples, anchors = data["samples_ms"], data["anchor_ms"]
    if not isinstance(samples, list) or len(samples) != subjects:
        raise ValueError(f"a round has not one sample for each of {subjects} subjects")
    if not isinstance(anchors, list) or not 0 < len(anchors) <= _MOST_ANCHORS:
        raise ValueError("a round has no runs of the anchor")
    for value in (*samples, *anchors):
        if type(value) not in (int, float) or not _SHORTEST_MS <= value <= _LONGEST_MS:  # NaN fails, too
            raise ValueError(f"{str(value)[:40]!r} ms is no latency")
    conditions, shuffle, load = data["conditions"], data.get("shuffle", 0), data.get("load", 0)
    if type(shuffle) is not int or abs(shuffle) >= 2**63:
        raise ValueError("the order of a round is no whole number")
    if type(load) is not int or not 0 <= load < _MOST_LOADS:
        raise ValueError("the loading of a round is no whole number that can be")
    energy_mj = data.get("energy_mj", {})
    if not isinstance(energy_mj, dict) or len(energy_mj) > subjects:
        raise ValueError("the energy of a round is no mapping")
    for value in energy_mj.values():
        if type(value) not in (int, float) or not 0 <= value <= _LARGEST_MJ:
            raise ValueError(f"{str(value)[:40]!r} mJ is no energy")
    if not isinstance(conditions, dict) or len(conditions) > 100:
        raise ValueError("the conditions of a round are no mapping")
    for name, value in conditions.items():
        listed = (
            isinstance(value, list) and len(value) <= 100 and all(isinstance(each, str) for each in value)
        )
        number = type(value) in (int, float, bool) and -1e18 < value < 1e18 and name != "throttled"
        if not (listed or number or value is None):
            raise ValueError(f"the condition {name[:40]!r} of a round is no number")
    return Round(samples, anchors, conditions, shuffle, load, energy_mj)


def measure(
    load: Callable[[str], Runner],
    anchor: Runner,
    journal: Journal,
    schedule: Schedule,
    snapshot: Callable[[], Mapping[str, object]] = dict,
    on_round: Callable[[int, int], None] = lambda done, wanted: None,
    meter: EnergyMeter | None = None,
) -> list[Round]:
    """Run all subjects in interleaved rounds until enough of them were steady.

    Args:
        load: makes what runs one of the journal's names; called again for every loading. What it refuses
            with a :class:`RefusedError` before the first round, and what cannot be run then, is left out.
        anchor: the network that shows whether the machine held still.
        journal: where rounds are kept; rounds it already holds count.
        schedule: how many rounds, in what order.
        snapshot: reads the conditions after each round.
        on_round: called with (steady rounds so far, rounds wanted).
        meter: reads the energy of the schedule's precise subjects, once for every loading, while it can be
            read; None: nothing is read.

    Returns:
        The steady rounds.

    Raises:
        MeasurementError: if less than half of the rounds wanted were steady, or nothing can be run.
    """
    runners: dict[str, Runner] = {}
    rounds, seed, precise = schedule.rounds, schedule.seed, schedule.precise
    rounds_a_load = rounds_of_a_load(rounds, schedule.loads)
    left, wanted = 0, rounds
    most = len(journal.rounds) + rounds * _MAX_ROUNDS_FACTOR
    kept = steady(journal.rounds)
    while True:
        if len(kept) >= wanted:
            alone = set(precise)
            columns = [index for index, name in enumerate(journal.names) if name in alone]
            if len(kept) >= _MOST_PRECISE_FACTOR * rounds or _are_precise(kept, columns):
                break
            wanted, most = len(kept) + rounds_a_load, most + rounds_a_load * _MAX_ROUNDS_FACTOR
        if len(journal.rounds) >= most:
            break
        energy_mj: dict[str, float] = {}
        if not left:
            number = 1 + max((each.load for each in journal.rounds), default=-1)
            _load(journal, load, runners, seed * 1_000_003 + 500_000 + number)
            names = journal.names
            anchor()
            left = rounds_a_load
            if meter is not None:
                for name in precise:
                    if name in names and (used_mj := meter.inference_mj(runners[name])) is not None:
                        energy_mj[name] = used_mj
        shuffle = seed * 1_000_003 + len(journal.rounds)
        order = round_order(shuffle, len(names))
        anchor_at = [len(order) * index // ANCHOR_RUNS_PER_ROUND for index in range(ANCHOR_RUNS_PER_ROUND)]
        samples = [0.0] * len(names)
        anchors: list[float] = []
        for position, index in enumerate(order):
            anchors += [_time_ms(anchor) for _ in range(anchor_at.count(position))]
            samples[index] = _time_ms(runners[names[index]])
        journal.append(Round(samples, anchors, snapshot(), shuffle, number, energy_mj))
        kept = steady(journal.rounds)
        on_round(len(kept), wanted)
        left -= 1
    if len(kept) < (rounds + 1) // 2:
        throttled = [each for each in journal.rounds if is_throttled(each)]
        if 2 * len(throttled) > len(journal.rounds):
            reasons = sorted({reason for each in throttled for reason in _reasons(each)})
            raise MeasurementError(
                f"{len(throttled)} of {len(journal.rounds)} rounds were throttled ({', '.join(reasons)}): "
                "cool the board or use a stronger power supply, then run the same command again"
            )
        raise MeasurementError(
            f"the machine did not hold still: the anchor network stayed within {STEADY_TOLERANCE:.0%} of its "
            f"median in only {len(kept)} of {len(journal.rounds)} rounds; stop other work and try again"
        )
    return kept


def rounds_of_a_load(rounds: int, loads: int = LOADS) -> int:
    """The number of rounds before everything is loaded anew."""
    return max(_FEWEST_ROUNDS_A_LOAD, -(-rounds // loads))


def standard_errors(samples_ms: Samples, loads: Sequence[int]) -> Samples:
    """The relative standard error of each subject: (rounds, subjects) -> (subjects,).

    What its loadings disagree by, over the square root of their number; infinite with one loading.

    Args:
        samples_ms: drift taken out.
        loads: which loading each round ran on.
    """
    numbers = np.array(loads)
    parts = np.array([fastest_two_thirds(samples_ms[numbers == each]) for each in np.unique(numbers)])
    if len(parts) < 2:
        return np.full(samples_ms.shape[1], np.inf)
    errors: Samples = parts.std(axis=0, ddof=1) / parts.mean(axis=0) / len(parts) ** 0.5
    return errors


def _are_precise(kept: Sequence[Round], columns: Sequence[int]) -> bool:
    if not columns:
        return True
    errors = standard_errors(steadied(kept), [each.load for each in kept])
    return bool(np.mean(errors[columns] <= PRECISION) >= 0.9)


def _load(journal: Journal, load: Callable[[str], Runner], runners: dict[str, Runner], seed: int) -> None:
    runners.clear()  # before the next ones need the memory
    names = journal.names
    for index in round_order(seed, len(names)):
        try:
            runners[names[index]] = load(names[index])
        except RefusedError as error:
            journal.leave_out(names[index], str(error))
    for name in journal.names:  # allocations and lazy initialisation are not latency
        try:
            runners[name]()
        except MemoryError:
            raise
        except Exception as error:  # every runtime has exceptions of its own
            journal.leave_out(name, reason_of(error))
    if names and not journal.names:
        name, reason = next(iter(journal.refused.items()))
        raise MeasurementError(f"nothing of this can be run here, beginning with {name}: {reason}")


def reason_of(error: Exception) -> str:
    """A runtime's reason for not taking a model, on one line.

    Args:
        error: what it raised.
    """
    return " ".join(str(error).split())[:200] or type(error).__name__


def round_order(shuffle: int, count: int) -> list[int]:
    """The order in which the subjects of a round ran."""
    order = list(range(count))
    random.Random(shuffle).shuffle(order)
    return order


def without_drift(samples_ms: Samples, orders: Sequence[Sequence[int]]) -> Samples:
    """Samples without the changes of speed that all subjects share.

    Every subject is an anchor to its neighbours in time: where some forty layers in a row ran 8 % slower
    than they usually do, it was the machine. Orders differ from round to round, so this says nothing
    about which layers were neighbours.

    Args:
        samples_ms: (rounds, subjects).
        orders: the order in which the subjects of each round ran.

    Returns:
        (rounds, subjects), at the machine's median speed.
    """
    window = min(_DRIFT_WINDOW, samples_ms.shape[1] // 2 * 2 - 1)
    if window < 3 or len(samples_ms) < 3:
        return samples_ms
    log_samples = np.log(samples_ms)
    corrected = log_samples
    for _ in range(2):  # the second time with levels that drift has not blurred
        levels = np.median(corrected, axis=0)
        drift = np.empty_like(log_samples)
        for index, order in enumerate(orders):
            # Mirrored at both ends: with the last sample repeated it would be its own neighbours.
            ratios = np.pad(log_samples[index, order] - levels[list(order)], window // 2, mode="reflect")
            drift[index, order] = np.median(np.lib.stride_tricks.sliding_window_view(ratios, window), axis=1)
        corrected = log_samples - (drift - np.median(drift))
    result: Samples = np.exp(corrected)
    return result


def steadied(rounds: Sequence[Round]) -> Samples:
    """(rounds, subjects), without the drift that all subjects share, see :func:`without_drift`."""
    samples_ms = np.array([each.samples_ms for each in rounds])
    return without_drift(samples_ms, [round_order(each.shuffle, samples_ms.shape[1]) for each in rounds])


def steady(rounds: Sequence[Round]) -> list[Round]:
    """Rounds in which nothing was throttled and whose anchor lies near the median anchor of those."""
    rounds = [each for each in rounds if not is_throttled(each)]
    if not rounds:
        return []
    level = float(np.median([np.median(each.anchor_ms) for each in rounds]))
    return [each for each in rounds if abs(float(np.median(each.anchor_ms)) / level - 1) <= STEADY_TOLERANCE]


def _reasons(measured: Round) -> list[str]:
    listed = measured.conditions.get("throttled")
    return [str(each) for each in listed] if isinstance(listed, list) else []


def is_throttled(measured: Round) -> bool:
    """True if the board slowed down during a round (a list of reasons in its conditions)."""
    return bool(measured.conditions.get("throttled"))


def fastest_two_thirds(samples_ms: Samples) -> Samples:
    """Mean of the fastest two thirds of the rounds: (rounds, subjects) -> (subjects,).

    One statistic for all tables, so that their numbers compare: what disturbs a run makes it slower, so the
    slowest are left out. Odd and even rounds agree on it as they do on the median (``results/runtimes.md``).
    """
    keep = max(1, len(samples_ms) * 2 // 3)
    fastest: Samples = np.sort(samples_ms, axis=0)[:keep].mean(axis=0)
    return fastest


def _time_ms(runner: Runner) -> float:
    start = time.perf_counter()
    runner()
    return (time.perf_counter() - start) * 1e3
