"""ONNX graphs straight from our modules, in a millisecond instead of an exporter's tens of them.

What is timed is what is deployed: the profiler and ``nas.export`` both use this. Batch normalisation
is folded into the convolution before it, as every runtime does when it loads a trained network.
Operators follow what ``torch.onnx.export`` writes for the same modules; a test compares outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nas.layers import Residual, SqueezeExcitation
from nas.network import Network

# Old enough for the runtimes found on boards, new enough for HardSwish (14).
OPSET = 17
_IR_VERSION = 8
INPUT_NAME = "input"
OUTPUT_NAME = "output"
_SMALLEST_EXTERNAL_WEIGHT = 64


def onnx_model(
    module: nn.Module,
    input_shape: Sequence[int],
    name: str = "network",
    external: dict[str, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """The inference graph of a module made by :func:`nas.layers.build_layer` or of a whole network.

    Args:
        module: a layer or a :class:`nas.network.Network`; its running statistics are folded. A module
            on the meta device gets random weights: latency does not depend on their values, and
            initialising thousands of layers would take longer than timing them.
        input_shape: (N, C, H, W) of the one input, which is called ``input``.
        name: name of the graph.
        external: filled with the weights by name, which are then left out of the model; give them to
            the session itself (``SessionOptions.add_external_initializers``). Saves copying megabytes
            three times over where thousands of layers are timed.

    Returns:
        A model with one output called ``output``.

    Raises:
        TypeError: if the module contains a kind of module that the search space does not use.
    """
    graph = _Graph(external)
    last = graph.emit(module, INPUT_NAME)
    # The last node writes the output directly: an Identity would be one more node to time.
    if graph.nodes:
        graph.nodes[-1].output[0] = OUTPUT_NAME
    else:
        graph.add("Identity", [last], output=OUTPUT_NAME)
    # Sizes are left to the runtime, but not the rank: logits have two dimensions, feature maps four.
    rank = 2 if graph.nodes[-1].op_type in ("Gemm", "Flatten") else 4
    described = helper.make_graph(
        graph.nodes,
        name,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, list(input_shape))],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [None] * rank)],
        graph.initializers,
    )
    model = helper.make_model(described, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = _IR_VERSION
    return model


class _Graph:
    """Nodes and weights collected while walking a module."""

    def __init__(self, external: dict[str, NDArray[np.float32]] | None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._external = external

    def add(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def weight(self, values: NDArray[np.float32]) -> str:
        name = f"w{len(self.initializers)}"
        values = np.ascontiguousarray(values)
        if self._external is None or values.size < _SMALLEST_EXTERNAL_WEIGHT:
            self.initializers.append(numpy_helper.from_array(values, name))
            return name
        self._external[name] = values
        left_out = TensorProto(
            name=name,
            data_type=TensorProto.FLOAT,
            dims=values.shape,
            data_location=TensorProto.EXTERNAL,
            external_data=[onnx.StringStringEntryProto(key="location", value="memory")],
        )
        self.initializers.append(left_out)
        return name

    def emit(self, module: nn.Module, value: str) -> str:
        if isinstance(module, Network):
            return self.emit(module.layers, value)
        if isinstance(module, nn.Sequential):
            return self.sequence(list(module), value)
        if isinstance(module, Residual):
            return self.add("Add", [value, self.emit(module.body, value)])
        if isinstance(module, SqueezeExcitation):
            gate = value
            for part in (module.pool, module.reduce, module.activation, module.expand, module.gate):
                gate = self.emit(part, gate)
            return self.add("Mul", [value, gate])
        if isinstance(module, nn.Conv2d):
            return self.convolution(module, None, value)
        if isinstance(module, nn.Linear):
            weights = [self.weight(_array(module.weight)), self.weight(_array(module.bias))]
            return self.add("Gemm", [value, *weights], transB=1)
        if isinstance(module, nn.ReLU6):
            bounds = [self.weight(np.array(bound, np.float32)) for bound in (0, 6)]
            return self.add("Clip", [value, *bounds])
        if isinstance(module, nn.ReLU):
            return self.add("Relu", [value])
        if isinstance(module, nn.Hardswish):
            return self.add("HardSwish", [value])
        if isinstance(module, nn.Hardsigmoid):
            # Without the default beta: OpenCV takes a written one for the beginning of a hard swish.
            return self.add("HardSigmoid", [value], alpha=1 / 6)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return self.add("GlobalAveragePool", [value])
        if isinstance(module, nn.Flatten):
            return self.add("Flatten", [value])
        if isinstance(module, nn.Dropout | nn.Identity):
            return value
        raise TypeError(f"no ONNX operator for {type(module).__name__}")

    def sequence(self, modules: list[nn.Module], value: str) -> str:
        index = 0
        while index < len(modules):
            module = modules[index]
            following = modules[index + 1] if index + 1 < len(modules) else None
            if isinstance(module, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                value = self.convolution(module, following, value)
                index += 2
            else:
                value = self.emit(module, value)
                index += 1
        return value

    def convolution(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, value: str) -> str:
        weight = _array(conv.weight)
        bias = _array(conv.bias) if conv.bias is not None else np.zeros(len(weight), np.float32)
        if norm is not None and not norm.weight.is_meta:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = _array(norm.weight) / np.sqrt(_array(norm.running_var) + np.float32(norm.eps))
            weight = weight * scale[:, None, None, None]
            bias = (bias - _array(norm.running_mean)) * scale + _array(norm.bias)
        padding = [int(side) for side in conv.padding]
        return self.add(
            "Conv",
            [value, self.weight(weight), self.weight(bias)],
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=padding * 2,
            group=conv.groups,
        )


def _array(tensor: Tensor) -> NDArray[np.float32]:
    if tensor.is_meta:
        return _random_weights(tensor.numel()).reshape(tuple(tensor.shape))
    values: NDArray[np.float32] = tensor.detach().cpu().numpy()
    return values


@lru_cache(maxsize=1)
def _weight_pool() -> NDArray[np.float32]:
    pool: NDArray[np.float32] = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * 0.05
    return pool


def _random_weights(count: int) -> NDArray[np.float32]:
    pool = _weight_pool()
    return np.resize(pool, count) if count > len(pool) else pool[:count]
