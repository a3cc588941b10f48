"""Architectures as block tables: the rows the MobileNet papers print, as frozen data.

Nothing here knows about torch: an architecture can be written, read, compared and drawn on a
machine that has nothing but Python and PyYAML.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

import yaml

from search_spaces.errors import InputError
from search_spaces.gate import Gate

Activation = Literal["relu", "relu6", "hswish"]
BlockKind = Literal["inverted_residual", "depthwise_separable", "skip"]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
BLOCK_KINDS: tuple[str, ...] = get_args(BlockKind)

_Row = TypeVar("_Row")
# Far beyond every network one deploys, and small enough that nothing here loops or allocates for long.
MAX_CHANNELS = 65_536
MAX_CLASSES = 1_000_000
MAX_RESOLUTION = 8_192
MAX_ROWS = 500
MAX_KERNEL = 31
MAX_HEAD_LAYERS = 16
PAPER_COLUMNS = ("Input", "Operator", "exp size", "#out", "SE", "NL", "s")
_PAPER_ACTIVATION = {"relu": "RE", "relu6": "R6", "hswish": "HS"}


class ArchitectureError(InputError):
    """A block table that describes no network. The message names the row."""


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor``, never losing more than 10 % (MobileNetV2's own code).

    Source: ``_make_divisible`` in tensorflow/models, research/slim/nets/mobilenet.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def squeeze_channels(expanded_channels: int) -> int:
    """Width of the squeeze-and-excitation bottleneck: a quarter of the expansion (MobileNetV3, 5.3)."""
    return make_divisible(expanded_channels / 4)


@dataclass(frozen=True, slots=True)
class Stem:
    """The first convolution, stride 2 from the RGB image."""

    channels: int
    activation: Activation = "relu6"
    kernel: int = 3

    def __post_init__(self) -> None:
        _check_positive("stem", MAX_CHANNELS, channels=self.channels)
        _check_kernel("stem", self.kernel)
        _check_choice("stem", "activation", self.activation, ACTIVATIONS)


@dataclass(frozen=True, slots=True)
class Block:
    """One row of a block table. All channel counts are integers, already rounded.

    Attributes:
        kind: ``inverted_residual`` (V2/V3: expansion, depthwise, linear projection, residual where
            shapes allow), ``depthwise_separable`` (V1: depthwise, activated projection, no
            residual) or ``skip`` (identity; a strided 1x1 convolution where shapes change).
        kernel: side of the depthwise kernel; 1 for ``skip``.
        in_channels: channels of the input.
        expanded_channels: channels of the depthwise convolution.
        out_channels: channels of the output.
        stride: 1 or 2.
        activation: nonlinearity after expansion and depthwise convolution.
        se: squeeze-and-excitation between depthwise convolution and projection.
        expansion_conv: whether a 1x1 convolution makes the expansion. False for V1, and for the
            first row of V2 and V3 where the expansion is 1.
    """

    kind: BlockKind
    kernel: int
    in_channels: int
    expanded_channels: int
    out_channels: int
    stride: int = 1
    activation: Activation = "relu6"
    se: bool = False
    expansion_conv: bool = True

    def __post_init__(self) -> None:
        _check_choice("block", "kind", self.kind, BLOCK_KINDS)
        _check_choice("block", "activation", self.activation, ACTIVATIONS)
        _check_positive(
            "block",
            MAX_CHANNELS,
            in_channels=self.in_channels,
            expanded_channels=self.expanded_channels,
            out_channels=self.out_channels,
        )
        _check_kernel("block", self.kernel)
        for name, flag in (("se", self.se), ("expansion_conv", self.expansion_conv)):
            if not isinstance(flag, bool):
                raise ArchitectureError(f"block: {name} must be true or false, not {flag!r}")
        if type(self.stride) is not int or self.stride not in (1, 2):
            raise ArchitectureError(f"block: stride must be 1 or 2, not {self.stride!r}")
        if self.expansion_conv and self.kind != "inverted_residual":
            raise ArchitectureError(f"block: a {self.kind} block has no expansion convolution")
        if not self.expansion_conv and self.expanded_channels != self.in_channels:
            raise ArchitectureError(
                f"block: without an expansion convolution expanded_channels ({self.expanded_channels}) "
                f"must equal in_channels ({self.in_channels})"
            )
        if self.kind == "skip" and (self.se or self.kernel != 1):
            raise ArchitectureError("block: a skip block has kernel 1 and no squeeze-and-excitation")

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def has_residual(self) -> bool:
        """Whether the input is added to the output (MobileNetV2, 3.3)."""
        return self.kind == "inverted_residual" and self.keeps_shape

    @property
    def is_identity(self) -> bool:
        """Whether the block does nothing at all."""
        return self.kind == "skip" and self.keeps_shape


@dataclass(frozen=True, slots=True)
class Head:
    """What turns the last feature map into logits.

    V1: pooling and classifier. V2: a 1x1 convolution before pooling. V3: a 1x1 convolution, then
    pooling, then a hidden linear layer (the cheap last stage of MobileNetV3, 5.1). Zero channels
    mean that the part is absent. ``conv_layers`` repeats the 1x1 convolution, as timm's depth
    multiplier does in V3.
    """

    conv_channels: int = 0
    hidden_channels: int = 0
    activation: Activation = "relu6"
    conv_layers: int = 1

    def __post_init__(self) -> None:
        for name, value in (("conv_channels", self.conv_channels), ("hidden_channels", self.hidden_channels)):
            if type(value) is not int or not 0 <= value <= MAX_CHANNELS:
                raise ArchitectureError(
                    f"head: {name} must be 0 or a positive integer, at most {MAX_CHANNELS:,}, not {value!r}"
                )
        _check_choice("head", "activation", self.activation, ACTIVATIONS)
        _check_positive("head", MAX_HEAD_LAYERS, conv_layers=self.conv_layers)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A whole network: resolution, stem, rows, head, classes. Frozen, hashable, self-checking.

    Raises:
        ArchitectureError: if the channels of consecutive rows do not fit, naming the row.
    """

    resolution: int
    stem: Stem
    blocks: tuple[Block, ...]
    head: Head
    classes: int = 1000

    def __post_init__(self) -> None:
        _check_positive("architecture", MAX_RESOLUTION, resolution=self.resolution)
        _check_positive("architecture", MAX_CLASSES, classes=self.classes)
        if len(self.blocks) > MAX_ROWS:
            raise ArchitectureError(f"architecture: {len(self.blocks):,} rows, at most {MAX_ROWS}")
        channels = self.stem.channels
        for number, block in enumerate(self.blocks, start=1):
            if block.in_channels != channels:
                source = "the stem" if number == 1 else f"row {number - 1}"
                raise ArchitectureError(
                    f"row {number}: takes {block.in_channels} channels, but {source} gives {channels}"
                )
            channels = block.out_channels

    @property
    def out_channels(self) -> int:
        """Channels of the last feature map before the head."""
        return self.blocks[-1].out_channels if self.blocks else self.stem.channels

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that depend on the table alone, the same on every machine."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]

    def sizes(self) -> tuple[int, ...]:
        """Side in pixels of the input of each row, and of the head at the end (len = rows + 1)."""
        size = halve(self.resolution)
        result = [size]
        for block in self.blocks:
            size = halve(size) if block.stride == 2 else size
            result.append(size)
        return tuple(result)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only; the inverse of :meth:`from_dict`."""
        return {
            "resolution": self.resolution,
            "classes": self.classes,
            "stem": _plain(self.stem),
            "blocks": [_plain(block) for block in self.blocks],
            "head": _plain(self.head),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ArchitectureError: on a missing or unknown field, a wrong value or a broken chain.
        """
        check_fields("architecture", cls, data)
        if not isinstance(data["blocks"], list | tuple) or len(data["blocks"]) > MAX_ROWS:
            raise ArchitectureError(f"architecture: blocks must be a list of at most {MAX_ROWS} rows")
        blocks = []
        for number, row in enumerate(data["blocks"], start=1):
            try:
                blocks.append(_from_fields("block", Block, row))
            except ArchitectureError as error:
                raise ArchitectureError(f"row {number}: {error}") from None
        return cls(
            resolution=data["resolution"],
            stem=_from_fields("stem", Stem, data["stem"]),
            blocks=tuple(blocks),
            head=_from_fields("head", Head, data["head"]),
            classes=data.get("classes", 1000),
        )

    def to_yaml(self) -> str:
        """A YAML document with one table row a line."""
        plain = self.to_dict()
        lines = [f"resolution: {self.resolution}", f"classes: {self.classes}"]
        lines += [f"{part}: {_flow(plain[part])}" for part in ("stem", "head")]
        lines += ["blocks:" if self.blocks else "blocks: []"]
        lines += [f"- {_flow(row)}" for row in plain["blocks"]]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_yaml(cls, text: str) -> Architecture:
        """Read what :meth:`to_yaml` wrote.

        Raises:
            ArchitectureError: if the text is no YAML or no architecture.
        """
        return cls.from_dict(Gate("the architecture", ArchitectureError).yaml(text))

    def paper_rows(self) -> list[tuple[tuple[str, ...], ...]]:
        """The table as the MobileNetV3 paper prints it (Tables 1 and 2), cells as in :data:`PAPER_COLUMNS`.

        Returns:
            For the stem, each block and the head: its printed rows, one for all but the head.
        """

        def row(size: int, channels: int, operator: str, *cells: object) -> tuple[str, ...]:
            return (f"{size}² × {channels}", operator, *(str(cell) for cell in cells))

        stem, head = self.stem, self.head
        activation = _PAPER_ACTIVATION[stem.activation]
        first = row(
            self.resolution, 3, f"conv2d, {stem.kernel}×{stem.kernel}", "–", stem.channels, "–", activation, 2
        )
        rows = [(first,)]
        for block, size in zip(self.blocks, self.sizes(), strict=False):
            operator = {
                "inverted_residual": f"bneck, {block.kernel}×{block.kernel}",
                "depthwise_separable": f"dw-separable, {block.kernel}×{block.kernel}",
                "skip": "identity" if block.is_identity else "conv2d, 1×1, linear",
            }[block.kind]
            cells = (
                block.expanded_channels if block.kind == "inverted_residual" else "–",
                block.out_channels,
                "✓" if block.se else "–",
                "–" if block.kind == "skip" else _PAPER_ACTIVATION[block.activation],
                block.stride,
            )
            rows.append((row(size, block.in_channels, operator, *cells),))
        size, channels = self.sizes()[-1], self.out_channels
        activation = _PAPER_ACTIVATION[head.activation]
        last = []
        for _ in range(head.conv_layers if head.conv_channels else 0):
            last.append(row(size, channels, "conv2d, 1×1", "–", head.conv_channels, "–", activation, 1))
            channels = head.conv_channels
        last.append(row(size, channels, f"pool, {size}×{size}", "–", channels, "–", "–", 1))
        if head.hidden_channels:
            last.append(row(1, channels, "linear", "–", head.hidden_channels, "–", activation, 1))
            channels = head.hidden_channels
        last.append(row(1, channels, "linear", "–", self.classes, "–", "–", 1))
        return [*rows, tuple(last)]

    def to_markdown(self) -> str:
        """The table as the MobileNetV3 paper prints it (Tables 1 and 2)."""
        lines = [f"| {' | '.join(PAPER_COLUMNS)} |", "|" + "---|" * len(PAPER_COLUMNS)]
        lines += [f"| {' | '.join(row)} |" for part in self.paper_rows() for row in part]
        return "\n".join(lines) + "\n"


