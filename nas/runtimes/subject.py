"""The subjects that runtimes run: a layer or a whole network, as a module and as a graph."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from nas.graphs.onnx import onnx_graph
from nas.graphs.quantize import Borders, quantize
from nas.graphs.task import task_graph
from nas.network import Layer, Network, build_layer
from search_spaces.architecture import Architecture
from search_spaces.blocks import Head, Stem
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey, network_operators, operators
from search_spaces.tasks import TaskNetwork

Subject = LayerKey | Architecture | TaskNetwork
Precision = Literal["fp32", "int8"]

PRECISIONS: tuple[str, ...] = get_args(Precision)


class RuntimeUnavailableError(InputError):
    """A runtime that is not installed, or that cannot do what was asked. The message says what to do."""


class CannotRunError(RuntimeUnavailableError):
    """A layer or network that a runtime, or its converter, does not take.

    Attributes:
        reason: what the runtime says.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def input_shape(subject: Subject) -> tuple[int, int, int, int]:
    """(1, C, H, W) of what a layer or a network takes."""
    if isinstance(subject, LayerKey):
        return subject.input_shape
    return (1, 3, subject.resolution, subject.resolution)


def borders(subject: Subject) -> Borders:
    """The ends that an int8 layer has within an int8 network; images and logits are fp32."""
    if not isinstance(subject, LayerKey):
        return Borders()
    return Borders(input=not isinstance(subject.part, Stem), output=not isinstance(subject.part, Head))


def build_module(subject: Subject) -> Network | Layer:
    """The module of a layer or a network, in evaluation mode.

    Raises:
        RuntimeUnavailableError: for a network with another head than its classifier.
    """
    if isinstance(subject, TaskNetwork):
        raise RuntimeUnavailableError(f"only its ONNX graph is run for {subject.task.name}")
    module = build_layer(subject) if isinstance(subject, LayerKey) else Network(subject)
    return module.eval()


def graph(
    subject: Subject,
    precision: Precision = "fp32",
    external: dict[str, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """The ONNX graph of a layer or network with random weights, as it is timed.

    Args:
        subject: the layer or network.
        precision: ``fp32``, or ``int8`` with nominal ranges: latency does not depend on them.
        external: see :func:`nas.graphs.onnx.onnx_model`; fp32 only.
    """
    if isinstance(subject, TaskNetwork):
        if precision != "fp32":
            raise RuntimeUnavailableError(f"networks for {subject.task.name} run in fp32 only")
        return task_graph(subject, external=external)
    made_of = (operators(subject),) if isinstance(subject, LayerKey) else network_operators(subject)
    if precision == "fp32":
        return onnx_graph(made_of, input_shape(subject), external=external)
    return quantize(onnx_graph(made_of, input_shape(subject)), borders=borders(subject))
