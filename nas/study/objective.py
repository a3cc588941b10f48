"""The objectives a search can have: what a network is worth.

Every objective is one *utility*, to be maximised, and any number of *costs*, to be minimised. The
utility is accuracy times a factor, and factor and costs are known before anything is trained: this
is what lets a sampler judge a proposal before it is evaluated.

    objective = pareto()                  # accuracy against latency
    objective = pareto(third="macs")      # ... and multiply-accumulates
    objective = budget()                  # accuracy alone; the budget itself is hard, see nas.study.loop
    objective = mnasnet(target_ms=20.0)   # accuracy x (latency / target)^-0.07

    study values of a trial: objective.values(...), in the order of objective.names
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nas.accuracy.source import lower_bound
from nas.cost import Cost

Direction = Literal["maximize", "minimize"]
ThirdCost = Literal["parameters", "macs", "model_size_mb", "peak_memory_mb"]
THIRD_COSTS: tuple[ThirdCost, ...] = get_args(ThirdCost)


@dataclass(frozen=True, slots=True)
class Objective:
    """A utility to maximise and costs to minimise.

    Attributes:
        costs: names of what is minimised.
        target_ms: the latency at which the factor from accuracy to utility is 1; None where it always is.
        exponent: of latency over target in that factor.
        caution: standard deviations to subtract from an uncertain accuracy.
        bytes_per_value: of weights and feature maps: 4 in fp32, 1 in int8.
    """

    costs: tuple[Literal["latency_ms"] | ThirdCost, ...] = ("latency_ms",)
    target_ms: float | None = None
    exponent: float = -0.07
    caution: float = 0.0
    bytes_per_value: int = 4

    def __post_init__(self) -> None:
        if self.target_ms is not None and not self.target_ms > 0:
            raise ValueError(f"objective mnasnet: target_ms must be positive, not {self.target_ms!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values of a trial."""
        return ("top1" if self.target_ms is None else "reward", *self.costs)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Which way each value of a trial is to go."""
        minimize: Direction = "minimize"
        return ("maximize", *(minimize for _ in self.costs))

    def factor(self, latency_ms: float) -> float:
        """From accuracy to utility: ``(latency / target) ** exponent``, 1 without a target."""
        return 1.0 if self.target_ms is None else float((latency_ms / self.target_ms) ** self.exponent)

    def cost_values(self, latency_ms: float, cost: Cost) -> tuple[float, ...]:
        """The costs of a network, in the order of ``costs``."""
        known = {
            "latency_ms": latency_ms,
            "parameters": float(cost.parameters),
            "macs": float(cost.macs),
            "model_size_mb": cost.parameters * self.bytes_per_value / 1e6,
            "peak_memory_mb": cost.peak_values * self.bytes_per_value / 1e6,
        }
        return tuple(known[name] for name in self.costs)

    def cautious_top1(self, top1: float, deviation: float | None) -> float:
        """Accuracy in percent, less ``caution`` deviations where its source states one."""
        return lower_bound(top1, deviation or 0.0, self.caution)

    def values(
        self, top1: float, deviation: float | None, latency_ms: float, cost: Cost
    ) -> tuple[float, ...]:
        """The values of a trial.

        Args:
            top1: accuracy in percent.
            deviation: of the accuracy, in points; None where its source states none.
            latency_ms: milliseconds for one image.
            cost: multiply-accumulates, parameters and memory.
        """
        utility = self.cautious_top1(top1, deviation) * self.factor(latency_ms)
        return (utility, *self.cost_values(latency_ms, cost))


def pareto(third: ThirdCost | None = None, caution: float = 0.0, bytes_per_value: int = 4) -> Objective:
    """Accuracy against latency, and against a third quantity if wanted."""
    costs: tuple[Literal["latency_ms"] | ThirdCost, ...] = ("latency_ms", third) if third else ("latency_ms",)
    return Objective(costs, caution=caution, bytes_per_value=bytes_per_value)


def budget(caution: float = 0.0) -> Objective:
    """The best accuracy within the latency budget: a bound, not an objective."""
    return Objective((), caution=caution)


def mnasnet(target_ms: float, exponent: float = -0.07, caution: float = 0.0) -> Objective:
    """Accuracy times ``(latency / target) ** exponent`` (Tan et al. 2019, equation 2, soft constraint).

    Args:
        target_ms: the latency at which the factor is 1.
        exponent: -0.07 in MnasNet, -0.15 in MobileNetV3-Small.
        caution: see :class:`Objective`.
    """
    return Objective((), target_ms, exponent, caution)
