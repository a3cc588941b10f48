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
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from search_spaces.gate import Gate, Json
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutErrors:
    """Errors of an estimate, in percent, on networks or blocks that were left out of its fit."""

    left_out: str
    networks: int | None = None
    blocks: int | None = None
    mean_absolute_percent: float
    worst_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedLayers:
    """Estimated latency of any layer on one board.

    Attributes:
        device: name of the board, as in ``hardware=``.
        coefficients: milliseconds per million (per operator for the last), in the order of TERMS.
        threads: of the published latencies.
        precision: of the published latencies.
        board: for people.
        runtimes: whose latencies it was fitted to or agrees with; no other is meant.
        source: of the published latencies.
        licence: of the source.
        cross_validation: how far it was off.
    """

    device: str
    coefficients: tuple[float, ...]
    threads: int = 1
    precision: str = "fp32"
    board: str
    runtimes: tuple[str, ...]
    source: str
    licence: str
    cross_validation: LeftOutErrors

    def layer_ms(self, key: LayerKey) -> float:
        """Latency of one layer in milliseconds."""
        return float(work(key) @ np.array(self.coefficients))

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
        gate = Gate("the estimate", EstimateError)
        data = gate.mapping(gate.json(text))
        if data.get("schema") != SCHEMA:
            gate.fail(f"is not of schema {SCHEMA}; install the version that wrote it")
        rates = gate.mapping(data.get("coefficients_ms"), "coefficients_ms")
        coefficients: list[Json] = [gate.number(term, rates.get(term), 0) for term in TERMS]
        return gate.record("the estimate", cls, data | {"coefficients": coefficients})

    def to_json(self) -> str:
        """The file of this estimate."""
        rates = dict(zip(TERMS, (round(value, 6) for value in self.coefficients), strict=True))
        found = asdict(self)
        del found["coefficients"]
        errors = {name: each for name, each in found["cross_validation"].items() if each is not None}
        head = {"schema": SCHEMA, "device": self.device, "coefficients_ms": rates}
        return json.dumps(head | found | {"cross_validation": errors}, indent=2) + "\n"


def available() -> tuple[str, ...]:
    """Boards with a shipped estimate."""
    names = (Path(entry.name) for entry in resources.files("nas.latency").joinpath("presets").iterdir())
    return tuple(sorted(name.stem for name in names if name.suffix == ".json"))


def _listed() -> str:
    return ", ".join(available()) or "none"
