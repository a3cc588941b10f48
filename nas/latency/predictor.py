"""Latency of layers that were not measured, from those that were, on the same device.

A Gaussian process on the logarithm of the latency, one for each kind of layer. On block features it is
clearly better than boosted trees or forests: latency is smooth in the logarithms of channels and sizes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import KFold
from threadpoolctl import threadpool_limits

from search_spaces.blocks import BLOCKS, Block
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey, operators
from search_spaces.ops import Add, SqueezeExcitation, convolutions

Matrix = NDArray[np.float64]

# Length scales are fitted on this many layers (cost grows with the cube), the process on all of them.
_ROWS_FOR_LENGTH_SCALES = 350
_FOLDS = 5
_BATCH = 4096
# Below this a kind of layer is not modelled: say so instead of guessing.
_MINIMUM_ROWS = 8


class GapFillingError(InputError):
    """Too few measured layers to predict the others from."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted latency of a layer.

    Attributes:
        latency_ms: median of the predictive distribution.
        deviation_ms: one standard deviation.
    """

    latency_ms: float
    deviation_ms: float


class GapFiller:
    """Predicts latencies of layers from measured ones.

    Attributes:
        error: mean absolute relative error of a layer, five-fold cross-validated.
        rows: number of measured layers it rests on.

    Raises:
        GapFillingError: if there are too few measured layers of a kind.
    """

    def __init__(self, measured_ms: Mapping[LayerKey, float], seed: int = 0) -> None:
        self._processes: dict[str, _Process] = {}
        errors: list[NDArray[np.float64]] = []
        for kind, keys in _by_kind(measured_ms).items():
            if len(keys) < _MINIMUM_ROWS:
                continue
            features = np.array([_features(key) for key in keys])
            log_ms = np.log([measured_ms[key] for key in keys])
            self._processes[kind] = process = _Process(features, log_ms, seed)
            errors.append(np.abs(np.exp(process.cross_validate(seed) - log_ms) - 1))
        if not self._processes:
            raise GapFillingError(
                f"{len(measured_ms)} measured layers are too few to predict others from "
                f"(at least {_MINIMUM_ROWS} of a kind)"
            )
        self.error = float(np.concatenate(errors).mean())
        self.rows = len(measured_ms)

    def predict(self, keys: Sequence[LayerKey]) -> dict[LayerKey, Prediction]:
        """Latencies of layers.

        Raises:
            GapFillingError: if a layer is of a kind of which too few were measured.
        """
        found: dict[LayerKey, Prediction] = {}
        for kind, members in _by_kind(keys).items():
            process = self._processes.get(kind)
            if process is None:
                raise GapFillingError(
                    f"too few layers of kind {kind} were measured to predict {members[0]} (at least "
                    f"{_MINIMUM_ROWS}); raise profile.max_keys"
                )
            mean, deviation = process.predict(np.array([_features(key) for key in members]))
            for key, log_ms, log_deviation in zip(members, mean, deviation, strict=True):
                latency_ms = math.exp(log_ms)
                found[key] = Prediction(latency_ms, latency_ms * log_deviation)
        return found


class _Process:
    """One Gaussian process over standardised features."""

    def __init__(self, features: Matrix, log_ms: NDArray[np.float64], seed: int) -> None:
        self._centre = features.mean(axis=0)
        self._scale = features.std(axis=0)
        self._scale[self._scale == 0] = 1
        self._features = self._standardise(features)
        self._log_ms = log_ms
        kernel = ConstantKernel(1.0) * RBF(np.full(features.shape[1], 3.0), (0.3, 1e3)) + WhiteKernel(1e-3)
        chosen = np.random.default_rng(seed).permutation(len(log_ms))[:_ROWS_FOR_LENGTH_SCALES]
        # Matrices this small are slower on many threads than on one.
        with warnings.catch_warnings(), threadpool_limits(1):
            # A length scale at its bound only means that the feature does not matter.
            warnings.simplefilter("ignore", ConvergenceWarning)
            process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
            process.fit(self._features[chosen], log_ms[chosen])
        self._kernel = process.kernel_
        self._process = self._fit(np.arange(len(log_ms)))

    def predict(self, features: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of the logarithm: (rows,), (rows,)."""
        standardised = self._standardise(features)
        parts = [
            self._process.predict(standardised[start : start + _BATCH], return_std=True)
            for start in range(0, len(standardised), _BATCH)
        ]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def cross_validate(self, seed: int) -> NDArray[np.float64]:
        """Each row predicted by a process that has not seen it: (rows,)."""
        predicted = np.empty(len(self._log_ms))
        for train, test in KFold(_FOLDS, shuffle=True, random_state=seed).split(self._features):
            predicted[test] = self._fit(train).predict(self._features[test])
        return predicted

    def _fit(self, rows: NDArray[np.int_]) -> GaussianProcessRegressor:
        process = GaussianProcessRegressor(self._kernel, optimizer=None, normalize_y=True)
        return process.fit(self._features[rows], self._log_ms[rows])

    def _standardise(self, features: Matrix) -> Matrix:
        standardised: Matrix = (features - self._centre) / self._scale
        return standardised


def standardised_features(keys: Iterable[LayerKey]) -> dict[str, dict[LayerKey, NDArray[np.float64]]]:
    """Features of layers, each kind scaled to unit variance: {kind: {key: (features,)}}."""
    result = {}
    for kind, members in _by_kind(keys).items():
        features = np.array([_features(key) for key in members])
        scale = features.std(axis=0)
        scale[scale == 0] = 1
        result[kind] = dict(zip(members, features / scale, strict=True))
    return result


def _by_kind(keys: Iterable[LayerKey]) -> dict[str, list[LayerKey]]:
    # V1's and V2's blocks are one kind, told apart by features; a strided skip is one of its own.
    kinds: dict[str, list[LayerKey]] = {}
    for key in sorted(keys, key=str):
        kind = type(key.part).__name__.lower()
        if isinstance(key.part, Block) and BLOCKS[key.part.kind].bare:
            kind = key.part.kind
        kinds.setdefault(kind, []).append(key)
    return kinds


def _features(key: LayerKey) -> list[float]:
    """What a layer is, whatever its kind: shapes, kernels, passes, and logarithms of its work."""
    made_of = operators(key)
    products = list(convolutions(made_of))
    maps = [each for each in products if each.out_size > 1 or each.kernel > 1]
    depthwise = [each for each in maps if each.depthwise]
    dense = [each for each in maps if not each.depthwise]

    def passes(activation: str) -> int:
        # ONNX Runtime applies ReLU inside its convolutions but makes one more pass over their output for
        # ReLU6 and h-swish: told apart, predicted layers err by 3.3 % instead of 4.2 %.
        return sum(each.activation == activation for each in products)

    return [
        math.log(key.size),
        math.log(key.in_channels),
        math.log(made_of[-1].out_values),
        math.log(max(each.out_channels for each in products)),
        max((each.kernel for each in depthwise), default=0),
        max((each.kernel for each in dense), default=0),
        max((each.stride for each in maps), default=1),
        sum(isinstance(each, SqueezeExcitation) for each in made_of),
        sum(isinstance(each, Add) for each in made_of),
        len(products),
        passes("hswish"),
        passes("swish"),
        passes("relu6"),
        math.log1p(sum(each.macs for each in dense)),
        math.log1p(sum(each.macs for each in depthwise)),
        math.log1p(sum(each.weights for each in products)),
    ]
