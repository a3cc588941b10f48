"""Static int8 quantisation with QDQ nodes, of the graphs of :mod:`nas.graphs.onnx`.

The result has the nodes that ``onnxruntime.quantization.quantize_static`` writes (a test compares them):
activations asymmetric in uint8, weights symmetric in int8 with a scale for each output channel, biases in
int32; ReLU and ReLU6 become the range of the convolution before them (Jacob et al. 2018, arXiv 1712.05877).
Written here because that function spends a Python loop on every channel: seconds for a network, hours for
the layers of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Range = tuple[float, float]

# What latency is measured with: it does not depend on the ranges.
NOMINAL_RANGE: Range = (-3.0, 6.0)
_ACTIVATIONS = ("Relu", "Clip")
_LARGEST_BIAS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Borders:
    """Which ends of an int8 model take or give int8 instead of fp32.

    A layer within an int8 network is handed int8 and hands int8 on. Timed alone with fp32 at its ends, it
    would convert twice what the network never converts.
    """

    input: bool = False
    output: bool = False


def quantize(
    model: onnx.ModelProto,
    images: Sequence[NDArray[np.float32]] = (),
    borders: Borders | None = None,
    ranges: Mapping[str, Range] | None = None,
) -> onnx.ModelProto:
    """An int8 version of a network or layer.

    Args:
        model: an fp32 graph of :func:`nas.graphs.onnx.onnx_model`, weights included.
        images: calibration inputs, each of the model's input shape; the ranges of all feature maps are taken
            from them. Without any the ranges are nominal: right for timing, useless for recognising anything.
        borders: which ends are int8; none where None.
        ranges: of the feature maps, where they are known already.
    """
    if ranges is None:
        ranges = activation_ranges(model, images) if images else {}
    return _Quantized(model, ranges, borders or Borders()).model()


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


def quantized_weights(
    weight: NDArray[np.float32], bias: NDArray[np.float32], input_scale: float, axis: int = 0
) -> tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.float32]]:
    """Weights and biases of a convolution or linear layer in integers.

    Args:
        weight: with its output channels along ``axis``.
        bias: (output channels,).
        input_scale: of the feature map that the layer reads.
        axis: of the output channels.

    Returns:
        Weights; biases, in units of the weights' scale times ``input_scale``; scale of each output channel.
    """
    largest = np.abs(weight).max(axis=tuple(each for each in range(weight.ndim) if each != axis))
    # A channel of weights so small that its bias would not fit into 32 bits gets a coarser scale.
    enough = np.abs(bias) / (input_scale * _LARGEST_BIAS)
    scale: NDArray[np.float32] = np.maximum(np.where(largest > 0, largest, 127.0) / 127, enough).astype(
        np.float32
    )
    along = [1] * weight.ndim
    along[axis] = -1
    # Rounded and clipped in place: this runs for every layer of a table.
    scaled = weight / scale.reshape(along)
    np.clip(np.rint(scaled, out=scaled), -127, 127, out=scaled)
    biases = np.rint(bias.astype(np.float64) / (scale * np.float32(input_scale)))
    return scaled.astype(np.int8), np.clip(biases, -_LARGEST_BIAS, _LARGEST_BIAS).astype(np.int32), scale


class _Quantized:
    """The nodes and initializers of the int8 graph."""

    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, Range], borders: Borders) -> None:
        self._source = model
        self._borders = borders
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
        image, output = graph.input[0], graph.output[0]
        if self._borders.input:
            self._parameters_of(image.name)
            self._nodes.append(
                self._dequantize(image.name, image.name, f"{image.name}_DequantizeLinear_Output")
            )
        else:
            self._around(image.name, image.name)
        followers = {node.input[0]: node.output[0] for node in graph.node if node.op_type in _ACTIVATIONS}
        for node in graph.node:
            if node.op_type in _ACTIVATIONS:
                continue
            made = onnx.NodeProto()
            made.CopyFrom(node)
            made.input[:] = self._inputs(node)
            name = followers.get(node.output[0], node.output[0])
            self._nodes.append(made)
            last = name == output.name
            if last and node.op_type == "HardSwish" and not self._borders.output:
                continue  # computed in fp32: nothing after it asks for int8
            made.output[:] = [f"{name}_QuantizeLinear_Input" if last else name]
            # Flattening changes no value: ONNX Runtime needs the same scale on both sides.
            owner = self._owner[node.input[0]] if node.op_type == "Flatten" else name
            if last and self._borders.output:
                self._parameters_of(name, owner)
                self._nodes.append(self._quantize(name, made.output[0], name))
            else:
                self._around(name, made.output[0], owner, name if last else "")
        made_graph = helper.make_graph(
            [*self._weights, *self._nodes],
            graph.name,
            [_as_uint8(image) if self._borders.input else image],
            [_as_uint8(output) if self._borders.output else output],
            self._initializers,
        )
        quantized = helper.make_model(made_graph, opset_imports=self._source.opset_import)
        quantized.ir_version = self._source.ir_version
        return quantized

    def _inputs(self, node: onnx.NodeProto) -> list[str]:
        names = [f"{name}_DequantizeLinear_Output" for name in node.input if name not in self._fp32]
        if len(node.input) == len(names):
            return names
        weight, bias = node.input[1:]
        input_scale = self._scales[node.input[0]]
        values = [numpy_helper.to_array(self._fp32[name]) for name in (weight, bias)]
        quantized, quantized_bias, scale = quantized_weights(values[0], values[1], input_scale)
        output = f"{weight}_DequantizeLinear_Output"
        self._dequantized(weight, f"{weight}_quantized", quantized, weight, scale, output)
        name = f"{bias}_quantized"
        self._dequantized(bias, name, quantized_bias, name, scale * np.float32(input_scale), bias)
        return [*names, f"{weight}_DequantizeLinear_Output", bias]

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
        self._parameters_of(name, owner)
        middle = f"{name}_QuantizeLinear_Output"
        self._nodes += [
            self._quantize(name, source, middle),
            self._dequantize(name, middle, output or f"{name}_DequantizeLinear_Output"),
        ]

    def _parameters_of(self, name: str, owner: str = "") -> None:
        """Scale and zero point of a feature map, its own or those of ``owner``."""
        owner = owner or name
        self._owner[name] = owner
        if owner == name:
            low, high = self._ranges.get(name, NOMINAL_RANGE)
            low, high = min(low, 0.0), max(high, 0.0)
            scale = np.float32((high - low) / 255 or 1.0)
            zero_point = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
            self._initializers.append(numpy_helper.from_array(np.array(scale), f"{name}_scale"))
            self._initializers.append(numpy_helper.from_array(np.array(zero_point), f"{name}_zero_point"))
            self._scales[name] = float(scale)
        self._scales[name] = self._scales[owner]

    def _quantize(self, name: str, source: str, output: str) -> onnx.NodeProto:
        parameters = [f"{self._owner[name]}_scale", f"{self._owner[name]}_zero_point"]
        return helper.make_node("QuantizeLinear", [source, *parameters], [output], f"{name}_QuantizeLinear")

    def _dequantize(self, name: str, source: str, output: str) -> onnx.NodeProto:
        parameters = [f"{self._owner[name]}_scale", f"{self._owner[name]}_zero_point"]
        return helper.make_node(
            "DequantizeLinear", [source, *parameters], [output], f"{name}_DequantizeLinear"
        )


def _as_uint8(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    made = onnx.ValueInfoProto()
    made.CopyFrom(value)
    made.type.tensor_type.elem_type = TensorProto.UINT8
    return made
