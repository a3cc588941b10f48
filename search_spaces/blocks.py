"""Rows of block tables, and what each kind of block consists of.

A new kind of block is one function from a block to operators and one line of :data:`BLOCKS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from search_spaces.errors import InputError
from search_spaces.ops import (
    ACTIVATIONS,
    Activation,
    Add,
    Conv,
    Gating,
    Linear,
    Operator,
    Operators,
    Pool,
    SqueezeExcitation,
    side_after,
)

# Far beyond every network one deploys, and small enough that nothing here loops or allocates for long.
MAX_CHANNELS = 65_536
MAX_KERNEL = 31
MAX_HEAD_LAYERS = 16

IMAGE_CHANNELS = 3


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
        check_positive("stem", MAX_CHANNELS, channels=self.channels)
        _check_kernel("stem", self.kernel)
        _check_choice("stem", "activation", self.activation, ACTIVATIONS)

    def operators(self, size: int) -> Operators:
        """The one convolution, for an image of ``size`` pixels a side."""
        return (Conv(size, IMAGE_CHANNELS, self.channels, self.kernel, 2, activation=self.activation),)


@dataclass(frozen=True, slots=True)
class Block:
    """One row of a block table. All channel counts are integers, already rounded.

    Attributes:
        kind: a name of :data:`BLOCKS`, e.g. ``inverted_residual``.
        kernel: side of the depthwise kernel, or of the convolution in its place; 1 for ``skip``, 0 where a
            universal inverted bottleneck has no depthwise convolution after its expansion.
        in_channels: channels of the input.
        expanded_channels: channels of the depthwise convolution.
        out_channels: channels of the output.
        stride: 1 or 2.
        activation: nonlinearity after expansion and depthwise convolution.
        se: squeeze-and-excitation between depthwise convolution and projection.
        expansion_conv: whether a 1x1 convolution makes the expansion. False for V1, and for the
            first row of V2 and V3 where the expansion is 1.
        se_channels: width of the squeeze-and-excitation where it is not a quarter of the expansion (as
            where EfficientNet and MnasNet size it on the block's input); 0 otherwise.
        start_kernel: side of the depthwise kernel before the expansion of a universal inverted bottleneck,
            0 for none.
    """

    kind: str
    kernel: int
    in_channels: int
    expanded_channels: int
    out_channels: int
    stride: int = 1
    activation: Activation = "relu6"
    se: bool = False
    expansion_conv: bool = True
    se_channels: int = 0
    start_kernel: int = 0

    def __post_init__(self) -> None:
        _check_choice("block", "kind", self.kind, tuple(BLOCKS))
        kind = BLOCKS[self.kind]
        _check_choice("block", "activation", self.activation, ACTIVATIONS)
        check_positive(
            "block",
            MAX_CHANNELS,
            in_channels=self.in_channels,
            expanded_channels=self.expanded_channels,
            out_channels=self.out_channels,
        )
        _check_kernel("block", self.kernel, optional=kind.universal)
        _check_kernel("block", self.start_kernel, "start_kernel", optional=True)
        for name, flag in (("se", self.se), ("expansion_conv", self.expansion_conv)):
            if not isinstance(flag, bool):
                raise ArchitectureError(f"block: {name} must be true or false, not {flag!r}")
        if type(self.stride) is not int or self.stride not in (1, 2):
            raise ArchitectureError(f"block: stride must be 1 or 2, not {self.stride!r}")
        if type(self.se_channels) is not int or not 0 <= self.se_channels <= MAX_CHANNELS:
            raise ArchitectureError(
                f"block: se_channels must be 0 or a positive integer, at most {MAX_CHANNELS:,}, "
                f"not {self.se_channels!r}"
            )
        if self.se_channels and not self.se:
            raise ArchitectureError("block: se_channels without se; set se to true")
        if not self.expansion_conv and self.expanded_channels != self.in_channels:
            raise ArchitectureError(
                f"block: without an expansion convolution expanded_channels ({self.expanded_channels}) "
                f"must equal in_channels ({self.in_channels})"
            )
        kind.check(self)

    @property
    def keeps_shape(self) -> bool:
        """True if input and output have the same shape."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def is_identity(self) -> bool:
        """True if the block does nothing at all."""
        return not self.operators(1)

    @property
    def squeezed_channels(self) -> int:
        """Width of the squeeze-and-excitation, 0 without one."""
        return (self.se_channels or squeeze_channels(self.expanded_channels)) if self.se else 0

    def operators(self, size: int) -> Operators:
        """The operators of the block, for an input of ``size`` pixels a side; none for an identity."""
        return _block_operators(self, size)


@dataclass(frozen=True, slots=True)
class Head:
    """The layers from the last feature map to the logits.

    V1: pooling and classifier. V2: a 1x1 convolution before pooling. V3: a 1x1 convolution, then
    pooling, then a hidden linear layer (the cheap last stage of MobileNetV3, 5.1). Zero channels
    mean that the part is absent. ``conv_layers`` repeats the 1x1 convolution, as timm's depth
    multiplier does in V3; ``hidden_norm`` gives the hidden layer a batch normalisation, as MobileNetV4 does.
    """

    conv_channels: int = 0
    hidden_channels: int = 0
    activation: Activation = "relu6"
    conv_layers: int = 1
    hidden_norm: bool = False

    def __post_init__(self) -> None:
        for name, value in (("conv_channels", self.conv_channels), ("hidden_channels", self.hidden_channels)):
            if type(value) is not int or not 0 <= value <= MAX_CHANNELS:
                raise ArchitectureError(
                    f"head: {name} must be 0 or a positive integer, at most {MAX_CHANNELS:,}, not {value!r}"
                )
        _check_choice("head", "activation", self.activation, ACTIVATIONS)
        check_positive("head", MAX_HEAD_LAYERS, conv_layers=self.conv_layers)
        if not isinstance(self.hidden_norm, bool):
            raise ArchitectureError(f"head: hidden_norm must be true or false, not {self.hidden_norm!r}")
        if self.hidden_norm and not self.hidden_channels:
            raise ArchitectureError("head: hidden_norm without a hidden layer; give hidden_channels")

    def operators(self, size: int, in_channels: int, classes: int) -> Operators:
        """Convolutions, pooling and linear layers, for a map of ``size`` pixels a side.

        Args:
            size: side of the map in pixels.
            in_channels: of the map.
            classes: to tell apart.
        """
        found: list[Operator] = []
        for _ in range(self.conv_layers if self.conv_channels else 0):
            found.append(Conv(size, in_channels, self.conv_channels, activation=self.activation))
            in_channels = self.conv_channels
        found.append(Pool(size, in_channels))
        if self.hidden_channels:
            norm = self.hidden_norm
            found.append(Linear(1, in_channels, self.hidden_channels, activation=self.activation, norm=norm))
            in_channels = self.hidden_channels
        return (*found, Linear(1, in_channels, classes, norm=False))


# -- kinds of blocks -------------------------------------------------------------------------------


def inverted_residual(block: Block, size: int) -> Iterator[Operator]:
    """Expansion, depthwise convolution, linear projection, residual where shapes allow (V2, V3)."""
    expanded = block.expanded_channels
    if block.expansion_conv:
        yield Conv(size, block.in_channels, expanded, activation=block.activation)
    yield from _depthwise(block, size)
    yield from _projection(block, size)


def depthwise_separable(block: Block, size: int) -> Iterator[Operator]:
    """Depthwise convolution and activated projection, no residual (V1)."""
    yield from _depthwise(block, size)
    out_size = side_after(size, block.stride)
    yield Conv(out_size, block.expanded_channels, block.out_channels, activation=block.activation)


def skip(block: Block, size: int) -> Iterator[Operator]:
    """The identity; a linear 1x1 convolution where shapes change."""
    if not block.keeps_shape:
        yield Conv(size, block.in_channels, block.out_channels, stride=block.stride)


def universal_inverted_bottleneck(block: Block, size: int) -> Iterator[Operator]:
    """Expansion and linear projection, a depthwise convolution before the expansion and after it or not (V4).

    With both it is the extra-depthwise block, with the second V2's inverted bottleneck, with the first
    ConvNext's block, with neither the FFN of transformers. The last depthwise convolution has the stride;
    where there is none, the expansion. The first has no activation.

    Source: Qin et al. 2024, "Universal Inverted Bottlenecks" (arXiv 2404.10518).
    """
    in_channels, expanded, input_size = block.in_channels, block.expanded_channels, size
    stride = 1 if block.kernel else block.stride  # left for what comes before
    if block.start_kernel:
        start = Conv(size, in_channels, in_channels, block.start_kernel, stride, in_channels)
        yield start
        size, stride = start.out_size, 1
    yield Conv(size, in_channels, expanded, 1, stride, activation=block.activation)
    if block.kernel:
        yield Conv(size, expanded, expanded, block.kernel, block.stride, expanded, block.activation)
    yield from _gate(block, input_size)
    yield from _projection(block, input_size)


def fused_inverted_bottleneck(block: Block, size: int) -> Iterator[Operator]:
    """An expansion that is a whole convolution, and a linear projection, residual where shapes allow.

    Source: Gupta and Akin 2020 (arXiv 2003.02838), "fused"; Tan and Le 2021, Figure 2 (arXiv 2104.00298).
    """
    yield _expansion(block, size)
    yield from _gate(block, size)
    yield from _projection(block, size)


def convolution_pair(block: Block, size: int) -> Iterator[Operator]:
    """A whole convolution and a 1x1 convolution, both activated, no residual (first stages of V4-Conv-S)."""
    yield _expansion(block, size)
    yield from _gate(block, size)
    out_size = side_after(size, block.stride)
    yield Conv(out_size, block.expanded_channels, block.out_channels, activation=block.activation)


def _expansion(block: Block, size: int) -> Conv:
    expanded = block.expanded_channels
    return Conv(size, block.in_channels, expanded, block.kernel, block.stride, activation=block.activation)


def _depthwise(block: Block, size: int) -> Iterator[Operator]:
    expanded = block.expanded_channels
    yield Conv(size, expanded, expanded, block.kernel, block.stride, expanded, block.activation)
    yield from _gate(block, size)


def _gate(block: Block, size: int) -> Iterator[Operator]:
    if block.se:
        # EfficientNet's gate goes with its activation: swish between, a sigmoid after.
        swish = block.activation == "swish"
        between: Activation = "swish" if swish else "relu"
        gating: Gating = "sigmoid" if swish else "hsigmoid"
        size, channels = side_after(size, block.stride), block.expanded_channels
        yield SqueezeExcitation(size, channels, block.squeezed_channels, between, gating)


def _projection(block: Block, size: int) -> Iterator[Operator]:
    out_size = side_after(size, block.stride)
    yield Conv(out_size, block.expanded_channels, block.out_channels)
    if block.keeps_shape:
        yield Add(out_size, block.out_channels)


@dataclass(frozen=True, slots=True)
class BlockKind:
    """A kind of block.

    Attributes:
        operators: what a block consists of, for a side of its input in pixels.
        word: how texts of layers begin, e.g. ``ir``.
        title: how papers print it, with ``{kernel}`` where the kernel stands; or what tells that of a block.
        letters: the fields that such texts hold beside size, SE and activation; see
            :mod:`search_spaces.layers`.
        bare: neither SE nor activation nor a kernel above 1.
        always_expands: whether there is no such block without an expansion convolution.
    """

    operators: Callable[[Block, int], Iterator[Operator]]
    word: str
    title: str | Callable[[Block], str]
    letters: str = "ixoks"
    bare: bool = False
    always_expands: bool = False

    @property
    def may_expand(self) -> bool:
        """True if a block can have an expansion convolution."""
        return "x" in self.letters

    @property
    def universal(self) -> bool:
        """True if depthwise convolutions may stand before the expansion and after it, or be missing."""
        return "a" in self.letters

    def printed(self, block: Block) -> str:
        """A block of this kind as papers print it."""
        return self.title(block) if callable(self.title) else self.title.format(kernel=block.kernel)

    def check(self, block: Block) -> None:
        """Refuse fields that this kind does not have.

        Raises:
            ArchitectureError: naming the field.
        """
        if block.expansion_conv and not self.may_expand:
            raise ArchitectureError(f"block: a {block.kind} block has no expansion convolution")
        if self.always_expands and not block.expansion_conv:
            raise ArchitectureError(f"block: a {block.kind} block has an expansion convolution")
        if block.start_kernel and not self.universal:
            raise ArchitectureError(f"block: a {block.kind} block has no start_kernel")
        if self.bare and (block.se or block.kernel != 1):
            raise ArchitectureError(f"block: a {block.kind} block has kernel 1 and no squeeze-and-excitation")


def _universal_title(block: Block) -> str:
    names = {(False, False): "FFN", (False, True): "IB", (True, False): "ConvNext", (True, True): "ExtraDW"}
    kernels = [kernel for kernel in (block.start_kernel, block.kernel) if kernel]
    name = names[block.start_kernel > 0, block.kernel > 0]
    return ", ".join([name, *(f"{kernel}×{kernel}" for kernel in kernels)])


BLOCKS: dict[str, BlockKind] = {
    "inverted_residual": BlockKind(inverted_residual, "ir", "bneck, {kernel}×{kernel}"),
    "depthwise_separable": BlockKind(
        depthwise_separable, "ds", "dw-separable, {kernel}×{kernel}", letters="ioks"
    ),
    "skip": BlockKind(skip, "skip", "conv2d, 1×1, linear", letters="ios", bare=True),
    "universal_inverted_bottleneck": BlockKind(
        universal_inverted_bottleneck, "uib", _universal_title, letters="ixoaks", always_expands=True
    ),
    "fused_inverted_bottleneck": BlockKind(
        fused_inverted_bottleneck, "fused", "fused IB, {kernel}×{kernel}", always_expands=True
    ),
    "convolution_pair": BlockKind(
        convolution_pair, "pair", "conv2d, {kernel}×{kernel} and 1×1", always_expands=True
    ),
}


@lru_cache(maxsize=200_000)
def _block_operators(block: Block, size: int) -> Operators:
    return tuple(BLOCKS[block.kind].operators(block, size))


# -- checks ----------------------------------------------------------------------------------------


SQUARE = "images are square here: write one side in pixels, e.g. 224"


def is_oblong(value: object) -> bool:
    """True if somebody means an image of two sides: ``[224, 160]`` or ``224x160``."""
    if isinstance(value, str):
        return re.fullmatch(r"\s*\d+\s*[x×*,/]\s*\d+\s*", value.lower()) is not None
    return isinstance(value, list | tuple) and len(value) == 2


def check_positive(where: str, most: int, **values: object) -> None:
    """Refuse what is no positive integer, or a larger one than anybody means.

    Raises:
        ArchitectureError: naming the value.
    """
    for name, value in values.items():
        if name == "resolution" and is_oblong(value):
            raise ArchitectureError(f"{where}: resolution {value!r}: {SQUARE}")
        if type(value) is not int or value < 1:
            raise ArchitectureError(f"{where}: {name} must be a positive integer, not {value!r}")
        if value > most:
            raise ArchitectureError(f"{where}: {name} must be at most {most:,}, not {value!r}")


def _check_kernel(where: str, kernel: object, name: str = "kernel", optional: bool = False) -> None:
    if type(kernel) is int and ((kernel == 0 and optional) or (1 <= kernel <= MAX_KERNEL and kernel % 2)):
        return
    wanted = ("0 or " if optional else "") + "an odd positive integer"
    raise ArchitectureError(f"{where}: {name} must be {wanted}, at most {MAX_KERNEL}, not {kernel!r}")


def _check_choice(where: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    if type(value) is not str or value not in choices:
        raise ArchitectureError(f"{where}: {name} must be one of {', '.join(choices)}, not {value!r}")
