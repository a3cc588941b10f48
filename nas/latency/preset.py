"""Latency of a board nobody has measured yet: estimated from fitted, physically monotone coefficients.

An estimate is a linear model with non-negative coefficients over what a layer does: multiply-accumulates,
bytes of feature maps and weights, elementwise passes, operators. More channels, more pixels, a larger
kernel or a wider expansion therefore never get faster. It is a first answer, always labelled
``estimated``; a measurement replaces it, and its rates are where :mod:`nas.latency.layer_predictor` begins.

The shipped coefficients are in ``nas/latency/presets/``, each file with its source, licence, cross-validated
error and the runtimes it stands for; ``python -m tools.fit_preset`` makes them from published latencies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from search_spaces.gate import Gate
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
    """An estimate that does not exist or cannot be read."""


def work(key: LayerKey) -> NDArray[np.float64]:
    """The work of one run of a layer, in the order of :data:`TERMS`, shape (6,).

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


_GATE = Gate("the estimate", EstimateError)


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
    details: Mapping[str, object]

    def layer_ms(self, key: LayerKey) -> float:
        """Latency of one layer in milliseconds."""
        return float(work(key) @ np.array(self.coefficients))

    @property
    def error_percent(self) -> float:
        """Mean absolute error in percent on networks or blocks left out of the fit."""
        return self._left_out("mean_absolute_percent")

    @property
    def worst_percent(self) -> float:
        """The largest of those errors."""
        return self._left_out("worst_percent")

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Runtimes whose latencies it was fitted to or agrees with; no other is meant."""
        return tuple(str(each) for each in _GATE.sequence(self.details["runtimes"], "runtimes"))

    @property
    def precision(self) -> str:
        """Precision of the published latencies."""
        return _GATE.string("precision", self.details["precision"])

    @property
    def threads(self) -> int:
        """Threads of the published latencies."""
        return _GATE.integer("threads", self.details["threads"], 1)

    def _left_out(self, name: str) -> float:
        return _GATE.number(name, _GATE.mapping(self.details["cross_validation"], "cross_validation")[name])

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
