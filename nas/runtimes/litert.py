"""LiteRT (once TensorFlow Lite) with its XNNPACK delegate: fp32, and static int8.

In int8 XNNPACK takes convolutions, additions, products and means, but no hard swish: a network with that
activation falls apart into many delegated pieces with slow kernels in between. ``litert_split`` writes hard
swish as three operators that XNNPACK does take.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nas.graphs.litert import litert_model
from nas.graphs.quantize import Range
from nas.measuring.models import Model
from nas.runtimes.engine import Engine
from nas.runtimes.subject import Precision, Subject, borders, graph


def _model(subject: Subject, precision: Precision, split_hswish: bool) -> Model:
    """A flatbuffer without its large weights, and those."""
    weights: dict[str, NDArray[np.float32]] = {}
    model = graph(subject, "fp32", weights)
    ranges: dict[str, Range] | None = {} if precision == "int8" else None
    return litert_model(model, ranges, weights, borders(subject), split_hswish)


# fp32 layers keep NHWC, but gain by the correction of their borders all the same (results/runtimes.md).
ENGINE = Engine(
    "litert",
    "litert",
    partial(_model, split_hswish=False),
    None,
    ("fp32", "int8"),
    ending=".tflite",
)
# In fp32 hard swish is taken as it is.
SPLIT = replace(ENGINE, name="litert_split", model=partial(_model, split_hswish=True), precisions=("int8",))
