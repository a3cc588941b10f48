"""Fitting the accuracy predictor to networks of all recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nas.accuracy.features import FEATURES, NETWORK_FEATURES, features_of
from nas.accuracy.networks import TrainedNetwork
from nas.accuracy.process import (
    OFFSET,
    SIZE_FEATURES,
    SLOPE_FEATURES,
    Basis,
    Posterior,
    Scales,
)
from nas.accuracy.recipes import BENCHMARKS, KINDS, TARGETS, Recipe, with_groups

_STAGE_COUNT = len(FEATURES) - len(NETWORK_FEATURES)

_SIZES = ("resolution", "macs", "parameters")
# Linear trends: free over a network's size, small over its other features, and hardly any over a single
# stage's, of which a few dozen block tables tell less than they seem to.
_TRENDS = torch.tensor(
    [-5.3] * _STAGE_COUNT + [-1.5 if name in _SIZES else -3.2 for name in NETWORK_FEATURES]
)

# Log-normal priors of the scales, (mean, standard deviation) of the logarithm. Those of a recipe's effects
# and of the noise are narrow: a few dozen recipes tell little of them, and left free the noise comes out so
# small that networks left out are predicted worse. Chosen in inner splits, see nas.accuracy.evaluation.
_PRIORS: dict[str, tuple[Tensor, float]] = {
    "length": (torch.full((len(FEATURES),), 2.1), 0.5),
    "slope": (_TRENDS, 1.0),
    "amplitude": (torch.tensor([-2.75]), 0.7),
    "size_length": (torch.full((len(SIZE_FEATURES),), 2.3), 0.3),
    "size_amplitude": (torch.tensor([-1.1]), 0.3),
    "own_length": (torch.full((len(FEATURES),), 2.0), 0.5),
    "own_slope": (torch.full((len(FEATURES),), -4.0), 1.0),
    "own_amplitude": (torch.tensor([-3.2, -3.2]), 0.7),
    # By kind of recipe.
    "offset": (torch.log(torch.tensor([0.03, 0.04, 0.1, 0.28, 0.1])), 0.3),
    "recipe_slope": (
        torch.log(torch.tensor([0.015, 0.03, 0.03, 0.04, 0.04]))[:, None].expand(
            len(KINDS), len(SLOPE_FEATURES)
        ),
        0.5,
    ),
    "noise": (torch.log(torch.tensor([0.015, 0.013, 0.011, 0.007, 0.002])), 0.15),
}


@dataclass(frozen=True, slots=True)
class Effort:
    """The effort of a fit: how much to compute.

    Attributes:
        inducing: inducing points of ``shared`` that are kept.
        own_inducing: inducing points of each benchmark's ``own`` that are kept.
        sample: networks of each benchmark that the scales are fitted to and points are taken from, beside
            all published ones.
        steps: Adam steps.
        learning_rate: of Adam, on logarithms of scales.
    """

    inducing: int = 288
    own_inducing: tuple[int, int] = (48, 160)
    sample: int = 350
    steps: int = 80
    learning_rate: float = 0.08


@dataclass(frozen=True, slots=True)
class Data:
    """Networks as arrays."""

    inputs: Tensor  # (N, D)
    target: Tensor  # (N,) log error around OFFSET
    recipes: tuple[str, ...]
    families: tuple[str, ...]  # see TrainedNetwork

    @classmethod
    def of(cls, networks: Sequence[TrainedNetwork]) -> Data:
        """The arrays of some networks."""
        top1 = np.array([each.top1 for each in networks])
        return cls(
            torch.from_numpy(features_of([each.architecture for each in networks])),
            torch.from_numpy(np.log(100 - top1) - OFFSET),
            tuple(each.recipe for each in networks),
            tuple(each.family for each in networks),
        )

    def chosen(self, numbers: Sequence[int]) -> Data:
        """Some of the networks."""
        return Data(
            self.inputs[list(numbers)],
            self.target[list(numbers)],
            tuple(self.recipes[number] for number in numbers),
            tuple(self.families[number] for number in numbers),
        )


class Regression:
    """The exact process given networks and scales.

    Args:
        scales: of the covariances.
        data: the networks.
    """

    @torch.no_grad()
    def __init__(self, scales: Scales, data: Data) -> None:
        self.scales, self.data = scales, data
        self._root = torch.linalg.cholesky(_covariance(scales, data))
        self._weights = torch.cholesky_solve(data.target[:, None], self._root)[:, 0]

    @torch.no_grad()
    def posterior(self, basis: Basis) -> Posterior:
        """The posterior of the weights of a basis."""
        design, _, _ = basis.rows(self.data.inputs, self.data.recipes)
        whitened = torch.linalg.solve_triangular(self._root, design, upper=False)
        covariance = torch.eye(basis.size, dtype=design.dtype) - whitened.T @ whitened
        return Posterior(basis, design.T @ self._weights, covariance, self.calibration)

    @torch.no_grad()
    def predict(self, inputs: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Top-1 of one training run and its standard deviation in percentage points, (N,) each."""
        cross = torch.cat(
            [
                _cross(self.scales, inputs[start : start + 500], names[start : start + 500], self.data)
                for start in range(0, len(inputs), 500)
            ]
        )
        whitened = torch.linalg.solve_triangular(self._root, cross.T, upper=False)
        prior, noise = _prior_variance(self.scales, inputs, names)
        error = torch.exp(OFFSET + cross @ self._weights)
        factors = torch.stack([self.calibration[_calibrated(name)] for name in names])
        deviation = error * torch.sqrt(prior + noise - (whitened**2).sum(0)) * factors
        return 100 - error, deviation

    @cached_property
    def calibration(self) -> Tensor:
        """(3,) see :class:`nas.accuracy.process.Posterior`.

        Root mean square of standardised residuals of networks left out, of the published ones table by
        table within a recipe; they follow from the fit (Rasmussen & Williams 2006, 5.4.2).
        """
        squares: list[list[float]] = [[], [], []]
        places: dict[str, list[int]] = {}
        for number, (recipe, family) in enumerate(zip(self.data.recipes, self.data.families, strict=True)):
            group = places.setdefault(f"{recipe} {family}", [])
            if recipe not in BENCHMARKS or number % 10 == 0:
                group.append(number)
        for numbers in filter(None, places.values()):
            unit = torch.zeros(len(self._weights), len(numbers), dtype=self._weights.dtype)
            unit[numbers, range(len(numbers))] = 1
            block = torch.linalg.solve_triangular(self._root, unit, upper=False)
            left_out = torch.linalg.inv(block.T @ block)
            found = (left_out @ self._weights[numbers]) ** 2 / left_out.diagonal()
            squares[_calibrated(self.data.recipes[numbers[0]])] += found.tolist()
        factors = [float(np.sqrt(np.mean(each))) if each else 1.0 for each in squares]
        return torch.tensor(factors, dtype=torch.float64)


