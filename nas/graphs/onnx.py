"""ONNX graphs straight from operators, in a millisecond instead of an exporter's tens of them.

What is timed is what is deployed: the profiler and ``nas.export`` both use this. Batch normalisation
is folded into the convolution before it, as every runtime does when it loads a trained network.
Operators follow what ``torch.onnx.export`` writes for the same modules; a test compares outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nas.network import Layer, Network, Weights, folded_weights, layers_of
from search_spaces.ops import Conv, Linear, Operator, Operators, Pool, SqueezeExcitation, convolutions

# Old enough for the runtimes found on boards, new enough for HardSwish (14).
OPSET = 17
_IR_VERSION = 8
INPUT_NAME = "input"
OUTPUT_NAME = "output"
_SMALLEST_EXTERNAL_WEIGHT = 64


def onnx_model(
    module: Network | Layer,
    input_shape: Sequence[int],
    name: str = "network",
    external: dict[str, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """The inference graph of a network or a layer with its weights.

    Args:
        module: its running statistics are folded.
        input_shape: (N, C, H, W) of the one input, which is called ``input``.
        name: name of the graph.
        external: see :func:`onnx_graph`.
    """
    made_of = [layer.operators for layer in layers_of(module)]
    return onnx_graph(made_of, input_shape, folded_weights(module), name, external)


def onnx_graph(
    layers: Sequence[Operators],
    input_shape: Sequence[int],
    weights: Iterable[Weights] | None = None,
    name: str = "network",
    external: dict[str, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """The inference graph of layers, one after the other.

    Args:
        layers: what each consists of.
        input_shape: (N, C, H, W) of the one input, which is called ``input``.
        weights: weight and bias of each convolution and linear layer, in the order of
            :func:`search_spaces.ops.convolutions`; random ones where None: latency does not depend on
            their values.
        name: name of the graph.
        external: filled with the weights by name, which are then left out of the model; give them to
            the session itself (``SessionOptions.add_external_initializers``). Saves copying megabytes
            three times over where thousands of layers are timed.

    Returns:
        A model with one output called ``output``.
    """
    graph = Graph(random_weights_of(layers) if weights is None else iter(weights), external)
    last = INPUT_NAME
    for made_of in layers:
        last = graph.layer(made_of, last)
    # The last node writes the output directly: an Identity would be one more node to time.
    if graph.nodes:
        graph.nodes[-1].output[0] = OUTPUT_NAME
    else:
        graph.add("Identity", [last], output=OUTPUT_NAME)
    # Sizes are left to the runtime, but not the rank: logits have two dimensions, feature maps four.
    rank = 2 if graph.nodes[-1].op_type in ("Gemm", "Flatten") else 4
    return graph.model(name, input_shape, {OUTPUT_NAME: rank})


class Graph:
    """Nodes and weights collected while walking operators.

    Args:
        weights: of the convolutions and linear layers that will be walked over, in order.
        external: see :func:`onnx_graph`.

    Attributes:
        nodes: so far.
        initializers: so far.
    """

    def __init__(self, weights: Iterator[Weights], external: dict[str, NDArray[np.float32]] | None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._weights = weights
        self._external = external

    def model(self, name: str, input_shape: Sequence[int], outputs: Mapping[str, int]) -> onnx.ModelProto:
        """The model of what was collected.

        Args:
            name: of the graph.
            input_shape: (N, C, H, W) of its one input.
            outputs: number of dimensions of each output, by name.
        """
        described = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, list(input_shape))],
            [
                helper.make_tensor_value_info(each, TensorProto.FLOAT, [None] * rank)
                for each, rank in outputs.items()
            ],
            self.initializers,
        )
        model = helper.make_model(described, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = _IR_VERSION
        return model

    def add(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """A node; the name of what it gives.

        Args:
            operator: of ONNX.
            inputs: names of what it takes.
            output: name of what it gives; a new one where None.
            attributes: of the operator.
        """
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def weight(self, values: NDArray[np.generic]) -> str:
        """A constant; its name."""
        name = f"w{len(self.initializers)}"
        values = np.ascontiguousarray(values)
        if self._external is None or values.size < _SMALLEST_EXTERNAL_WEIGHT:
            self.initializers.append(numpy_helper.from_array(values, name))
            return name
        self._external[name] = values.astype(np.float32, copy=False)
        left_out = TensorProto(
            name=name,
            data_type=TensorProto.FLOAT,
            dims=values.shape,
            data_location=TensorProto.EXTERNAL,
            external_data=[onnx.StringStringEntryProto(key="location", value="memory")],
        )
        self.initializers.append(left_out)
        return name

    def layer(self, made_of: Operators, value: str) -> str:
        """A layer's operators, one after the other; the name of what they give."""
        entering = value
        for operator in made_of:
            value = self.operator(operator, value, entering)
        return value

    def operator(self, operator: Operator, value: str, entering: str) -> str:
        """One operator of a layer that begins with ``entering``; the name of what it gives.

        Args:
            operator: the operator.
            value: name of what it takes.
            entering: name of what the layer began with, for skips.
        """
        if isinstance(operator, Linear):
            names = [self.weight(values) for values in next(self._weights)]
            return self.activation(operator.activation, self.add("Gemm", [value, *names], transB=1))
        if isinstance(operator, Conv):
            return self.convolution(operator, value)
        if isinstance(operator, Pool):
            return self.add("Flatten", [self.add("GlobalAveragePool", [value])])
        if isinstance(operator, SqueezeExcitation):
            gate = self.add("GlobalAveragePool", [value])
            for conv in operator.convs:
                gate = self.convolution(conv, gate)
            return self.add("Mul", [value, gate])
        return self.add("Add", [entering, value])

    def convolution(self, conv: Conv, value: str) -> str:
        """A convolution with its activation; the name of what it gives."""
        names = [self.weight(values) for values in next(self._weights)]
        value = self.add(
            "Conv",
            [value, *names],
            kernel_shape=[conv.kernel] * 2,
            strides=[conv.stride] * 2,
            pads=[conv.kernel // 2] * 4,
            group=conv.groups,
        )
        return self.activation(conv.activation, value)

    def activation(self, activation: str | None, value: str) -> str:
        """An activation, or nothing; the name of what it gives."""
        if activation is None:
            return value
        if activation == "relu6":
            bounds = [self.weight(np.array(bound, np.float32)) for bound in (0, 6)]
            return self.add("Clip", [value, *bounds])
        if activation == "swish":
            return self.add("Mul", [value, self.add("Sigmoid", [value])])
        if activation == "hsigmoid":
            # Without the default beta: OpenCV takes a written one for the beginning of a hard swish.
            return self.add("HardSigmoid", [value], alpha=1 / 6)
        return self.add({"relu": "Relu", "hswish": "HardSwish", "sigmoid": "Sigmoid"}[activation], [value])


def random_weights_of(layers: Iterable[Operators]) -> Iterator[Weights]:
    """Weight and bias of each convolution and linear layer, in order; their values are of no use."""
    for made_of in layers:
        for conv in convolutions(made_of):
            shape: tuple[int, ...] = (conv.out_channels, conv.in_channels // conv.groups)
            if not isinstance(conv, Linear):
                shape = (*shape, conv.kernel, conv.kernel)
            count = conv.out_channels
            bias = np.zeros(count, np.float32) if conv.norm else _random_weights(count)
            yield _random_weights(conv.weights).reshape(shape), bias


@lru_cache(maxsize=1)
def _weight_pool() -> NDArray[np.float32]:
    pool: NDArray[np.float32] = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * 0.05
    return pool


def _random_weights(count: int) -> NDArray[np.float32]:
    pool = _weight_pool()
    return np.resize(pool, count) if count > len(pool) else pool[:count]
