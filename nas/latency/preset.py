"""Latency of a board nobody has measured yet: estimated from fitted, physically monotone coefficients.

An estimate is a linear model with non-negative coefficients over what a layer does: multiply-accumulates,
bytes of feature maps and weights, elementwise passes, operators. More channels, more pixels, a larger
kernel or a wider expansion therefore never get faster. It is a first answer, always labelled
``estimated``; a measurement replaces it, and a few dozen measured layers adapt it (:func:`adapt`).

The shipped coefficients are in ``nas/latency/presets/``, each file with its source, licence, cross-validated
error and the runtimes it stands for; ``python -m tools.fit_preset`` makes them from published latencies.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from nas.latency.predictor import Prediction
from search_spaces.blocks import Block
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey, operators
from search_spaces.ops import Pool, SqueezeExcitation, convolutions

SCHEMA = 1
_BYTES = 4  # of an fp32 value

# What is counted of a layer, in millions, and so the order and the units of the coefficients (ms each).
TERMS = (
    "pointwise_macs",  # dense convolutions and linear layers
    "depthwise_macs",
    "activation_bytes",  # inputs and outputs of the dense products: packing, and few channels a pixel
    "weight_bytes",
    "elementwise_bytes",  # h-swish, and SE's pooling and scaling: bytes read and written
    "operators",  # number of operators (not in millions)
)


class EstimateError(InputError):
    """An estimate that does not exist, cannot be read or cannot be adapted."""


def work(key: LayerKey) -> NDArray[np.float64]:
    """What one run of a layer does, in the order of :data:`TERMS`, shape (6,).

    The residual addition is charged to every block, with one or without: else a block that
    changes its channels could be faster than a narrower one that keeps them.
    """
    return np.array(_work(key))


@lru_cache(maxsize=200_000)
def _work(key: LayerKey) -> tuple[float, ...]:
    pointwise = depthwise = activation = weights = elementwise = count = 0
    for operator in operators(key):
        if isinstance(operator, SqueezeExcitation):
            elementwise += 3 * operator.in_values  # pooling reads; scaling reads and writes
            count += 2
        elif isinstance(operator, Pool):
            elementwise += operator.in_values
            count += 1
    for product in convolutions(operators(key)):
        if product.depthwise:
            depthwise += product.macs
        else:
            pointwise += product.macs
            activation += product.in_channels * product.out_size**2 + product.out_values
        weights += product.parameters
        count += 1
        if product.activation in ("hswish", "swish"):  # ReLU is part of its product
            elementwise += 2 * product.out_values
            count += 1
    values = (activation, weights, elementwise)
    return (pointwise / 1e6, depthwise / 1e6, *(each * _BYTES / 1e6 for each in values), float(count))


@dataclass(frozen=True, slots=True)
class EstimatedLayers:
    """Estimated latency of any layer on one board.

    Attributes:
        device: name of the board, as in ``hardware=``.
        coefficients: milliseconds per million (per operator for the last), in the order of TERMS.
        details: threads, runtimes, source, licence and error, as the file has them.
    """

    device: str
    coefficients: tuple[float, ...]
    details: Mapping[str, Any]

    def layer_ms(self, key: LayerKey) -> float:
        """Latency of one layer in milliseconds."""
        return float(work(key) @ np.array(self.coefficients))

    @property
    def error_percent(self) -> float:
        """Mean absolute error in percent on networks or blocks left out of the fit."""
        return float(self.details["cross_validation"]["mean_absolute_percent"])

    @property
    def worst_percent(self) -> float:
        """The largest of those errors."""
        return float(self.details["cross_validation"]["worst_percent"])

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Runtimes whose latencies it was fitted to or agrees with; no other is meant."""
        return tuple(self.details["runtimes"])

    @classmethod
    def load(cls, device: str) -> EstimatedLayers:
        """The estimate shipped for a board.

        Raises:
            EstimateError: if there is none for this board.
        """
        if device not in available():
            raise EstimateError(f"no estimate is shipped for {device!r}; there is one for {_listed()}")
        return cls.from_json(resources.files("nas.latency").joinpath("presets", f"{device}.json").read_text())

    @classmethod
    def from_json(cls, text: str) -> EstimatedLayers:
        """Read what :meth:`to_json` wrote.

        Raises:
            EstimateError: naming what is wrong with it.
        """
        try:
            data = json.loads(text)
            coefficients = data.pop("coefficients_ms")
            if data.pop("schema") != SCHEMA:
                raise EstimateError(
                    f"the estimate is not of schema {SCHEMA}; install the version that wrote it"
                )
            values = tuple(float(coefficients[term]) for term in TERMS)
            device = str(data.pop("device"))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise EstimateError(f"not an estimate: {error!r}") from None
        if not all(np.isfinite(values)) or min(values) < 0:
            raise EstimateError(f"the estimate of {device} has a negative or infinite coefficient")
        return cls(device, values, data)

    def to_json(self) -> str:
        """The file of this estimate."""
        coefficients = dict(zip(TERMS, (round(value, 6) for value in self.coefficients), strict=True))
        head = {"schema": SCHEMA, "device": self.device, "coefficients_ms": coefficients}
        return json.dumps(head | dict(self.details), indent=2) + "\n"


def available() -> tuple[str, ...]:
    """Boards with a shipped estimate."""
    names = (Path(entry.name) for entry in resources.files("nas.latency").joinpath("presets").iterdir())
    return tuple(sorted(name.stem for name in names if name.suffix == ".json"))


def _listed() -> str:
    return ", ".join(available()) or "none"


MINIMUM_TO_ADAPT = 10


