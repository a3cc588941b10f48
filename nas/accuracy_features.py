"""What the accuracy predictor sees of a network: numbers that any MobileNet-like block table has.

Many networks are handled at once as columns of a :class:`BlockArrays`; a single network is a batch of
one, so that there is only one way of computing a feature.

A table of any length is laid onto the seven stages of MobileNetV2 by output stride: one stage each at
strides 2, 4 and 8, two each at 16 and 32, where the second begins when the width changes. Each stage
gives its depth, mean expanded width, share of 5x5 kernels and share of squeeze-and-excitation; the
whole network gives resolution, size, width, depth and shares of operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from nas.accuracy import AccuracyError
from nas.layers import IMAGE_CHANNELS
from search_spaces.block import Architecture

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

CLASSES = 1000
RESOLUTIONS = (96, 224)
KERNELS = (3, 5)
OUTPUT_STRIDE = 32

_STAGES = 7
# Typical expanded and output widths of a stage (MobileNetV2's skeleton): features are relative to them.
_EXPANDED = np.array([96, 72, 144, 240, 448, 560, 960])
_WIDTHS = np.array([16, 24, 40, 80, 112, 192, 320])

STAGE_FEATURES = ("depth", "expanded", "kernel5", "se")
NETWORK_FEATURES = (
    "resolution",
    "macs",
    "parameters",
    "width",
    "depth",
    "se",
    "kernel5",
    "hswish",
    "separable",
    "head_width",
    "last_width",
)
FEATURES: tuple[str, ...] = (
    *(f"stage{stage}.{name}" for stage in range(1, _STAGES + 1) for name in STAGE_FEATURES),
    *NETWORK_FEATURES,
)


@dataclass(frozen=True, slots=True)
class BlockArrays:
    """N networks as arrays; blocks are padded to the deepest network, B rows.

    Attributes:
        resolution: (N,) pixels.
        stem_channels: (N,).
        head_width: (N,) features that enter the classifier.
        present: (B, N) whether the network has this block. Identities count as absent.
        separable: (B, N) V1's depthwise separable block instead of an inverted residual.
        kernel: (B, N) side of the depthwise kernel.
        in_channels: (B, N).
        expanded_channels: (B, N).
        out_channels: (B, N).
        stride: (B, N).
        se: (B, N) squeeze-and-excitation.
        hswish: (B, N) h-swish rather than ReLU or ReLU6.
        expansion_conv: (B, N) whether a 1x1 convolution makes the expansion.
    """

    resolution: Ints
    stem_channels: Ints
    head_width: Ints
    present: Flags
    separable: Flags
    kernel: Ints
    in_channels: Ints
    expanded_channels: Ints
    out_channels: Ints
    stride: Ints
    se: Flags
    hswish: Flags
    expansion_conv: Flags

    def __len__(self) -> int:
        return len(self.resolution)

    def slice(self, start: int, stop: int) -> BlockArrays:
        """Networks ``start`` to ``stop``."""
        return BlockArrays(*(getattr(self, each.name)[..., start:stop] for each in fields(self)))

    @classmethod
    def from_architectures(cls, architectures: Sequence[Architecture]) -> BlockArrays:
        """The arrays of given networks.

        Raises:
            AccuracyError: if one is far outside what the predictor was fitted on, giving the reason.
        """
        for architecture in architectures:
            check_covered(architecture)
        tables = [[block for block in each.blocks if not block.is_identity] for each in architectures]
        shape = (max((len(table) for table in tables), default=0), len(tables))
        kinds = {"present": bool, "separable": bool, "se": bool, "hswish": bool, "expansion_conv": bool}
        names = [each.name for each in fields(cls)[3:]]
        blocks = {name: np.ones(shape, kinds.get(name, np.int64)) for name in names}
        blocks["present"][:] = False
        for column, table in enumerate(tables):
            for row, block in enumerate(table):
                values = {
                    "present": True,
                    "separable": block.kind == "depthwise_separable",
                    "hswish": block.activation == "hswish",
                }
                for name in names:
                    blocks[name][row, column] = values[name] if name in values else getattr(block, name)
        return cls(
            np.array([each.resolution for each in architectures], np.int64),
            np.array([each.stem.channels for each in architectures], np.int64),
            np.array(
                [
                    each.head.hidden_channels or each.head.conv_channels or each.out_channels
                    for each in architectures
                ],
                np.int64,
            ),
            **blocks,
        )


def check_covered(architecture: Architecture) -> None:
    """Refuse what no fitted network resembles.

    Raises:
        AccuracyError: giving the reason.
    """
    low, high = RESOLUTIONS
    stride = 2
    if architecture.classes != CLASSES:
        raise AccuracyError(
            f"the ImageNet predictor knows networks of {CLASSES} classes, not {architecture.classes}"
        )
    if not low <= architecture.resolution <= high:
        raise AccuracyError(
            f"the ImageNet predictor knows resolutions of {low} to {high} px, not {architecture.resolution}"
        )
    if architecture.stem.kernel != 3:
        raise AccuracyError(
            f"the ImageNet predictor knows 3x3 stems, not {architecture.stem.kernel}x{architecture.stem.kernel}"
        )
    for number, block in enumerate(architecture.blocks, start=1):
        if block.is_identity:
            continue
        if block.kind == "skip":
            raise AccuracyError(f"row {number}: the ImageNet predictor knows no strided or widening skip")
        if block.kernel not in KERNELS:
            raise AccuracyError(
                f"row {number}: the ImageNet predictor knows kernels 3 and 5, not {block.kernel}"
            )
        stride *= block.stride
    if stride != OUTPUT_STRIDE:
        raise AccuracyError(
            f"the ImageNet predictor knows networks that reduce the image by {OUTPUT_STRIDE}, not by {stride}"
        )


def features(batch: BlockArrays) -> Floats:
    """Features of N networks, (N, len(FEATURES)), in the order of :data:`FEATURES`.

    Logarithms of positive quantities, shares in 0 to 1. No clipping: a network unlike the data gives
    features unlike the data.
    """
    count = len(batch)
    rows = np.arange(count)
    depth, expanded, kernel5, se, width = np.zeros((5, count, _STAGES))
    hswish, separable = np.zeros((2, count))
    size = (batch.resolution + 1) // 2
    macs = (size * size * batch.stem_channels * 9 * IMAGE_CHANNELS).astype(float)
    parameters = (batch.stem_channels * (9 * IMAGE_CHANNELS + 2)).astype(float)
    level = np.ones(count, np.int64)
    first_width = np.zeros(count, np.int64)  # of the blocks at this output stride
    second_half = np.zeros(count, bool)
    last_width = batch.stem_channels.copy()
    for present, sep, kernel, ins, exp, out, stride, with_se, hs, conv in zip(
        batch.present,
        batch.separable,
        batch.kernel,
        batch.in_channels,
        batch.expanded_channels,
        batch.out_channels,
        batch.stride,
        batch.se,
        batch.hswish,
        batch.expansion_conv,
        strict=True,
    ):
        strided = present & (stride == 2)
        level += strided
        begins = strided | (present & (first_width == 0))
        first_width = np.where(begins, out, first_width)
        second_half = np.where(begins, False, second_half | (present & (out != first_width)))
        # Levels 1, 2, 3 are stages 0, 1, 2; levels 4 and 5 have two stages each.
        stage = np.minimum(np.where(level < 4, level - 1, 2 * level - 5 + second_half), _STAGES - 1)
        weight = present.astype(float)
        large = weight * (kernel == 5)
        depth[rows, stage] += weight
        expanded[rows, stage] += weight * exp
        kernel5[rows, stage] += large
        se[rows, stage] += weight * with_se
        width[rows, stage] += weight * out
        hswish += weight * hs
        separable += weight * sep
        last_width = np.where(present, out, last_width)
        macs_here, size = _block_macs(size, strided, kernel, ins, exp, out, conv, with_se)
        macs += weight * macs_here
        parameters += weight * _block_parameters(kernel, ins, exp, out, conv, with_se)

    total = np.maximum(depth.sum(1), 1)
    blocks = np.maximum(depth, 1)
    has = depth > 0
    relative_width = np.where(has, np.log(np.where(has, width / blocks, 1) / _WIDTHS), 0)
    stages = np.stack(
        [
            np.log1p(depth),
            np.where(has, np.log(np.where(has, expanded / blocks, 1) / _EXPANDED), 0),
            kernel5 / blocks,
            se / blocks,
        ],
        axis=2,
    )
    network = np.stack(
        [
            np.log(batch.resolution / RESOLUTIONS[1]),
            np.log(macs / 2e8),
            np.log(parameters / 2e6),
            relative_width.sum(1) / np.maximum(has.sum(1), 1),
            np.log(total / 15),
            se.sum(1) / total,
            kernel5.sum(1) / total,
            hswish / total,
            separable / total,
            np.log(batch.head_width / 1280),
            np.log(last_width / _WIDTHS[-1]),
        ],
        axis=1,
    )
    return np.concatenate([stages.reshape(count, -1), network], axis=1)


def _block_macs(
    size: Ints, strided: Flags, kernel: Ints, ins: Ints, exp: Ints, out: Ints, conv: Flags, se: Flags
) -> tuple[Ints, Ints]:
    # nas.cost over many networks at once; a test holds the two together.
    out_size = np.where(strided, (size + 1) // 2, size)
    area = out_size * out_size
    macs = conv * size * size * ins * exp + area * exp * (kernel * kernel + out)
    return macs + se * 2 * exp * _squeezed(exp), out_size


def _block_parameters(kernel: Ints, ins: Ints, exp: Ints, out: Ints, conv: Flags, se: Flags) -> Ints:
    weights = conv * exp * (ins + 2) + exp * (kernel * kernel + 2) + out * (exp + 2)
    squeezed = _squeezed(exp)
    return weights + se * (2 * exp * squeezed + squeezed + exp)


def _squeezed(expanded: Ints) -> Ints:
    # search_spaces.block.squeeze_channels: make_divisible(expanded / 4) on arrays.
    rounded = np.maximum(8, (expanded + 16) // 32 * 8)
    return rounded + 8 * (rounded * 40 < expanded * 9)
