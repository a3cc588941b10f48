"""The one walk from an architecture to layers, shared by training, timing and counting.

A :class:`LayerKey` names a layer together with the size of its input: enough to build it, to time it
and to count it, and nothing else. What is trained, what is timed and what is counted therefore cannot
drift apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from search_spaces.architecture import (
    Activation,
    Architecture,
    ArchitectureError,
    Block,
    Head,
    Stem,
    squeeze_channels,
)
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace

IMAGE_CHANNELS = 3

# TensorFlow's MobileNets, V1 to V3: epsilon 0.001; momentum as MobileNetV3 (0.99 there is 0.01 here).
_NORM_EPSILON = 1e-3
_NORM_MOMENTUM = 0.01
_CLASSIFIER_DROPOUT = 0.2


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
            return (
                f"head_{self.size}_i{self.in_channels}_c{part.conv_channels}x{part.conv_layers}"
                f"_h{part.hidden_channels}_n{self.classes}_{part.activation}"
            )
        shape = f"{self.size}_i{part.in_channels}"
        if part.kind == "skip":
            return f"skip_{shape}_o{part.out_channels}_s{part.stride}"
        se = "_se" if part.se else ""
        tail = f"o{part.out_channels}_k{part.kernel}_s{part.stride}{se}_{part.activation}"
        if part.kind == "depthwise_separable":
            return f"ds_{shape}_{tail}"
        # x0: no expansion convolution, expanded channels are the input's.
        return f"ir_{shape}_x{part.expanded_channels if part.expansion_conv else 0}_{tail}"

    @classmethod
    def parse(cls, text: str) -> LayerKey:
        """Read what ``str(key)`` wrote.

        Raises:
            LayerKeyError: if the text names no layer.
        """
        for pattern, read in _KEY_PATTERNS:
            match = pattern.fullmatch(text)
            if match:
                try:
                    return read(match.groupdict())
                except ArchitectureError as error:
                    raise LayerKeyError(f"{text!r} names no layer: {error}") from None
        raise LayerKeyError(f"{text!r} names no layer")


_TAIL = r"_o(?P<out>\d+)_k(?P<kernel>\d+)_s(?P<stride>\d)(?P<se>_se)?_(?P<activation>[a-z0-9]+)"


def _read_stem(found: dict[str, str]) -> LayerKey:
    stem = Stem(int(found["out"]), _activation(found), int(found["kernel"]))
    return LayerKey(int(found["size"]), IMAGE_CHANNELS, stem)


def _read_inverted_residual(found: dict[str, str]) -> LayerKey:
    return _read_block(found, "inverted_residual", int(found["expanded"]))


def _read_block(found: dict[str, str], kind: str, expanded: int = 0) -> LayerKey:
    in_channels = int(found["in"])
    block = Block(
        kind=kind,  # type: ignore[arg-type]
        kernel=int(found["kernel"]),
        in_channels=in_channels,
        expanded_channels=expanded or in_channels,
        out_channels=int(found["out"]),
        stride=int(found["stride"]),
        activation=_activation(found),
        se=bool(found["se"]),
        expansion_conv=expanded > 0,
    )
    return LayerKey(int(found["size"]), in_channels, block)


def _read_skip(found: dict[str, str]) -> LayerKey:
    channels, out = int(found["in"]), int(found["out"])
    block = Block("skip", 1, channels, channels, out, int(found["stride"]), "relu", False, False)
    return LayerKey(int(found["size"]), channels, block)


def _read_head(found: dict[str, str]) -> LayerKey:
    head = Head(int(found["conv"]), int(found["hidden"]), _activation(found), int(found["layers"]))
    return LayerKey(int(found["size"]), int(found["in"]), head, int(found["classes"]))


def _activation(found: dict[str, str]) -> Activation:
    return found["activation"]  # type: ignore[return-value]  # Stem, Block and Head check it


_KEY_PATTERNS = (
    (re.compile(r"stem_(?P<size>\d+)_o(?P<out>\d+)_k(?P<kernel>\d+)_(?P<activation>[a-z0-9]+)"), _read_stem),
    (re.compile(r"ir_(?P<size>\d+)_i(?P<in>\d+)_x(?P<expanded>\d+)" + _TAIL), _read_inverted_residual),
    (
        re.compile(r"ds_(?P<size>\d+)_i(?P<in>\d+)" + _TAIL),
        lambda found: _read_block(found, "depthwise_separable"),
    ),
    (re.compile(r"skip_(?P<size>\d+)_i(?P<in>\d+)_o(?P<out>\d+)_s(?P<stride>\d)"), _read_skip),
    (
        re.compile(
            r"head_(?P<size>\d+)_i(?P<in>\d+)_c(?P<conv>\d+)x(?P<layers>\d+)_h(?P<hidden>\d+)"
            r"_n(?P<classes>\d+)_(?P<activation>[a-z0-9]+)"
        ),
        _read_head,
    ),
)


def layer_keys(architecture: Architecture) -> tuple[LayerKey, ...]:
    """The layers of an architecture in order; identities leave no layer behind."""
    sizes = architecture.sizes()
    keys = [LayerKey(architecture.resolution, IMAGE_CHANNELS, architecture.stem)]
    for block, size in zip(architecture.blocks, sizes, strict=False):
        if not block.is_identity:
            keys.append(LayerKey(size, block.in_channels, block))
    keys.append(LayerKey(sizes[-1], architecture.out_channels, architecture.head, architecture.classes))
    return tuple(keys)


def reachable_layer_keys(space: SearchSpace) -> frozenset[LayerKey]:
    """Every layer that some member of the space contains."""
    parts = space.reachable()
    stems = {LayerKey(size, IMAGE_CHANNELS, stem) for size, stem in parts.stems}
    blocks = {
        LayerKey(size, block.in_channels, block) for size, block in parts.blocks if not block.is_identity
    }
    heads = {LayerKey(size, channels, head, space.classes) for size, channels, head in parts.heads}
    return frozenset(stems | blocks | heads)


class SqueezeExcitation(nn.Module):
    """Channel attention as MobileNetV3 has it: pool, ReLU bottleneck, hard-sigmoid gate.

    Source: Hu et al. 2018 (arXiv 1709.01507); gate and width from Howard et al. 2019, 5.2 and 5.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = squeeze_channels(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), each channel scaled by its gate in [0, 1]."""
        weights: Tensor = self.gate(self.expand(self.activation(self.reduce(self.pool(features)))))
        return features * weights


class Residual(nn.Module):
    """Adds its input to the output of ``body``, which keeps the shape."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        summed: Tensor = features + self.body(features)
        return summed


