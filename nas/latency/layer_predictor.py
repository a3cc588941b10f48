"""Latency of layers that were not measured, from those that were, on the same device.

What a layer does (see :func:`nas.latency.preset.work`) times what each kind of work costs is the mean,
fitted to the measured layers from the rates of a shipped board on; a Gaussian process for each kind of layer,
on the logarithm of measured over mean, is the rest. The physics makes up for what few layers do not tell, and
for widths nobody measured; the processes find what it does not know, caches and vector widths.
Errors against the number of layers: ``results/boards.md``.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Kernel, WhiteKernel
from sklearn.model_selection import KFold
from threadpoolctl import threadpool_limits

from nas.latency.preset import EstimatedLayers, work
from search_spaces.blocks import BLOCKS, Block
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey, operators
from search_spaces.ops import Add, SqueezeExcitation, convolutions

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

MINIMUM_LAYERS = 10
# Board whose rates the fit begins with, and by how much (standard deviation of the logarithm) a device's
# rates may differ from them: threefold is nothing unusual between runtimes.
_PRIOR = "rpi4"
_RATE_DEVIATION = 1.0
# How well the physics alone tells layers: standard deviation of the logarithm.
_PHYSICS_DEVIATION = 0.15
# Layers of a kind from which it has a process of its own; kinds with fewer share one.
_OWN_PROCESS = 60
# Length scales are fitted on this many layers (cost grows with the cube), the process on all of them.
_ROWS_FOR_LENGTH_SCALES = 350
_FOLDS = 5
# Of the folds, and of the layers that length scales are fitted to.
_SEED = 0
_LARGEST_SURPRISE = 5.0
# Channels that a depthwise int8 kernel takes at once.
_VECTOR = 16
_BATCH = 4096


class GapFillingError(InputError):
    """Measured layers that others cannot be predicted from."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted latency of a layer.

    Attributes:
        latency_ms: median of the predictive distribution.
        deviation_ms: one standard deviation.
    """

    latency_ms: float
    deviation_ms: float


class LayerPredictor:
    """Predicts latencies of layers from measured ones.

    Attributes:
        error: mean absolute relative error of a layer, five-fold cross-validated.
        rows: number of measured layers it rests on.
        factor: how many times slower the device is than the board whose rates the fit began with.
    """

    def __init__(self, measured_ms: Mapping[LayerKey, float]) -> None:
        """Fit to measured layers.

        Args:
            measured_ms: latencies in milliseconds.

        Raises:
            GapFillingError: if there are too few, or a latency is none.
        """
        if len(measured_ms) < MINIMUM_LAYERS:
            raise GapFillingError(
                f"{len(measured_ms)} measured layers are too few to predict others from: measure at least "
                f"{MINIMUM_LAYERS}, better 30 (profile.max_keys)"
            )
        # In an order of their own, so that the same layers give the same predictions to the last bit.
        keys = sorted(measured_ms, key=str)
        latencies = np.array([measured_ms[key] for key in keys])
        if not np.all(np.isfinite(latencies)) or latencies.min() <= 0:
            raise GapFillingError("a measured latency is zero, negative or not a number")
        log_ms = np.log(latencies)
        # Matrices this small are slower on many threads than on one.
        with threadpool_limits(1):
            self._physics = _Physics.fit(keys, log_ms)
            residuals = log_ms - self._physics.log_ms(keys)
            features = np.array([_features(key) for key in keys])
            kinds = _rows_by_kind(keys)
            self._own = {
                kind: _Process(features[rows], residuals[rows], _own_kernel(features.shape[1]))
                for kind, rows in kinds.items()
                if len(rows) >= _OWN_PROCESS
            }
            self._shared = _Process(features, residuals, _shared_kernel())
            errors, deviations = self._cross_validated(keys, log_ms)
        self.error = float(np.abs(np.expm1(errors)).mean())
        # Few layers make a process too sure of itself; what it missed them by is known.
        surprise = np.minimum(np.abs(errors) / deviations, _LARGEST_SURPRISE)
        self._inflation = max(1.0, float(np.sqrt((surprise**2).mean())))
        self.rows = len(keys)
        self.factor = math.exp(self._physics.log_factor)

    def predict(self, keys: Sequence[LayerKey]) -> dict[LayerKey, Prediction]:
        """Latencies of layers with one standard deviation."""
        found: dict[LayerKey, Prediction] = {}
        for kind, members in _by_kind(keys).items():
            features = np.array([_features(key) for key in members])
            rest, deviation = self._own.get(kind, self._shared).predict(features)
            log_ms = self._physics.log_ms(members) + rest
            for key, mean, log_deviation in zip(members, log_ms, deviation, strict=True):
                latency_ms = math.exp(mean)
                found[key] = Prediction(latency_ms, latency_ms * float(log_deviation) * self._inflation)
        return found

    def _cross_validated(self, keys: Sequence[LayerKey], log_ms: Vector) -> tuple[Vector, Vector]:
        """Errors of the logarithm and their stated deviations, each layer unseen: (keys,) each."""
        errors, deviations = np.empty(len(keys)), np.empty(len(keys))
        features = np.array([_features(key) for key in keys])
        kinds = _rows_by_kind(keys)
        for train, test in KFold(min(_FOLDS, len(keys)), shuffle=True, random_state=_SEED).split(log_ms):
            physics = _Physics.fit([keys[row] for row in train], log_ms[train])
            predicted = physics.log_ms(keys)
            residuals = log_ms - predicted
            shared = self._shared.refitted(features[train], residuals[train])
            for kind, rows in kinds.items():
                known, asked = np.intersect1d(rows, train), np.intersect1d(rows, test)
                if not len(asked):
                    continue
                own = self._own.get(kind)
                process = shared if own is None else own.refitted(features[known], residuals[known])
                rest, deviations[asked] = process.predict(features[asked])
                predicted[asked] += rest
            errors[test] = predicted[test] - log_ms[test]
        return errors, np.maximum(deviations, 1e-6)


@dataclass(frozen=True, slots=True)
class _Physics:
    """The cost of each kind of work on a device.

    Attributes:
        coefficients: milliseconds per unit, in the order of :data:`nas.latency.preset.TERMS`.
        log_factor: logarithm of the common factor over the prior's board.
    """

    coefficients: Vector
    log_factor: float

    @classmethod
    def fit(cls, keys: Sequence[LayerKey], log_ms: Vector) -> _Physics:
        """The most probable rates: near the prior's up to a common factor, robust against odd layers."""
        prior = np.log(np.maximum(np.array(EstimatedLayers.load(_PRIOR).coefficients), 1e-4))
        done = np.array([work(key) for key in keys])

        def misfit(parameters: Vector) -> Vector:
            rates, factor = parameters[:-1], parameters[-1]
            told = np.log(done @ np.exp(rates + factor))
            return np.concatenate([(told - log_ms) / _PHYSICS_DEVIATION, (rates - prior) / _RATE_DEVIATION])

        begin = float(np.median(log_ms - np.log(done @ np.exp(prior))))
        found = least_squares(misfit, np.append(prior, begin), loss="soft_l1").x
        return cls(np.exp(found[:-1] + found[-1]), float(found[-1]))

    def log_ms(self, keys: Sequence[LayerKey]) -> Vector:
        """Logarithms of the latencies, (keys,)."""
        told: Vector = np.log(np.array([work(key) for key in keys]) @ self.coefficients)
        return told


