"""Trained networks as backbones: their maps, and torchvision's SSDLite and LR-ASPP on top of them.

Training them is torchvision's business: both models are its own classes, with its losses, anchors and
post-processing. Which maps they take is said in :mod:`search_spaces.tasks`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.segmentation import LRASPP
from torchvision.ops.misc import Conv2dNormActivation

from nas.network import Layer, Network, layers_of
from search_spaces.layers import layer_keys
from search_spaces.ops import Conv
from search_spaces.tasks import (
    ANCHORS,
    DEFAULT_CLASSES,
    STRIDES,
    Task,
    TaskNetwork,
    extra_taps,
    maps_of,
)

# torchvision's ssdlite320_mobilenet_v3_large: normalisation, boxes from 20 to 95 % of the image, NMS.
_SSD_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
_SSD_SCALES = {"min_ratio": 0.2, "max_ratio": 0.95}
_SSD_SETTINGS = {
    "score_thresh": 0.001,
    "nms_thresh": 0.55,
    "detections_per_img": 300,
    "topk_candidates": 300,
}
_SSD_DEVIATION = 0.03

TaskModel: TypeAlias = LRASPP | SSD


class Backbone(nn.Module):
    """A network without its classifier: (N, 3, H, W) -> maps by name, the finest first.

    It shares its weights with the network. The 1x1 convolution before a head's pooling belongs to the map of
    the last stride, as in torchvision's ``features``.

    Args:
        network: whose maps are wanted.
        layers: which ones: the layer whose output each is, by name.
        expansion: a layer whose expanded input is a map too, by name; none by default.

    Attributes:
        channels: of the maps, in order; set by :func:`features`.
        strides: of the maps, in order.
    """

    def __init__(
        self, network: Network, layers: dict[str, int], expansion: tuple[str, int] | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_without_classifier(layer) for layer in layers_of(network))
        self.channels: tuple[int, ...] = ()
        self.strides: tuple[int, ...] = ()
        self._names = {number: name for name, number in layers.items()}
        self._expansion = expansion

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Maps of a batch of normalised images."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        value = images
        for number, layer in enumerate(self.layers):
            if self._expansion and number == self._expansion[1]:
                # Convolution, normalisation and activation; a layer of stride 2 adds nothing to its input.
                assert isinstance(layer, Layer)
                maps[self._expansion[0]] = value = layer.body[:3](value)
                value = layer.body[3:](value)
            else:
                value = layer(value)
            if number in self._names:
                maps[self._names[number]] = value
        return maps


def features(network: Network, strides: Sequence[int] = STRIDES) -> Backbone:
    """A network as feature extractor: the last map of each stride, called ``"0"``, ``"1"`` and so on.

    Args:
        network: trained or not.
        strides: of the maps wanted.

    Raises:
        TaskError: if the network has no such map, or its images are too small for it.
    """
    maps = maps_of(network.architecture, strides, "features")
    backbone = Backbone(network, {str(number): each.layer for number, each in enumerate(maps)})
    backbone.channels = tuple(each.channels for each in maps)
    backbone.strides = tuple(each.stride for each in maps)
    return backbone


def segmenter(network: Network, classes: int = DEFAULT_CLASSES["segmentation"]) -> LRASPP:
    """LR-ASPP on a network: (N, 3, H, W) -> ``out``, (N, classes, H, W) logits.

    Args:
        network: trained or not; its map of stride 32 is not dilated.
        classes: that are told apart, the background included.

    Raises:
        TaskError: if the network's maps do not suit the task.
    """
    whole = TaskNetwork(network.architecture, Task("segmentation", classes))
    fine, coarse = whole.taps
    last = len(layer_keys(network.architecture)) - 1
    backbone = Backbone(network, {"low": whole.fine_layer - 1, "high": last})
    backbone.channels, backbone.strides = (fine.channels, coarse.channels), (8, 32)
    return LRASPP(backbone, fine.channels, coarse.channels, classes)


class _DetectionMaps(nn.Module):
    """The two maps of a network and SSDLite's four further ones."""

    def __init__(self, backbone: Backbone, further: Sequence[Sequence[Conv]]) -> None:
        super().__init__()
        self.features = backbone
        self.extra = nn.ModuleList(
            nn.Sequential(
                *(
                    Conv2dNormActivation(
                        each.in_channels,
                        each.out_channels,
                        kernel_size=each.kernel,
                        stride=each.stride,
                        groups=each.groups,
                        norm_layer=_SSD_NORM,
                        activation_layer=nn.ReLU6,
                    )
                    for each in made_of
                )
            )
            for made_of in further
        )
        for module in self.extra.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, _SSD_DEVIATION)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = self.features(images)
        value = maps["1"]
        for number, block in enumerate(self.extra, start=2):
            maps[str(number)] = value = block(value)
        return maps


def detector(
    network: Network,
    classes: int = DEFAULT_CLASSES["detection"],
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    deviation: Sequence[float] = (0.229, 0.224, 0.225),
) -> SSD:
    """SSDLite on a network: a list of images and targets -> losses, or boxes, scores and labels.

    Args:
        network: trained or not; images are resized to its resolution.
        classes: that are told apart, the background included.
        mean: of the channels, subtracted from images with values from 0 to 1.
        deviation: of the channels, by which they are divided then.

    Raises:
        TaskError: if the network's maps do not suit the task.
    """
    whole = TaskNetwork(network.architecture, Task("detection", classes))
    keys = layer_keys(network.architecture)
    fine, coarse = whole.taps
    number = whole.fine_layer
    if whole.task.takes_expansion(keys[number]):
        backbone = Backbone(network, {"1": len(keys) - 1}, expansion=("0", number))
    else:
        backbone = Backbone(network, {"0": number - 1, "1": len(keys) - 1})
    backbone.channels, backbone.strides = (fine.channels, coarse.channels), (16, 32)
    channels = [each.channels for each in (fine, coarse, *extra_taps(coarse.size))]
    side = network.architecture.resolution
    anchors = DefaultBoxGenerator([[2, 3] for _ in channels], **_SSD_SCALES)
    return SSD(
        _DetectionMaps(backbone, whole.task.extras(coarse)),
        anchors,
        (side, side),
        classes,
        image_mean=list(mean),
        image_std=list(deviation),
        head=SSDLiteHead(channels, anchors.num_anchors_per_location(), classes, _SSD_NORM),
        **_SSD_SETTINGS,
    )


def task_model(network: Network, task: Task) -> TaskModel:
    """A network with the head of a task: see :func:`segmenter` and :func:`detector`."""
    build = segmenter if task.name == "segmentation" else detector
    return build(network, task.classes)


def head_classes(task: Task, weights: Mapping[str, Tensor]) -> int | None:
    """The number of classes of the head in a whole model's weights, None where they hold no such head."""
    segmentation = task.name == "segmentation"
    name = "low_classifier.bias" if segmentation else "classification_head.module_list.0.1.bias"
    found = [values for key, values in weights.items() if key.endswith(name)]
    return found[0].numel() // (1 if segmentation else ANCHORS) if found else None


def raw_outputs(model: TaskModel, images: Tensor) -> dict[str, Tensor]:
    """A model's outputs for normalised images as its graph has them: of detection, those of its heads."""
    dense = isinstance(model, LRASPP)
    found: dict[str, Tensor] = model(images) if dense else model.head([*model.backbone(images).values()])
    return found


def _without_classifier(layer: Layer) -> nn.Module:
    """A layer; of a head what comes before its pooling."""
    modules = list(layer.body)
    for number, module in enumerate(modules):
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return nn.Sequential(*modules[:number])
    return layer
