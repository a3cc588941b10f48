"""MobileNetV1 to V4 as block tables, with their width, depth and resolution multipliers.

Sources, row by row:
    V1: Howard et al. 2017, "MobileNets", Table 1 (arXiv 1704.04861).
    V2: Sandler et al. 2018, "MobileNetV2", Table 2 (arXiv 1801.04381).
    V3: Howard et al. 2019, "Searching for MobileNetV3", Tables 1 and 2 (arXiv 1905.02244).
    Minimalistic V3 (no SE, no h-swish, 3x3 only): tensorflow/models, research/slim/nets/mobilenet.
    Width multipliers: the same code; depth multiplier: timm's ``mobilenetv3_large_150d``.
    Published top-1: the READMEs of research/slim/nets (``mobilenet_v1.md``, ``mobilenet/README.md``).
    EfficientNet-B0: Tan and Le 2019, Table 1 (arXiv 1905.11946); EfficientNet-Lite0: tensorflow/tpu,
    models/official/efficientnet/lite; MnasNet-A1: Tan et al. 2019, Figure 7 (arXiv 1807.11626); top-1 as
    there. Their SE layers are sized on a block's input; the gate here is V3's, a hard sigmoid after ReLU.
    MobileNetV4-Conv-S and -M: Qin et al. 2024 (arXiv 2404.10518), top-1 as there: S at 224 px, M at 256;
    M at 224 px: the model card of timm's ``mobilenetv4_conv_medium.e500_r224_in1k``.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from search_spaces.architecture import Architecture
from search_spaces.blocks import BLOCKS, Block, Head, Stem, make_divisible
from search_spaces.errors import InputError
from search_spaces.ops import Activation


@dataclass(frozen=True, slots=True)
class _Row:
    """One printed row. ``expanded`` 0: V1's depthwise separable block."""

    kernel: int
    expanded: int
    out: int
    se: bool
    activation: Activation
    stride: int
    # Whether SE squeezes to a quarter of the block's input, and not of its expansion.
    se_of_input: bool = False
    kind: str = "inverted_residual"
    start_kernel: int = 0


def _rows(*table: tuple[int, int, int, bool, Activation, int]) -> tuple[_Row, ...]:
    return tuple(_Row(*row) for row in table)


_RE: Activation = "relu"
_R6: Activation = "relu6"
_HS: Activation = "hswish"
_UIB, _FUSED, _PAIR = "universal_inverted_bottleneck", "fused_inverted_bottleneck", "convolution_pair"
_V4_STEM = Stem(32, _RE)


def _mbconv(activation: Activation, *stages: tuple[int, int, int, int, int, bool]) -> tuple[_Row, ...]:
    """Rows of stages written as expansion ratio, width, layers, stride, kernel, SE, after a stem of 32."""
    found, in_channels = [], 32
    for ratio, width, layers, stride, kernel, se in stages:
        for layer in range(layers):
            step = 1 if layer else stride
            found.append(_Row(kernel, in_channels * ratio, width, se, activation, step, True))
            in_channels = width
    return tuple(found)


def _v4(*blocks: tuple[str, int, int, int, int, int, int]) -> tuple[_Row, ...]:
    """Rows written as kind, kernel before the expansion and after it, ratio, width, stride, layers."""
    found, in_channels = [], _V4_STEM.channels
    for kind, start, kernel, ratio, width, stride, layers in blocks:
        for layer in range(layers):
            expanded, step = in_channels * ratio, 1 if layer else stride
            found.append(_Row(kernel, expanded, width, False, _RE, step, False, kind, start))
            in_channels = width
    return tuple(found)


# fmt: off
_V1 = _rows(
    (3, 0,   64, False, _R6, 1),
    (3, 0,  128, False, _R6, 2),
    (3, 0,  128, False, _R6, 1),
    (3, 0,  256, False, _R6, 2),
    (3, 0,  256, False, _R6, 1),
    (3, 0,  512, False, _R6, 2),
    (3, 0,  512, False, _R6, 1),
    (3, 0,  512, False, _R6, 1),
    (3, 0,  512, False, _R6, 1),
    (3, 0,  512, False, _R6, 1),
    (3, 0,  512, False, _R6, 1),
    (3, 0, 1024, False, _R6, 2),
    (3, 0, 1024, False, _R6, 1),
)

