"""Judging the accuracy predictor on networks it has not seen.

The protocol, fixed before anything was fitted:

* Everything is left out in five folds, and scales, points and weights are fitted anew in each.
* A published *table* (stem, rows, head) is left out whole: all its resolutions, under all recipes. Its fold
  is its hash, so that further data moves none. Predictions are for the recipe of each row, whose level the
  recipe's other tables tell.
* Networks specialised by once-for-all are left out by device, and with them those of the same table.
* A fifth of the supernet's networks and a tenth of the benchmark's are left out, by their hash.
* In five further folds published *recipes* are left out whole, and predicted as the default target,
  without a level of their own.
* Once more no network of the supernet takes part, and all of them are predicted as the default target: the
  slope of the error over MACs is what tells whether sizes are compared rightly.

"After one constant a recipe" takes the mean error off the networks of each recipe that were left out
together, and does not count those that were alone in that: it judges differences, not levels.

The priors of scales were chosen in another split, by leaving out four of its folds in turn and the fifth
out of everything: results/accuracy.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau

from nas.accuracy.features import Floats, features_of
from nas.accuracy.fit import Effort, fit_predictor, fit_regression
from nas.accuracy.networks import TrainedNetwork
from nas.accuracy.process import Posterior
from nas.accuracy.recipes import BENCHMARKS, TARGETS, Recipe
from nas.cost import cost

FOLDS = 5
TARGET = TARGETS[0]
SLOPE_MACS = (120e6, 520e6)
BAND_MACS = 60e6
BEST = 10


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Predictions of networks that took no part in the fit.

    Attributes:
        networks: N networks.
        predicted: (N,) top-1 in percent.
        deviation: (N,) percentage points.
        fold: (N,) what was left out together.
    """

    networks: tuple[TrainedNetwork, ...]
    predicted: Floats
    deviation: Floats
    fold: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[LeftOut]) -> LeftOut:
        """Several of them as one."""
        return cls(
            tuple(each for part in parts for each in part.networks),
            np.concatenate([part.predicted for part in parts]),
            np.concatenate([part.deviation for part in parts]),
            np.concatenate([part.fold for part in parts]),
        )

    def where(self, wanted: Callable[[TrainedNetwork], bool]) -> LeftOut:
        """Some of the networks."""
        keep = np.array([wanted(each) for each in self.networks], bool)
        return LeftOut(
            tuple(each for each, kept in zip(self.networks, keep, strict=True) if kept),
            self.predicted[keep],
            self.deviation[keep],
            self.fold[keep],
        )

    @property
    def truth(self) -> Floats:
        """(N,) top-1 in percent."""
        return np.array([each.top1 for each in self.networks], float)

    @property
    def errors(self) -> Floats:
        """Predicted minus true top-1, (N,), percentage points."""
        return self.predicted - self.truth

    @property
    def mean_error(self) -> float:
        """Mean absolute error."""
        return float(np.abs(self.errors).mean())

    @property
    def worst_error(self) -> float:
        """Largest absolute error."""
        return float(np.abs(self.errors).max())

    @property
    def levelled_error(self) -> float:
        """Mean absolute error after one constant a recipe, see the module; NaN if all are alone."""
        groups: dict[tuple[int, str], list[int]] = {}
        for number, (network, fold) in enumerate(zip(self.networks, self.fold.tolist(), strict=True)):
            groups.setdefault((fold, network.recipe), []).append(number)
        errors = [self.errors[each] for each in groups.values() if len(each) > 1]
        levelled = [np.abs(each - each.mean()) for each in errors]
        return float(np.concatenate(levelled).mean()) if levelled else float("nan")

    @property
    def tau(self) -> float:
        """Kendall's tau-b between predicted and true top-1."""
        return float(kendalltau(self.predicted, self.truth).statistic)

    def coverage(self, deviations: float) -> float:
        """Share of networks within that many standard deviations."""
        return float((np.abs(self.errors) <= deviations * self.deviation).mean())


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of :func:`evaluate`.

    Attributes:
        published: published networks, by table.
        specialised: networks specialised by once-for-all, by device.
        supernet: networks of its supernet.
        benchmark: networks of Accel-NASBench.
        sources: published networks predicted as the default target, by recipe.
        without_supernet: the supernet's networks predicted as the default target, none of them fitted.
    """

    published: LeftOut
    specialised: LeftOut
    supernet: LeftOut
    benchmark: LeftOut
    sources: LeftOut
    without_supernet: LeftOut


def predict_left_out(posterior: Posterior, networks: Sequence[TrainedNetwork], fold: int = 0) -> LeftOut:
    """Predictions for networks, each under its own recipe; the default target's for unknown recipes."""
    known = posterior.recipe_names
    names = [each.recipe if each.recipe in known else TARGET for each in networks]
    return _left_out(posterior, networks, names, fold)