class AdaptedLayers:
    """An estimate adapted to a device by a handful of its measured layers.

    The measured layers give a factor, and a Gaussian process on the logarithm of measured over
    estimated what is left. Far from everything measured it falls back to estimate times factor. With
    few layers this beats a process that knows no physics, also on devices unlike the estimate's.

    Attributes:
        error: mean absolute relative error of a layer, each measured one predicted from the others.
        rows: number of measured layers it rests on.
    """

    def __init__(self, estimate: EstimatedLayers, measured_ms: Mapping[LayerKey, float]) -> None:
        """Fit to measured layers.

        Args:
            estimate: the prior; of another device too.
            measured_ms: measured latencies in milliseconds.

        Raises:
            EstimateError: on too few layers or a latency that is none.
        """
        if len(measured_ms) < MINIMUM_TO_ADAPT:
            raise EstimateError(
                f"{len(measured_ms)} measured layers cannot adapt an estimate: measure at least "
                f"{MINIMUM_TO_ADAPT}, better 30"
            )
        latencies = np.array(list(measured_ms.values()))
        if not np.all(np.isfinite(latencies)) or latencies.min() <= 0:
            raise EstimateError("a measured latency is zero, negative or not a number")
        self._estimate = estimate
        ratios = np.log(latencies / self._prior(measured_ms))
        # The median is the factor: a few layers that the estimate gets wrong must not move it.
        self._log_factor = float(np.median(ratios))
        features = self._features(measured_ms)
        self._center, self._scale = features.mean(axis=0), features.std(axis=0) + 1e-6
        kernel = ConstantKernel(0.1, (1e-3, 10.0)) * RBF(3.0, (0.5, 30.0)) + WhiteKernel(0.01, (1e-4, 1.0))
        self._residual = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
        with warnings.catch_warnings():
            # Few layers leave a hyperparameter at its bound; that is what the bounds are for.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._residual.fit((features - self._center) / self._scale, ratios - self._log_factor)
        self.rows = len(latencies)
        self.error = float(np.mean(np.abs(np.expm1(-_left_out_errors(self._residual)))))

    @property
    def factor(self) -> float:
        """How many times slower than estimated the device is."""
        return float(np.exp(self._log_factor))

    def predict(self, keys: Sequence[LayerKey]) -> dict[LayerKey, Prediction]:
        """Latencies of layers with one standard deviation."""
        if not keys:
            return {}
        features = (self._features(keys) - self._center) / self._scale
        residual, deviation = self._residual.predict(features, return_std=True)
        latencies = self._prior(keys) * np.exp(self._log_factor + residual)
        return {
            key: Prediction(float(latency_ms), float(latency_ms * log_deviation))
            for key, latency_ms, log_deviation in zip(keys, latencies, deviation, strict=True)
        }

    def _prior(self, keys: Iterable[LayerKey]) -> NDArray[np.float64]:
        return np.array([self._estimate.layer_ms(key) for key in keys])

    @staticmethod
    def _features(keys: Iterable[LayerKey]) -> NDArray[np.float64]:
        """Logarithms of the work, and what kinds of operators do it, shape (keys, features)."""
        rows = []
        for key in keys:
            part = key.part
            block = part if isinstance(part, Block) else None
            rows.append(
                [
                    *np.log(work(key) + 1e-4),
                    np.log2(key.size),
                    np.log2(key.in_channels),
                    float(block.kernel if block else 0),
                    float(block.stride if block else 0),
                    float(block.se if block else False),
                    float(part.activation == "hswish"),
                ]
            )
        return np.array(rows)


def _left_out_errors(process: GaussianProcessRegressor) -> NDArray[np.float64]:
    """Target minus prediction, each row predicted from the others (Rasmussen & Williams 2006, 5.12)."""
    covariance = process.kernel_(process.X_train_)
    inverse = np.linalg.inv(covariance + process.alpha * np.eye(len(covariance)))
    errors: NDArray[np.float64] = (inverse @ process.y_train_) / np.diag(inverse)
    return errors


@dataclass(frozen=True, slots=True)
class AdaptationError:
    """How well an adapted estimate tells the layers it has not seen.

    Attributes:
        layers: number of measured layers used.
        adapted_percent: mean absolute error of :class:`AdaptedLayers` on the others.
        factor_percent: the same with one factor for all layers and nothing else.
    """

    layers: int
    adapted_percent: float
    factor_percent: float


def adaptation_errors(
    estimate: EstimatedLayers,
    measured_ms: Mapping[LayerKey, float],
    counts: Sequence[int] = (10, 30, 100, 300),
    draws: int = 5,
    seed: int = 0,
) -> list[AdaptationError]:
    """Error of the adapted estimate against the number of measured layers, on layers kept aside.

    Args:
        estimate: the prior.
        measured_ms: a large measured table of the device.
        counts: numbers of layers to adapt with; those that leave fewer than ten are dropped.
        draws: random choices of layers to average over.
        seed: of those choices.
    """
    keys = sorted(measured_ms, key=str)
    truth = np.array([measured_ms[key] for key in keys])
    prior = np.array([estimate.layer_ms(key) for key in keys])
    random = np.random.default_rng(seed)
    result = []
    for count in (count for count in counts if count <= len(keys) - 10):
        adapted, scaled = [], []
        for _ in range(draws):
            order = random.permutation(len(keys))
            used, aside = order[:count], order[count:]
            model = AdaptedLayers(estimate, {keys[index]: truth[index] for index in used})
            found = model.predict([keys[index] for index in aside])
            predicted = np.array([found[keys[index]].latency_ms for index in aside])
            adapted.append(np.mean(np.abs(predicted / truth[aside] - 1)))
            scaled.append(np.mean(np.abs(model.factor * prior[aside] / truth[aside] - 1)))
        result.append(AdaptationError(count, 100 * float(np.mean(adapted)), 100 * float(np.mean(scaled))))
    return result
