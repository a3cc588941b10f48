"""Judging the accuracy predictor on networks it has not seen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from nas.accuracy.csv import TrainedNetwork
from nas.accuracy.features import features_of
from nas.accuracy.fit import Effort, fit_benchmark, fit_posterior
from nas.accuracy.process import RECIPES, Posterior

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Predictions of networks that took no part in the fit.

    Attributes:
        networks: N networks.
        predicted: (N,) top-1 in percent.
        deviation: (N,) percentage points.
    """

    networks: tuple[TrainedNetwork, ...]
    predicted: Floats
    deviation: Floats

    @property
    def errors(self) -> Floats:
        """Predicted minus true top-1, (N,), percentage points."""
        return self.predicted - self._true

    @property
    def _true(self) -> Floats:
        return np.array([each.top1 for each in self.networks])

    @property
    def mean_error(self) -> float:
        """Mean absolute error."""
        return float(np.abs(self.errors).mean())

    @property
    def worst_error(self) -> float:
        """Largest absolute error."""
        return float(np.abs(self.errors).max())

    @property
    def tau(self) -> float:
        """Kendall's tau-b between predicted and true top-1."""
        return float(kendalltau(self.predicted, self._true).statistic)

    def coverage(self, deviations: float) -> float:
        """Share of networks within that many standard deviations."""
        return float((np.abs(self.errors) <= deviations * self.deviation).mean())


def predict_left_out(posterior: Posterior, networks: Sequence[TrainedNetwork]) -> LeftOut:
    """Predictions for networks, each under its own recipe."""
    predicted, deviation = np.empty((2, len(networks)))
    inputs = features_of([each.architecture for each in networks])
    for recipe in RECIPES:
        rows = [number for number, each in enumerate(networks) if each.recipe == recipe]
        predicted[rows], deviation[rows] = posterior.predict(inputs[rows], recipe)
    return LeftOut(tuple(networks), predicted, deviation)


def random_split(
    networks: Sequence[TrainedNetwork], share: float, seed: int
) -> tuple[list[TrainedNetwork], list[TrainedNetwork]]:
    """The benchmark's networks kept for fitting, and a random share of them left out."""
    benchmark = [each for each in networks if each.recipe == "accel_nasbench"]
    random.Random(seed).shuffle(benchmark)
    count = round(share * len(benchmark))
    return benchmark[count:], benchmark[:count]


def leave_benchmark_out(
    networks: Sequence[TrainedNetwork], share: float, seed: int, effort: Effort
) -> LeftOut:
    """Fit without a random share of the benchmark, from scratch, and predict it."""
    kept, left_out = random_split(networks, share, seed)
    published = [each for each in networks if each.recipe == "mobilenet"]
    posterior = fit_posterior(fit_benchmark(kept, effort, seed), [*kept, *published])
    return predict_left_out(posterior, left_out)


def leave_variants_out(networks: Sequence[TrainedNetwork], seed: int, effort: Effort) -> LeftOut:
    """Leave out each published variant, all its resolutions together, and condition on the others.

    Scales and inducing points come from the benchmark alone, so nothing fitted has seen the variant.
    """
    benchmark = [each for each in networks if each.recipe == "accel_nasbench"]
    published = [each for each in networks if each.recipe == "mobilenet"]
    start = fit_benchmark(benchmark, effort, seed)
    folds = []
    for variant in dict.fromkeys(each.variant for each in published):
        kept = [each for each in published if each.variant != variant]
        posterior = fit_posterior(start, [*benchmark, *kept])
        folds.append(predict_left_out(posterior, [each for each in published if each.variant == variant]))
    return LeftOut(
        tuple(each for fold in folds for each in fold.networks),
        np.concatenate([fold.predicted for fold in folds]),
        np.concatenate([fold.deviation for fold in folds]),
    )
