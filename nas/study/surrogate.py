"""A Gaussian process over the networks of one study, and the improvement it expects of others.

Only accuracy is uncertain: latency and the other costs of a proposal are known. The expected
hypervolume improvement therefore has a closed form: between two neighbouring costs of the front, the
improvement is that of a single objective (Jones et al. 1998, expected improvement).

    process = GaussianProcess(features, groups, accuracies, tune(features, groups, accuracies, ...))
    mean, deviation = process.predict(other_features)
    gains = expected_improvement(mean, deviation, costs, front_utilities, front_costs, bounds)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr

Array = NDArray[np.float64]

_JITTER = 1e-6


@dataclass(frozen=True)
class Hyperparameters:
    """Logarithms of the kernel's parameters.

    Attributes:
        log_lengths: length scale of each group of features.
        log_linear: variance of the linear part.
        log_smooth: variance of the Matérn 5/2 part.
        log_noise: variance of the noise.
    """

    log_lengths: tuple[float, ...]
    log_linear: float = -1.0
    log_smooth: float = 0.0
    log_noise: float = -4.0

    def vector(self) -> Array:
        """All of them in a row."""
        return np.array([*self.log_lengths, self.log_linear, self.log_smooth, self.log_noise])

    @classmethod
    def of_vector(cls, vector: Array) -> Hyperparameters:
        """The inverse of :meth:`vector`."""
        *lengths, linear, smooth, noise = (float(value) for value in vector)
        return cls(tuple(lengths), linear, smooth, noise)


class GaussianProcess:
    """Linear plus Matérn 5/2 kernel with one length scale per group of features.

    Args:
        features: (networks, features), each of order one.
        groups: (features,), the group each feature belongs to, 0, 1, ...
        targets: (networks,).
        hyperparameters: of the kernel, see :func:`tune`.
    """

    def __init__(
        self, features: Array, groups: NDArray[np.intp], targets: Array, hyperparameters: Hyperparameters
    ) -> None:
        self._features, self._groups = features, groups
        self._hyperparameters = hyperparameters
        self._mean, self._scale = float(targets.mean()), float(targets.std()) or 1.0
        covariance = _kernel(features, features, groups, hyperparameters)
        covariance[np.diag_indices_from(covariance)] += np.exp(hyperparameters.log_noise) + _JITTER
        self._factor = cholesky(covariance, lower=True)
        self._weights = cho_solve((self._factor, True), (targets - self._mean) / self._scale)

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (each (networks,)) of what the noise-free target would be."""
        cross = _kernel(features, self._features, self._groups, self._hyperparameters)
        mean = cross @ self._weights
        solved = solve_triangular(self._factor, cross.T, lower=True)
        prior = np.exp(self._hyperparameters.log_linear) * np.sum(features**2, axis=1)
        prior += np.exp(self._hyperparameters.log_smooth)
        variance = np.maximum(prior - np.sum(solved**2, axis=0), 1e-12)
        return self._mean + self._scale * mean, self._scale * np.sqrt(variance)


def tune(
    features: Array,
    groups: NDArray[np.intp],
    targets: Array,
    start: Hyperparameters,
    generator: np.random.Generator,
    points: int = 300,
) -> Hyperparameters:
    """Hyperparameters of high marginal likelihood near ``start``, with a weak prior around order one.

    Args:
        features: (networks, features).
        groups: (features,), see :class:`GaussianProcess`.
        targets: (networks,).
        start: where to begin.
        generator: picks the networks if there are more than ``points``.
        points: networks used at most; the time grows with the cube.
    """
    if len(targets) > points:
        chosen = generator.choice(len(targets), points, replace=False)
        features, targets = features[chosen], targets[chosen]
    standard = (targets - targets.mean()) / (targets.std() or 1.0)
    centre = Hyperparameters((0.0,) * len(start.log_lengths)).vector()
    shared = _Distances(features, groups)

    def loss(vector: Array) -> float:
        hyperparameters = Hyperparameters.of_vector(vector)
        covariance = shared.kernel(hyperparameters)
        covariance[np.diag_indices_from(covariance)] += np.exp(hyperparameters.log_noise) + _JITTER
        try:
            factor = cholesky(covariance, lower=True)
        except np.linalg.LinAlgError:
            return 1e9
        half = solve_triangular(factor, standard, lower=True)
        likelihood = -0.5 * half @ half - np.sum(np.log(np.diag(factor)))
        return float(-likelihood + np.sum((vector - centre) ** 2) / (2 * 2.0**2))

    bounds = [(-2.0, 4.0)] * len(start.log_lengths) + [(-7.0, 3.0), (-5.0, 3.0), (-10.0, 0.0)]
    found = minimize(loss, start.vector(), method="L-BFGS-B", bounds=bounds, options={"maxiter": 15})
    return Hyperparameters.of_vector(found.x)


