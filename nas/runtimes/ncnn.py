"""ncnn on the CPU, fp32: no half precision, which its Arm builds would take by themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.graphs.ncnn import ncnn_model
from nas.measuring.models import Model
from nas.runtimes.engine import Engine
from nas.runtimes.subject import Precision, Subject, graph


def _model(subject: Subject, precision: Precision) -> Model:
    """The text of a ``.param`` file, and the weights."""
    weights: dict[str, NDArray[np.float32]] = {}
    text, ordered = ncnn_model(graph(subject, precision, weights), weights)
    return Model(text.encode(), ordered)


ENGINE = Engine("ncnn", "ncnn", _model, None)
