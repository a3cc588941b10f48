"""ExecuTorch programs (``.pte``) straight from the ONNX graphs of :mod:`nas.graphs.onnx`, fp32, for XNNPACK.

ExecuTorch's exporter takes more than a second a layer and ten a network, and thousands of layers are to be
timed. What is written is what it writes: everything in one delegate, feature maps in NHWC, ReLU and ReLU6
within the convolution before them, the hard sigmoid of a gate taken apart in NCHW. Tests compare outputs and
operators with the exporter's; ``results/runtimes.md`` compares times.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nas.graphs.quantize import Borders
from nas.measuring.models import Values

# Bounds of the clamp that a convolution or linear layer ends with.
_FUSED = {"Relu": (0.0, "+inf"), "Clip": (0.0, 6.0)}
_TO_NHWC, _TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]
# Of XNNPACK: no such value; a value from outside, one that goes there; a mean keeps its dimensions.
_NO_VALUE = (1 << 32) - 1
_EXTERNAL_INPUT, _EXTERNAL_OUTPUT, _KEEP_DIMS = 1, 2, 64
_ALIGNMENT_BYTES = 16


class ExecuTorchOperatorError(TypeError):
    """An operator that this writer does not know."""


def executorch_program(
    model: onnx.ModelProto,
    external: Mapping[str, NDArray[np.float32]] | None = None,
    borders: Borders | None = None,
) -> bytes:
    """The ExecuTorch program of an fp32 ONNX graph.

    Args:
        model: made by :func:`nas.graphs.onnx.onnx_model`.
        external: weights that the graph was made without.
        borders: which ends are in NHWC, as between the layers of a network; none where None.

    Raises:
        ExecuTorchOperatorError: for an operator that no graph of ours contains.
        ImportError: if ``executorch`` is not installed.
    """
    with quiet():
        return _Writer(model, external or {}, borders or Borders()).program()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that ExecuTorch writes to the standard error, each time it is used, meanwhile.

    What goes wrong is an exception all the same.
    """
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a descriptor, no path
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Writer:
    """Values, constants and nodes of XNNPACK collected while walking a graph."""

    def __init__(
        self, model: onnx.ModelProto, external: Mapping[str, NDArray[np.float32]], borders: Borders
    ) -> None:
        from executorch.backends.xnnpack.serialization import xnnpack_graph_schema

        self._schema = xnnpack_graph_schema
        self._graph = model.graph
        self._external = external
        self._initializers = {each.name: each for each in model.graph.initializer}
        self._borders = borders
        self._values: list[object] = []
        self._nodes: list[object] = []
        self._constants: list[object] = [self._schema.ConstantDataOffset(0, 0)]
        self._contents: list[bytes] = []
        self._shapes: list[tuple[int, ...]] = []
        self._ids: dict[str, int] = {}

    def program(self) -> bytes:
        image = self._graph.input[0]
        batch, channels, *sides = (each.dim_value for each in image.type.tensor_type.shape.dim)
        nhwc = (batch, *sides, channels)
        if self._borders.input:
            first = self._ids[image.name] = self._value(nhwc, 0, _EXTERNAL_INPUT)
        else:
            first = self._value((batch, channels, *sides), 0, _EXTERNAL_INPUT)
            self._ids[image.name] = self._transposed(first, _TO_NHWC)
        readers = Counter(name for node in self._graph.node for name in node.input)
        nodes = list(self._graph.node)
        while nodes:
            node = nodes.pop(0)
            output, bounds = node.output[0], None
            if (
                node.op_type in ("Conv", "Gemm", "Add")
                and nodes
                and nodes[0].op_type in _FUSED
                and nodes[0].input[0] == output
                and readers[output] == 1
            ):
                following = nodes.pop(0)
                output, bounds = following.output[0], _FUSED[following.op_type]
            self._ids[output] = self._emitted(node, bounds)
        last = self._ids[self._graph.output[0].name]
        if len(self._shapes[last]) == 4 and not self._borders.output:
            last = self._transposed(last, _TO_NCHW)
        value = self._values[last].xvalue_union  # type: ignore[attr-defined]
        value.external_id, value.flags = 1, _EXTERNAL_OUTPUT
        return self._packed(first, last)

    def _emitted(self, node: onnx.NodeProto, bounds: tuple[object, object] | None) -> int:
        """Write a node; what it gives."""
        kind, schema = node.op_type, self._schema
        inputs = [self._ids[name] for name in node.input if name in self._ids]
        value = inputs[0]
        shape = self._shapes[value]
        if kind == "Conv":
            return self._convolution(node, value, bounds)
        if kind == "Gemm":
            weight, bias = self._weights(node)
            rows = self._shapes[weight][0]
            return self._add(schema.XNNFullyConnected, [value, weight, bias], (shape[0], rows), bounds)
        if kind in ("Add", "Mul") and len(inputs) == 2:
            made = schema.XNNAdd if kind == "Add" else schema.XNNMultiply
            return self._add(made, inputs, shape, bounds)
        if kind == "GlobalAveragePool":
            pooled = (shape[0], 1, 1, shape[3])
            return self._add(schema.XNNGlobalAvgPooling2d, inputs, pooled, flags=_KEEP_DIMS)
        if kind == "Flatten":
            flat = (shape[0], int(np.prod(shape[1:])))
            # As in NCHW, in which the exporter counts.
            turned = self._transposed(value, _TO_NCHW)
            return self._add(schema.XNNStaticReshape, [turned], flat, num_dims=2, new_shape=list(flat))
        if kind in _FUSED:
            return self._add(schema.XNNClamp, inputs, shape, _FUSED[kind])
        if kind == "HardSwish":
            return self._add(schema.XNNHardswish, inputs, shape)
        if kind == "Sigmoid":
            return self._add(schema.XNNSigmoid, inputs, shape)
        if kind == "HardSigmoid":
            return self._hard_sigmoid(value)
        if kind == "Identity":
            return self._add(schema.XNNCopy, inputs, shape)
        raise ExecuTorchOperatorError(f"no XNNPACK operator for {kind}")

    def _convolution(self, node: onnx.NodeProto, value: int, bounds: tuple[object, object] | None) -> int:
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        kernel, stride, pad, groups = (
            given["kernel_shape"][0],
            given["strides"][0],
            given["pads"][0],
            given["group"],
        )
        batch, height, width, channels = self._shapes[value]
        weight, bias = self._weights(node, depthwise=groups > 1)
        out_channels = self._shapes[bias][0]
        sides = [(side + 2 * pad - kernel) // stride + 1 for side in (height, width)]
        made = self._schema.XNNDepthwiseConv2d if groups > 1 else self._schema.XNNConv2d
        output = self._value((batch, *sides, out_channels))
        self._node(
            made(
                *(pad,) * 4,
                *(kernel,) * 2,
                *(stride,) * 2,
                *(1,) * 2,
                group_input_channels=channels // groups,
                group_output_channels=out_channels // groups,
                groups=groups,
                adjustment_height=0,
                adjustment_width=0,
                input1_id=value,
                filter_id=weight,
                bias_id=bias,
                output_id=output,
                flags=0,
            ),
            bounds,
        )
        return output

    def _hard_sigmoid(self, value: int) -> int:
        """``clamp(x + 3, 0, 6) / 6``, the clamp in two, in NCHW."""
        schema = self._schema
        found = self._transposed(value, _TO_NCHW)
        shape = self._shapes[found]
        found = self._add(schema.XNNAdd, [found, self._scalar(3.0)], shape)
        found = self._add(schema.XNNClamp, [found], shape, (0.0, "inf"))
        found = self._add(schema.XNNClamp, [found], shape, ("-inf", 6.0))
        found = self._add(schema.XNNDiv, [found, self._scalar(6.0)], shape)
        return self._transposed(found, _TO_NHWC)

    # -- values and nodes ----------------------------------------------------------------------

    def _weights(self, node: onnx.NodeProto, depthwise: bool = False) -> tuple[int, int]:
        weight, bias = (
            self._external[name]
            if name in self._external
            else numpy_helper.to_array(self._initializers[name])
            for name in node.input[1:]
        )
        if weight.ndim == 4:  # (out, in / groups, kernel, kernel)
            weight = weight.transpose(1, 2, 3, 0) if depthwise else weight.transpose(0, 2, 3, 1)
        return self._constant(weight), self._constant(bias)

    def _scalar(self, value: float) -> int:
        return self._constant(np.array([value], np.float32))

    def _constant(self, values: Values) -> int:
        # Where there is a name the offset means nothing.
        name = str(len(self._contents))
        self._constants.append(self._schema.ConstantDataOffset((1 << 64) - 1, values.nbytes, name))
        self._contents.append(values.tobytes())
        return self._value(values.shape, constant=len(self._constants) - 1)

    def _value(
        self, shape: Sequence[int], external: int = _NO_VALUE, flags: int = 0, constant: int = 0
    ) -> int:
        schema, number = self._schema, len(self._values)
        kind = schema.XNNDatatype.xnn_datatype_fp32
        tensor = schema.XNNTensorValue(kind, len(shape), list(shape), constant, external, flags, number)
        self._values.append(schema.XValue(tensor))
        self._shapes.append(tuple(shape))
        return number

    def _transposed(self, value: int, order: list[int]) -> int:
        shape = [self._shapes[value][axis] for axis in order]
        return self._add(self._schema.XNNStaticTranspose, [value], shape, num_dims=4, perm=order)

    def _add(
        self,
        made: Callable[..., object],
        inputs: Sequence[int],
        shape: Sequence[int],
        bounds: tuple[object, object] | None = None,
        flags: int = 0,
        **settings: object,
    ) -> int:
        output = self._value(shape)
        # Settings come first in the schema's nodes, then inputs and output.
        self._node(made(*settings.values(), *inputs, output, flags), bounds)
        return output

    def _node(self, made: object, bounds: tuple[object, object] | None = None) -> None:
        clamp = self._schema.OutputMinMax(*bounds) if bounds else None
        self._nodes.append(self._schema.XNode(made, len(self._nodes) + 1, clamp))

    # -- the file ------------------------------------------------------------------------------

    def _packed(self, first: int, last: int) -> bytes:
        from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary
        from executorch.exir import schema
        from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
        from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
        from executorch.exir._serialize.data_serializer import DataEntry
        from executorch.exir.scalar_type import ScalarType

        graph = self._schema.XNNGraph("0", self._nodes, self._values, 2, [first], [last], self._constants)
        delegate = serialize_xnnpack_binary(graph, bytearray())
        entries = {
            str(number): DataEntry(number, _ALIGNMENT_BYTES, None) for number in range(len(self._contents))
        }
        named = NamedDataStoreOutput(self._contents, entries, {})
        tensors, offset = [], 0
        for value in (first, last):
            shape = list(self._shapes[value])
            memory = schema.AllocationDetails(1, offset, 0)
            offset += 4 * int(np.prod(shape)) + -4 * int(np.prod(shape)) % _ALIGNMENT_BYTES
            tensor = schema.Tensor(
                ScalarType.FLOAT,
                0,
                shape,
                list(range(len(shape))),
                False,
                0,
                0,
                memory,
                schema.TensorShapeDynamism.STATIC,
            )
            tensors.append(schema.EValue(tensor))
        inline = schema.BackendDelegateDataReference(schema.DataLocation.INLINE, 0)
        plan = schema.ExecutionPlan(
            "forward",
            schema.ContainerMetadata("", ""),
            tensors,
            [0],
            [1],
            [schema.Chain([], [], [schema.Instruction(schema.DelegateCall(0, [0, 1]))], None)],
            [],
            [schema.BackendDelegate("XnnpackBackend", inline, [])],
            [0, offset],
        )
        program = schema.Program(
            0,
            [plan],
            [schema.Buffer(b"")],
            [schema.BackendDelegateInlineData(delegate)],
            [],
            schema.SubsegmentOffsets(0, []),
        )
        return bytes(serialize_pte_binary(PTEFile(program, named_data=named), extract_delegate_segments=True))
