"""What every source of accuracy answers with: trained, predicted, looked up or published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

AccuracySource = Literal["measured", "predicted", "published", "proxy"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of one network.

    Attributes:
        top1: percentage of validation images whose first answer is right, 0 to 100; of a ``proxy`` a score
            without unit.
        source: ``measured`` (trained and validated here), ``predicted``, ``published`` or ``proxy``.
        deviation: one standard deviation in percentage points, None where nothing is known of it.
    """

    top1: float
    source: AccuracySource
    deviation: float | None = None


class AccuracyError(InputError):
    """An architecture whose accuracy this source cannot tell. The message gives the reason."""


class AccuracyEstimator(Protocol):
    """A source of accuracy. Calls may take microseconds (a predictor) or hours (training)."""

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """Accuracy of a network.

        Raises:
            AccuracyError: if this source does not cover the architecture.
        """


Answer = Accuracy | AccuracyError


@runtime_checkable
class BatchEstimator(AccuracyEstimator, Protocol):
    """A source that answers for many networks in much less time than one by one."""

    def accuracies(self, architectures: Sequence[Architecture]) -> list[Answer]:
        """One answer a network, in their order: its accuracy, or the error ``accuracy`` would raise."""


def ask(estimator: AccuracyEstimator, architectures: Sequence[Architecture]) -> list[Answer]:
    """One answer a network, in their order: its accuracy, or the error that says why there is none.

    A :class:`BatchEstimator` is asked once for all of them, any other source one by one.
    """
    if isinstance(estimator, BatchEstimator):
        return estimator.accuracies(architectures)
    return [_ask_one(estimator, each) for each in architectures]


def _ask_one(estimator: AccuracyEstimator, architecture: Architecture) -> Answer:
    try:
        return estimator.accuracy(architecture)
    except AccuracyError as error:
        return error


@dataclass(frozen=True, slots=True)
class Int8Penalty:
    """Accuracies of int8 networks from those of fp32 networks and what somebody published about the loss.

    Nothing here predicts what quantisation costs; the user states it for each activation.

    Attributes:
        fp32: what answers for the network before quantisation.
        points: lost by a network that contains an activation; the largest of a network's counts.
    """

    fp32: AccuracyEstimator
    points: Mapping[str, float]

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """See :class:`AccuracyEstimator`; a published accuracy is none any more."""
        return self._less(architecture, self.fp32.accuracy(architecture))

    def accuracies(self, architectures: Sequence[Architecture]) -> list[Answer]:
        """See :class:`BatchEstimator`."""
        return [
            each if isinstance(each, AccuracyError) else self._less(architecture, each)
            for architecture, each in zip(architectures, ask(self.fp32, architectures), strict=True)
        ]

    def _less(self, architecture: Architecture, found: Accuracy) -> Accuracy:
        used = {architecture.stem.activation, architecture.head.activation}
        used |= {block.activation for block in architecture.blocks}
        lost = max(self.points.get(each, 0.0) for each in used)
        return Accuracy(found.top1 - lost, "predicted", found.deviation)