_V2 = _rows(
    (3,  32,  16, False, _R6, 1),
    (3,  96,  24, False, _R6, 2),
    (3, 144,  24, False, _R6, 1),
    (3, 144,  32, False, _R6, 2),
    (3, 192,  32, False, _R6, 1),
    (3, 192,  32, False, _R6, 1),
    (3, 192,  64, False, _R6, 2),
    (3, 384,  64, False, _R6, 1),
    (3, 384,  64, False, _R6, 1),
    (3, 384,  64, False, _R6, 1),
    (3, 384,  96, False, _R6, 1),
    (3, 576,  96, False, _R6, 1),
    (3, 576,  96, False, _R6, 1),
    (3, 576, 160, False, _R6, 2),
    (3, 960, 160, False, _R6, 1),
    (3, 960, 160, False, _R6, 1),
    (3, 960, 320, False, _R6, 1),
)

_V3_LARGE = _rows(
    (3,  16,  16, False, _RE, 1),
    (3,  64,  24, False, _RE, 2),
    (3,  72,  24, False, _RE, 1),
    (5,  72,  40, True,  _RE, 2),
    (5, 120,  40, True,  _RE, 1),
    (5, 120,  40, True,  _RE, 1),
    (3, 240,  80, False, _HS, 2),
    (3, 200,  80, False, _HS, 1),
    (3, 184,  80, False, _HS, 1),
    (3, 184,  80, False, _HS, 1),
    (3, 480, 112, True,  _HS, 1),
    (3, 672, 112, True,  _HS, 1),
    (5, 672, 160, True,  _HS, 2),
    (5, 960, 160, True,  _HS, 1),
    (5, 960, 160, True,  _HS, 1),
)

_V3_SMALL = _rows(
    (3,  16, 16, True,  _RE, 2),
    (3,  72, 24, False, _RE, 2),
    (3,  88, 24, False, _RE, 1),
    (5,  96, 40, True,  _HS, 2),
    (5, 240, 40, True,  _HS, 1),
    (5, 240, 40, True,  _HS, 1),
    (5, 120, 48, True,  _HS, 1),
    (5, 144, 48, True,  _HS, 1),
    (5, 288, 96, True,  _HS, 2),
    (5, 576, 96, True,  _HS, 1),
    (5, 576, 96, True,  _HS, 1),
)

_EFFICIENTNET_LITE0 = _mbconv(
    _R6,
    (1,  16, 1, 1, 3, False),
    (6,  24, 2, 2, 3, False),
    (6,  40, 2, 2, 5, False),
    (6,  80, 3, 2, 3, False),
    (6, 112, 3, 1, 5, False),
    (6, 192, 4, 2, 5, False),
    (6, 320, 1, 1, 3, False),
)

_EFFICIENTNET_B0 = tuple(replace(row, se=True, activation="swish") for row in _EFFICIENTNET_LITE0)

_MNASNET_A1 = _mbconv(
    _RE,
    (1,  16, 1, 1, 3, False),
    (6,  24, 2, 2, 3, False),
    (3,  40, 3, 2, 5, True),
    (6,  80, 4, 2, 3, False),
    (6, 112, 2, 1, 3, True),
    (6, 160, 3, 2, 5, True),
    (6, 320, 1, 1, 3, False),
)
_V4_SMALL = _v4(
    (_PAIR,  0, 3, 1,  32, 2, 1),
    (_PAIR,  0, 3, 3,  64, 2, 1),
    (_UIB,   5, 5, 3,  96, 2, 1),
    (_UIB,   0, 3, 2,  96, 1, 4),
    (_UIB,   3, 0, 4,  96, 1, 1),
    (_UIB,   3, 3, 6, 128, 2, 1),
    (_UIB,   5, 5, 4, 128, 1, 1),
    (_UIB,   0, 5, 4, 128, 1, 1),
    (_UIB,   0, 5, 3, 128, 1, 1),
    (_UIB,   0, 3, 4, 128, 1, 2),
)

