"""The objectives a search can have: what a network is worth.

Every objective is one *utility*, to be maximised, and any number of *costs*, to be minimised. The
utility is accuracy times a factor, and factor and costs are known before anything is trained: this
is what lets a sampler judge a proposal before it is evaluated.

    objective = Pareto()                  # accuracy against latency
    objective = Pareto(third="macs")      # ... and multiply-accumulates
    objective = Budget()                  # accuracy alone; the budget itself is hard, see nas.study.loop
    objective = MnasNet(target_ms=20.0)   # accuracy x (latency / target)^-0.07

    study values of a trial: values(objective, evaluation), in the order of names(objective)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from nas.accuracy.source import Accuracy, lower_bound
from nas.cost import Cost
from nas.latency.table import NetworkLatencySource

Direction = Literal["maximize", "minimize"]
ThirdCost = Literal["parameters", "macs", "model_size_mb", "peak_memory_mb"]
THIRD_COSTS: tuple[ThirdCost, ...] = get_args(ThirdCost)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that is known of one network.

    Attributes:
        accuracy: from the search's one source of accuracy.
        latency_ms: milliseconds for one image.
        latency_source: ``table``, ``predicted`` or ``estimated``.
        cost: multiply-accumulates and parameters.
    """

    accuracy: Accuracy
    latency_ms: float
    latency_source: NetworkLatencySource
    cost: Cost


class Objective(Protocol):
    """A utility to maximise and costs to minimise."""

    @property
    def caution(self) -> float:
        """The number of standard deviations to subtract from an uncertain accuracy."""

    @property
    def utility_name(self) -> str:
        """The name of the first objective."""

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Names of the other objectives."""

    def factor(self, latency_ms: float) -> float:
        """The factor from accuracy to utility."""

    def costs(self, latency_ms: float, cost: Cost) -> tuple[float, ...]:
        """The costs, in the order of ``cost_names``."""


@dataclass(frozen=True, slots=True)
class Pareto:
    """Accuracy against latency, and against a third quantity if wanted.

    Attributes:
        third: one of :data:`THIRD_COSTS`, or none.
        caution: see :class:`Objective`.
        bytes_per_value: of weights and feature maps: 4 in fp32, 1 in int8.
    """

    third: ThirdCost | None = None
    caution: float = 0.0
    utility_name: Literal["top1"] = "top1"
    bytes_per_value: int = 4

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Latency, and the third."""
        return ("latency_ms", self.third) if self.third else ("latency_ms",)

    def factor(self, latency_ms: float) -> float:
        """1: the utility is the accuracy."""
        return 1.0

    def costs(self, latency_ms: float, cost: Cost) -> tuple[float, ...]:
        """Latency, and the third."""
        if self.third is None:
            return (latency_ms,)
        third = {
            "parameters": float(cost.parameters),
            "macs": float(cost.macs),
            "model_size_mb": cost.parameters * self.bytes_per_value / 1e6,
            "peak_memory_mb": cost.peak_values * self.bytes_per_value / 1e6,
        }[self.third]
        return (latency_ms, third)


@dataclass(frozen=True, slots=True)
class Budget:
    """The best accuracy within the latency budget.

    Attributes:
        caution: see :class:`Objective`.
    """

    caution: float = 0.0
    utility_name: Literal["top1"] = "top1"
    cost_names: tuple[str, ...] = ()

    def factor(self, latency_ms: float) -> float:
        """1: the utility is the accuracy."""
        return 1.0

    def costs(self, latency_ms: float, cost: Cost) -> tuple[float, ...]:
        """None: the budget is a bound, not an objective."""
        return ()


@dataclass(frozen=True, slots=True)
class MnasNet:
    """Accuracy times ``(latency / target) ** exponent`` (Tan et al. 2019, equation 2, soft constraint).

    Attributes:
        target_ms: the latency at which the factor is 1.
        exponent: -0.07 in MnasNet, -0.15 in MobileNetV3-Small.
        caution: see :class:`Objective`.
    """

    target_ms: float
    exponent: float = -0.07
    caution: float = 0.0
    utility_name: Literal["reward"] = "reward"
    cost_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.target_ms > 0:
            raise ValueError(f"objective mnasnet: target_ms must be positive, not {self.target_ms!r}")

    def factor(self, latency_ms: float) -> float:
        """``(latency / target) ** exponent``."""
        return float((latency_ms / self.target_ms) ** self.exponent)

    def costs(self, latency_ms: float, cost: Cost) -> tuple[float, ...]:
        """None: latency is part of the utility."""
        return ()


def names(objective: Objective) -> tuple[str, ...]:
    """Names of the values of a trial."""
    return (objective.utility_name, *objective.cost_names)


def directions(objective: Objective) -> tuple[Direction, ...]:
    """Which way each value of a trial is to go."""
    minimize: Direction = "minimize"
    return ("maximize", *(minimize for _ in objective.cost_names))


def cautious_top1(objective: Objective, accuracy: Accuracy) -> float:
    """Accuracy in percent, less ``caution`` deviations where the source states one."""
    return lower_bound(accuracy.top1, accuracy.deviation or 0.0, objective.caution)


def values(objective: Objective, evaluation: Evaluation) -> tuple[float, ...]:
    """The values of a trial."""
    utility = cautious_top1(objective, evaluation.accuracy) * objective.factor(evaluation.latency_ms)
    return (utility, *objective.costs(evaluation.latency_ms, evaluation.cost))
