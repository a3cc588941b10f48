"""Where layers are measured: this machine, or another one that is sent a kit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nas.measuring.conditions import AffinityError, affine_to, cpu_model, describe, snapshot
from nas.measuring.energy import EnergyMeter
from nas.measuring.progress import ProfileProgress
from nas.measuring.rounds import (
    Journal,
    MeasurementError,
    RefusedError,
    Round,
    Runner,
    Schedule,
    measure,
    round_order,
    standard_errors,
    without_drift,
)
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import CannotRunError, Subject
from search_spaces.gate import Gate
from search_spaces.layers import LayerKey
from search_spaces.references import reference

# What the anchor network is: small enough to run in every round, large enough to be a network.
ANCHOR = reference("mobilenet_v3_small")


# Where a session's record keeps the reasons for which subjects were refused, by their names.
REFUSED = "refused"
# Where it keeps the energy of subjects in millijoules an inference, by their names.
ENERGY = "energy_mj"
# Weights, their repacked copy and buffers of a session, layers and networks mixed as in a profile.
_MEGABYTES_PER_SUBJECT = 4


def subject_name(subject: Subject) -> str:
    """The name of a layer or a network in journals and result files."""
    return str(subject) if isinstance(subject, LayerKey) else f"network_{subject.id}"


def deal_out(subjects: Sequence[Subject], most: int) -> list[list[Subject]]:
    """Groups of at most ``most`` subjects; striding shares out layers and networks evenly."""
    count = -(-len(subjects) // most)
    return [list(subjects[start::count]) for start in range(count)]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Samples of one measuring session.

    Attributes:
        subjects: the layers and networks measured: all asked for but those that the runtime refuses, which
            the record names.
        samples_ms: (rounds, subjects), steady rounds only, every sample.
        anchor_ms: (rounds,) median of the anchor's runs in each round.
        record: rounds, conditions and device, for the table's header.
        orders: the order in which the subjects of each round ran; None if drift is taken out already.
        loads: (rounds,) which loading of the models each round ran on; None if that is not known.
    """

    subjects: tuple[Subject, ...]
    samples_ms: NDArray[np.float64]
    anchor_ms: NDArray[np.float64]
    record: dict[str, object]
    orders: tuple[tuple[int, ...], ...] | None = None
    loads: tuple[int, ...] | None = None

    @property
    def refused(self) -> dict[str, str]:
        """Why subjects were refused, by name."""
        reasons = Gate("the record of a session").mapping(self.record.get(REFUSED, {}), REFUSED)
        return {name: str(reason) for name, reason in reasons.items()}

    @property
    def energies_mj(self) -> dict[str, float]:
        """Millijoules an inference, by the subject's name: of those whose energy was read."""
        gate = Gate("the record of a session")
        found = gate.mapping(self.record.get(ENERGY, {}), ENERGY)
        return {name: gate.number(ENERGY, value, 0) for name, value in found.items()}

    def steadied(self) -> NDArray[np.float64]:
        """Samples without the drift that all subjects share: (rounds, subjects)."""
        return self.samples_ms if self.orders is None else without_drift(self.samples_ms, self.orders)

    def standard_errors(self) -> dict[Subject, float]:
        """Relative standard error of each subject's latency (:func:`nas.measuring.rounds.standard_errors`).

        Where loadings are not known (boards that share the work, older kits): odd rounds against even ones.
        """
        if len(self.samples_ms) < 2:
            return dict.fromkeys(self.subjects, 0.0)
        loads = self.loads if self.loads and len(set(self.loads)) > 1 else None
        halves = [index % 2 for index in range(len(self.samples_ms))]
        errors = standard_errors(self.steadied(), loads or halves)
        return dict(zip(self.subjects, errors.tolist(), strict=True))


