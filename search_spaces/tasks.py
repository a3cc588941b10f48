"""Other tasks than classification: the maps a network gives, and the heads that detect or segment with them.

Segmentation is LR-ASPP (Howard et al. 2019, 6.4) on the maps of strides 8 and 32, nothing dilated; detection
is SSDLite (Sandler et al. 2018, 6.2; Howard et al. 2019, 6.3) on the expansion at stride 16 and the map of
stride 32, with four further maps. Both as torchvision builds them. What a head consists of is said here in
operators, once for its graph and its costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

from search_spaces.architecture import MAX_CLASSES, Architecture, check_fields
from search_spaces.blocks import Head, check_positive
from search_spaces.errors import InputError
from search_spaces.gate import made
from search_spaces.layers import LayerKey, layer_keys, operators
from search_spaces.ops import Conv, Operators, Pool, halve
from search_spaces.space import SearchSpace
from search_spaces.stage import Stage

TaskName = Literal["classification", "segmentation", "detection"]
TASKS: tuple[str, ...] = get_args(TaskName)
# As torchvision's weights: PASCAL VOC with background, COCO with background and unused numbers.
DEFAULT_CLASSES = {"segmentation": 21, "detection": 91}
STRIDES = (4, 8, 16, 32)
# Below this the last map is a single pixel.
LEAST_RESOLUTION = 64
# LR-ASPP's width; SSDLite's further maps, its aspect ratios' boxes, and numbers that say where a box is.
INTER_CHANNELS = 128
EXTRA_CHANNELS = (512, 256, 256, 128)
ANCHORS = 6
BOX_VALUES = 4
# Where in a head lies what depends on one of its two maps, see Task.head.
_OF_FINE = {"segmentation": (2,), "detection": (4, 10)}
_OF_COARSE = {"segmentation": (0, 1), "detection": (0, 5, 11)}


class TaskError(InputError):
    """A task that is unknown, or that a network cannot be used for."""


def check_task(name: str, where: str) -> None:
    """Refuse a task that nothing here has a head for.

    Args:
        name: of the task.
        where: the setting, for the message.

    Raises:
        TaskError: naming the nearest one.
    """
    if name not in TASKS:
        near = get_close_matches(str(name), TASKS, 1, 0.5)
        guess = f"did you mean {near[0]}? " if near else ""
        raise TaskError(f"{where}={name} is no task; {guess}known are {', '.join(TASKS)}")


def task_of(name: str, classes: int | None, where: str) -> Task | None:
    """The task that settings name, None for classification.

    Args:
        name: of the task.
        classes: that its head tells apart; None: torchvision's number.
        where: group of the settings, for messages.

    Raises:
        TaskError: if there is no such task, or a number of classes that nothing has.
    """
    check_task(name, f"{where}.task")
    if name == "classification":
        if classes is not None:
            raise TaskError(f"{where}.task_classes goes with {where}.task=segmentation or detection")
        return None
    if classes is not None and classes < 2:
        raise TaskError(f"{where}.task_classes={classes}: at least 2, the background is one of them")
    return Task(name, DEFAULT_CLASSES[name] if classes is None else classes)


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """The last map of a stride.

    Attributes:
        stride: pixels of the image per pixel of the map.
        size: side in pixels, at the network's resolution.
        channels: of the map.
        layer: whose output it is, counted as in :func:`search_spaces.layers.layer_keys`.
    """

    stride: int
    size: int
    channels: int
    layer: int


def feature_maps(architecture: Architecture) -> tuple[FeatureMap, ...]:
    """The last map of each stride, from 2 on.

    The 1x1 convolution before a head's pooling belongs to the last map, as in torchvision's ``features``.
    """
    stride, found = 1, {}
    for number, key in enumerate(layer_keys(architecture)):
        part = key.part
        size = key.size
        if isinstance(part, Head):
            channels = part.conv_channels or key.in_channels
        else:
            stride *= 2 if _halves(key) else 1
            convs = [each for each in operators(key) if isinstance(each, Conv)]
            channels, size = convs[-1].out_channels, convs[-1].out_size
        found[stride] = FeatureMap(stride, size, channels, number)
    return tuple(found.values())


def maps_of(architecture: Architecture, strides: Iterable[int], purpose: str) -> tuple[FeatureMap, ...]:
    """The maps of some strides.

    Args:
        architecture: the network.
        strides: wanted ones.
        purpose: what wants them, for the message.

    Raises:
        TaskError: if the network has no such map, or its image is smaller than the stride.
    """
    known = {each.stride: each for each in feature_maps(architecture)}
    wanted = tuple(strides)
    for stride in wanted:
        if stride not in known:
            raise TaskError(
                f"{purpose} needs a map of stride {stride}, but network {architecture.id} has strides "
                f"{', '.join(map(str, known))}: it needs {'more' if stride > max(known) else 'other'} "
                "blocks of stride 2"
            )
    if wanted and architecture.resolution < max(wanted):
        raise TaskError(
            f"{purpose} needs a map of stride {max(wanted)}, but network {architecture.id} takes images of "
            f"{architecture.resolution} px: at least {max(wanted)} are needed"
        )
    return tuple(known[stride] for stride in wanted)


@dataclass(frozen=True, slots=True)
class Tap:
    """A map that a head takes.

    Attributes:
        size: side in pixels.
        channels: of the map.
    """

    size: int
    channels: int


@dataclass(frozen=True, slots=True)
class Task:
    """A task besides classification, with its head.

    Attributes:
        name: segmentation or detection.
        classes: that it tells apart, the background included.

    Raises:
        TaskError: if there is no head for it.
    """

    name: str
    classes: int

    def __post_init__(self) -> None:
        check_task(self.name, "task")
        if self.name == "classification":
            raise TaskError("classification is what every network does by itself: it has no further head")
        check_positive(self.name, MAX_CLASSES, classes=self.classes)

    @property
    def tapped_stride(self) -> int:
        """Stride of the finer of the two maps that the head takes; the other one has stride 32."""
        return 8 if self.name == "segmentation" else 16

    def takes_expansion(self, key: LayerKey) -> bool:
        """True if the finer map is what a layer of stride 2 expands its input to, as in V3's SSDLite."""
        first, *others = operators(key)
        return (
            self.name == "detection"
            and isinstance(first, Conv)
            and (first.kernel, first.stride) == (1, 1)
            and bool(others)
        )

    def fine_tap(self, key: LayerKey) -> Tap:
        """The finer map, told by the layer of stride 2 that takes it."""
        first = operators(key)[0]
        if isinstance(first, Conv) and self.takes_expansion(key):
            return Tap(key.size, first.out_channels)
        return Tap(key.size, key.in_channels)

    def coarse_tap(self, key: LayerKey) -> Tap:
        """The map of stride 32, told by the classification head that takes it."""
        assert isinstance(key.part, Head)
        return Tap(key.size, key.part.conv_channels or key.in_channels)

    def head(self, fine: Tap, coarse: Tap) -> tuple[Operators, ...]:
        """The operators of the head, in the order of torchvision's modules."""
        if self.name == "segmentation":
            channels = coarse.channels
            return (
                (Conv(coarse.size, channels, INTER_CHANNELS, activation="relu"),),
                (
                    Pool(coarse.size, channels),
                    Conv(1, channels, INTER_CHANNELS, norm=False, activation="sigmoid"),
                ),
                (Conv(fine.size, fine.channels, self.classes, norm=False),),
                (Conv(fine.size, INTER_CHANNELS, self.classes, norm=False),),
            )
        taps = (fine, coarse, *extra_taps(coarse.size))
        predictors = (self.predictor(tap, values) for values in (self.classes, BOX_VALUES) for tap in taps)
        return (*self.extras(coarse), *predictors)

    def fine_part(self, fine: Tap) -> tuple[Operators, ...]:
        """The operators of the head that depend on the finer map."""
        return self._chosen(fine, Tap(1, 1), _OF_FINE)

    def coarse_part(self, coarse: Tap) -> tuple[Operators, ...]:
        """The operators of the head that depend on the channels of the map of stride 32."""
        return self._chosen(Tap(1, 1), coarse, _OF_COARSE)

    def fixed_part(self, resolution: int) -> tuple[Operators, ...]:
        """The operators of the head that are the same for every network of a resolution."""
        sizes = [resolution]
        for _ in range(5):
            sizes.append(halve(sizes[-1]))
        fine = Tap(sizes[self.tapped_stride.bit_length() - 1], 1)
        others = {*_OF_FINE[self.name], *_OF_COARSE[self.name]}
        parts = enumerate(self.head(fine, Tap(sizes[-1], 1)))
        return tuple(each for number, each in parts if number not in others)

    def _chosen(self, fine: Tap, coarse: Tap, which: dict[str, tuple[int, ...]]) -> tuple[Operators, ...]:
        parts = self.head(fine, coarse)
        return tuple(parts[number] for number in which[self.name])

    def predictor(self, tap: Tap, values: int) -> Operators:
        """SSDLite's prediction from one map: so many values for each anchor."""
        channels = tap.channels
        return (
            Conv(tap.size, channels, channels, 3, groups=channels, activation="relu6"),
            Conv(tap.size, channels, ANCHORS * values, norm=False),
        )

    def extras(self, tap: Tap) -> tuple[tuple[Conv, ...], ...]:
        """The operators of SSDLite's four further maps, one from the other."""
        found = []
        for out in EXTRA_CHANNELS:
            middle = out // 2
            found.append(
                (
                    Conv(tap.size, tap.channels, middle, activation="relu6"),
                    Conv(tap.size, middle, middle, 3, 2, middle, "relu6"),
                    Conv(halve(tap.size), middle, out, activation="relu6"),
                )
            )
            tap = Tap(halve(tap.size), out)
        return tuple(found)