def halve(size: int) -> int:
    """Side of a feature map after a padded convolution of stride 2."""
    return (size + 1) // 2


def _plain(part: Stem | Block | Head) -> dict[str, Any]:
    # Nothing in a part is nested; dataclasses.asdict copies every value and takes ten times as long.
    return {name: getattr(part, name) for name in part.__slots__}


def _flow(mapping: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(mapping), default_flow_style=True, sort_keys=False, width=10_000).strip()


def _from_fields(where: str, cls: type[_Row], data: object) -> _Row:
    check_fields(where, cls, data)
    assert isinstance(data, Mapping)
    return cls(**data)


def check_fields(where: str, cls: type, data: object) -> None:
    """Refuse a mapping whose fields are not those of the dataclass ``cls``.

    Raises:
        ArchitectureError: naming the field that is unknown or missing.
    """
    if not isinstance(data, Mapping):
        raise ArchitectureError(f"{where}: expected a mapping of fields, not {type(data).__name__}")
    known = fields(cls)
    names = [field.name for field in known]
    unknown = [name for name in data if name not in names]
    if unknown:
        raise ArchitectureError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(names)}")
    for field in known:
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in data:
            raise ArchitectureError(f"{where}: field {field.name!r} is missing")


def _check_positive(where: str, most: int, **values: object) -> None:
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise ArchitectureError(f"{where}: {name} must be a positive integer, not {value!r}")
        if value > most:
            raise ArchitectureError(f"{where}: {name} must be at most {most:,}, not {value!r}")


def _check_kernel(where: str, kernel: object) -> None:
    if type(kernel) is not int or not 1 <= kernel <= MAX_KERNEL or kernel % 2 == 0:
        raise ArchitectureError(
            f"{where}: kernel must be an odd positive integer, at most {MAX_KERNEL}, not {kernel!r}"
        )


def _check_choice(where: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    if type(value) is not str or value not in choices:
        raise ArchitectureError(f"{where}: {name} must be one of {', '.join(choices)}, not {value!r}")
