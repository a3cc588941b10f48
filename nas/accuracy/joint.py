"""Predictions of several networks whose errors go together, without what made them.

What two networks have in common, the level of the recipe above all, is wrong for both alike; so the
difference of two predictions is known better than either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_spaces.gate import Gate

_SAMPLES = 4000
# Squared percentage points, more than any prediction has.
_MOST_POINTS = 1e6


@dataclass(frozen=True, slots=True)
class Difference:
    """The predicted gain in accuracy of one network over another, both trained by the same recipe.

    Attributes:
        points: mean, percentage points of top-1.
        deviation: standard deviation of the difference of one training run each.
    """

    points: float
    deviation: float


@dataclass(frozen=True, slots=True)
class JointPrediction:
    """Top-1 of N networks under one recipe.

    Attributes:
        recipe: name of the recipe.
        ids: of the architectures.
        top1: (N,) means in percent.
        covariance: (N, N) of the networks' expected top-1, squared points.
        noise: (N,) variance of one training run about it.
    """

    recipe: str
    ids: tuple[str, ...]
    top1: NDArray[np.float64]
    covariance: NDArray[np.float64]
    noise: NDArray[np.float64]

    def __contains__(self, id_: str) -> bool:
        return id_ in self.ids

    def difference(self, id_: str, reference: str) -> Difference:
        """The predicted gain in accuracy of a network over another.

        Raises:
            ValueError: if one of them is not among the networks.
        """
        one, other = self.ids.index(id_), self.ids.index(reference)
        if one == other:
            return Difference(0.0, 0.0)
        covariance = self.covariance
        variance = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
        variance += self.noise[one] + self.noise[other]
        return Difference(float(self.top1[one] - self.top1[other]), math.sqrt(max(variance, 0.0)))

    def disappointment(self, ids: Sequence[str], caution: float = 0.0, seed: int = 0) -> float:
        """By how much the best of some predictions is expected to promise too much, points.

        Of many predictions the best is likely one that errs upwards (the winner's curse). Taking the
        predicted means for the truth, predictions with the errors of this process are drawn, the best is
        chosen each time, and its mean error is returned.

        Args:
            ids: networks to choose from.
            caution: standard deviations subtracted before choosing.
            seed: of the draws.

        Raises:
            ValueError: if one is not among the networks.
        """
        numbers = [self.ids.index(each) for each in ids]
        if len(numbers) < 2:
            return 0.0
        covariance = self.covariance[np.ix_(numbers, numbers)]
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0))
        draws = np.random.default_rng(seed).standard_normal((_SAMPLES, len(numbers)))
        errors = draws @ root.T
        spread = np.sqrt(np.maximum(covariance.diagonal(), 0) + self.noise[numbers])
        best = (self.top1[numbers] - caution * spread + errors).argmax(1)
        return float(max(errors[np.arange(_SAMPLES), best].mean(), 0.0))

    def to_dict(self) -> dict[str, object]:
        """Plain types only; the inverse of :meth:`from_dict`, to a millionth."""
        return {
            "recipe": self.recipe,
            "ids": list(self.ids),
            "top1": np.round(self.top1, 6).tolist(),
            "covariance": np.round(self.covariance, 6).tolist(),
            "noise": np.round(self.noise, 6).tolist(),
        }

    @classmethod
    def from_dict(cls, data: object, gate: Gate) -> JointPrediction:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: of the gate's kind, if something is missing or does not fit.
        """
        found = gate.fields("a joint prediction", data, ("recipe", "ids", "top1", "covariance", "noise"))
        ids = tuple(gate.string("an id", each) for each in gate.sequence(found["ids"], "ids"))
        count = len(ids)
        arrays = {}
        for name, shape in (("top1", (count,)), ("covariance", (count, count)), ("noise", (count,))):
            with gate.reading():
                arrays[name] = values = np.array(found[name], np.float64)
            if (
                values.size != math.prod(shape)
                or not np.isfinite(values).all()
                or np.abs(values).max(initial=0) > _MOST_POINTS
            ):
                gate.fail(f"holds a joint prediction of {count} networks whose {name} do not fit")
            arrays[name] = values.reshape(shape)
        return cls(gate.string("recipe", found["recipe"]), ids, **arrays)
