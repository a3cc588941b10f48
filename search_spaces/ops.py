"""Operators: what layers consist of. Everything else folds over lists of them.

A layer is a tuple of operators, made by :func:`search_spaces.layers.operators`. The module that is trained,
the graph that is timed, multiply-accumulates and parameters, peak memory, and the features of calibration,
gap filling and estimates are all folds over that one list. Normalisation and activation belong to their
convolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Activation = Literal["relu", "relu6", "hswish", "swish"]
Gating = Literal["hsigmoid", "sigmoid"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


def halve(size: int) -> int:
    """Side of a feature map after a padded convolution of stride 2."""
    return (size + 1) // 2


def side_after(size: int, stride: int) -> int:
    """Side of a feature map after a padded convolution of stride 1 or 2."""
    return halve(size) if stride == 2 else size


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution, padded by half its kernel, with its normalisation and activation.

    Attributes:
        size: side of the square input in pixels.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the kernel.
        stride: 1 or 2.
        groups: 1, or the channels for a depthwise convolution.
        activation: applied to the output, None for a linear one.
        norm: batch normalisation, folded at inference; a bias where False.
    """

    size: int
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    activation: Activation | Gating | None = None
    norm: bool = True

    @property
    def out_size(self) -> int:
        """Side of the output in pixels."""
        return side_after(self.size, self.stride)

    @property
    def depthwise(self) -> bool:
        """True if each channel has a kernel of its own."""
        return self.groups > 1

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
        """Weights, and a bias or scale and shift of the norm."""
        return self.weights + self.out_channels * (2 if self.norm else 1)

    @property
    def in_values(self) -> int:
        """Values of the input."""
        return self.in_channels * self.size**2

    @property
    def out_values(self) -> int:
        """Values of the output."""
        return self.out_channels * self.out_size**2


@dataclass(frozen=True, slots=True)
class Linear(Conv):
    """A linear layer on pooled features: a 1x1 convolution of one pixel, with a bias."""


@dataclass(frozen=True, slots=True)
class _OnMap:
    """An operator on a feature map that keeps its channels.

    Attributes:
        size: side of the map in pixels.
        channels: of the map.
    """

    size: int
    channels: int

    @property
    def in_values(self) -> int:
        """Values of the map."""
        return self.channels * self.size**2

    @property
    def out_values(self) -> int:
        """Values of the result: as many."""
        return self.in_values


@dataclass(frozen=True, slots=True)
class Pool(_OnMap):
    """The mean over all pixels, flattened."""

    @property
    def out_values(self) -> int:
        """Values of the output."""
        return self.channels


@dataclass(frozen=True, slots=True)
class SqueezeExcitation(_OnMap):
    """Squeeze-and-excitation: each channel times a gate computed from the means of all.

    Source: Hu et al. 2018 (arXiv 1709.01507); hard-sigmoid gate from Howard et al. 2019, 5.2 and 5.3.

    Attributes:
        squeezed: channels between the two convolutions.
        activation: between them.
        gating: of the second.
    """

    squeezed: int
    activation: Activation = "relu"
    gating: Gating = "hsigmoid"

    @property
    def convs(self) -> tuple[Conv, Conv]:
        """The two 1x1 convolutions on pooled features."""
        return (
            Conv(1, self.channels, self.squeezed, activation=self.activation, norm=False),
            Conv(1, self.squeezed, self.channels, activation=self.gating, norm=False),
        )


@dataclass(frozen=True, slots=True)
class Add(_OnMap):
    """The layer's input, added to what has been computed from it; the last operator of its layer."""


Operator = Conv | Pool | SqueezeExcitation | Add
Operators = tuple[Operator, ...]


def convolutions(operators: Iterable[Operator]) -> Iterator[Conv]:
    """All convolutions and linear layers in order, those within squeeze-and-excitation included."""
    for operator in operators:
        if isinstance(operator, Conv):
            yield operator
        elif isinstance(operator, SqueezeExcitation):
            yield from operator.convs


def roles(operators: Iterable[Operator]) -> Iterator[tuple[str, Conv]]:
    """All convolutions and linear layers in order, each with what it is there for, unlike its neighbours'.

    Of a block ``start``, ``expand``, ``depthwise``, ``squeeze``, ``excite`` and ``project``; of a head
    ``conv`` (``conv1``, ...), ``hidden`` and ``classifier``; a convolution alone in its layer is ``conv``.
    """
    found = list(operators)
    maps = [each for each in found if isinstance(each, Conv) and not isinstance(each, Linear)]
    alone = len(maps) == 1 or any(isinstance(each, Pool) for each in found)
    dense = sum(not each.depthwise for each in maps)  # still to come
    linear = sum(isinstance(each, Linear) for each in found)
    number = 0
    for operator in found:
        if isinstance(operator, SqueezeExcitation):
            yield from zip(("squeeze", "excite"), operator.convs, strict=True)
        elif isinstance(operator, Linear):
            linear -= 1
            yield ("hidden" if linear else "classifier"), operator
        elif isinstance(operator, Conv) and alone:
            yield f"conv{number or ''}", operator
            number += 1
        elif isinstance(operator, Conv) and operator.depthwise:
            yield ("start" if dense > 1 else "depthwise"), operator
        elif isinstance(operator, Conv):
            dense -= 1
            yield ("expand" if dense else "project"), operator


def peak_values(operators: Iterable[Operator]) -> int:
    """The most values that have to be held at once: input, output, and an input kept for an addition."""
    found = list(operators)
    kept = found[0].in_values if found and isinstance(found[-1], Add) else 0
    peak = 0
    for number, operator in enumerate(found):
        # The first operator reads what is kept; the addition reads it and what was computed.
        held = 0 if number == 0 else kept
        peak = max(peak, operator.in_values + operator.out_values + held)
    return peak