def activation_module(activation: Activation) -> nn.Module:
    """The nonlinearity of that name."""
    kinds: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hswish": nn.Hardswish}
    return kinds[activation](inplace=True)


def build_layer(key: LayerKey) -> nn.Module:
    """The layer a key names: (N, *key.input_shape[1:]) -> a feature map, or logits for a head."""
    part = key.part
    if isinstance(part, Stem):
        return nn.Sequential(*_conv(key.in_channels, part.channels, part.kernel, 2, 1, part.activation))
    if isinstance(part, Head):
        return _build_head(part, key.in_channels, key.classes)
    return _build_block(part)


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int, groups: int, activation: Activation | None
) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=_NORM_EPSILON, momentum=_NORM_MOMENTUM),
    ]
    return layers if activation is None else [*layers, activation_module(activation)]


def _build_block(block: Block) -> nn.Module:
    if block.kind == "skip":
        if block.is_identity:
            return nn.Identity()
        return nn.Sequential(*_conv(block.in_channels, block.out_channels, 1, block.stride, 1, None))
    layers: list[nn.Module] = []
    expanded = block.expanded_channels
    if block.expansion_conv:
        layers += _conv(block.in_channels, expanded, 1, 1, 1, block.activation)
    layers += _conv(expanded, expanded, block.kernel, block.stride, expanded, block.activation)
    if block.se:
        layers.append(SqueezeExcitation(expanded))
    # V1 activates the projection; the bottleneck of V2 and V3 is linear (Sandler et al. 2018, 3.2).
    projection_activation = block.activation if block.kind == "depthwise_separable" else None
    layers += _conv(expanded, block.out_channels, 1, 1, 1, projection_activation)
    body = nn.Sequential(*layers)
    return Residual(body) if block.has_residual else body


def _build_head(head: Head, in_channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(head.conv_layers if head.conv_channels else 0):
        layers += _conv(in_channels, head.conv_channels, 1, 1, 1, head.activation)
        in_channels = head.conv_channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if head.hidden_channels:
        layers += [nn.Linear(in_channels, head.hidden_channels), activation_module(head.activation)]
        in_channels = head.hidden_channels
    layers += [nn.Dropout(_CLASSIFIER_DROPOUT), nn.Linear(in_channels, classes)]
    return nn.Sequential(*layers)
