"""ncnn models (``.param`` and ``.bin``) straight from the ONNX graphs of :mod:`nas.graphs.onnx`, fp32.

The format is text with a line for each layer, and its weights one after the other
(https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure). Activations belong to the convolution
before them, as ncnn's own optimiser has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nas.measuring.models import Values

_MAGIC = "7767517"
# activation_type of a convolution, with its parameters.
_FUSED = {"Relu": "9=1", "Clip": "9=3 -23310=2,0.0,6.0", "HardSwish": "9=6 -23310=2,0.16666667,0.5"}
_ALONE = {
    "Relu": "ReLU",
    "Clip": "Clip 0=0.0 1=6.0",
    "HardSwish": "HardSwish 0=0.16666667 1=0.5",
    "HardSigmoid": "HardSigmoid 0=0.16666667 1=0.5",
    "Sigmoid": "Sigmoid",
    "GlobalAveragePool": "Pooling 0=1 4=1",
    "Flatten": "Noop",
    "Identity": "Noop",
    "Add": "BinaryOp 0=0",
    "Mul": "BinaryOp 0=2",
}


class NcnnOperatorError(TypeError):
    """An operator that this writer does not know."""


def ncnn_model(
    model: onnx.ModelProto, external: Mapping[str, NDArray[np.float32]] | None = None
) -> tuple[str, dict[str, Values]]:
    """The ncnn model of an fp32 ONNX graph.

    Args:
        model: made by :func:`nas.graphs.onnx.onnx_model`.
        external: weights that the graph was made without.

    Returns:
        The text of the ``.param`` file, and the weights in the order of the ``.bin`` file.

    Raises:
        NcnnOperatorError: for an operator that no graph of ours contains.
    """
    graph, external = model.graph, external or {}
    initializers = {each.name: each for each in graph.initializer}
    known = set(initializers)
    weights: dict[str, Values] = {}
    lines: list[str] = []
    # Blobs with channels alone, after global pooling: a convolution of them is a product.
    vectors: set[str] = set()
    readers = Counter(name for node in graph.node for name in node.input if name not in known)
    # A blob has one reader in ncnn: what several read is split, and each takes the next of its copies.
    copies: dict[str, list[str]] = {}

    def give(name: str) -> None:
        if readers[name] > 1:
            copies[name] = [f"{name}_{index}" for index in range(readers[name])]
            lines.append(f"Split {name}_split 1 {readers[name]} {name} {' '.join(copies[name])}")

    def take(name: str) -> str:
        return copies[name].pop(0) if name in copies else name

    image = graph.input[0]
    _, channels, height, width = (each.dim_value for each in image.type.tensor_type.shape.dim)
    lines.append(f"Input {image.name} 0 1 {image.name} 0={width} 1={height} 2={channels}")
    give(image.name)
    nodes = list(graph.node)
    while nodes:
        node = nodes.pop(0)
        output, settings = node.output[0], ""
        inputs = [take(name) for name in node.input if name not in known]
        if node.op_type in ("Conv", "Gemm"):
            arrays = [
                external[n] if n in external else numpy_helper.to_array(initializers[n])
                for n in node.input[1:]
            ]
            weights |= dict(zip(node.input[1:], arrays, strict=True))
            kind, settings = _weighted(node, weights[node.input[1]], node.input[0] in vectors)
            if kind == "InnerProduct":
                vectors.add(output)
            if nodes and nodes[0].op_type in _FUSED and nodes[0].input[0] == output and readers[output] == 1:
                following = nodes.pop(0)
                vectors |= {following.output[0]} if output in vectors else set()
                output, settings = following.output[0], f"{settings} {_FUSED[following.op_type]}"
        elif node.op_type in _ALONE:
            kind, _, settings = _ALONE[node.op_type].partition(" ")
            if node.op_type == "GlobalAveragePool":
                vectors.add(output)
        else:
            raise NcnnOperatorError(f"no ncnn layer for {node.op_type}")
        lines.append(f"{kind} {output} {len(inputs)} 1 {' '.join(inputs)} {output} {settings}".rstrip())
        give(output)
    blobs = sum(int(line.split()[3]) for line in lines)
    return "\n".join([_MAGIC, f"{len(lines)} {blobs}", *lines]) + "\n", weights


def _weighted(node: onnx.NodeProto, weight: Values, of_vector: bool) -> tuple[str, str]:
    """Kind and settings of a convolution or linear layer."""
    if node.op_type == "Gemm" or of_vector:
        return "InnerProduct", f"0={len(weight)} 1=1 2={weight.size}"
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    settings = (
        f"0={len(weight)} 1={given['kernel_shape'][0]} 3={given['strides'][0]} 4={given['pads'][0]} 5=1 "
        f"6={weight.size}"
    )
    if given["group"] == 1:
        return "Convolution", settings
    return "ConvolutionDepthWise", f"{settings} 7={given['group']}"
