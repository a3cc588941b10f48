"""The answer of every source of accuracy: trained, predicted, looked up or published."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

# Of one network, or of many at once.
Values = TypeVar("Values", float, NDArray[np.floating])

AccuracySource = Literal["measured", "supernet", "given", "predicted", "published", "proxy"]


def lower_bound(top1: Values, deviation: Values, caution: float) -> Values:
    """Accuracy in percent that a cautious search goes by: ``caution`` standard deviations less.

    Args:
        top1: percent.
        deviation: one standard deviation in points.
        caution: how many are taken off.
    """
    return top1 - caution * deviation


@dataclass(frozen=True, slots=True)
class Judgement:
    """A network's result on validation images, beside the share that guessing would have got.

    Attributes:
        top1: percentage of images whose first answer is right.
        class_mean: mean over the classes of the percentage that is right: each class counts the same.
        majority: percentage of the images that are of the most frequent class: who always answers it has
            this top-1.
        majority_class: its name.
        images: how many there were.
    """

    top1: float
    class_mean: float
    majority: float
    majority_class: str
    images: int

    def __post_init__(self) -> None:
        shares = (self.top1, self.class_mean, self.majority)
        if self.images < 1 or not all(0 <= each <= 100 for each in shares):
            raise ValueError(f"top1, class_mean, majority are no shares: {shares} % of {self.images} images")

    @classmethod
    def of(cls, answers: Sequence[int], labels: Sequence[int], names: Sequence[str]) -> Judgement:
        """From class numbers: what was answered, and what was right.

        Args:
            answers: a class number for each image.
            labels: the right one.
            names: of the classes.
        """
        counts = Counter(labels)
        right = Counter(label for answer, label in zip(answers, labels, strict=True) if answer == label)
        most, count = counts.most_common(1)[0]
        return cls(
            top1=100 * right.total() / len(labels),
            class_mean=100 * sum(right[each] / counts[each] for each in counts) / len(counts),
            majority=100 * count / len(labels),
            majority_class=names[most],
            images=len(labels),
        )

    @property
    def deviation(self) -> float:
        """One standard deviation of :attr:`top1` in points: binomial, from the number of images alone.

        Of the rate with one right and one wrong image more, so that all right is not taken for certain.
        """
        rate = (self.top1 / 100 * self.images + 1) / (self.images + 2)
        return 100 * math.sqrt(rate * (1 - rate) / self.images)

    @property
    def above_chance(self) -> bool:
        """True if it did better than the most frequent class, by more than two standard deviations."""
        return self.top1 - 2 * self.deviation > self.majority

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of one network.

    Attributes:
        top1: percentage of validation images whose first answer is right, 0 to 100; of a ``proxy`` a score
            without unit.
        source: ``measured`` (trained and validated here), ``supernet`` (validated with shared weights),
            ``given`` (in somebody's table), ``predicted``,
            ``published`` or ``proxy``.
        deviation: one standard deviation in percentage points, None where nothing is known of it.
        judgement: what it was judged on, None where it was not.
        curve: (epochs, top-1) at the rungs and at the end of its training; empty where it was not trained.
        stopped: whether the training was stopped at the last of these, as not worth its end.
    """

    top1: float
    source: AccuracySource
    deviation: float | None = None
    judgement: Judgement | None = None
    curve: tuple[tuple[int, float], ...] = ()
    stopped: bool = False

    @classmethod
    def measured(
        cls, judgement: Judgement, curve: tuple[tuple[int, float], ...] = (), stopped: bool = False
    ) -> Accuracy:
        """Of a network that was trained and judged here.

        Args:
            judgement: what it was judged on.
            curve: (epochs, top-1) at the rungs and at the end.
            stopped: whether the training was stopped on its way.
        """
        return cls(judgement.top1, "measured", judgement.deviation, judgement, curve, stopped)


class AccuracyError(InputError):
    """An architecture whose accuracy this source cannot tell. The message gives the reason."""


class AccuracyEstimator(Protocol):
    """A source of accuracy. Calls may take microseconds (a predictor) or hours (training)."""

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """Accuracy of a network.

        Raises:
            AccuracyError: if this source does not cover the architecture.
        """


@runtime_checkable
class SearchSource(AccuracyEstimator, Protocol):
    """A source that a search can be told to use."""

    @property
    def expensive(self) -> bool:
        """True if an answer takes a tenth of a second or more: then proposals deserve more thought."""


AccuracyOrError = Accuracy | AccuracyError


@runtime_checkable
class BatchEstimator(AccuracyEstimator, Protocol):
    """A source that answers for many networks in much less time than one by one."""

    def accuracies(self, architectures: Sequence[Architecture]) -> list[AccuracyOrError]:
        """One answer a network, in their order: its accuracy, or the error ``accuracy`` would raise."""


# Whether a training that has come so far, epochs and top-1, is worth going on with.
GoesOn = Callable[[int, float], bool]


@runtime_checkable
class StagedEstimator(AccuracyEstimator, Protocol):
    """A source that takes long, and can be stopped on the way."""

    @property
    def halving(self) -> int:
        """Of the networks that come to a rung, so many times fewer go on; 0: all do."""

    def staged(self, architecture: Architecture, goes_on: GoesOn | None) -> Accuracy:
        """As ``accuracy``, asking on the way whether to go on."""


def ask(
    estimator: AccuracyEstimator,
    architectures: Sequence[Architecture],
    rules: Sequence[GoesOn | None] = (),
) -> list[AccuracyOrError]:
    """One answer a network, in their order: its accuracy, or the error that says why there is none.

    A :class:`BatchEstimator` is asked once for all of them, any other source one by one.

    Args:
        estimator: who is asked.
        architectures: the networks.
        rules: for each, whether a :class:`StagedEstimator` goes on with it; empty: with all.
    """
    if isinstance(estimator, BatchEstimator):
        return estimator.accuracies(architectures)
    every = rules or [None] * len(architectures)
    return [_ask_one(estimator, each, rule) for each, rule in zip(architectures, every, strict=True)]


def _ask_one(
    estimator: AccuracyEstimator, architecture: Architecture, rule: GoesOn | None
) -> AccuracyOrError:
    try:
        if rule is not None and isinstance(estimator, StagedEstimator):
            return estimator.staged(architecture, rule)
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

    fp32: SearchSource
    points: Mapping[str, float]

    @property
    def expensive(self) -> bool:
        """See :class:`SearchSource`."""
        return self.fp32.expensive

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """See :class:`AccuracyEstimator`; a published accuracy is none any more."""
        return self._less(architecture, self.fp32.accuracy(architecture))

    def accuracies(self, architectures: Sequence[Architecture]) -> list[AccuracyOrError]:
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