def _calibrated(name: str) -> int:
    return 1 + BENCHMARKS.index(name) if name in BENCHMARKS else 0


def fit_regression(networks: Sequence[TrainedNetwork], effort: Effort, seed: int) -> Regression:
    """Fit the scales to some of the networks, and condition on all of them.

    Args:
        networks: of any recipes.
        effort: how much to compute.
        seed: of the choice of benchmark networks that the scales are fitted to.
    """
    data = Data.of(networks)
    return Regression(_fit_scales(_sample(data, effort, seed), effort), data)


def fit_predictor(regression: Regression, effort: Effort, seed: int) -> Posterior:
    """The part of a regression that is shipped: its posterior at inducing points.

    Args:
        regression: the exact process.
        effort: how many points.
        seed: of the choice of benchmark networks among which points are chosen.
    """
    scales = regression.scales
    few = _sample(regression.data, effort, seed)
    own = []
    for number, (name, count) in enumerate(zip(BENCHMARKS, effort.own_inducing, strict=True)):
        inputs = few.inputs[np.flatnonzero(np.array(few.recipes) == name)]

        def covariance(left: Tensor, right: Tensor, number: int = number) -> Tensor:
            return scales.own(left, right, number)

        own.append(_spread_points(inputs, covariance, scales.own_variance(inputs, number), count))
    variance = scales.shared_variance(few.inputs)
    shared = _spread_points(few.inputs, scales.shared, variance, effort.inducing)
    # Targets first. `scratch` itself has no rows: it is one more recipe like those of its kind.
    recipes = with_groups([*TARGETS, *few.recipes])
    return regression.posterior(Basis(scales, shared, tuple(own), recipes))