def strided_keys(architecture: Architecture) -> tuple[tuple[LayerKey, int], ...]:
    """The layers of an architecture, each with the stride of the map that it takes (1: the image)."""
    stride, found = 1, []
    for key in layer_keys(architecture):
        found.append((key, stride))
        stride *= 2 if _halves(key) else 1
    return tuple(found)


def _halves(key: LayerKey) -> bool:
    return any(isinstance(each, Conv) and each.stride == 2 for each in operators(key))


def check_space(task: Task, space: SearchSpace) -> None:
    """Refuse a space with members that the task's head does not fit.

    Raises:
        TaskError: saying what to change.
    """
    if min(space.resolutions) < LEAST_RESOLUTION:
        raise TaskError(
            f"{task.name} needs images of at least {LEAST_RESOLUTION} px, but the space {space.name!r} has "
            f"{min(space.resolutions)}: give larger resolutions"
        )
    halving = 0
    for number, stage in enumerate(space.stages, start=1):
        if stage.stride == 2:
            halving += 1
            if isinstance(stage, Stage) and 0 in stage.depths:
                raise TaskError(
                    f"{task.name} takes maps of certain strides, but in the space {space.name!r} stage "
                    f"{number} may be left out, its stride included: take 0 out of its depths"
                )
    if halving != 4:
        raise TaskError(
            f"{task.name} takes networks that end at stride 32, but those of the space {space.name!r} end at "
            f"{2 ** (halving + 1)}: it needs four stages of stride 2"
        )