class Target(Protocol):
    """A device that can measure."""

    def identity(self) -> tuple[str, str]:
        """Processor or board, and the version of its runtime; it may have to be asked over a network."""

    @property
    def session_subjects(self) -> int:
        """The number of subjects held in memory at once; more are measured in several sessions."""

    def measure(
        self,
        subjects: Sequence[Subject],
        rounds: int,
        journal: Path,
        progress: ProfileProgress = ProfileProgress(),
        precise: Sequence[Subject] = (),
    ) -> Measurement:
        """Time layers and networks in interleaved rounds, continuing what the journal holds.

        Args:
            subjects: what to time.
            rounds: steady rounds wanted.
            journal: where rounds are kept until the table is written.
            progress: callbacks for progress bars.
            precise: subjects that stand for themselves (see :class:`nas.measuring.rounds.Schedule`).

        Raises:
            MeasurementError: if the machine did not hold still, or the journal is another's.
        """


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """This machine.

    Attributes:
        runtime: what runs the layers.
        seed: of the shuffled order.
        affinity: numbers of the cores to measure on; none: all.
        say: told in one line what is given up while measuring.
    """

    runtime: Runtime
    seed: int = 0
    affinity: tuple[int, ...] = ()
    say: Callable[[str], None] = lambda line: None

    @property
    def session_subjects(self) -> int:
        """See :class:`Target`: what half of the free memory and more holds, a few megabytes each."""
        return max(300, int((snapshot()["free_memory_mb"] or 0) / _MEGABYTES_PER_SUBJECT))

    def identity(self) -> tuple[str, str]:
        """See :class:`Target`."""
        return cpu_model(), self.runtime.version()

    def measure(
        self,
        subjects: Sequence[Subject],
        rounds: int,
        journal: Path,
        progress: ProfileProgress = ProfileProgress(),
        precise: Sequence[Subject] = (),
    ) -> Measurement:
        """See :class:`Target`."""
        with self.bound():
            return self._measure(subjects, rounds, journal, progress, precise)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """This process on the cores to measure on.

        Raises:
            MeasurementError: if it cannot be bound to them.
        """
        try:
            with affine_to(self.affinity):
                yield
        except AffinityError as error:
            raise MeasurementError(str(error)) from None

    def _measure(
        self,
        subjects: Sequence[Subject],
        rounds: int,
        journal: Path,
        progress: ProfileProgress,
        precise: Sequence[Subject],
    ) -> Measurement:
        runtime = self.runtime
        device, version = self.identity()
        kept = Journal(
            journal,
            [subject_name(subject) for subject in subjects],
            {
                "device": device,
                "runtime": runtime.name,
                "version": version,
                "precision": runtime.precision,
                "threads": runtime.threads,
            },
        )
        by_name = {subject_name(subject): subject for subject in subjects}
        anchor = runtime.runner(ANCHOR)
        undelegated: dict[str, list[str]] = {}
        prepared, preparing_s = 0, 0.0

        def load(name: str) -> Runner:
            nonlocal prepared, preparing_s
            started = time.monotonic()
            try:
                runner = runtime.runner(by_name[name])
            except CannotRunError as error:
                raise RefusedError(error.reason) from error
            if left := getattr(runner, "undelegated", ()):
                undelegated[name] = list(left)
            prepared, preparing_s = prepared + 1, preparing_s + time.monotonic() - started
            if prepared <= len(subjects):  # later on rounds tell the progress
                progress.prepared(prepared, len(subjects))
            return runner

        meter = EnergyMeter(say=self.say)
        before = snapshot()
        started = time.monotonic()
        schedule = Schedule(rounds, self.seed, precise=[subject_name(each) for each in precise])
        steady_rounds = measure(load, anchor, kept, schedule, snapshot, progress.measured, meter)
        return measurement(
            [by_name[name] for name in kept.names],
            steady_rounds,
            kept.rounds,
            {
                **describe(),
                "energy": meter.source,
                "before": before,
                **({REFUSED: kept.refused} if kept.refused else {}),
                **({"undelegated": undelegated} if undelegated else {}),
                "preparing_s": round(preparing_s, 1),
                "measuring_s": round(time.monotonic() - started - preparing_s, 1),
            },
        )


def measurement(
    subjects: Sequence[Subject],
    kept: Sequence[Round],
    all_rounds: Sequence[Round],
    machine: Mapping[str, object],
) -> Measurement:
    """Put rounds together into a :class:`Measurement` with its record of conditions.

    Args:
        subjects: in the order of the samples.
        kept: the rounds that count.
        all_rounds: these and those that do not.
        machine: what else the record says.
    """
    anchors = np.array([np.median(each.anchor_ms) for each in kept])
    conditions = {
        name: _range([each.conditions.get(name) for each in all_rounds])
        for name in (all_rounds[0].conditions if all_rounds else {})
    }
    read: dict[str, list[float]] = {}
    for each in kept:
        for name, value in each.energy_mj.items():
            read.setdefault(name, []).append(value)
    energies_mj = {name: float(np.median(values)) for name, values in read.items()}
    return Measurement(
        subjects=tuple(subjects),
        samples_ms=np.array([each.samples_ms for each in kept]),
        anchor_ms=anchors,
        orders=tuple(tuple(round_order(each.shuffle, len(subjects))) for each in kept),
        loads=tuple(each.load for each in kept),
        record={
            "rounds": len(kept),
            "loads": len({each.load for each in kept}),
            "discarded_rounds": len(all_rounds) - len(kept),
            "subjects": len(subjects),
            "anchor_ms": float(np.median(anchors)),
            "anchor_spread": float(np.subtract(*np.percentile(anchors, [75, 25])) / np.median(anchors)),
            "conditions": conditions,
            **({ENERGY: energies_mj} if energies_mj else {}),
            **machine,
        },
    )


def _range(values: Sequence[object]) -> list[float] | None:
    known = [value for value in values if isinstance(value, int | float)]
    return [min(known), max(known)] if known else None
