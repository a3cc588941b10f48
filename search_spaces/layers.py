"""The one walk from an architecture to layers, shared by training, timing and counting.

A :class:`LayerKey` names a layer together with the size of its input: enough to build it, to time it and to
count it, and nothing else. What is trained, what is timed and what is counted therefore cannot drift apart.

The text of a layer is its kind, the side of its input, and letters with numbers made from its fields:
``ir_28_i40_x120_o40_k5_s1_se_hswish``. ``x0`` says that there is no expansion convolution, ``q`` a width of
the squeeze-and-excitation that is no quarter of the expansion, ``a`` a depthwise kernel before the expansion;
``b1`` that a head's hidden layer has a batch normalisation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from search_spaces.architecture import MAX_CLASSES, MAX_RESOLUTION, Architecture
from search_spaces.blocks import (
    BLOCKS,
    IMAGE_CHANNELS,
    MAX_CHANNELS,
    ArchitectureError,
    Block,
    Head,
    Stem,
    check_positive,
)
from search_spaces.errors import InputError
from search_spaces.ops import Activation, Operators
from search_spaces.space import SearchSpace

_FIELDS = {
    "i": "in_channels",
    "x": "expanded_channels",
    "o": "out_channels",
    "a": "start_kernel",
    "k": "kernel",
    "s": "stride",
    "q": "se_channels",
}
_HEAD_FIELDS = {"c": "conv_channels", "x": "conv_layers", "h": "hidden_channels"}
_LONGEST_TEXT = 200
_PAIR = re.compile(r"([a-z])(\d{1,7})")
_PAIRS = re.compile(r"(?:[a-z]\d{1,7})+")


class LayerKeyError(InputError):
    """A text that names no layer."""


@dataclass(frozen=True, slots=True)
class LayerKey:
    """A layer and the shape of its input, the unit of the latency table.

    Attributes:
        size: side of the square input in pixels.
        in_channels: channels of the input.
        part: the stem, block or head of the architecture.
        classes: outputs of a head, 0 for other parts.
    """

    size: int
    in_channels: int
    part: Stem | Block | Head
    classes: int = 0

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(1, channels, height, width)."""
        return (1, self.in_channels, self.size, self.size)

    def __str__(self) -> str:
        part = self.part
        if isinstance(part, Stem):
            return f"stem_{self.size}_o{part.channels}_k{part.kernel}_{part.activation}"
        if isinstance(part, Head):
            norm = "b1" if part.hidden_norm else ""
            return (
                f"head_{self.size}_i{self.in_channels}_c{part.conv_channels}x{part.conv_layers}"
                f"_h{part.hidden_channels}{norm}_n{self.classes}_{part.activation}"
            )
        kind = BLOCKS[part.kind]
        values = {letter: getattr(part, _FIELDS[letter]) for letter in kind.letters}
        if not part.expansion_conv and "x" in values:
            values["x"] = 0
        words = [kind.word, str(self.size), *(f"{letter}{value}" for letter, value in values.items())]
        if part.se:
            words += ["se"] + [f"q{part.se_channels}"] * bool(part.se_channels)
        return "_".join(words if kind.bare else [*words, part.activation])

    @classmethod
    def parse(cls, text: str) -> LayerKey:
        """Read what ``str(key)`` wrote.

        Raises:
            LayerKeyError: if the text names no layer.
        """
        try:
            key = _parse(text[:_LONGEST_TEXT])
        except (ArchitectureError, LookupError, TypeError, ValueError) as error:
            reason = f": {error}" if isinstance(error, ArchitectureError) else ""
            raise LayerKeyError(f"{text[:_LONGEST_TEXT]!r} names no layer{reason}") from None
        if str(key) != text:
            raise LayerKeyError(f"{text[:_LONGEST_TEXT]!r} names no layer")
        return key


def _parse(text: str) -> LayerKey:
    word, size_text, *words = text.split("_")
    size, pairs = int(size_text), [each for each in words if _PAIRS.fullmatch(each)]
    numbers = {letter: int(digits) for each in pairs for letter, digits in _PAIR.findall(each)}
    check_positive("layer", MAX_RESOLUTION, size=size)
    activation = cast(Activation, words[-1])  # the parts check it
    if word == "stem":
        return LayerKey(size, IMAGE_CHANNELS, Stem(numbers["o"], activation, numbers["k"]))
    if word == "head":
        fields = {name: numbers[letter] for letter, name in _HEAD_FIELDS.items()}
        check_positive("head", MAX_CHANNELS, in_channels=numbers["i"])
        check_positive("head", MAX_CLASSES, classes=numbers["n"])
        head = Head(activation=activation, **fields, hidden_norm=numbers.get("b") == 1)
        return LayerKey(size, numbers["i"], head, numbers["n"])
    (name,) = (name for name, kind in BLOCKS.items() if kind.word == word)
    bare = BLOCKS[name].bare
    fields = {_FIELDS[letter]: number for letter, number in numbers.items() if letter in _FIELDS}
    expansion_conv = fields.get("expanded_channels", 0) > 0
    if not expansion_conv:
        fields["expanded_channels"] = fields["in_channels"]
    block = Block(
        name,
        **{"kernel": 1, **fields},
        activation="relu" if bare else activation,
        se="se" in words,
        expansion_conv=expansion_conv,
    )
    return LayerKey(size, block.in_channels, block)


@lru_cache(maxsize=200_000)
def operators(key: LayerKey) -> Operators:
    """The operators of a layer, in order."""
    part = key.part
    if isinstance(part, Head):
        return part.operators(key.size, key.in_channels, key.classes)
    return part.operators(key.size)


def layer_keys(architecture: Architecture) -> tuple[LayerKey, ...]:
    """The layers of an architecture in order; identities leave no layer behind."""
    sizes = architecture.sizes()
    keys = [LayerKey(architecture.resolution, IMAGE_CHANNELS, architecture.stem)]
    for block, size in zip(architecture.blocks, sizes, strict=False):
        if not block.is_identity:
            keys.append(LayerKey(size, block.in_channels, block))
    keys.append(LayerKey(sizes[-1], architecture.out_channels, architecture.head, architecture.classes))
    return tuple(keys)


def network_operators(architecture: Architecture) -> tuple[Operators, ...]:
    """The operators of each layer of an architecture."""
    return tuple(operators(key) for key in layer_keys(architecture))


def reachable_layer_keys(space: SearchSpace) -> frozenset[LayerKey]:
    """Every layer that some member of the space contains."""
    parts = space.reachable()
    stems = {LayerKey(size, IMAGE_CHANNELS, stem) for size, stem in parts.stems}
    blocks = {
        LayerKey(size, block.in_channels, block) for size, block in parts.blocks if not block.is_identity
    }
    heads = {LayerKey(size, channels, head, space.classes) for size, channels, head in parts.heads}
    return frozenset(stems | blocks | heads)
