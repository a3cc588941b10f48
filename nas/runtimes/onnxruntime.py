"""ONNX Runtime on the CPU: fp32, and static int8 with QDQ nodes.

Its int8 convolutions work on feature maps in NHWC, and a network is transposed once where it begins and once
in its head. A layer that took and gave NCHW would be transposed twice more when it is timed alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from nas.graphs.quantize import Borders
from nas.measuring.models import Model, OnnxRunner
from nas.measuring.rounds import Runner
from nas.runtimes.engine import Engine
from nas.runtimes.subject import Precision, Subject, borders, graph

_WEIGHT_TYPES = (TensorProto.FLOAT, TensorProto.INT8)


def timed_graph(
    subject: Subject, precision: Precision, external: dict[str, NDArray[np.float32]] | None = None
) -> ModelProto:
    """The graph of a layer or network as it is timed: int8 layers take and give NHWC.

    Args:
        subject: the layer or network.
        precision: ``fp32`` or ``int8``.
        external: see :func:`nas.graphs.onnx.onnx_model`; fp32 only.
    """
    found = graph(subject, precision, external)
    return _channels_last(found, borders(subject)) if precision == "int8" else found


def _runner(subject: Subject, precision: Precision, threads: int) -> Runner:
    weights: dict[str, NDArray[np.float32]] = {}
    model = timed_graph(subject, precision, weights)
    return OnnxRunner(model.SerializeToString(), threads, weights=weights)


def _model(subject: Subject, precision: Precision) -> Model:
    return stripped(timed_graph(subject, precision))


def stripped(whole: ModelProto) -> Model:
    """A graph without the weights of its convolutions and linear layers, and those.

    Scales, zero points and biases stay: they are small, and quantised arithmetic depends on them.
    """
    large = [
        each for each in whole.graph.initializer if len(each.dims) >= 2 and each.data_type in _WEIGHT_TYPES
    ]
    names = {each.name for each in large}
    kept = [each for each in whole.graph.initializer if each.name not in names]
    skeleton = ModelProto()
    skeleton.CopyFrom(whole)
    del skeleton.graph.initializer[:]
    skeleton.graph.initializer.extend(kept)
    return Model(skeleton.SerializeToString(), {each.name: numpy_helper.to_array(each) for each in large})


def _channels_last(model: ModelProto, ends: Borders) -> ModelProto:
    """Transposes from and to NHWC at the ends, which cancel those that ONNX Runtime adds there."""
    graph = model.graph
    if ends.input:
        taken = graph.input[0]
        sizes = taken.type.tensor_type.shape.dim
        for size, value in zip(sizes, [sizes[axis].dim_value for axis in (0, 2, 3, 1)], strict=True):
            size.dim_value = value
        for node in graph.node:
            node.input[:] = [f"{name}_nchw" if name == taken.name else name for name in node.input]
        graph.node.insert(
            0, helper.make_node("Transpose", [taken.name], [f"{taken.name}_nchw"], perm=[0, 3, 1, 2])
        )
    if ends.output:
        given = graph.output[0].name
        graph.node[-1].output[0] = f"{given}_nchw"
        graph.node.append(helper.make_node("Transpose", [f"{given}_nchw"], [given], perm=[0, 2, 3, 1]))
    return model


# Its fp32 convolutions work in blocks of channels, to which and from which a layer timed alone converts.
ENGINE = Engine("onnxruntime", "onnxruntime", _model, _runner, ("fp32", "int8"), tasks=True)