_V4_MEDIUM = _v4(
    (_FUSED, 0, 3, 4,  48, 2, 1),
    (_UIB,   3, 5, 4,  80, 2, 1),
    (_UIB,   3, 3, 2,  80, 1, 1),
    (_UIB,   3, 5, 6, 160, 2, 1),
    (_UIB,   3, 3, 4, 160, 1, 2),
    (_UIB,   3, 5, 4, 160, 1, 1),
    (_UIB,   3, 3, 4, 160, 1, 1),
    (_UIB,   3, 0, 4, 160, 1, 1),
    (_UIB,   0, 0, 2, 160, 1, 1),
    (_UIB,   3, 0, 4, 160, 1, 1),
    (_UIB,   5, 5, 6, 256, 2, 1),
    (_UIB,   5, 5, 4, 256, 1, 1),
    (_UIB,   3, 5, 4, 256, 1, 2),
    (_UIB,   0, 0, 4, 256, 1, 1),
    (_UIB,   3, 0, 4, 256, 1, 1),
    (_UIB,   3, 5, 2, 256, 1, 1),
    (_UIB,   5, 5, 4, 256, 1, 1),
    (_UIB,   0, 0, 4, 256, 1, 2),
    (_UIB,   5, 0, 2, 256, 1, 1),
)
# fmt: on


def _minimalistic(rows: tuple[_Row, ...]) -> tuple[_Row, ...]:
    return tuple(replace(row, kernel=3, se=False, activation=_RE) for row in rows)


@dataclass(frozen=True, slots=True)
class _Family:
    """A table and what it does at both ends."""

    rows: tuple[_Row, ...]
    stem: Stem
    head: Head
    # Below this width multiplier the stem keeps its width (timm's ``fix_stem`` for V3 and V4).
    fixed_stem_below: float = 0.0
    # Whether the 1x1 convolution of the head never shrinks with the width multiplier (V2, 6.1).
    head_only_grows: bool = False


_FAMILIES: dict[str, _Family] = {
    "mobilenet_v1": _Family(_V1, Stem(32, _R6), Head()),
    "mobilenet_v2": _Family(_V2, Stem(32, _R6), Head(1280, 0, _R6), head_only_grows=True),
    "mobilenet_v3_large": _Family(_V3_LARGE, Stem(16, _HS), Head(960, 1280, _HS), 0.75),
    "mobilenet_v3_small": _Family(_V3_SMALL, Stem(16, _HS), Head(576, 1024, _HS), 0.75),
    "mobilenet_v3_large_minimalistic": _Family(
        _minimalistic(_V3_LARGE), Stem(16, _RE), Head(960, 1280, _RE), 0.75
    ),
    "mobilenet_v3_small_minimalistic": _Family(
        _minimalistic(_V3_SMALL), Stem(16, _RE), Head(576, 1024, _RE), 0.75
    ),
}

FAMILIES: tuple[str, ...] = tuple(_FAMILIES)
# What others found in spaces like this one: references too, but no part of what calibrates and validates.
_FAMILIES |= {
    "efficientnet_lite0": _Family(
        _EFFICIENTNET_LITE0, Stem(32, _R6), Head(1280, 0, _R6), head_only_grows=True
    ),
    "efficientnet_b0": _Family(
        _EFFICIENTNET_B0, Stem(32, "swish"), Head(1280, 0, "swish"), head_only_grows=True
    ),
    "mnasnet_a1": _Family(_MNASNET_A1, Stem(32, _RE), Head(1280, 0, _RE), head_only_grows=True),
    "mobilenetv4_conv_small": _Family(_V4_SMALL, _V4_STEM, Head(960, 1280, _RE, hidden_norm=True), 1.0),
    "mobilenetv4_conv_medium": _Family(_V4_MEDIUM, _V4_STEM, Head(960, 1280, _RE, hidden_norm=True), 1.0),
}
REFERENCES: tuple[str, ...] = tuple(_FAMILIES)

_ALIASES = {"mobilenet_v3_large_150d": "mobilenet_v3_large_150_d120"}

_NAME = re.compile(
    rf"(?P<family>{'|'.join(sorted(_FAMILIES, key=len, reverse=True))})"
    r"(?:_(?P<width>\d{3}))?(?:_d(?P<depth>\d{3}))?(?:_r(?P<resolution>\d{2,3}))?"
)