def _sample(data: Data, effort: Effort, seed: int) -> Data:
    generator = np.random.default_rng(seed)
    names = np.array(data.recipes)
    parts = [np.flatnonzero(~np.isin(names, BENCHMARKS))]
    parts += [
        generator.permutation(np.flatnonzero(names == benchmark))[: effort.sample] for benchmark in BENCHMARKS
    ]
    return data.chosen(np.concatenate(parts).tolist())


def _fit_scales(data: Data, effort: Effort) -> Scales:
    """Maximise the posterior density of the scales, given all of these networks at once."""
    free = {name: mean.double().clone().requires_grad_() for name, (mean, _) in _PRIORS.items()}
    optimiser = torch.optim.Adam(free.values(), lr=effort.learning_rate)
    for step in range(effort.steps):
        for group in optimiser.param_groups:
            group["lr"] = effort.learning_rate * min(1, 2 * (1 - step / effort.steps) + 0.05)
        optimiser.zero_grad()
        loss = _negative_log_likelihood(Scales(**free), data)
        for name, (mean, deviation) in _PRIORS.items():
            loss = loss + (0.5 * ((free[name] - mean) / deviation) ** 2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return Scales(**{name: each.detach() for name, each in free.items()})


def _negative_log_likelihood(scales: Scales, data: Data) -> Tensor:
    root = torch.linalg.cholesky(_covariance(scales, data))
    whitened = torch.linalg.solve_triangular(root, data.target[:, None], upper=False)
    result: Tensor = 0.5 * (whitened**2).sum() + root.diagonal().log().sum()
    return result


def _covariance(scales: Scales, data: Data) -> Tensor:
    """Of observations, noise included, (N, N)."""
    _, noise = _prior_variance(scales, data.inputs, data.recipes)
    return _cross(scales, data.inputs, data.recipes, data) + torch.diag(noise)


def _cross(scales: Scales, inputs: Tensor, names: Sequence[str], data: Data) -> Tensor:
    """Covariance of networks under given recipes with those of the data, without noise, (M, N)."""
    result = scales.shared(inputs, data.inputs)
    columns = _places(data.recipes)
    for recipe, row in _places(names).items():
        if recipe not in columns:
            continue
        column = columns[recipe]
        left, right = inputs[row], data.inputs[column]
        part = scales.effects(left, recipe) @ scales.effects(right, recipe).T
        if recipe.kind == "benchmark":
            part = part + scales.own(left, right, BENCHMARKS.index(recipe.name))
        result = result.index_put((row[:, None], column), part, accumulate=True)
    return result


def _prior_variance(scales: Scales, inputs: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Variance of networks under given recipes before anything is seen, and of their noise, (N,) each."""
    variance, noise = scales.shared_variance(inputs), inputs.new_zeros(len(inputs))
    for recipe, row in _places(names).items():
        part = (scales.effects(inputs[row], recipe) ** 2).sum(1)
        if recipe.kind == "benchmark":
            part = part + scales.own_variance(inputs[row], BENCHMARKS.index(recipe.name))
        variance = variance.index_put((row,), part, accumulate=True)
        if recipe.kind != "group":
            noise = noise.index_put((row,), scales.noise_variance(recipe))
    return variance, noise


def _places(names: Sequence[str]) -> dict[Recipe, Tensor]:
    """Numbers of the networks that each recipe and each group trained, given the recipe of each network."""
    members: dict[Recipe, list[str]] = {}
    for name in dict.fromkeys(names):
        for recipe in Recipe.named(name).with_group():
            members.setdefault(recipe, []).append(name)
    array = np.array(names)
    return {recipe: torch.from_numpy(np.flatnonzero(np.isin(array, own))) for recipe, own in members.items()}


def _spread_points(
    inputs: Tensor, covariance: Callable[[Tensor, Tensor], Tensor], variance: Tensor, count: int
) -> Tensor:
    """The points, chosen one by one, of which the others tell least.

    A pivoted Cholesky factorisation. Source: Fine & Scheinberg 2001, Journal of Machine Learning Research 2.
    """
    left = variance.clone()
    least = 1e-6 * float(variance.mean())
    factor = inputs.new_zeros(min(count, len(inputs)), len(inputs))
    chosen: list[int] = []
    for step in range(len(factor)):
        number = int(left.argmax())
        if left[number] < least:
            break
        row = covariance(inputs[number : number + 1], inputs)[0] - factor[:step, number] @ factor[:step]
        factor[step] = row / left[number].sqrt()
        left = (left - factor[step] ** 2).clamp(min=0)
        left[number] = 0
        chosen.append(number)
    return inputs[chosen]
