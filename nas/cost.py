"""Multiply-accumulates and parameters, counted from the table in microseconds.

MACs are those of convolutions and linear layers, as in the MobileNet papers; batch normalisation is
folded into its convolution at inference and counts as parameters only (scale and shift).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from nas.layers import LayerKey, layer_keys
from search_spaces.architecture import Architecture, Block, Head, Stem, halve, squeeze_channels


@dataclass(frozen=True, slots=True)
class Cost:
    """What one forward pass of one image takes.

    Attributes:
        macs: multiply-accumulates.
        parameters: trainable parameters.
    """

    macs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Product:
    """One convolution or linear layer inside a layer.

    Attributes:
        out_size: side of the output, 1 for what runs on pooled features.
        in_channels: input channels.
        out_channels: output channels.
        kernel: side of the kernel.
        groups: groups of the convolution.
        bias: whether it has a bias of its own.
        norm: whether batch normalisation follows.
    """

    out_size: int
    in_channels: int
    out_channels: int
    kernel: int = 1
    groups: int = 1
    bias: bool = False
    norm: bool = False

    @property
    def weights(self) -> int:
        """Number of weights without bias and norm."""
        return self.out_channels * (self.in_channels // self.groups) * self.kernel**2

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.weights * self.out_size**2

    @property
    def parameters(self) -> int:
        """Weights, bias, and scale and shift of the norm."""
        return self.weights + self.out_channels * (self.bias + 2 * self.norm)


def products(key: LayerKey) -> Iterator[Product]:
    """The convolutions and linear layers of a layer, in order."""
    part, size = key.part, key.size
    if isinstance(part, Stem):
        yield Product(halve(size), key.in_channels, part.channels, part.kernel, norm=True)
    elif isinstance(part, Head):
        channels = key.in_channels
        for _ in range(part.conv_layers if part.conv_channels else 0):
            yield Product(size, channels, part.conv_channels, norm=True)
            channels = part.conv_channels
        if part.hidden_channels:
            yield Product(1, channels, part.hidden_channels, bias=True)
            channels = part.hidden_channels
        yield Product(1, channels, key.classes, bias=True)
    else:
        yield from _block_products(part, size)


def _block_products(block: Block, size: int) -> Iterator[Product]:
    out_size = halve(size) if block.stride == 2 else size
    expanded = block.expanded_channels
    if block.is_identity:
        return
    if block.kind == "skip":
        yield Product(out_size, block.in_channels, block.out_channels, norm=True)
        return
    if block.expansion_conv:
        yield Product(size, block.in_channels, expanded, norm=True)
    yield Product(out_size, expanded, expanded, block.kernel, groups=expanded, norm=True)
    if block.se:
        squeezed = squeeze_channels(expanded)
        yield Product(1, expanded, squeezed, bias=True)
        yield Product(1, squeezed, expanded, bias=True)
    yield Product(out_size, expanded, block.out_channels, norm=True)


@lru_cache(maxsize=200_000)
def layer_cost(key: LayerKey) -> Cost:
    """MACs and parameters of one layer."""
    parts = list(products(key))
    return Cost(sum(part.macs for part in parts), sum(part.parameters for part in parts))


@lru_cache(maxsize=10_000)
def cost(architecture: Architecture) -> Cost:
    """MACs and parameters of a network."""
    parts = [layer_cost(key) for key in layer_keys(architecture)]
    return Cost(sum(part.macs for part in parts), sum(part.parameters for part in parts))