class _Distances:
    """What of the kernel does not depend on its hyperparameters."""

    def __init__(self, features: Array, groups: NDArray[np.intp]) -> None:
        self._inner = features @ features.T
        self._squared = [_squared(features[:, groups == group], None) for group in range(groups.max() + 1)]

    def kernel(self, hyperparameters: Hyperparameters) -> Array:
        lengths = np.exp(-2 * np.array(hyperparameters.log_lengths))
        squared = sum(scale * part for scale, part in zip(lengths, self._squared, strict=True))
        return _combine(self._inner, np.asarray(squared), hyperparameters)


def _kernel(one: Array, other: Array, groups: NDArray[np.intp], hyperparameters: Hyperparameters) -> Array:
    lengths = np.exp(-np.array(hyperparameters.log_lengths))[groups]
    return _combine(one @ other.T, _squared(one * lengths, other * lengths), hyperparameters)


def _combine(inner: Array, squared: Array, hyperparameters: Hyperparameters) -> Array:
    distance = np.sqrt(5.0 * squared)
    smooth: Array = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
    covariance: Array = (
        np.exp(hyperparameters.log_linear) * inner + np.exp(hyperparameters.log_smooth) * smooth
    )
    return covariance


def _squared(one: Array, other: Array | None) -> Array:
    other = one if other is None else other
    squared: Array = np.sum(one**2, axis=1)[:, None] + np.sum(other**2, axis=1)[None] - 2 * one @ other.T
    return np.maximum(squared, 0.0, out=squared)


def expected_improvement(
    mean: Array, deviation: Array, costs: Array, front_utilities: Array, front_costs: Array, bounds: Array
) -> Array:
    """Expected hypervolume improvement of proposals whose costs are known.

    Args:
        mean: (proposals,), expected utility.
        deviation: (proposals,), its standard deviation.
        costs: (proposals, costs); without costs this is plain expected improvement.
        front_utilities: (front,), of the networks known, not empty.
        front_costs: (front, costs).
        bounds: (costs,), the reference point.

    Returns:
        (proposals,), at least 0.
    """
    # Cells between neighbouring costs; in each, the utility to be beaten is constant.
    edges = [
        np.append(np.unique(front_costs[:, axis]), max(bounds[axis], front_costs[:, axis].max()))
        for axis in range(front_costs.shape[1])
    ]
    # Without costs there is one cell of no dimension, and of size 1.
    count = math.prod(len(each) - 1 for each in edges)
    low = np.array(list(product(*(each[:-1] for each in edges)))).reshape(count, len(edges))
    high = np.array(list(product(*(each[1:] for each in edges)))).reshape(count, len(edges))
    reaches = np.all(front_costs[None] <= low[:, None], axis=2)
    levels = np.where(reaches, front_utilities, front_utilities.min()).max(axis=1)
    sizes = np.prod(np.clip(high - np.maximum(costs[:, None], low), 0.0, None), axis=2)
    z = (mean[:, None] - levels) / deviation[:, None]
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    gains: Array = np.sum(sizes * (z * ndtr(z) + density), axis=1) * deviation
    return gains