def extra_taps(size: int) -> tuple[Tap, ...]:
    """SSDLite's four further maps, from the side of the map of stride 32."""
    found = []
    for channels in EXTRA_CHANNELS:
        size = halve(size)
        found.append(Tap(size, channels))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class TaskNetwork:
    """A network with the head of a task in place of its classifier.

    Attributes:
        architecture: the network.
        task: what it is used for.

    Raises:
        TaskError: if its maps do not suit the task, or its image is too small.
    """

    architecture: Architecture
    task: Task

    def __post_init__(self) -> None:
        strides = [each.stride for each in maps_of(self.architecture, (8, 16, 32), self.task.name)]
        further = [each.stride for each in feature_maps(self.architecture) if each.stride > strides[-1]]
        if further:
            raise TaskError(
                f"{self.task.name} takes networks that end at stride 32, but network {self.architecture.id} "
                f"ends at {further[-1]}"
            )
        if self.architecture.resolution < LEAST_RESOLUTION:
            raise TaskError(
                f"{self.task.name} needs images of at least {LEAST_RESOLUTION} px, but network "
                f"{self.architecture.id} takes {self.architecture.resolution}: its map of stride 32 would be "
                "a single pixel"
            )

    @property
    def id(self) -> str:
        """Name that depends on table and task alone."""
        return f"{self.architecture.id}_{self.task.name}{self.task.classes}"

    def to_dict(self) -> dict[str, object]:
        """Plain types; the inverse of :meth:`from_dict`."""
        task = {"name": self.task.name, "classes": self.task.classes}
        return {"architecture": self.architecture.to_dict(), "task": task}

    @classmethod
    def from_dict(cls, data: object) -> TaskNetwork:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ArchitectureError: if a field is missing, unknown or wrong.
            TaskError: if there is no such task, or the network does not suit it.
        """
        data = check_fields("network", cls, data)
        task = made(Task, check_fields("task", Task, data["task"]))
        return cls(Architecture.from_dict(data["architecture"]), task)

    @property
    def resolution(self) -> int:
        """Side of the image in pixels."""
        return self.architecture.resolution

    @property
    def fine_layer(self) -> int:
        """The layer that takes the finer map, counted as in :func:`search_spaces.layers.layer_keys`."""
        return next(
            each.layer + 1
            for each in feature_maps(self.architecture)
            if each.stride == self.task.tapped_stride
        )

    @property
    def taps(self) -> tuple[Tap, Tap]:
        """The finer map and that of stride 32."""
        keys = layer_keys(self.architecture)
        return self.task.fine_tap(keys[self.fine_layer]), self.task.coarse_tap(keys[-1])
