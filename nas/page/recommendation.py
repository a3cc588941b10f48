"""Who is recommended: the front, what was found beside each reference and its gain, and who is timed."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nas.accuracy.joint import JointPrediction
from nas.page.network_result import NetworkResult, losses
from nas.study.pareto import front

# Networks of the front just below a reference's latency that are timed with it.
_NEAREST = 6


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain in accuracy of a network over a reference, both trained once by the same recipe.

    Attributes:
        difference: predicted, points.
        deviation: its standard deviation, points; None where nothing is known of it.
        disappointment: how much of the difference is expected to come from choosing the best of many
            predictions, points.
        choices: of how many it was the best.
        unit: of all of these.
    """

    difference: float
    deviation: float | None = None
    disappointment: float = 0.0
    choices: int = 1
    unit: str = "points"

    @property
    def points(self) -> float:
        """The difference less what choosing adds to it."""
        return self.difference - self.disappointment

    @property
    def bound(self) -> float:
        """:attr:`points` less one standard deviation."""
        return self.points - (self.deviation or 0.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """The networks that the search found beside one reference.

    Attributes:
        reference: the network to beat.
        as_fast: the most accurate candidate that is not slower, None if there is none.
        as_accurate: the fastest candidate that is not less accurate, None if there is none.
        gained: what ``as_fast`` gains, None without one and where accuracies are of different kinds.
        recipe: what predictions are for, empty where nothing is known of it.
    """

    reference: NetworkResult
    as_fast: NetworkResult | None
    as_accurate: NetworkResult | None
    gained: Gain | None = None
    recipe: str = ""

    @property
    def points(self) -> float | None:
        """Percentage points of accuracy gained at the reference's latency."""
        return None if self.gained is None else self.gained.points

    @property
    def is_gain(self) -> bool:
        """True if something is gained at the reference's latency beyond one standard deviation."""
        return self.gained is not None and self.gained.bound > 0

    @property
    def latency_change(self) -> float | None:
        """Relative change of latency at the reference's accuracy; -0.25 is a quarter less."""
        if self.as_accurate is None or self.differs(self.as_accurate):
            return None
        return self.as_accurate.latency_ms / self.reference.latency_ms - 1

    @property
    def mixes_kinds(self) -> bool:
        """True if accuracies are of different kinds, predicted and published: they are not compared."""
        return any(self.differs(each) for each in (self.as_fast, self.as_accurate) if each is not None)

    def differs(self, found: NetworkResult) -> bool:
        """True if the accuracy of a network is of another kind than the reference's."""
        return found.accuracy_source != self.reference.accuracy_source


def front_of(networks: Sequence[NetworkResult], third: str | None = None) -> tuple[NetworkResult, ...]:
    """Networks that no other one dominates, by latency; ``third`` names a cost beside latency."""
    if not networks:
        return ()
    chosen = (networks[index] for index in front(losses(networks, third)))
    return tuple(sorted(chosen, key=lambda network: network.latency_ms))


def best_within(networks: Iterable[NetworkResult], budget_ms: float) -> NetworkResult | None:
    """The most accurate network within a latency, None where there is none."""
    within = (each for each in networks if each.latency_ms <= budget_ms)
    return max(within, key=lambda each: each.judged_top1, default=None)


def answer_beside(
    reference: NetworkResult,
    latency_ms: float,
    candidates: Iterable[NetworkResult],
    recommendable: Container[int],
    joint: JointPrediction | None,
    caution: float,
    recipe: str,
) -> Answer:
    """The answer to a reference: the networks found at its latency and at its accuracy.

    Args:
        reference: the network to beat.
        latency_ms: within which, be it the reference's own or another.
        candidates: all that were proposed.
        recommendable: numbers of the trials that may be recommended.
        joint: predictions of networks together, None where there are none.
        caution: how many deviations the search took off uncertain accuracies.
        recipe: what predictions are for.
    """
    as_fast = as_accurate = None
    choices = []
    for candidate in candidates:
        as_fast_as_it = candidate.latency_ms <= latency_ms
        if as_fast_as_it:
            # What was passed over was a choice, too.
            choices.append(candidate.id)
        if candidate.trial not in recommendable:
            continue
        if as_fast_as_it and (as_fast is None or candidate.judged_top1 > as_fast.judged_top1):
            as_fast = candidate
        if candidate.judged_top1 >= reference.judged_top1 and (
            as_accurate is None or candidate.latency_ms < as_accurate.latency_ms
        ):
            as_accurate = candidate
    gained = None
    if as_fast is not None and as_fast.accuracy_source == reference.accuracy_source:
        gained = _gain(reference, as_fast, choices, joint, caution)
    return Answer(reference, as_fast, as_accurate, gained, recipe)


def _gain(
    reference: NetworkResult,
    found: NetworkResult,
    choices: Sequence[str],
    joint: JointPrediction | None,
    caution: float,
) -> Gain:
    predicted = found.accuracy_source == "predicted"
    if not predicted or joint is None or found.id not in joint or reference.id not in joint:
        unit = "of the score" if found.accuracy_source == "proxy" else "points"
        deviation = None
        if found.judgement and reference.judgement and found.deviation and reference.deviation:
            # As if judged on different images: on the same ones the difference scatters less.
            deviation = math.hypot(found.deviation, reference.deviation)
        return Gain(found.top1 - reference.top1, deviation, unit=unit)
    difference = joint.difference(found.id, reference.id)
    known = [each for each in dict.fromkeys(choices) if each in joint]
    lost = joint.disappointment(known, caution)
    return Gain(difference.points, difference.deviation, lost, len(known))


def spread_out(
    networks: Sequence[NetworkResult], count: int, bounds: Iterable[tuple[float, bool]]
) -> list[NetworkResult]:
    """Of a front by latency, the networks that deserve to be timed end to end.

    Args:
        networks: the front.
        count: how many are spread evenly over its latencies.
        bounds: latencies in milliseconds below which more are taken, as some will turn out slower than
            the table says: several where a bound holds for networks timed as these are, else one.
    """
    if not networks:
        return []
    latencies = np.log([each.latency_ms for each in networks])
    targets = np.linspace(latencies[0], latencies[-1], min(count, len(networks)))
    chosen = [networks[int(np.abs(latencies - target).argmin())] for target in targets]
    for bound, ours in bounds:
        chosen += [each for each in networks if each.latency_ms <= bound][-_NEAREST if ours else -1 :]
    return chosen
