"""The provenance of a study: the circumstances that its report names, written and read here alone.

A study keeps it as plain values in one of its attributes. Older studies, and those that are under way, lack
some of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import optuna

from nas.accuracy.joint import JointPrediction
from nas.latency.calibration import ErrorSummary
from search_spaces.gate import MEGABYTE, Gate
from search_spaces.tasks import DEFAULT_CLASSES

_ATTRIBUTE = "provenance"


@dataclass(frozen=True, slots=True)
class CalibrationErrors:
    """Errors of a table on the networks of its calibration: each left out of it, and of plain sums."""

    left_out: ErrorSummary | None = None
    uncorrected: ErrorSummary | None = None


@dataclass(frozen=True, slots=True)
class CardErrors:
    """Errors of a table on fresh networks, see :class:`nas.latency.validation.Card`."""

    created: str = ""
    drift: float | None = None
    calibrated: ErrorSummary | None = None
    uncorrected: ErrorSummary | None = None
    predicted_layers: float | None = None


@dataclass(frozen=True, slots=True)
class LatencyOrigin:
    """Where latencies come from: the header of their table, and how far it can be trusted.

    Attributes:
        title: device, runtime, precision, threads and date in one line.
        counts: of the table's layers by source.
        warning: why latencies cannot be trusted, None where they can.
        error_percent: standard deviation of whole networks' latencies by source.
    """

    title: str = ""
    device: str | None = None
    runtime: str | None = None
    runtime_version: str | None = None
    precision: str | None = None
    threads: int | None = None
    created: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    calibration: CalibrationErrors = field(default_factory=CalibrationErrors)
    card: CardErrors = field(default_factory=CardErrors)
    warning: str | None = None
    error_percent: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskOrigin:
    """The task of a search if not classification, and the errors of its whole models' latencies."""

    name: str
    classes: int | None = None
    models: int | None = None
    error_percent: float | None = None
    worst_percent: float | None = None
    kendall_tau: float | None = None

    def __post_init__(self) -> None:
        if self.name not in DEFAULT_CLASSES:
            raise ValueError(f"there is no task {self.name}")


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """The timing of whole networks after a search of so many trials; the budget is about the percentile."""

    trials: int
    networks: int | None = None
    rounds: int | None = None
    drift: float | None = None
    energy: str | None = None
    percentile: int = 50

    def __post_init__(self) -> None:
        if self.percentile not in (50, 90, 99):
            raise ValueError(f"there is no percentile {self.percentile}")


@dataclass(frozen=True, slots=True)
class TrainedBest:
    """The final training of the best networks after a search of so many trials."""

    trials: int
    networks: int | None = None
    judged_on: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerLatency:
    """A layer's share of the latency of any network that contains it."""

    key: str
    latency_ms: float
    source: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """The circumstances of a study, as far as they are known.

    Attributes:
        hardware: name of the hardware config.
        accuracy: settings of the source of accuracies.
        dataset: name of the images that networks are judged on.
        classes: names of what trained networks tell apart, in the order of their outputs.
        budget_name: network that gave the budget.
        budget_margin: share of the budget that was kept free.
        versions: of the packages that matter; None where one is not installed.
        command: that was typed.
        layers: of the front and the references, by id of the network.
        macs: of a network of the front, as counted here and by fvcore.
        joint: predictions of the front and the references with how their errors go together.
    """

    hardware: str | None = None
    latency: LatencyOrigin = field(default_factory=LatencyOrigin)
    accuracy: Mapping[str, object] = field(default_factory=dict)
    dataset: str | None = None
    classes: tuple[str, ...] = ()
    budget_ms: float | None = None
    budget_name: str | None = None
    budget_margin: float = 0.0
    seed: int | None = None
    sampler: str | None = None
    versions: Mapping[str, object] = field(default_factory=dict)
    command: str | None = None
    created: str | None = None
    task: TaskOrigin | None = None
    end_to_end: EndToEnd | None = None
    trained: TrainedBest | None = None
    layers: Mapping[str, tuple[LayerLatency, ...]] = field(default_factory=dict)
    macs: Mapping[str, object] = field(default_factory=dict)
    joint: JointPrediction | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.budget_margin < 1:
            raise ValueError(f"budget_margin is no share: {self.budget_margin}")

    @classmethod
    def of(cls, attributes: Mapping[str, object], gate: Gate) -> Provenance:
        """The provenance that a study keeps.

        Args:
            attributes: of the study.
            gate: names it.

        Raises:
            InputError: of the gate's kind, if something in it is no such thing.
        """
        with gate.reading():
            found = gate.mapping(attributes.get(_ATTRIBUTE) or {}, _ATTRIBUTE)
            # As long as a shell takes it: a list of many networks.
            command = gate.string("command", found.get("command") or "", MEGABYTE)
            return replace(gate.record(_ATTRIBUTE, cls, {**found, "command": None}), command=command or None)

    def keep(self, study: optuna.Study) -> None:
        """Put it into a study, in the place of an earlier one."""
        joint = {"joint": self.joint.to_dict() if self.joint else None}
        study.set_user_attr(_ATTRIBUTE, asdict(self) | joint)
