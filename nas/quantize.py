"""Static int8 quantisation with QDQ nodes, of the graphs of :mod:`nas.onnx_graph`.

The result has the nodes that ``onnxruntime.quantization.quantize_static`` writes (a test compares them):
activations asymmetric in uint8, weights symmetric in int8 with a scale for each output channel, biases in
int32; ReLU and ReLU6 become the range of the convolution before them (Jacob et al. 2018, arXiv 1712.05877).
Written here because that function spends a Python loop on every channel: seconds for a network, hours for
the layers of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Range = tuple[float, float]

# What latency is measured with: it does not depend on the ranges.
_NOMINAL_RANGE: Range = (-3.0, 6.0)
_ACTIVATIONS = ("Relu", "Clip")
_LARGEST_BIAS = 2**31 - 1


def quantize(model: onnx.ModelProto, images: Sequence[NDArray[np.float32]] = ()) -> onnx.ModelProto:
    """An int8 version of a network or layer.

    Args:
        model: an fp32 graph of :func:`nas.onnx_graph.onnx_model`, weights included.
        images: calibration inputs, each of the model's input shape; the ranges of all feature maps are taken
            from them. Without any the ranges are nominal: right for timing, useless for recognising anything.
    """
    ranges = activation_ranges(model, images) if images else {}
    return _Quantized(model, ranges).model()


def activation_ranges(model: onnx.ModelProto, images: Sequence[NDArray[np.float32]]) -> dict[str, Range]:
    """Smallest and largest value of every feature map over some images."""
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [node.output[0] for node in model.graph.node]
    del watched.graph.output[:]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    first = model.graph.input[0].name
    ranges: dict[str, Range] = {}
    for image in images:
        values = [image, *session.run(names, {first: image})]
        for name, value in zip([first, *names], values, strict=True):
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return ranges


class _Quantized:
    """The nodes and initializers of the int8 graph."""

    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, Range]) -> None:
        self._source = model
        self._ranges = ranges
        self._fp32 = {tensor.name: tensor for tensor in model.graph.initializer}
        self._weights: list[onnx.NodeProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        # Scale of a feature map, and under which name its scale and zero point are kept.
        self._scales: dict[str, float] = {}
        self._owner: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        graph = self._source.graph
        output = graph.output[0].name
        self._around(graph.input[0].name, graph.input[0].name)
        followers = {node.input[0]: node.output[0] for node in graph.node if node.op_type in _ACTIVATIONS}
        for node in graph.node:
            if node.op_type in _ACTIVATIONS:
                continue
            made = onnx.NodeProto()
            made.CopyFrom(node)
            made.input[:] = self._inputs(node)
            name = followers.get(node.output[0], node.output[0])
            self._nodes.append(made)
            if name == output and node.op_type == "HardSwish":
                continue  # computed in fp32: nothing after it asks for int8
            made.output[:] = [f"{name}_QuantizeLinear_Input" if name == output else name]
            # Flattening changes no value: ONNX Runtime needs the same scale on both sides.
            owner = self._owner[node.input[0]] if node.op_type == "Flatten" else name
            self._around(name, made.output[0], owner, output if name == output else "")
        made_graph = helper.make_graph(
            [*self._weights, *self._nodes], graph.name, graph.input, graph.output, self._initializers
        )
        quantized = helper.make_model(made_graph, opset_imports=self._source.opset_import)
        quantized.ir_version = self._source.ir_version
        return quantized

    def _inputs(self, node: onnx.NodeProto) -> list[str]:
        names = [f"{name}_DequantizeLinear_Output" for name in node.input if name not in self._fp32]
        if len(node.input) == len(names):
            return names
        weight, bias = node.input[1:]
        w_scale = self._weight(weight, bias, self._scales[node.input[0]])
        self._bias(bias, w_scale * self._scales[node.input[0]])
        return [*names, f"{weight}_DequantizeLinear_Output", bias]

    def _weight(self, name: str, bias: str, input_scale: float) -> NDArray[np.float32]:
        """Quantise a weight, return the scale of each output channel: (channels,)."""
        values = numpy_helper.to_array(self._fp32[name])
        largest = np.abs(values).reshape(len(values), -1).max(axis=1)
        # A channel of weights so small that its bias would not fit into 32 bits gets a coarser scale.
        enough = np.abs(numpy_helper.to_array(self._fp32[bias])) / (input_scale * _LARGEST_BIAS)
        scale: NDArray[np.float32] = np.maximum(np.where(largest > 0, largest, 127.0) / 127, enough).astype(
            np.float32
        )
        columns = scale.reshape(-1, *[1] * (values.ndim - 1))
        quantized = np.clip(np.rint(values / columns), -127, 127).astype(np.int8)
        self._dequantized(
            name, f"{name}_quantized", quantized, name, scale, f"{name}_DequantizeLinear_Output"
        )
        return scale

    def _bias(self, name: str, scale: NDArray[np.float32]) -> None:
        values = numpy_helper.to_array(self._fp32[name]).astype(np.float64)
        quantized = np.clip(np.rint(values / scale), -_LARGEST_BIAS, _LARGEST_BIAS).astype(np.int32)
        self._dequantized(name, f"{name}_quantized", quantized, f"{name}_quantized", scale, name)

    def _dequantized(
        self,
        name: str,
        quantized_name: str,
        quantized: NDArray[np.integer],
        prefix: str,
        scale: NDArray[np.float32],
        output: str,
    ) -> None:
        parameters = {f"{prefix}_scale": scale, f"{prefix}_zero_point": np.zeros_like(scale, quantized.dtype)}
        for tensor_name, values in ({quantized_name: quantized} | parameters).items():
            self._initializers.append(numpy_helper.from_array(values, tensor_name))
        self._weights.append(
            helper.make_node(
                "DequantizeLinear",
                [quantized_name, *parameters],
                [output],
                f"{name}_DequantizeLinear",
                axis=0,
            )
        )

    def _around(self, name: str, source: str, owner: str = "", output: str = "") -> None:
        """Quantise and dequantise a feature map once, for all that read it."""
        owner = owner or name
        self._owner[name] = owner
        if owner == name:
            low, high = self._ranges.get(name, _NOMINAL_RANGE)
            low, high = min(low, 0.0), max(high, 0.0)
            scale = np.float32((high - low) / 255 or 1.0)
            zero_point = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
            self._initializers.append(numpy_helper.from_array(np.array(scale), f"{name}_scale"))
            self._initializers.append(numpy_helper.from_array(np.array(zero_point), f"{name}_zero_point"))
            self._scales[name] = float(scale)
        self._scales[name] = self._scales[owner]
        parameters = [f"{owner}_scale", f"{owner}_zero_point"]
        middle = f"{name}_QuantizeLinear_Output"
        self._nodes += [
            helper.make_node("QuantizeLinear", [source, *parameters], [middle], f"{name}_QuantizeLinear"),
            helper.make_node(
                "DequantizeLinear",
                [middle, *parameters],
                [output or f"{name}_DequantizeLinear_Output"],
                f"{name}_DequantizeLinear",
            ),
        ]
