"""Stages of a search space: what they may contain, how they become blocks, and back again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from search_spaces.blocks import BLOCKS, Block, Head, Stem, make_divisible
from search_spaces.ops import Activation, side_after

# The same few hundred blocks make up all members of a space: they are checked once.
_block = lru_cache(maxsize=10_000)(Block)

Value = bool | int | float | str
Parameters = dict[str, Value]
Chooser = Callable[[str, tuple[Value, ...]], Value]


@dataclass(frozen=True, slots=True)
class Rounding:
    """The rounding of channel counts.

    Attributes:
        channel_divisor: widths times the width multiplier become multiples of this.
        expansion_divisor: expanded channels become multiples of this.
        expansion_conv_at_one: whether an expansion ratio of 1 still has its 1x1 convolution (FBNet),
            or none (MobileNetV2 and V3).
    """

    channel_divisor: int = 8
    expansion_divisor: int = 8
    expansion_conv_at_one: bool = False

    def width(self, channels: int, multiplier: float) -> int:
        """Channels after the global width multiplier."""
        return make_divisible(channels * multiplier, self.channel_divisor)

    def expand(self, kind: str, in_channels: int, ratio: float) -> tuple[int, bool]:
        """Expanded channels of a block of some kind, and whether a convolution makes them.

        Args:
            kind: of the block.
            in_channels: that it takes.
            ratio: of expanded channels to these.
        """
        made = BLOCKS[kind]
        if not made.always_expands and (
            not made.may_expand or (ratio == 1 and not self.expansion_conv_at_one)
        ):
            return in_channels, False
        return make_divisible(in_channels * ratio, self.expansion_divisor), True


@dataclass(frozen=True, slots=True)
class StemChoice:
    """A candidate stem, before the width multiplier."""

    channels: int
    activation: Activation = "relu6"
    kernel: int = 3

    @property
    def label(self) -> str:
        """Value of the parameter ``stem``."""
        return f"conv{self.kernel}x{self.kernel}-{self.channels}-{self.activation}"

    def build(self, rounding: Rounding, multiplier: float) -> Stem:
        """The stem at a width multiplier."""
        return Stem(rounding.width(self.channels, multiplier), self.activation, self.kernel)


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """A candidate head.

    Attributes:
        conv_channels: width of the 1x1 convolution; grows with a width multiplier above 1 and never
            shrinks, as in MobileNetV2. 0: none, unless ``conv_ratio`` is given.
        conv_ratio: width of the 1x1 convolution as a multiple of the last block's (6 in MobileNetV3).
        hidden_channels: width of the hidden linear layer, 0 for none.
        activation: nonlinearity.
        hidden_norm: batch normalisation of the hidden layer, as in MobileNetV4.
    """

    conv_channels: int = 0
    conv_ratio: float = 0
    hidden_channels: int = 0
    activation: Activation = "relu6"
    hidden_norm: bool = False

    @property
    def label(self) -> str:
        """Value of the parameter ``head``."""
        conv = f"{self.conv_ratio:g}x" if self.conv_ratio else str(self.conv_channels)
        hidden = f"-{self.hidden_channels}" if self.hidden_channels else ""
        hidden += "norm" * self.hidden_norm
        return f"conv{conv}{hidden}-{self.activation}"

    def build(self, rounding: Rounding, multiplier: float, channels: int) -> Head:
        """The head behind a feature map of ``channels``.

        Args:
            rounding: how channels are rounded.
            multiplier: factor on all widths.
            channels: of the feature map.
        """
        if self.conv_ratio:
            conv = make_divisible(channels * self.conv_ratio, rounding.channel_divisor)
        elif self.conv_channels:
            conv = max(self.conv_channels, rounding.width(self.conv_channels, multiplier))
        else:
            conv = 0
        return Head(conv, self.hidden_channels, self.activation, hidden_norm=self.hidden_norm)


# Parameters of a Stage that can be chosen once per stage or anew for each block.
BLOCK_FIELDS = {
    "kinds": "kind",
    "start_kernels": "start_kernel",
    "kernels": "kernel",
    "expansions": "expansion",
    "se": "se",
    "activations": "activation",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one width. Each list holds the candidates of one parameter.

    Attributes:
        stride: stride of the first block; the others have 1.
        depths: numbers of blocks; 0 removes the stage, its stride included.
        widths: output channels before the width multiplier.
        kernels: sides of the depthwise kernel, or of the convolution in its place; 0 for none where all
            blocks are universal inverted bottlenecks.
        expansions: ratios of expanded to input channels.
        se: squeeze-and-excitation or not.
        activations: nonlinearities.
        kinds: of blocks, names of :data:`search_spaces.blocks.BLOCKS`.
        per_block: which of :data:`BLOCK_FIELDS` each block chooses for itself; the others are chosen once
            for the stage.
        start_kernels: sides of the depthwise kernel before the expansion of a universal inverted bottleneck,
            0 for none. Blocks of other kinds ignore it.
    """

    stride: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    kernels: tuple[int, ...] = (3,)
    expansions: tuple[float, ...] = (6.0,)
    se: tuple[bool, ...] = (False,)
    activations: tuple[Activation, ...] = ("relu6",)
    kinds: tuple[str, ...] = ("inverted_residual",)
    per_block: tuple[str, ...] = ("expansions",)
    start_kernels: tuple[int, ...] = (0,)

    @property
    def size(self) -> int:
        """Number of parameter settings."""
        shared = len(self.widths)
        each = 1
        for name in BLOCK_FIELDS:
            count = len(getattr(self, name))
            if name in self.per_block:
                each *= count
            else:
                shared *= count
        return sum(shared * each**depth if depth else 1 for depth in self.depths)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Expansion ratios that occur."""
        return self.expansions

    @property
    def variety(self) -> int:
        """Different blocks that can lead from one feature map to another."""
        return math.prod(len(getattr(self, plural)) for plural in BLOCK_FIELDS)

    def parameters(self, prefix: str) -> dict[str, tuple[Value, ...]]:
        """Every parameter of the stage with its candidates."""
        names: dict[str, tuple[Value, ...]] = {f"{prefix}.depth": self.depths}
        if max(self.depths):
            names[f"{prefix}.width"] = self.widths
        blocks = (self.choices(prefix, number).items() for number in range(1, max(self.depths) + 1))
        for field in zip(*blocks, strict=True):
            names.update(field)
        return names

    def choices(self, prefix: str, number: int) -> dict[str, tuple[Value, ...]]:
        """The parameters that decide a block, with their candidates; :meth:`blocks` varies the last first.

        Args:
            prefix: of the names of this stage's parameters.
            number: of the block in its stage, from 1.
        """
        own = f"block{number}."
        return {
            f"{prefix}.{own * (plural in self.per_block)}{name}": getattr(self, plural)
            for plural, name in BLOCK_FIELDS.items()
        }

    def compose(
        self, choose: Chooser, prefix: str, in_channels: int, rounding: Rounding, multiplier: float
    ) -> list[Block]:
        """The blocks of the stage, asking ``choose`` for each parameter.

        Args:
            choose: gives the value of a parameter, of its name and choices.
            prefix: of the names of this stage's parameters.
            in_channels: of the map that the stage takes.
            rounding: how channels are rounded.
            multiplier: factor on all widths.
        """
        depth = int(choose(f"{prefix}.depth", self.depths))
        if not depth:
            return []
        out = rounding.width(int(choose(f"{prefix}.width", self.widths)), multiplier)
        shared = {
            name: choose(f"{prefix}.{name}", getattr(self, plural))
            for plural, name in BLOCK_FIELDS.items()
            if plural not in self.per_block
        }
        blocks: list[Block] = []
        for number in range(1, depth + 1):
            values = shared | {
                name: choose(f"{prefix}.block{number}.{name}", getattr(self, plural))
                for plural, name in BLOCK_FIELDS.items()
                if plural in self.per_block
            }
            blocks.append(self.block(values, in_channels, out, self.stride if number == 1 else 1, rounding))
            in_channels = out
        return blocks

    def encodings(
        self, blocks: Sequence[Block], prefix: str, in_channels: int, rounding: Rounding, multiplier: float
    ) -> Iterator[tuple[int, Parameters]]:
        """Ways in which this stage makes the first of ``blocks``: (how many, parameters).

        Args:
            blocks: what is left of a network, in order.
            prefix: of the names of this stage's parameters.
            in_channels: of the map that the stage takes.
            rounding: how channels are rounded.
            multiplier: factor on all widths.
        """
        for depth in self.depths:
            if depth == 0:
                yield 0, {f"{prefix}.depth": 0}
            elif depth <= len(blocks):
                taken = blocks[:depth]
                widths = [w for w in self.widths if rounding.width(w, multiplier) == taken[0].out_channels]
                if widths:
                    values = self._match(taken, prefix, rounding)
                    if values is not None:
                        yield depth, {f"{prefix}.depth": depth, f"{prefix}.width": widths[0]} | values

    def blocks(self, in_channels: int, out: int, stride: int, rounding: Rounding) -> Iterator[Block]:
        """Every block that can stand between two feature maps.

        Args:
            in_channels: that it takes.
            out: channels that it gives.
            stride: of the block.
            rounding: how channels are rounded.
        """
        for values in itertools.product(*(getattr(self, plural) for plural in BLOCK_FIELDS)):
            named = dict(zip(BLOCK_FIELDS.values(), values, strict=True))
            yield self.block(named, in_channels, out, stride, rounding)

    def block(
        self, values: Mapping[str, Value], in_channels: int, out: int, stride: int, rounding: Rounding
    ) -> Block:
        """The block of chosen values, one for each of :data:`BLOCK_FIELDS`.

        Args:
            values: of all that is chosen for a block, by name.
            in_channels: that it takes.
            out: channels that it gives.
            stride: of the block.
            rounding: how channels are rounded.
        """
        kind = str(values["kind"])
        expanded, expansion_conv = rounding.expand(kind, in_channels, float(values["expansion"]))
        return _block(
            kind=kind,
            kernel=int(values["kernel"]),
            in_channels=in_channels,
            expanded_channels=expanded,
            out_channels=out,
            stride=stride,
            activation=cast(Activation, values["activation"]),
            se=bool(values["se"]),
            expansion_conv=expansion_conv,
            start_kernel=int(values["start_kernel"]) if BLOCKS[kind].universal else 0,
        )

    def _match(self, blocks: Sequence[Block], prefix: str, rounding: Rounding) -> Parameters | None:
        out = blocks[0].out_channels

        def fits(block: Block, name: str, value: Value) -> bool:
            # One attribute at a time: build the block with this value and everything else as it is.
            if name == "expansion":
                made = rounding.expand(block.kind, block.in_channels, float(value))
                return made == (block.expanded_channels, block.expansion_conv)
            if name == "start_kernel" and not BLOCKS[block.kind].universal:
                return True
            return bool(getattr(block, name) == value)

        for number, block in enumerate(blocks, start=1):
            stride = self.stride if number == 1 else 1
            if (block.out_channels, block.stride) != (out, stride):
                return None
        # The candidates of each parameter that suit all blocks it decides, the first of them in the end.
        suitable: dict[str, tuple[Value, ...]] = self.parameters(prefix)
        decided = set()
        for number, block in enumerate(blocks, start=1):
            for field, name in zip(BLOCK_FIELDS.values(), self.choices(prefix, number), strict=True):
                suitable[name] = tuple(value for value in suitable[name] if fits(block, field, value))
                if not suitable[name]:
                    return None
                decided.add(name)
        return {name: candidates[0] for name, candidates in suitable.items() if name in decided}


@dataclass(frozen=True, slots=True)
class CandidateBlock:
    """A whole candidate block of a :class:`CandidateStage`.

    Attributes:
        kind: kind of block; ``skip`` is the identity, or a strided 1x1 convolution where it must be.
        kernel: side of the depthwise kernel.
        expansion: ratio of expanded to input channels.
        se: squeeze-and-excitation.
        activation: nonlinearity.
        name: value of the parameter; made from the other fields where empty.
        start_kernel: side of the depthwise kernel before the expansion of a universal inverted bottleneck.
    """

    kind: str = "inverted_residual"
    kernel: int = 3
    expansion: float = 6.0
    se: bool = False
    activation: Activation = "relu6"
    name: str = ""
    start_kernel: int = 0

    @property
    def label(self) -> str:
        """Value of the parameter this candidate stands for."""
        if self.name or self.kind == "skip":
            return self.name or "skip"
        kind = BLOCKS[self.kind]
        parts = [] if self.kind == "inverted_residual" else [kind.word]
        parts += [f"a{self.start_kernel}"] * kind.universal
        parts.append(f"k{self.kernel}")
        parts += [f"e{self.expansion:g}"] * kind.may_expand
        parts += ["se"] * self.se
        return "_".join([*parts, self.activation])

    def build(self, in_channels: int, out: int, stride: int, rounding: Rounding) -> Block:
        """The block in its place.

        Args:
            in_channels: that the block takes.
            out: channels that it gives.
            stride: of the block.
            rounding: how channels are rounded.
        """
        if self.kind == "skip":
            return Block("skip", 1, in_channels, in_channels, out, stride, "relu", False, False)
        expanded, expansion_conv = rounding.expand(self.kind, in_channels, self.expansion)
        return Block(
            self.kind,
            self.kernel,
            in_channels,
            expanded,
            out,
            stride,
            self.activation,
            self.se,
            expansion_conv,
            start_kernel=self.start_kernel,
        )


@dataclass(frozen=True, slots=True)
class CandidateStage:
    """A fixed number of layers of one width, each of which picks a whole candidate block.

    Attributes:
        stride: stride of the first layer; the others have 1.
        width: output channels before the width multiplier.
        layers: number of layers.
        candidates: the blocks to pick from.
    """

    stride: int
    width: int
    layers: int
    candidates: tuple[CandidateBlock, ...]

    @property
    def size(self) -> int:
        """Number of parameter settings."""
        settings: int = len(self.candidates) ** self.layers
        return settings

    @property
    def ratios(self) -> tuple[float, ...]:
        """Expansion ratios that occur."""
        return tuple(candidate.expansion for candidate in self.candidates)

    @property
    def variety(self) -> int:
        """Different blocks that can lead from one feature map to another."""
        return len(self.candidates)

    @property
    def depths(self) -> tuple[int]:
        """Numbers of blocks."""
        return (self.layers,)

    @property
    def widths(self) -> tuple[int]:
        """Output channels before the width multiplier."""
        return (self.width,)

    def parameters(self, prefix: str) -> dict[str, tuple[Value, ...]]:
        """Every parameter of the stage with its candidates."""
        blocks = (self.choices(prefix, number) for number in range(1, self.layers + 1))
        return {name: labels for each in blocks for name, labels in each.items()}

    def choices(self, prefix: str, number: int) -> dict[str, tuple[Value, ...]]:
        """See :meth:`Stage.choices`."""
        return {f"{prefix}.block{number}": tuple(candidate.label for candidate in self.candidates)}

    def compose(
        self, choose: Chooser, prefix: str, in_channels: int, rounding: Rounding, multiplier: float
    ) -> list[Block]:
        """See :meth:`Stage.compose`."""
        by_label = {candidate.label: candidate for candidate in self.candidates}
        out = rounding.width(self.width, multiplier)
        blocks: list[Block] = []
        for number in range(1, self.layers + 1):
            candidate = by_label[str(choose(f"{prefix}.block{number}", tuple(by_label)))]
            blocks.append(candidate.build(in_channels, out, self.stride if number == 1 else 1, rounding))
            in_channels = out
        return blocks

    def encodings(
        self, blocks: Sequence[Block], prefix: str, in_channels: int, rounding: Rounding, multiplier: float
    ) -> Iterator[tuple[int, Parameters]]:
        """See :meth:`Stage.encodings`."""
        if len(blocks) < self.layers:
            return
        out = rounding.width(self.width, multiplier)
        result: Parameters = {}
        for number, block in enumerate(blocks[: self.layers], start=1):
            stride = self.stride if number == 1 else 1
            label = next(
                (c.label for c in self.candidates if c.build(in_channels, out, stride, rounding) == block),
                None,
            )
            if label is None:
                return
            result[f"{prefix}.block{number}"] = label
            in_channels = out
        yield self.layers, result

    def blocks(self, in_channels: int, out: int, stride: int, rounding: Rounding) -> Iterator[Block]:
        """See :meth:`Stage.blocks`."""
        return (each.build(in_channels, out, stride, rounding) for each in self.candidates)


def states_after(
    stage: Stage | CandidateStage, states: set[tuple[int, int]], rounding: Rounding, multiplier: float
) -> set[tuple[int, int]]:
    """The (channels, size) of feature maps behind a stage, of those before it.

    Args:
        stage: the stage.
        states: channels and side of the maps before it.
        rounding: how channels are rounded.
        multiplier: factor on all widths.
    """
    after = states if 0 in stage.depths else set()
    if not max(stage.depths):
        return after
    outs = {rounding.width(width, multiplier) for width in stage.widths}
    sizes = {side_after(size, stage.stride) for _, size in states}
    return after | {(out, size) for out in outs for size in sizes}


def reach(
    stage: Stage | CandidateStage, states: set[tuple[int, int]], rounding: Rounding, multiplier: float
) -> set[tuple[int, Block]]:
    """Blocks of a stage reachable from (channels, size) states, as (input size, block).

    Args:
        stage: the stage.
        states: channels and side of the maps before it.
        rounding: how channels are rounded.
        multiplier: factor on all widths.
    """
    found: set[tuple[int, Block]] = set()
    for width in stage.widths if max(stage.depths) else ():
        out = rounding.width(width, multiplier)
        for channels, size in states:
            found |= {(size, each) for each in stage.blocks(channels, out, stage.stride, rounding)}
        if max(stage.depths) > 1:
            again = list(stage.blocks(out, out, 1, rounding))
            sizes = {side_after(size, stage.stride) for _, size in states}
            found |= {(size, each) for size in sizes for each in again}
    return found
