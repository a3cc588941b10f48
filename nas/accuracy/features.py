"""The features that the accuracy predictor sees: numbers that any MobileNet-like block table has.

Many networks are handled at once in :class:`RunArrays`; a single network is a batch of one, so that
there is only one way of computing a feature.

A table of any length is laid onto the seven stages of MobileNetV2 by output stride: one stage each at
strides 2, 4 and 8, two each at 16 and 32, where the second begins when the width changes. Each stage
gives its depth, widths, kernels and share of squeeze-and-excitation, the block that begins it apart; the
whole network gives resolution, size, width, depth and shares of operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nas.accuracy.source import AccuracyError
from nas.cost import layer_cost
from search_spaces.architecture import Architecture
from search_spaces.blocks import IMAGE_CHANNELS, Block, Head, Stem
from search_spaces.layers import LayerKey
from search_spaces.space import SearchSpace
from search_spaces.stage import Stage

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

CLASSES = 1000
RESOLUTIONS = (48, 320)
KERNELS = (3, 5, 7)
KINDS = ("inverted_residual", "depthwise_separable")
OUTPUT_STRIDE = 32

_STAGES = 7
# Typical expanded and output widths of a stage (MobileNetV2's skeleton): features are relative to them.
_EXPANDED = np.array([96, 72, 144, 240, 448, 560, 960])[:, None]
_WIDTHS = np.array([16, 24, 40, 80, 112, 192, 320])[:, None]

STAGE_FEATURES = ("depth", "expanded", "kernel", "se", "width", "first_expanded", "first_kernel")
NETWORK_FEATURES = (
    "resolution",
    "macs",
    "parameters",
    "width",
    "depth",
    "se",
    "kernel",
    "smooth",
    "swish",
    "separable",
    "head_width",
    "last_width",
    "head_conv",
    "squeeze",
    "stem",
)
FEATURES: tuple[str, ...] = (
    *(f"stage{stage}.{name}" for stage in range(1, _STAGES + 1) for name in STAGE_FEATURES),
    *NETWORK_FEATURES,
)
# Spread of each feature over the networks that are searched, so that all are of size one.
_SPREADS = {"depth": 0.3, "expanded": 0.6, "first_expanded": 0.6}
_NETWORK_SPREADS = (0.3, 1.0, 1.0, 0.6, 0.25, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.7, 0.5)
SPREADS = np.array([_SPREADS.get(name, 0.5) for name in STAGE_FEATURES] * _STAGES + list(_NETWORK_SPREADS))


# What the features take from a block; all zero for an absent one and for an identity.
BLOCK_VALUES = (
    "depth",
    "expanded",
    "kernel",
    "se",
    "width",
    "first_expanded",
    "first_kernel",
    "first",
    "smooth",
    "swish",
    "separable",
    "squeeze",
    "macs",
    "parameters",
    "strided",
    "uncovered",
)
_WIDTH, _STRIDED = BLOCK_VALUES.index("width"), BLOCK_VALUES.index("strided")
_PER_STAGE = 8  # the first of them are summed by stage, the others over the network


@lru_cache(maxsize=200_000)
def block_values(block: Block, size: int) -> tuple[float, ...]:
    """The :data:`BLOCK_VALUES` of a block whose input has ``size`` pixels a side."""
    if block.is_identity:
        return (0.0,) * len(BLOCK_VALUES)
    spent = layer_cost(LayerKey(size, block.in_channels, block))
    expanded, kernel = float(block.expanded_channels), (block.kernel - 3) / 2
    first = not block.keeps_shape
    return (
        1.0,
        expanded,
        kernel,
        float(block.se),
        float(block.out_channels),
        expanded * first,
        kernel * first,
        float(first),
        float(block.activation in ("hswish", "swish")),
        float(block.activation == "swish"),
        float(block.kind == "depthwise_separable"),
        float(block.squeezed_channels),
        float(spent.macs),
        float(spent.parameters),
        float(block.stride == 2),
        float(block.kind not in KINDS or block.kernel not in KERNELS),
    )


def stem_values(stem: Stem, resolution: int) -> tuple[float, float, float]:
    """Channels, MACs and parameters of a stem."""
    spent = layer_cost(LayerKey(resolution, IMAGE_CHANNELS, stem))
    return float(stem.channels), float(spent.macs), float(spent.parameters)


def head_values(head: Head, in_channels: int) -> tuple[float, float]:
    """Features that enter the classifier, and channels that are pooled."""
    pooled = head.conv_channels or in_channels
    return float(head.hidden_channels or pooled), float(pooled)


@dataclass(frozen=True, slots=True)
class RunArrays:
    """N networks as arrays of runs, padded with empty ones to R.

    A run is one or several blocks in a row of one output width, of which only the first may have a
    stride: all of them belong to one stage, so only their sums matter.

    Attributes:
        resolution: (N,) pixels.
        stem: (N, 3) :func:`stem_values`.
        head: (N, 2) :func:`head_values`.
        runs: (R, N, len(BLOCK_VALUES)) sums over the blocks of a run.
    """

    resolution: Floats
    stem: Floats
    head: Floats
    runs: Floats

    def __len__(self) -> int:
        return len(self.resolution)

    @classmethod
    def from_architectures(cls, architectures: Sequence[Architecture]) -> RunArrays:
        """The arrays of given networks.

        Raises:
            AccuracyError: if one is far outside what the predictor was fitted on, giving the reason.
        """
        places: list[tuple[int, int]] = []  # (run, network) of each block
        values: list[tuple[float, ...]] = []
        for number, architecture in enumerate(architectures):
            if reason := not_covered(architecture):
                raise AccuracyError(reason)
            run, width = -1, 0
            for block, size in zip(architecture.blocks, architecture.sizes(), strict=False):
                if run < 0 or block.stride > 1 or block.out_channels != width:
                    run, width = run + 1, block.out_channels
                places.append((run, number))
                values.append(block_values(block, size))
        longest = max((run for run, _ in places), default=-1) + 1
        runs = np.zeros((longest, len(architectures), len(BLOCK_VALUES)))
        if places:
            np.add.at(runs, tuple(np.array(places).T), np.array(values))
        return cls(
            np.array([each.resolution for each in architectures], float),
            np.array([stem_values(each.stem, each.resolution) for each in architectures]).reshape(-1, 3),
            np.array([head_values(each.head, each.out_channels) for each in architectures]).reshape(-1, 2),
            runs,
        )

    def covered(self) -> Flags:
        """(N,) whether :func:`not_covered` accepts the blocks and the resolution."""
        low, high = RESOLUTIONS
        strides = 2 ** (1 + self._sum("strided"))
        covered: Flags = (low <= self.resolution) & (self.resolution <= high) & (strides == OUTPUT_STRIDE)
        covered &= self._sum("uncovered") == 0
        return covered

    def _sum(self, name: str) -> Floats:
        total: Floats = self.runs[:, :, BLOCK_VALUES.index(name)].sum(0)
        return total


_UNKNOWN_KIND = (
    "the ImageNet predictor knows no blocks of kind {}; accuracy=train, supernet or table judge them"
)


def not_covered(architecture: Architecture) -> str | None:
    """Why no fitted network resembles this one, None if there are some."""
    low, high = RESOLUTIONS
    stride = 2
    if architecture.classes != CLASSES:
        return f"the ImageNet predictor knows networks of {CLASSES} classes, not {architecture.classes}"
    if not low <= architecture.resolution <= high:
        return (
            f"the ImageNet predictor knows resolutions of {low} to {high} px, not {architecture.resolution}"
        )
    if architecture.stem.kernel != 3:
        return f"the ImageNet predictor knows stems of kernel 3, not {architecture.stem.kernel}"
    for number, block in enumerate(architecture.blocks, start=1):
        if block.is_identity:
            continue
        if block.kind == "skip":
            return f"row {number}: the ImageNet predictor knows no strided or widening skip"
        if block.kind not in KINDS:
            return f"row {number}: {_UNKNOWN_KIND.format(block.kind)}"
        if block.kernel not in KERNELS:
            known = ", ".join(map(str, KERNELS[:-1])) + f" and {KERNELS[-1]}"
            return f"row {number}: the ImageNet predictor knows kernels {known}, not {block.kernel}"
        stride *= block.stride
    if stride != OUTPUT_STRIDE:
        return (
            f"the ImageNet predictor knows networks that reduce the image by {OUTPUT_STRIDE}, not by {stride}"
        )
    return None


def uncovered_choices(space: SearchSpace) -> list[str]:
    """Choices of a space that no fitted network resembles, in words.

    Raises:
        AccuracyError: if they leave no member that can be judged.
    """
    low, high = RESOLUTIONS
    if space.classes != CLASSES:
        raise AccuracyError(
            f"the ImageNet predictor knows networks of {CLASSES} classes, the space {space.name!r} has "
            f"{space.classes}: accuracy=train learns them from your pictures"
        )
    halvings = sum(stage.stride == 2 for stage in space.stages) + 1
    if 2**halvings != OUTPUT_STRIDE:
        raise AccuracyError(
            f"the ImageNet predictor knows networks that reduce the image by {OUTPUT_STRIDE}, those of the "
            f"space {space.name!r} reduce it by {2**halvings}"
        )
    stems = [stem.kernel for stem in space.stems]
    choices = [
        ("resolutions", space.resolutions, [each for each in space.resolutions if not low <= each <= high]),
        ("stem kernels", stems, [kernel for kernel in stems if kernel != 3]),
    ]
    for number, stage in enumerate(space.stages, start=1):
        if isinstance(stage, Stage):
            unknown = [kernel for kernel in stage.kernels if kernel not in KERNELS]
            choices.append((f"stage {number} kernels", stage.kernels, unknown))
    found = _uncovered_kinds(space)
    for name, values, unknown in choices:
        if not unknown:
            continue
        text = f"{name} {', '.join(map(str, dict.fromkeys(unknown)))}"
        if len(unknown) == len(values):
            raise AccuracyError(
                f"the ImageNet predictor knows no {text}, and the space {space.name!r} offers nothing else: "
                f"it knows {low} to {high} px, stem kernel 3, kernels {', '.join(map(str, KERNELS))}; "
                "accuracy=train takes any"
            )
        found.append(text)
    return found


def _uncovered_kinds(space: SearchSpace) -> list[str]:
    found = []
    for number, stage in enumerate(space.stages, start=1):
        optional = isinstance(stage, Stage) and 0 in stage.depths
        kinds = stage.kinds if isinstance(stage, Stage) else [each.kind for each in stage.candidates]
        unknown = list(dict.fromkeys(kind for kind in kinds if kind not in (*KINDS, "skip")))
        if unknown and len(unknown) == len(set(kinds)) and not optional:
            raise AccuracyError(
                f"the space {space.name!r} offers nothing else in stage {number}: "
                + _UNKNOWN_KIND.format(" or ".join(unknown))
            )
        found += [f"stage {number} kinds {', '.join(unknown)}"] if unknown else []
    return found


def features_of(architectures: Sequence[Architecture]) -> Floats:
    """Features of given networks, see :func:`features`.

    Raises:
        AccuracyError: if one is far outside what the predictor was fitted on, giving the reason.
    """
    return features(RunArrays.from_architectures(architectures))


def features(batch: RunArrays) -> Floats:
    """Features of N networks, (N, len(FEATURES)), in the order of :data:`FEATURES`.

    Logarithms of positive quantities and shares, each over its spread :data:`SPREADS`. No clipping: a
    network unlike the data gives features unlike the data.
    """
    count = len(batch)
    values = np.ascontiguousarray(np.moveaxis(batch.runs, 2, 0))  # (values, R, N): networks side by side
    depth, strided = values[0], values[_STRIDED] > 0
    present, width = depth > 0, values[_WIDTH] / np.maximum(depth, 1)
    level = 1 + strided.cumsum(0)  # logarithm of the output stride
    second = np.zeros(level.shape, np.int64)  # whether the width has changed at this output stride
    first_width = np.zeros(count)  # of the runs at this output stride
    last_width = batch.stem[:, 0]
    changed = np.zeros(count, bool)
    for run in range(len(level)):
        begins = strided[run] | (present[run] & (first_width == 0))
        first_width = np.where(begins, width[run], first_width)
        changed = (changed | (present[run] & (width[run] != first_width))) & ~begins
        second[run] = changed
        last_width = np.where(present[run], width[run], last_width)
    # Levels 1, 2, 3 are stages 0, 1, 2; levels 4 and 5 have two stages each.
    stage = np.minimum(np.where(level < 4, level - 1, 2 * level - 5 + second), _STAGES - 1)
    cell = (stage * count + np.arange(count)).ravel()
    depth, expanded, kernel, se, width, first_expanded, first_kernel, first = (
        np.bincount(cell, each.ravel(), _STAGES * count).reshape(_STAGES, count)
        for each in values[:_PER_STAGE]
    )
    smooth, swish, separable, squeeze, macs, parameters = values[_PER_STAGE:_STRIDED].sum(1)
    blocks, total = np.maximum(depth, 1), np.maximum(depth.sum(0), 1)
    has = depth > 0
    result = np.empty((len(FEATURES), count))
    by_stage = result[: -len(NETWORK_FEATURES)].reshape(_STAGES, len(STAGE_FEATURES), count)
    mean_expanded = np.where(has, expanded / blocks, _EXPANDED)
    by_stage[:, 0] = np.log1p(depth)
    by_stage[:, 1] = np.log(mean_expanded / _EXPANDED)
    by_stage[:, 2] = kernel / blocks
    by_stage[:, 3] = se / blocks
    relative_width = np.log(np.where(has, width / blocks / _WIDTHS, 1))
    by_stage[:, 4] = relative_width
    begun, firsts = first > 0, np.maximum(first, 1)
    by_stage[:, 5] = np.log(np.where(begun, first_expanded / firsts, mean_expanded) / _EXPANDED)
    by_stage[:, 6] = np.where(begun, first_kernel / firsts, by_stage[:, 2])
    result[-len(NETWORK_FEATURES) :] = (
        np.log(batch.resolution / 224),
        np.log((macs + batch.stem[:, 1]) / 2e8),
        np.log((parameters + batch.stem[:, 2]) / 2e6),
        relative_width.sum(0) / np.maximum(has.sum(0), 1),
        np.log(total / 15),
        se.sum(0) / total,
        kernel.sum(0) / total,
        smooth / total,
        swish / total,
        separable / total,
        np.log(batch.head[:, 0] / 1280),
        np.log(last_width / _WIDTHS[-1, 0]),
        np.log(batch.head[:, 1] / 1280),
        8 * squeeze / np.maximum(expanded.sum(0), 1),
        np.log(batch.stem[:, 0] / 32),
    )
    result /= SPREADS[:, None]
    return result.T
