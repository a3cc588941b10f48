"""One network as a study knows it: accuracy, latency and costs, each with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.accuracy.source import Judgement, lower_bound
from nas.cost import cost
from nas.quantities import latency_text
from search_spaces.architecture import Architecture
from search_spaces.gate import Gate
from search_spaces.space import SearchSpace
from search_spaces.stage import Value


class Member:
    """A member of a search space that is built once somebody asks for it: of a long study few are looked at.

    Args:
        identity: id of the architecture, which decides about equality.
        space: what it is a member of.
        parameters: of the space.
        gate: says where they come from, if they make no member.
    """

    __slots__ = ("_built", "_gate", "_parameters", "_space", "identity")

    def __init__(
        self, identity: str, space: SearchSpace, parameters: Mapping[str, Value], gate: Gate
    ) -> None:
        self.identity = identity
        self._space, self._parameters, self._gate = space, parameters, gate
        self._built: Architecture | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and other.identity == self.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def architecture(self) -> Architecture:
        """Its block table.

        Raises:
            InputError: of the gate's kind, if the parameters make no member.
        """
        if self._built is None:
            with self._gate.reading():
                self._built = self._space.build(self._parameters)
        return self._built


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """One network as the study knows it.

    Attributes:
        trial: number of its trial, negative for references whose accuracy is published, which are no trials.
        id: id of its architecture.
        kind: ``candidate`` or ``reference``.
        name: name of a reference, else None.
        top1: accuracy in percent.
        deviation: one standard deviation of the accuracy in points, None where unknown.
        accuracy_source: ``measured``, ``given``, ``predicted``, ``published`` or ``proxy``; ``trained`` after
            the final recipe.
        latency_ms: milliseconds for one image; the median where it was timed end to end.
        latency_source: ``measured`` end to end, or the worst of its layers: ``table`` where all were
            measured, ``predicted``, ``estimated``.
        macs: multiply-accumulates.
        parameters: trainable parameters.
        resolution: side of the input image in pixels, None where unknown.
        network: its block table, or what that is built from; None for a network that is not of the family.
        published: accuracy in percent that its authors report, None where there is none: it is for their
            recipe, and stands beside a prediction without being compared with it.
        latency_error_ms: one standard deviation of the latency, None where unknown.
        p90_ms: 90th percentile of the runs timed end to end, None where there were none.
        p99_ms: 99th percentile.
        energy_mj: millijoules an inference, of the processor's whole package; None where they were not read.
        judgement: what a trained network was judged on, None for others.
        bytes_per_value: of its weights and feature maps.
        caution: standard deviations that the search took off uncertain accuracies.
    """

    trial: int
    id: str
    kind: str
    name: str | None
    top1: float
    deviation: float | None
    accuracy_source: str
    latency_ms: float
    latency_source: str
    macs: int
    parameters: int
    resolution: int | None
    network: Architecture | Member | None
    published: float | None = None
    latency_error_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    energy_mj: float | None = None
    judgement: Judgement | None = None
    bytes_per_value: int = 4
    caution: float = 0.0

    @property
    def judged_top1(self) -> float:
        """Accuracy the search went by, in percent: less where it was cautious."""
        return lower_bound(self.top1, self.deviation or 0.0, self.caution)

    @property
    def architecture(self) -> Architecture | None:
        """Its block table, None for a network that is not of the family."""
        return self.network.architecture if isinstance(self.network, Member) else self.network

    @property
    def latency(self) -> str:
        """E.g. ``8.58 ± 0.17 ms``."""
        return latency_text(self.latency_ms, self.latency_error_ms)

    def percentile_ms(self, percentile: int) -> float:
        """Latency at a percentile, 50, 90 or 99; the latency there is where it was not timed end to end."""
        found = {50: self.latency_ms, 90: self.p90_ms, 99: self.p99_ms}[percentile]
        return self.latency_ms if found is None else found

    def cost(self, name: str) -> float:
        """One of its costs: latency, or one of :data:`nas.study.objective.THIRD_COSTS`."""
        return float(getattr(self, name) or 0.0)

    @property
    def model_size_mb(self) -> float:
        """Megabytes of its weights."""
        return self.parameters * self.bytes_per_value / 1e6

    @property
    def peak_memory_mb(self) -> float | None:
        """Megabytes of feature maps held at once, None for a network that is not of the family."""
        if (architecture := self.architecture) is None:
            return None
        return cost(architecture).peak_values * self.bytes_per_value / 1e6

    @property
    def is_ours(self) -> bool:
        """True if it was timed like the candidates: all but what torchvision and timm build."""
        return self.trial >= 0 or self.network is not None

    @property
    def class_mean(self) -> float | None:
        """Mean accuracy of the classes in percent, None where the network was not judged here."""
        return self.judgement.class_mean if self.judgement else None

    @property
    def label(self) -> str:
        """Name of a reference, id of a candidate."""
        return self.name or self.id

    @property
    def accuracy(self) -> str:
        """E.g. ``76.94 ± 0.80 %``; a training-free score is no percentage: ``score 84.31``."""
        if self.accuracy_source == "proxy":
            return f"score {self.top1:.2f}"
        deviation = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.top1:.2f}{deviation} %"


def losses(networks: Sequence[NetworkResult], third: str | None) -> NDArray[np.float64]:
    """The losses to minimise (networks, 1 + costs): negative judged accuracy, latency, a third cost."""
    costs = ("latency_ms", third) if third else ("latency_ms",)
    return np.array([[-network.judged_top1, *(network.cost(name) for name in costs)] for network in networks])