def _own_kernel(features: int) -> Kernel:
    """One length scale for each feature."""
    return ConstantKernel(1.0) * RBF(np.full(features, 3.0), (0.3, 1e3)) + WhiteKernel(1e-3)


def _shared_kernel() -> Kernel:
    """One length scale for all features: few layers tell no more."""
    return ConstantKernel(0.1, (1e-3, 10.0)) * RBF(3.0, (0.5, 30.0)) + WhiteKernel(0.01, (1e-4, 1.0))


class _Process:
    """One Gaussian process over standardised features."""

    def __init__(self, features: Matrix, residuals: Vector, kernel: Kernel) -> None:
        self._centre = features.mean(axis=0)
        self._scale = features.std(axis=0)
        self._scale[self._scale == 0] = 1
        chosen = np.random.default_rng(_SEED).permutation(len(residuals))[:_ROWS_FOR_LENGTH_SCALES]
        with warnings.catch_warnings():
            # A length scale at its bound only means that the feature does not matter.
            warnings.simplefilter("ignore", ConvergenceWarning)
            process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=_SEED)
            process.fit(self._standardise(features[chosen]), residuals[chosen])
        self._process = self._fit(process.kernel_, features, residuals)

    def predict(self, features: Matrix) -> tuple[Vector, Vector]:
        """Mean and standard deviation, (rows,) each."""
        standardised = self._standardise(features)
        parts = [
            self._process.predict(standardised[start : start + _BATCH], return_std=True)
            for start in range(0, len(standardised), _BATCH)
        ]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def refitted(self, features: Matrix, residuals: Vector) -> _Process:
        """The same kernel on other rows."""
        again = copy.copy(self)
        again._process = self._fit(self._process.kernel_, features, residuals)
        return again

    def _fit(self, kernel: Kernel, features: Matrix, residuals: Vector) -> GaussianProcessRegressor:
        process = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True)
        return process.fit(self._standardise(features), residuals)

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


def _rows_by_kind(keys: Sequence[LayerKey]) -> dict[str, NDArray[np.int_]]:
    places = {key: row for row, key in enumerate(keys)}
    return {kind: np.array([places[key] for key in found]) for kind, found in _by_kind(keys).items()}


def _features(key: LayerKey) -> list[float]:
    """Features of a layer of any kind: shapes, kernels, passes, and logarithms of its work."""
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
        # Kernels work on whole vectors of channels, and int8 ones take those beyond the last of them one by
        # one: in ONNX Runtime predicted layers err by 3.0 % instead of 5.5 %.
        any(each.out_channels % _VECTOR for each in depthwise),
        len(products),
        passes("hswish"),
        passes("swish"),
        passes("relu6"),
        math.log1p(sum(each.macs for each in dense)),
        math.log1p(sum(each.macs for each in depthwise)),
        math.log1p(sum(each.weights for each in products)),
    ]
