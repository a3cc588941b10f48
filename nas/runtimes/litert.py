"""LiteRT (once TensorFlow Lite) with its XNNPACK delegate: fp32, and static int8.

In int8 XNNPACK takes convolutions, additions, products and means, but no hard swish: a network with that
activation falls apart into many delegated pieces with slow kernels in between. ``litert_split`` writes hard
swish as three operators that XNNPACK does take.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.graphs.litert import LiteRTModel, litert_model
from nas.graphs.quantize import Range
from nas.measuring.models import LiteRTRunner
from nas.measuring.rounds import Runner
from nas.runtimes.subject import Model, Precision, Subject, borders, graph

PACKAGE = "ai-edge-litert"
EXTRA = "litert"
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
# In fp32 hard swish is taken as it is.
SPLIT_PRECISIONS: tuple[Precision, ...] = ("int8",)


def runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    """A call that runs a layer or a network once.

    Args:
        subject: the layer or network.
        precision: ``fp32`` or ``int8``.
        threads: within an operator.
    """
    return LiteRTRunner(_model(subject, precision).content(), threads)


def split_runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    """As :func:`runner`, with hard swish written as operators that XNNPACK takes.

    Args:
        subject: the layer or network.
        precision: ``fp32`` or ``int8``.
        threads: within an operator.
    """
    return LiteRTRunner(_model(subject, precision, split_hswish=True).content(), threads)


def model(subject: Subject, precision: Precision) -> Model:
    """A flatbuffer without its large weights, and those."""
    found = _model(subject, precision)
    return Model(found.skeleton, found.weights)


def split_model(subject: Subject, precision: Precision) -> Model:
    """As :func:`model`, with hard swish written as operators that XNNPACK takes."""
    found = _model(subject, precision, split_hswish=True)
    return Model(found.skeleton, found.weights)


def _model(subject: Subject, precision: Precision, split_hswish: bool = False) -> LiteRTModel:
    weights: dict[str, NDArray[np.float32]] = {}
    model = graph(subject, "fp32", weights)
    ranges: dict[str, Range] | None = {} if precision == "int8" else None
    return litert_model(model, ranges, weights, borders(subject), split_hswish)