def _left_out(
    posterior: Posterior, networks: Sequence[TrainedNetwork], recipes: Sequence[str], fold: int
) -> LeftOut:
    predicted, deviation = posterior.predict(_features(networks), recipes)
    return LeftOut(tuple(networks), predicted, deviation, np.full(len(networks), fold))


def evaluate(
    networks: Sequence[TrainedNetwork], effort: Effort, seed: int
) -> Iterator[tuple[str, Evaluation | None]]:
    """Run the protocol; yields what is being done, with the result at last.

    Args:
        networks: of all recipes.
        effort: of each fit.
        seed: of each fit.
    """
    folds = table_folds(networks)
    parts: dict[str, list[LeftOut]] = {name: [] for name in ("published", "specialised", *BENCHMARKS)}
    for fold in range(FOLDS):
        yield f"tables, devices and benchmarks, fold {fold + 1} of {FOLDS}", None
        out = [each for each, place in zip(networks, folds, strict=True) if place == fold]
        hidden = {each.family for each in out if each.device}
        kept = [
            each
            for each, place in zip(networks, folds, strict=True)
            if place != fold and not (each.device and each.family in hidden)
        ]
        regression = fit_regression(kept, effort, seed)
        posterior = fit_predictor(regression, effort, seed)
        for name, found in parts.items():
            chosen = [each for each in out if _part(each) == name]
            if not chosen:
                continue
            if name in BENCHMARKS:
                inputs = torch.from_numpy(_features(chosen))
                top1, deviation = regression.predict(inputs, [each.recipe for each in chosen])
                found.append(
                    LeftOut(tuple(chosen), top1.numpy(), deviation.numpy(), np.full(len(chosen), fold))
                )
            else:
                found.append(predict_left_out(posterior, chosen, fold))
    sources = []
    for fold, recipes in enumerate(recipe_folds(networks)):
        yield f"recipes, fold {fold + 1} of {FOLDS}", None
        kept = _fewer([each for each in networks if each.recipe not in recipes], effort, seed)
        posterior = fit_predictor(fit_regression(kept, effort, seed), effort, seed)
        sources.append(
            predict_left_out(posterior, [each for each in networks if each.recipe in recipes], fold)
        )
    yield "without the supernet", None
    kept = [each for each in networks if each.recipe != "ofa_supernet"]
    posterior = fit_predictor(fit_regression(kept, effort, seed), effort, seed)
    supernet = [each for each in networks if each.recipe == "ofa_supernet"]
    without = _left_out(posterior, supernet, [TARGET] * len(supernet), 0)
    published, specialised, benchmark, subnetworks = (
        LeftOut.joined(parts[name]) for name in ("published", "specialised", *BENCHMARKS)
    )
    yield (
        "done",
        Evaluation(published, specialised, subnetworks, benchmark, LeftOut.joined(sources), without),
    )