class UnknownReferenceError(InputError):
    """A name that is not in the family."""


def canonical_name(name: str) -> str:
    """A reference's name as it is written here: ``MobileNet-V3-Large`` is ``mobilenet_v3_large``."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def is_reference(name: str) -> bool:
    """True if a name is of the family."""
    try:
        ReferenceName.parse(name)
    except UnknownReferenceError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class ReferenceName:
    """A reference taken apart, e.g. ``mobilenet_v3_small_075`` or ``mobilenet_v2_140_d120_r192``.

    Attributes:
        family: one of :data:`REFERENCES`.
        width_percent: width multiplier times 100.
        depth_percent: depth multiplier times 100.
        resolution: side of the input image in pixels, None where the name does not say.
    """

    family: str
    width_percent: int = 100
    depth_percent: int = 100
    resolution: int | None = None

    @classmethod
    def parse(cls, name: str) -> ReferenceName:
        """Read a name.

        Raises:
            UnknownReferenceError: listing the families and the grammar of variants.
        """
        canonical = canonical_name(name)
        match = _NAME.fullmatch(_ALIASES.get(canonical, canonical))
        if match is None or "000" in (match["width"], match["depth"]):
            near = difflib.get_close_matches(canonical, REFERENCES, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ":"
            raise UnknownReferenceError(
                f"unknown reference {name!r}{hint} known are {', '.join(REFERENCES)}, each with an optional "
                "width (_075), depth (_d120) and resolution (_r192)"
            )
        return cls(
            family=match["family"],
            width_percent=int(match["width"] or 100),
            depth_percent=int(match["depth"] or 100),
            resolution=int(match["resolution"]) if match["resolution"] else None,
        )


def reference(name: str, resolution: int = 224, classes: int = 1000) -> Architecture:
    """The architecture a name stands for.

    Args:
        name: family with optional multipliers, see :class:`ReferenceName`.
        resolution: side of the input image in pixels, unless the name says it.
        classes: number of classes.

    Raises:
        UnknownReferenceError: if the name is not of the family.
    """
    parsed = ReferenceName.parse(name)
    family = _FAMILIES[parsed.family]
    width = parsed.width_percent / 100
    v1 = parsed.family == "mobilenet_v1"

    def scale(channels: float) -> int:
        # V1 scales plainly, with a floor of 8; V2 and V3 keep multiples of 8.
        return max(8, int(channels * width)) if v1 else make_divisible(channels * width)

    stem = family.stem
    if width >= family.fixed_stem_below:
        stem = replace(stem, channels=scale(stem.channels))
    blocks: list[Block] = []
    base_in, channels = family.stem.channels, stem.channels
    for ratio, row in _deepen(family.rows, base_in, parsed.depth_percent / 100):
        out = scale(row.out)
        kind = row.kind if row.expanded else "depthwise_separable"
        has_expansion = BLOCKS[kind].always_expands or (row.expanded > 0 and ratio != 1)
        expanded = make_divisible(channels * ratio) if has_expansion else channels
        if kind == _PAIR:
            expanded = scale(row.expanded)  # two layers, each with a width of its own
        blocks.append(
            Block(
                kind=kind,
                kernel=row.kernel,
                in_channels=channels,
                expanded_channels=expanded,
                out_channels=out,
                stride=row.stride,
                activation=row.activation,
                se=row.se,
                se_channels=max(1, channels // 4) if row.se and row.se_of_input else 0,
                expansion_conv=has_expansion,
                start_kernel=row.start_kernel,
            )
        )
        channels = out
    head = family.head
    if family.head_only_grows:
        head = replace(head, conv_channels=max(head.conv_channels, scale(head.conv_channels)))
    elif head.conv_channels:
        # To timm, the 1x1 convolution of V3 and V4 is one more stage, which the depth multiplier repeats.
        conv_layers = math.ceil(parsed.depth_percent / 100)
        head = replace(head, conv_channels=scale(head.conv_channels), conv_layers=conv_layers)
    return Architecture(
        resolution=parsed.resolution or resolution,
        stem=stem,
        blocks=tuple(blocks),
        head=head,
        classes=classes,
    )


def _deepen(rows: Sequence[_Row], in_channels: int, depth: float) -> list[tuple[float, _Row]]:
    """Rows with their expansion ratio, each stage repeated ``ceil(n * depth)`` times.

    A stage is a run of rows of one width. Within a stage the repeats go to its later kinds of rows
    first, as timm (and EfficientNet before it) shares them out.
    """
    ratios: list[tuple[float, _Row]] = []
    for row in rows:
        ratios.append(((row.expanded or in_channels) / in_channels, row))
        in_channels = row.out
    deepened: list[tuple[float, _Row]] = []
    for _, stage_rows in groupby(ratios, key=lambda pair: pair[1].out):
        stage = list(stage_rows)
        kinds = [list(kind) for _, kind in groupby(stage, key=_kind_of_row)]
        left, left_scaled = len(stage), math.ceil(len(stage) * depth)
        repeats: list[int] = []
        for kind in reversed(kinds):
            repeats.insert(0, max(1, round(len(kind) / left * left_scaled)))
            left -= len(kind)
            left_scaled -= repeats[0]
        for kind, count in zip(kinds, repeats, strict=True):
            ratio, first = kind[0]
            deepened.append((ratio, first))
            deepened += [(ratio, replace(first, stride=1))] * (count - 1)
    return deepened


def _kind_of_row(pair: tuple[float, _Row]) -> tuple[float, str, int, int]:
    ratio, row = pair
    return ratio, row.kind, row.start_kernel, row.kernel


# (family, width in percent) -> {resolution: ImageNet top-1 in percent}, sources in the module docstring.
_PUBLISHED_TOP1: dict[tuple[str, int], dict[int, float]] = {
    ("mobilenet_v1", 100): {224: 70.9, 192: 70.0, 160: 68.0, 128: 65.2},
    ("mobilenet_v1", 75): {224: 68.4, 192: 67.2, 160: 65.3, 128: 62.1},
    ("mobilenet_v1", 50): {224: 63.3, 192: 61.7, 160: 59.1, 128: 56.3},
    ("mobilenet_v1", 25): {224: 49.8, 192: 47.7, 160: 45.5, 128: 41.5},
    ("mobilenet_v2", 140): {224: 75.0},
    ("mobilenet_v2", 130): {224: 74.4},
    ("mobilenet_v2", 100): {224: 71.8, 192: 70.7, 160: 68.8, 128: 65.3, 96: 60.3},
    ("mobilenet_v2", 75): {224: 69.8, 192: 68.7, 160: 66.4, 128: 63.2, 96: 58.8},
    ("mobilenet_v2", 50): {224: 65.4, 192: 63.9, 160: 61.0, 128: 57.7, 96: 51.2},
    ("mobilenet_v2", 35): {224: 60.3, 192: 58.2, 160: 55.7, 128: 50.8, 96: 45.5},
    ("mobilenet_v3_large", 100): {224: 75.2},
    ("mobilenet_v3_large", 75): {224: 73.3},
    ("mobilenet_v3_small", 100): {224: 67.5},
    ("mobilenet_v3_small", 75): {224: 65.4},
    ("mobilenet_v3_large_minimalistic", 100): {224: 72.3},
    ("mobilenet_v3_small_minimalistic", 100): {224: 61.9},
    ("efficientnet_lite0", 100): {224: 75.1},
    ("efficientnet_b0", 100): {224: 77.1},
    ("mnasnet_a1", 100): {224: 75.2},
    ("mobilenetv4_conv_small", 100): {224: 73.8},
    ("mobilenetv4_conv_medium", 100): {224: 79.1, 256: 79.9},
}


def published_top1(name: str, resolution: int = 224) -> float | None:
    """ImageNet top-1 in percent as published for this reference, None where nothing is.

    Raises:
        UnknownReferenceError: if the name is not of the family.
    """
    parsed = ReferenceName.parse(name)
    if parsed.depth_percent != 100:
        return None
    by_resolution = _PUBLISHED_TOP1.get((parsed.family, parsed.width_percent), {})
    return by_resolution.get(parsed.resolution or resolution)
