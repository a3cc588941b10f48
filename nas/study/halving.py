"""Successive halving: of trainings that come to a rung, those behind most others are stopped there.

Asynchronous (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934):
nobody waits for a rung to fill. "Behind" is by fronts: those of all objectives at that rung are peeled off
one after the other, and a network goes on while fewer than its share of all are on fronts before its own.
With one objective that is its rank.

    halving = Halving(objective, 3)
    halving.add(curve, latency_ms, cost, complete=True)    # of a training that has ended
    goes_on = halving.rule(latency_ms, cost)               # can be sent to another process
    goes_on(2, 71.5)                                       # after 2 epochs at 71.5 %
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.cost import Cost
from nas.study.objective import Objective
from nas.study.pareto import front

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule by which a training goes on, from what was known when it began; see :class:`Halving`.

    Attributes:
        objective: what networks are compared by.
        reduction: so many times fewer go on at each rung.
        latency_ms: of the network.
        cost: of the network.
        rivals: by epochs, losses of the networks that have come there.
    """

    objective: Objective
    reduction: int
    latency_ms: float
    cost: Cost
    rivals: Mapping[int, Sequence[tuple[float, ...]]]

    def __call__(self, epochs: int, top1: float) -> bool:
        """True if the training should go on after so many epochs with that top-1."""
        rivals = self.rivals.get(epochs, ())
        count = len(rivals) + 1
        if count < self.reduction:
            return True
        losses = np.array([_losses(self.objective, top1, self.latency_ms, self.cost), *rivals])
        left, ahead = np.arange(count), 0
        while True:
            chosen = front(losses[left])
            if 0 in left[chosen]:
                return ahead < count / self.reduction
            ahead += len(chosen)
            left = np.delete(left, chosen)


class Halving:
    """The rungs of a study as far as they are known.

    Args:
        objective: what networks are compared by.
        reduction: so many times fewer go on at each rung.
    """

    def __init__(self, objective: Objective, reduction: int) -> None:
        self._objective = objective
        self._reduction = reduction
        self._losses: dict[int, list[tuple[float, ...]]] = {}
        # By epochs, how much more complete trainings had at their end.
        self._gains: dict[int, list[float]] = {}

    def add(self, curve: Curve, latency_ms: float, cost: Cost, complete: bool) -> None:
        """Learn of a training that has ended, to its end or not.

        Args:
            curve: (epochs, top-1) at its rungs and at its end.
            latency_ms: of the network.
            cost: of the network.
            complete: whether it was trained to its end.
        """
        for epochs, top1 in curve:
            self._losses.setdefault(epochs, []).append(_losses(self._objective, top1, latency_ms, cost))
            if complete:
                self._gains.setdefault(epochs, []).append(curve[-1][1] - top1)

    def rule(self, latency_ms: float, cost: Cost) -> Rule:
        """True if the training of a network goes on."""
        return Rule(
            self._objective,
            self._reduction,
            latency_ms,
            cost,
            {epochs: tuple(each) for epochs, each in self._losses.items()},
        )

    def promise(self, curve: Curve) -> float:
        """The top-1 that a stopped training would have reached, if it had gained what others did."""
        epochs, top1 = curve[-1]
        gains = self._gains.get(epochs)
        return min(100.0, top1 + float(np.median(gains))) if gains else top1


def _losses(objective: Objective, top1: float, latency_ms: float, cost: Cost) -> tuple[float, ...]:
    utility, *costs = objective.values(top1, None, latency_ms, cost)
    return (-utility, *costs)
