"""ncnn on the CPU, fp32: no half precision, which its Arm builds would take by themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.graphs.ncnn import ncnn_model
from nas.measuring.models import runner_of
from nas.measuring.rounds import Runner
from nas.runtimes.subject import Model, Precision, Subject, graph

PACKAGE = EXTRA = "ncnn"
PRECISIONS: tuple[Precision, ...] = ("fp32",)


def runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    """A call that runs a layer or a network once.

    Args:
        subject: the layer or network.
        precision: ``fp32`` or ``int8``.
        threads: within an operator.
    """
    made = model(subject, precision)
    return runner_of("ncnn", made.skeleton, made.weights, threads)


def model(subject: Subject, precision: Precision) -> Model:
    """The text of a ``.param`` file, and the weights."""
    weights: dict[str, NDArray[np.float32]] = {}
    text, ordered = ncnn_model(graph(subject, precision, weights), weights)
    return Model(text.encode(), ordered)
