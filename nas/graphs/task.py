"""ONNX graphs of networks with a head for segmentation or detection, in milliseconds.

The nodes compute what torchvision's LR-ASPP and SSDLite do (:mod:`nas.backbones`); a test compares outputs.
Detection gives what its heads say of each anchor: decoding boxes and suppressing overlaps, which
torchvision's SSD does afterwards, are in no graph and no latency here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from nas.graphs.onnx import INPUT_NAME, Graph, random_weights_of
from nas.network import Weights
from search_spaces.layers import layer_keys, operators
from search_spaces.ops import Operators, Pool
from search_spaces.tasks import BOX_VALUES, EXTRA_CHANNELS, INTER_CHANNELS, Task, TaskNetwork

# With the dimensions of each.
OUTPUTS = {"segmentation": {"out": 4}, "detection": {"bbox_regression": 3, "cls_logits": 3}}


def task_graph(
    network: TaskNetwork,
    weights: Iterable[Weights] | None = None,
    external: dict[str, NDArray[np.float32]] | None = None,
    batch: int = 1,
) -> onnx.ModelProto:
    """The inference graph of a network with a task's head.

    Args:
        network: with its task.
        weights: weight and bias of each convolution, in the order in which the modules of
            :mod:`nas.backbones` hold them; random ones where None.
        external: see :func:`nas.graphs.onnx.onnx_graph`.
        batch: images at once.

    Returns:
        A model that takes ``input`` and gives :data:`OUTPUTS`: logits of each pixel; or logits of each
        anchor and where its box is, relative to it.
    """
    keys, task = layer_keys(network.architecture), network.task
    layers = [operators(key) for key in keys]
    layers[-1] = tuple(each for each in layers[-1][: _pooling(layers[-1])])
    head = task.head(*network.taps)
    graph = Graph(random_weights_of([*layers, *head]) if weights is None else iter(weights), external)
    fine = value = INPUT_NAME
    for number, made_of in enumerate(layers):
        if number == network.fine_layer:
            fine, remaining = value, made_of
            if task.takes_expansion(keys[number]):
                # A layer of stride 2 adds nothing to its input: it can be walked in two parts.
                fine, remaining = graph.layer(made_of[:1], value), made_of[1:]
            value = graph.layer(remaining, fine)
        else:
            value = graph.layer(made_of, value)
    side = network.resolution
    if task.name == "segmentation":
        shapes = [[batch, INTER_CHANNELS, *[network.taps[0].size] * 2], [batch, task.classes, side, side]]
        _segmentation(graph, head, fine, value, shapes)
    else:
        _detection(graph, task, head, fine, value)
    return graph.model(network.id, (batch, 3, side, side), OUTPUTS[task.name])


def _pooling(made_of: Operators) -> int:
    return next(number for number, each in enumerate(made_of) if isinstance(each, Pool))


def _segmentation(
    graph: Graph, head: Sequence[Operators], fine: str, coarse: str, shapes: Sequence[list[int]]
) -> None:
    wide, (_, gating), of_fine, of_wide = head
    value = graph.layer(wide, coarse)
    # Not flattened: a product with each channel follows.
    gate = graph.layer((gating,), graph.add("GlobalAveragePool", [coarse]))
    value = _resized(graph, graph.add("Mul", [value, gate]), shapes[0])
    said = [graph.layer(of_fine, fine), graph.layer(of_wide, value)]
    _resized(graph, graph.add("Add", said), shapes[1], "out")


def _resized(graph: Graph, value: str, shape: list[int], output: str | None = None) -> str:
    """Bilinear, as ``torch.nn.functional.interpolate`` does it with ``align_corners=False``."""
    sizes = graph.weight(np.array(shape, np.int64))
    return graph.add(
        "Resize",
        [value, "", "", sizes],
        output,
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )


def _detection(graph: Graph, task: Task, head: Sequence[Operators], fine: str, coarse: str) -> None:
    maps = [fine, coarse]
    further = len(EXTRA_CHANNELS)
    for made_of in head[:further]:
        maps.append(graph.layer(made_of, maps[-1]))
    predictors = iter(head[further:])
    for name, values in (("cls_logits", task.classes), ("bbox_regression", BOX_VALUES)):
        shape = graph.weight(np.array([0, -1, values], np.int64))
        said = []
        for value in maps:
            # (N, anchors * values, H, W) -> (N, H * W * anchors, values)
            last = graph.add("Transpose", [graph.layer(next(predictors), value)], perm=[0, 2, 3, 1])
            said.append(graph.add("Reshape", [last, shape]))
        graph.add("Concat", said, name, axis=1)
