"""A Gaussian process over the networks of one study, and the improvement it expects of others.

Only accuracy is uncertain: latency and the other costs of a proposal are known. The expected
hypervolume improvement therefore has a closed form: between two neighbouring costs of the front, the
improvement is that of a single objective (Jones et al. 1998, expected improvement).

    process = GaussianProcess(features, accuracies, tuned_kernel(features, accuracies, generator))
    mean, deviation = process.predict(other_features)
    gains = expected_improvement(mean, deviation, costs, front_utilities, front_costs, bounds)

The process is scikit-learn's, which predicts as well as one of our own did (``results/search.md``).
"""

from __future__ import annotations

import math
import warnings
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Kernel, Matern, WhiteKernel

Array = NDArray[np.float64]
# Networks looked at together: several matrices of them and all that are known are made meanwhile.
_AT_ONCE = 200


def start_kernel() -> Kernel:
    """Linear plus Matérn 5/2, one length scale for features of order one, and noise as the second term.

    A length scale for each feature predicts worse from few networks, and takes ten times as long.
    """
    linear = ConstantKernel(0.3, (1e-3, 1e2)) * DotProduct(0.0, "fixed")
    smooth = ConstantKernel(1.0, (1e-3, 1e2)) * Matern(1.0, (0.05, 50.0), nu=2.5)
    return (linear + smooth) + WhiteKernel(0.02, (1e-5, 1.0))


def tuned_kernel(
    features: Array, targets: Array, generator: np.random.Generator, points: int = 300
) -> Kernel:
    """The kernel of the largest marginal likelihood, from :func:`start_kernel` on.

    Args:
        features: (networks, features).
        targets: (networks,).
        generator: picks the networks if there are more than ``points``.
        points: networks used at most; the time grows with the cube.
    """
    if len(targets) > points:
        chosen = generator.choice(len(targets), points, replace=False)
        features, targets = features[chosen], targets[chosen]
    with warnings.catch_warnings():
        # A parameter at its bound only means that the kernel can do without this part.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process = GaussianProcessRegressor(start_kernel(), normalize_y=True).fit(features, targets)
    return process.kernel_


class GaussianProcess:
    """A Gaussian process from networks of known accuracy to others.

    Args:
        features: (networks, features), each of order one.
        targets: (networks,).
        kernel: as :func:`tuned_kernel` gives it; it is taken as it is.
    """

    def __init__(self, features: Array, targets: Array, kernel: Kernel) -> None:
        process = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True)
        self._process = process.fit(features, targets)
        self._noise = kernel.k2.noise_level * float(targets.var() or 1.0)

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (each (networks,)) of what the noise-free target would be."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a variance below zero is taken as none
            found = [
                self._process.predict(features[first : first + _AT_ONCE], return_std=True)
                for first in range(0, len(features), _AT_ONCE)
            ]
        mean, deviation = map(np.concatenate, zip(*found, strict=True))
        return mean, np.sqrt(np.maximum(deviation**2 - self._noise, 1e-12))


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
    utilities = np.broadcast_to(front_utilities, reaches.shape)
    levels = np.max(utilities, axis=1, where=reaches, initial=front_utilities.min())
    gains = np.empty(len(mean))
    for first in range(0, len(mean), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        sizes = np.prod(np.clip(high - np.maximum(costs[some, None], low), 0.0, None), axis=2)
        z = (mean[some, None] - levels) / deviation[some, None]
        density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        gains[some] = np.sum(sizes * (z * ndtr(z) + density), axis=1) * deviation[some]
    return gains
