"""LiteRT models (flatbuffers) straight from the ONNX graphs of :mod:`nas.graphs.onnx`, in milliseconds.

A converter takes ten seconds a network, and thousands of layers are to be timed. Operators are those that
Google's converters write: feature maps in NHWC, ReLU and ReLU6 within the convolution before them, a ``PAD``
where a stride would make ``SAME`` padding lopsided, the hard sigmoid of a gate as ReLU6 of a bias raised
by 3, times 1/6. Tests compare outputs with the ONNX graph's; ``results/runtimes.md`` with the converter's.

int8 is static: activations asymmetric, weights symmetric with a scale for each output channel, biases int32
(https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

from nas.graphs.quantize import NOMINAL_RANGE, Borders, Range, quantized_weights
from nas.measuring.models import ALIGNMENT, Model, Values

_FUSED_ACTIVATIONS = {"Relu": "RELU", "Clip": "RELU6"}
_SMALLEST_OUTSIDE_BYTES = 1024
# What LiteRT demands of an int8 sigmoid: a scale of 1/256.
_SIGMOID_RANGE: Range = (0.0, 255 / 256)
# Stands for an offset until the size of the flatbuffer is known; 0 would be left out of it.
_PLACEHOLDER = 1 << 40
# Versions from which int8 is allowed, in flatbuffers that other programs may read; 1 for fp32.
_INT8_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "ADD": 2,
    "MUL": 2,
    "MEAN": 2,
    "PAD": 2,
    "DEQUANTIZE": 2,
    "LOGISTIC": 2,
    "RELU": 2,
    "RELU6": 2,
}


class LiteRTOperatorError(TypeError):
    """An operator that this writer does not know."""


def litert_model(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range] | None = None,
    external: Mapping[str, NDArray[np.float32]] | None = None,
    borders: Borders | None = None,
    split_hswish: bool = False,
    weights_outside: bool = True,
) -> Model:
    """The LiteRT model of an fp32 ONNX graph; its flatbuffer says where behind it the large weights lie.

    Args:
        model: made by :func:`nas.graphs.onnx.onnx_model`.
        ranges: of feature maps by name, for int8 (:func:`nas.graphs.quantize.activation_ranges`); those
            that are missing are nominal. None: fp32.
        external: weights that the graph was made without.
        borders: which ends of an int8 model are int8; none where None.
        split_hswish: write hard swish as ``x * (relu6(x + 3) / 6)``: in int8 XNNPACK takes those operators
            and not the one.
        weights_outside: leave large weights out of the flatbuffer; else everything is in it, as other
            programs expect of a file.

    Raises:
        LiteRTOperatorError: for an operator that no graph of ours contains.
        ImportError: if ``ai_edge_litert`` is not installed.
    """
    return _Writer(model, ranges, external or {}, borders or Borders(), split_hswish, weights_outside).model()


class _Writer:
    """Tensors, buffers and operators collected while walking the nodes of a graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        ranges: Mapping[str, Range] | None,
        external: Mapping[str, NDArray[np.float32]],
        borders: Borders,
        split_hswish: bool,
        weights_outside: bool,
    ) -> None:
        from ai_edge_litert import schema_py_generated

        # Generated code without types.
        self._schema: Any = schema_py_generated
        self._graph = model.graph
        self._ranges = ranges
        self._external = external
        self._initializers = {each.name: each for each in model.graph.initializer}
        self._borders = borders
        self._split_hswish = split_hswish
        self._weights_outside = weights_outside
        self._tensors: list[object] = []
        self._buffers: list[object] = [self._schema.BufferT()]
        self._operators: list[object] = []
        self._codes: dict[str, int] = {}
        # Buffers whose content lies behind the flatbuffer.
        self._outside: dict[int, str] = {}
        self._weights_by_name: dict[str, Values] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._parameters: dict[int, tuple[float, int]] = {}
        self._values: dict[str, int] = {}

    # -- the walk ------------------------------------------------------------------------------

    def model(self) -> Model:
        image = self._graph.input[0]
        batch, channels, *sides = (each.dim_value for each in image.type.tensor_type.shape.dim)
        value = self._value(image.name, (batch, *sides, channels))
        first = value
        if self._ranges is not None and not self._borders.input:
            first = self._tensor(f"{image.name}_float", self._shapes[value], "FLOAT32")
            self._operator("QUANTIZE", [first], value, "QuantizeOptions")
        self._values[image.name] = value
        readers = Counter(name for node in self._graph.node for name in node.input)
        nodes = list(self._graph.node)
        while nodes:
            node = nodes.pop(0)
            following = nodes[0] if nodes and readers[node.output[0]] == 1 else None
            if following is not None and node.output[0] not in following.input:
                following = None
            if self._emit(node, following):
                nodes.pop(0)
        last = self._values[self._graph.output[0].name]
        if self._ranges is not None and not self._borders.output:
            found = self._tensor(f"{self._graph.output[0].name}_float", self._shapes[last], "FLOAT32")
            last = self._operator("DEQUANTIZE", [last], found, "DequantizeOptions")
        return self._packed(first, last)

    def _emit(self, node: onnx.NodeProto, following: onnx.NodeProto | None) -> bool:
        """Write a node; whether it took in the one that follows."""
        kind = node.op_type
        after = following.op_type if following is not None else ""
        inputs = [self._values[name] for name in node.input if name in self._values]
        output = node.output[0]
        taken = False
        activation = "NONE"
        if after in _FUSED_ACTIVATIONS and kind in ("Conv", "Gemm", "Add"):
            assert following is not None
            activation, output, taken = _FUSED_ACTIVATIONS[after], following.output[0], True
        if kind == "Conv" and after == "HardSigmoid":
            assert following is not None
            shifted = self._convolution(node, inputs[0], output, "RELU6", raised_by=3.0)
            output, taken = following.output[0], True
            found = self._sixth_of(shifted, output)
        elif kind == "Conv":
            found = self._convolution(node, inputs[0], output, activation)
        elif kind == "Gemm":
            found = self._linear(node, inputs[0], output, activation)
        elif kind in ("Add", "Mul") and len(inputs) == 2:
            found = self._value(output, self._shapes[inputs[0]])
            options = f"{kind}Options"
            self._operator(
                kind.upper(), inputs, found, options, fusedActivationFunction=self._fused(activation)
            )
        elif kind == "GlobalAveragePool":
            flat = after == "Flatten"
            if flat:
                assert following is not None
                output, taken = following.output[0], True
            found = self._mean(inputs[0], output, keep_sides=not flat)
        elif kind == "Flatten":
            found = self._flat(inputs[0], output)
        elif kind == "HardSwish" and self._split_hswish:
            shifted = self._value(f"{output}_shifted", self._shapes[inputs[0]], (0.0, 6.0))
            three, fused = self._scalar(f"{output}_three", 3.0), self._fused("RELU6")
            self._operator("ADD", [inputs[0], three], shifted, "AddOptions", fusedActivationFunction=fused)
            gate = self._sixth_of(shifted, f"{output}_gate")
            found = self._value(output, self._shapes[gate])
            self._operator("MUL", [inputs[0], gate], found, "MulOptions")
        elif kind in ("HardSwish", "Relu", "Clip", "Sigmoid"):
            operator = {"HardSwish": "HARD_SWISH", "Sigmoid": "LOGISTIC"} | _FUSED_ACTIVATIONS
            found = self._value(
                output, self._shapes[inputs[0]], _SIGMOID_RANGE if kind == "Sigmoid" else None
            )
            self._operator(operator[kind], inputs, found)
        elif kind == "Identity":
            found = inputs[0]
        else:
            raise LiteRTOperatorError(f"no LiteRT operator for {kind}")
        self._values[output] = found
        return taken

    def _sixth_of(self, shifted: int, output: str) -> int:
        """From ReLU6(x + 3) to the hard sigmoid of x."""
        sixth = self._scalar(f"{output}_sixth", 1 / 6)
        found = self._value(output, self._shapes[shifted], (0.0, 1.0))
        return self._operator("MUL", [shifted, sixth], found, "MulOptions")

    def _convolution(
        self, node: onnx.NodeProto, value: int, output: str, activation: str, raised_by: float = 0.0
    ) -> int:
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        batch, height, width, channels = self._shapes[value]
        weight = self._array(node.input[1])  # (out, in / groups, kernel, kernel)
        bias = self._array(node.input[2]) + np.float32(raised_by)
        kernel, stride, pad = given["kernel_shape"][0], given["strides"][0], given["pads"][0]
        sides = [(side + 2 * pad - kernel) // stride + 1 for side in (height, width)]
        # SAME puts an odd zero behind; PyTorch puts equally many on both sides.
        needed = [
            max(0, (out - 1) * stride + kernel - side)
            for out, side in zip(sides, (height, width), strict=True)
        ]
        same = needed == [2 * pad, 2 * pad]
        if pad and not same:
            around = np.array([[0, 0], [pad, pad], [pad, pad], [0, 0]], np.int32)
            padded = (batch, height + 2 * pad, width + 2 * pad, channels)
            value = self._operator(
                "PAD",
                [value, self._constant(f"{output}_paddings", around)],
                self._value(f"{output}_padded", padded, like=value),
                "PadOptions",
            )
        depthwise = given["group"] > 1
        if depthwise and (given["group"], weight.shape[1]) != (channels, 1):
            raise LiteRTOperatorError("no LiteRT operator for a convolution in groups that is not depthwise")
        if depthwise:
            operator, options, weight, axis = (
                "DEPTHWISE_CONV_2D",
                "DepthwiseConv2DOptions",
                weight.transpose(1, 2, 3, 0),
                3,
            )
        else:
            operator, options, weight, axis = "CONV_2D", "Conv2DOptions", weight.transpose(0, 2, 3, 1), 0
        bounds = (0.0, 6.0) if raised_by else None
        found = self._value(output, (batch, *sides, bias.size), bounds)
        settings = {"depthMultiplier": 1} if depthwise else {}
        return self._operator(
            operator,
            [value, *self._weights(node, weight, bias, value, axis)],
            found,
            options,
            padding=self._schema.Padding.SAME if same else self._schema.Padding.VALID,
            strideW=stride,
            strideH=stride,
            fusedActivationFunction=self._fused(activation),
            **settings,
        )

    def _linear(self, node: onnx.NodeProto, value: int, output: str, activation: str) -> int:
        weight, bias = self._array(node.input[1]), self._array(node.input[2])
        return self._operator(
            "FULLY_CONNECTED",
            [value, *self._weights(node, weight, bias, value, 0)],
            self._value(output, (self._shapes[value][0], bias.size)),
            "FullyConnectedOptions",
            fusedActivationFunction=self._fused(activation),
        )

    def _mean(self, value: int, output: str, keep_sides: bool) -> int:
        batch, *_, channels = self._shapes[value]
        axes = self._constant(f"{output}_axes", np.array([1, 2], np.int32))
        found = self._value(output, (batch, 1, 1, channels) if keep_sides else (batch, channels))
        return self._operator("MEAN", [value, axes], found, "ReducerOptions", keepDims=keep_sides)

    def _flat(self, value: int, output: str) -> int:
        batch, *others = self._shapes[value]
        shape = np.array([batch, int(np.prod(others))], np.int32)
        found = self._value(output, tuple(shape.tolist()), like=value)
        target = self._constant(f"{output}_shape", shape)
        return self._operator("RESHAPE", [value, target], found, "ReshapeOptions", newShape=shape)

    # -- tensors -------------------------------------------------------------------------------

    def _array(self, name: str) -> NDArray[np.float32]:
        found = self._external.get(name)
        return numpy_helper.to_array(self._initializers[name]) if found is None else found

    def _value(
        self, name: str, shape: tuple[int, ...], bounds: Range | None = None, like: int | None = None
    ) -> int:
        """A feature map; in int8 with the range that its name, ``bounds`` or another feature map has."""
        if self._ranges is None:
            return self._tensor(name, shape, "FLOAT32")
        if like is not None:
            scale, zero_point = self._parameters[like]
        else:
            low, high = bounds or self._ranges.get(name, NOMINAL_RANGE)
            low, high = min(low, 0.0), max(high, 0.0)
            scale = (high - low) / 255 or 1.0
            zero_point = int(np.clip(np.rint(-128 - low / scale), -128, 127))
        index = self._tensor(name, shape, "INT8", quantization=self._quantization([scale], [zero_point]))
        self._parameters[index] = (scale, zero_point)
        return index

    def _weights(
        self,
        node: onnx.NodeProto,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        value: int,
        axis: int,
    ) -> tuple[int, int]:
        names = node.input[1], node.input[2]
        if self._ranges is None:
            return self._constant(names[0], np.ascontiguousarray(weight)), self._constant(names[1], bias)
        scale = self._parameters[value][0]
        weight_int8, bias_int32, scales = quantized_weights(weight, bias, scale, axis)
        zeros = [0] * len(scales)
        return (
            self._constant(
                names[0], np.ascontiguousarray(weight_int8), self._quantization(scales, zeros, axis)
            ),
            self._constant(names[1], bias_int32, self._quantization(scales * scale, zeros)),
        )

    def _scalar(self, name: str, value: float) -> int:
        if self._ranges is None:
            return self._constant(name, np.array([value], np.float32))
        return self._constant(name, np.array([127], np.int8), self._quantization([value / 127], [0]))

    def _constant(self, name: str, values: Values, quantization: object = None) -> int:
        buffer = self._schema.BufferT()
        if self._weights_outside and values.ndim > 1 and values.nbytes >= _SMALLEST_OUTSIDE_BYTES:
            buffer.offset, buffer.size = _PLACEHOLDER, values.nbytes
            self._outside[len(self._buffers)] = name
            self._weights_by_name[name] = values
        else:
            buffer.data = values.reshape(-1).view(np.uint8)
        self._buffers.append(buffer)
        kind = {"float32": "FLOAT32", "int8": "INT8", "int32": "INT32"}[str(values.dtype)]
        return self._tensor(name, values.shape, kind, len(self._buffers) - 1, quantization)

    def _tensor(
        self, name: str, shape: tuple[int, ...], kind: str, buffer: int = 0, quantization: object = None
    ) -> int:
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, np.array(shape, np.int32), buffer
        tensor.type = getattr(self._schema.TensorType, kind)
        tensor.quantization = quantization
        self._tensors.append(tensor)
        self._shapes[len(self._tensors) - 1] = shape
        return len(self._tensors) - 1

    def _quantization(self, scales: ArrayLike, zero_points: list[int], axis: int = 0) -> object:
        found = self._schema.QuantizationParametersT()
        found.scale = np.asarray(scales, np.float32)
        found.zeroPoint = np.asarray(zero_points, np.int64)
        found.quantizedDimension = axis
        quantization: object = found
        return quantization

    # -- operators and files -------------------------------------------------------------------

    def _fused(self, activation: str) -> int:
        found: int = getattr(self._schema.ActivationFunctionType, activation)
        return found

    def _operator(
        self, kind: str, inputs: list[int], output: int, options: str | None = None, **settings: object
    ) -> int:
        made = self._schema.OperatorT()
        made.opcodeIndex = self._codes.setdefault(kind, len(self._codes))
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if options is not None:
            made.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
            made.builtinOptions = getattr(self._schema, f"{options}T")()
            for name, value in settings.items():
                setattr(made.builtinOptions, name, value)
        self._operators.append(made)
        return output

    def _packed(self, first: int, last: int) -> Model:
        import flatbuffers

        schema = self._schema
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", self._tensors, self._operators
        graph.inputs, graph.outputs = np.array([first], np.int32), np.array([last], np.int32)
        model = schema.ModelT()
        model.version, model.description = 3, self._graph.name
        model.subgraphs, model.buffers, model.operatorCodes = [graph], self._buffers, []
        for kind in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, kind)
            # For readers from before there were more than 127 operators.
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = 1 if self._ranges is None else _INT8_VERSIONS.get(kind, 1)
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        packed = bytearray(builder.Output())
        packed += bytes(-len(packed) % ALIGNMENT)
        # Offsets are known only now; the buffers' tables are patched in place.
        offset, root = len(packed), schema.Model.GetRootAs(packed)
        for index, name in self._outside.items():
            values = self._weights_by_name[name]
            table = root.Buffers(index)._tab
            field = table.Offset(6)  # second field of Buffer in the schema
            struct.pack_into("<Q", packed, table.Pos + field, offset)
            offset += values.nbytes + -values.nbytes % ALIGNMENT
        return Model(bytes(packed), self._weights_by_name)