def table_folds(networks: Sequence[TrainedNetwork]) -> list[int]:
    """The fold in which each network is left out, -1 for none."""
    devices = sorted({each.device for each in networks if each.device})
    random.Random(0).shuffle(devices)
    folds = []
    for each in networks:
        number = int(each.family, 16)
        if each.recipe == "accel_nasbench":
            folds.append(number % 10 // 2 if number % 2 == 0 else -1)
        else:
            folds.append(devices.index(each.device) % FOLDS if each.device else number % FOLDS)
    return folds


def recipe_folds(networks: Sequence[TrainedNetwork]) -> list[set[str]]:
    """The recipes that are left out together."""
    recipes = sorted({each.recipe for each in networks if each.recipe not in BENCHMARKS and not each.device})
    random.Random(0).shuffle(recipes)
    return [set(recipes[fold::FOLDS]) for fold in range(FOLDS)]


def error_slope(left_out: LeftOut) -> float:
    """Change of the error from one end of :data:`SLOPE_MACS` to the other, points: a line's slope."""
    macs = _macs(left_out)
    inside = (macs >= SLOPE_MACS[0]) & (macs <= SLOPE_MACS[1])
    slope = np.polyfit(macs[inside], left_out.errors[inside], 1)[0]
    return float(slope * (SLOPE_MACS[1] - SLOPE_MACS[0]))


def error_by_band(left_out: LeftOut) -> dict[int, float]:
    """Mean error of each band of :data:`BAND_MACS`, by its lower end in millions."""
    macs, errors = _macs(left_out), left_out.errors
    bands = (macs // BAND_MACS).astype(int)
    return {int(b * BAND_MACS / 1e6): float(errors[bands == b].mean()) for b in np.unique(bands)}


@dataclass(frozen=True, slots=True)
class Promise:
    """The best predicted of a band: the accuracy that was promised, and the true one.

    Attributes:
        macs_m: lower end of the band, millions.
        networks: how many were to choose from.
        chosen: how many were chosen.
        promised: mean prediction of the chosen.
        true: mean truth of them.
    """

    macs_m: int
    networks: int
    chosen: int
    promised: float
    true: float


def promises(left_out: LeftOut) -> list[Promise]:
    """The :data:`BEST` best predicted of each fold and band of MACs that has at least twice as many."""
    macs = _macs(left_out)
    found = []
    bands = (macs // BAND_MACS).astype(int)
    for band in np.unique(bands):
        chosen: list[int] = []
        count = 0
        for fold in range(FOLDS):
            numbers = np.flatnonzero((bands == band) & (left_out.fold == fold))
            if len(numbers) >= 2 * BEST:
                count += len(numbers)
                chosen += numbers[np.argsort(-left_out.predicted[numbers])[:BEST]].tolist()
        if chosen:
            found.append(
                Promise(
                    int(band * BAND_MACS / 1e6),
                    count,
                    len(chosen),
                    float(left_out.predicted[chosen].mean()),
                    float(left_out.truth[chosen].mean()),
                )
            )
    return found


def is_like_target(network: TrainedNetwork) -> bool:
    """True if its recipe is of the default target's kind."""
    return Recipe.named(network.recipe).kind == "scratch"


def _part(network: TrainedNetwork) -> str:
    if network.recipe in BENCHMARKS:
        return network.recipe
    return "specialised" if network.device else "published"


def _fewer(networks: Sequence[TrainedNetwork], effort: Effort, seed: int) -> list[TrainedNetwork]:
    # Levels of recipes need no more of the benchmarks than the scales do.
    result = [each for each in networks if each.recipe not in BENCHMARKS]
    for name in BENCHMARKS:
        rows = [each for each in networks if each.recipe == name]
        random.Random(seed).shuffle(rows)
        result += rows[: effort.sample]
    return result


def _features(networks: Sequence[TrainedNetwork]) -> Floats:
    return features_of([each.architecture for each in networks])


def _macs(left_out: LeftOut) -> Floats:
    return np.array([cost(each.architecture).macs for each in left_out.networks], float)
