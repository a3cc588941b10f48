"""Weights of a trained network for another of the family: what fits is copied, what is new begins quietly.

    found = inherit(network, pretrained("mobilenet_v3_large"))
    print(found)                                   # 93 % of 2.1 M weights from mobilenet_v3_large, ...

Stages are matched by how much they have reduced the image, blocks by their place in the stage. Of each
border between layers the most important channels stay, in their order, so that neighbours agree on them;
residual borders are shared by all blocks of a stage. Kernels are cropped or padded around their middle. A
block that the source lacks begins as an identity where its shape allows: the scale of its last norm is zero.
Kinds of blocks inherit from each other what both have; a depthwise convolution that the source's block lacks
begins with handing on what it is given. A network inherits from an equal one exactly. (Cf. Cai et al. 2020,
"Once-for-All", arXiv 1908.09791.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from nas.network import Layer, Network, layers_of
from search_spaces.ops import Add, Conv, roles

# For each channel of the network the channel of the source, -1 for one that is new.
_Map = list[int]
_NEW = -1


@dataclass(frozen=True, slots=True)
class Inherited:
    """The share of a network's weights that it has from another one.

    Attributes:
        copied: weights that were copied.
        weights: of the network in all.
        identities: blocks that begin as identities.
        source: name of the other one.
        classifier: whether the classifier was copied: only for the same number of classes.
    """

    copied: int
    weights: int
    identities: int
    source: str
    classifier: bool

    def __str__(self) -> str:
        text = f"{self.copied / self.weights:.0%} of {self.weights / 1e6:.2f} M weights from {self.source}"
        if self.identities:
            text += f", {self.identities} new block{'s' if self.identities > 1 else ''} as identities"
        return text if self.classifier else f"{text}, a classifier of its own"


def inherit(network: Network, source: Network, name: str = "the source") -> Inherited:
    """Give a network what it can use of another one's weights.

    Args:
        network: filled in place; what cannot be had keeps its initial values.
        source: trained; not changed.
        name: of the source, for what is reported.
    """
    mine, theirs = _Parts(network), _Parts(source)
    copied, identities = 0, 0
    # By border: the source's border and channels that it holds.
    known = {0: (0, _chosen(theirs.importance(0), mine.channels[0]))}
    with torch.no_grad():
        copied += _copy(mine.stem, theirs.stem, [0, 1, 2], known[0][1])
        for number, partner in enumerate(_matched(mine, theirs)):
            before, after = mine.borders[number], mine.borders[number + 1]
            lacking = partner is None or (after in known and known[after][0] != theirs.borders[partner + 1])
            if partner is None or lacking:
                # It adds to a border whose channels it knows nothing of.
                identities += _silence(_last(mine.blocks[number]))
                known.setdefault(after, (_NEW, [_NEW] * mine.channels[after]))
                continue
            inputs = _agreed(known[before], theirs.borders[partner], theirs, mine.channels[before])
            if after not in known:
                border = theirs.borders[partner + 1]
                known[after] = (border, _chosen(theirs.importance(border), mine.channels[after]))
            copied += _copy_block(mine.blocks[number], theirs.blocks[partner], inputs, known[after][1])
        same = network.architecture.classes == source.architecture.classes
        last = mine.borders[-1]
        inputs = _agreed(known[last], theirs.borders[-1], theirs, mine.channels[last])
        copied += _copy_head(mine.head, theirs.head, inputs, same)
    weights = sum(each.numel() for each in network.parameters())
    return Inherited(copied, weights, identities, name, same)


@dataclass(frozen=True, slots=True)
class _Product:
    """A convolution or linear layer with its norm."""

    role: str
    conv: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None

    def importance(self) -> Tensor:
        """Of each output channel: the scale of its norm, or the size of its filter."""
        if self.norm is not None:
            return self.norm.weight.detach().abs()
        return self.conv.weight.detach().abs().flatten(1).sum(1)


class _Parts:
    """A network taken apart: stem, blocks, head, and the borders between them.

    Attributes:
        borders: for the stem's output and each block's the number of the first border that must hold the same
            channels: a residual adds to what came before.
    """

    def __init__(self, network: Network) -> None:
        stem, *blocks, head = layers_of(network)
        self.stem = _products(stem)["conv"]
        self.blocks = [_products(block) for block in blocks]
        self.head = _products(head)
        self.borders = [0]
        self.strides: list[int] = []
        self._producers: dict[int, list[_Product]] = {0: [self.stem]}
        self.channels = {0: self.stem.conv.weight.shape[0]}
        stride = 2
        for number, (block, products) in enumerate(zip(blocks, self.blocks, strict=True), start=1):
            shared = any(isinstance(each, Add) for each in block.operators)
            border = self.borders[-1] if shared else number
            stride *= math.prod(each.stride for each in block.operators if isinstance(each, Conv))
            self.borders.append(border)
            self.strides.append(stride)
            self._producers.setdefault(border, []).append(_last(products))
            self.channels[border] = _last(products).conv.weight.shape[0]

    def importance(self, border: int) -> Tensor:
        """Of each channel of a border: the mean over the layers that write to it."""
        return torch.stack([each.importance() for each in self._producers[border]]).mean(0)

    def stages(self) -> Iterator[tuple[int, list[int]]]:
        """Output stride and blocks of each stage: blocks that share a border."""
        numbers = range(len(self.blocks))
        for _, members in groupby(numbers, key=lambda number: self.borders[number + 1]):
            found = list(members)
            yield self.strides[found[0]], found


def _products(layer: Layer) -> dict[str, _Product]:
    """The convolutions and linear layers of a layer by what they are there for."""
    modules = [each for each in layer.modules() if isinstance(each, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    found: dict[str, _Product] = {}
    remaining = roles(layer.operators)
    for place, module in enumerate(modules):
        if isinstance(module, nn.BatchNorm2d):
            continue
        following = modules[place + 1] if place + 1 < len(modules) else None
        norm = following if isinstance(following, nn.BatchNorm2d) else None
        role, _ = next(remaining)
        found[role] = _Product(role, module, norm)
    return found


def _last(products: Mapping[str, _Product]) -> _Product:
    """The last of a block's products, which writes to the border behind it."""
    return [*products.values()][-1]


# -- who inherits from whom ------------------------------------------------------------------------


def _matched(mine: _Parts, theirs: _Parts) -> Iterator[int | None]:
    """For each block the block of the source, None where there is none."""
    by_stride: dict[int, list[list[int]]] = {}
    for stride, members in theirs.stages():
        by_stride.setdefault(stride, []).append(members)
    seen: dict[int, int] = {}
    nearest = sorted(by_stride)
    for stride, members in mine.stages():
        place = seen.get(stride, 0)
        seen[stride] = place + 1
        stages = by_stride.get(stride) or by_stride[min(nearest, key=lambda each: abs(each - stride))]
        partners = stages[min(place, len(stages) - 1)]
        for number in range(len(members)):
            yield partners[number] if number < len(partners) else None


def _agreed(known: tuple[int, _Map], border: int, theirs: _Parts, channels: int) -> _Map:
    """The channels of a border as the source's next layer has them."""
    return known[1] if known[0] == border else _chosen(theirs.importance(border), channels)


def _chosen(importance: Tensor, wanted: int) -> _Map:
    """The most important channels in their own order, and new ones where there are too few."""
    have = len(importance)
    if wanted >= have:
        return [*range(have), *([_NEW] * (wanted - have))]
    return sorted(torch.topk(importance, wanted).indices.tolist())


# -- copying ---------------------------------------------------------------------------------------


def _copy(mine: _Product, theirs: _Product, inputs: Sequence[int], outputs: Sequence[int]) -> int:
    """Copy one product; weights copied. New inputs of known outputs are zero: they change nothing yet."""
    own, other = mine.conv.weight, theirs.conv.weight
    rows = [place for place, channel in enumerate(outputs) if channel != _NEW]
    columns = [place for place, channel in enumerate(inputs) if channel != _NEW]
    if not rows:
        return 0
    taken = other[[outputs[place] for place in rows]]
    depthwise = isinstance(mine.conv, nn.Conv2d) and mine.conv.groups > 1
    if not depthwise:
        taken = taken[:, [inputs[place] for place in columns]]
    if own.ndim == 4:
        taken = _resized(taken, own.shape[-1])
    if depthwise:
        own[rows] = taken
    else:
        filled = torch.zeros_like(own[rows])
        filled[:, columns] = taken
        own[rows] = filled
    copied = taken.numel()
    pairs: list[tuple[Tensor | None, Tensor | None]] = [(mine.conv.bias, theirs.conv.bias)]
    if mine.norm is not None and theirs.norm is not None:
        mine.norm.eps = theirs.norm.eps
        pairs += [(mine.norm.weight, theirs.norm.weight), (mine.norm.bias, theirs.norm.bias)]
        for name in ("running_mean", "running_var"):
            getattr(mine.norm, name)[rows] = getattr(theirs.norm, name)[[outputs[place] for place in rows]]
    for to, from_ in pairs:
        if to is not None and from_ is not None:
            to[rows] = from_[[outputs[place] for place in rows]]
            copied += len(rows)
    return copied


def _resized(weight: Tensor, kernel: int) -> Tensor:
    margin = (weight.shape[-1] - kernel) // 2
    if margin > 0:
        return weight[:, :, margin : margin + kernel, margin : margin + kernel]
    return nn.functional.pad(weight, [-margin] * 4)


def _copy_block(mine: dict[str, _Product], theirs: dict[str, _Product], before: _Map, after: _Map) -> int:
    if "project" not in mine or "project" not in theirs:
        # A skip that changes the shape has one convolution for all.
        return _copy(mine["conv"], theirs["conv"], before, after) if mine.keys() == theirs.keys() else 0
    width = mine["project"].conv.weight.shape[1]
    importances = [theirs[role].importance() for role in ("depthwise", "expand") if role in theirs]
    if "expand" in mine and "expand" in theirs:
        inside = _chosen(torch.stack(importances).prod(0), width)
    elif "expand" not in mine and "expand" not in theirs:
        inside = before  # the block's own channels are its input's
    else:
        inside = _chosen(importances[0], width)
    copied = 0
    for role, channels in (("start", before), ("depthwise", inside)):
        if role in mine and role in theirs:
            copied += _copy(mine[role], theirs[role], [0], channels)
        elif role in mine:
            _pass_on(mine[role])
    if "expand" in mine and "expand" in theirs:
        copied += _copy(mine["expand"], theirs["expand"], before, inside)
    if "squeeze" in mine and "squeeze" in theirs:
        squeezed = _chosen(theirs["squeeze"].importance(), mine["squeeze"].conv.weight.shape[0])
        copied += _copy(mine["squeeze"], theirs["squeeze"], inside, squeezed)
        copied += _copy(mine["excite"], theirs["excite"], squeezed, inside)
    return copied + _copy(mine["project"], theirs["project"], inside, after)


def _pass_on(depthwise: _Product) -> None:
    """Let a depthwise convolution that the source lacks begin with handing on what it is given."""
    weight, norm = depthwise.conv.weight, depthwise.norm
    nn.init.zeros_(weight)
    # The norm's statistics are fresh, but for its epsilon an identity.
    weight[:, :, weight.shape[-2] // 2, weight.shape[-1] // 2] = math.sqrt(1 + norm.eps) if norm else 1.0


def _copy_head(mine: dict[str, _Product], theirs: dict[str, _Product], before: _Map, classes: bool) -> int:
    copied, inputs = 0, before
    *inner, classifier = mine
    *their_inner, _ = theirs
    for role in inner:
        if role not in their_inner:
            return copied  # another form of head: what follows is new
        outputs = _chosen(theirs[role].importance(), mine[role].conv.weight.shape[0])
        copied += _copy(mine[role], theirs[role], inputs, outputs)
        inputs = outputs
    if classes and inner == their_inner:
        count = mine[classifier].conv.weight.shape[0]
        copied += _copy(mine[classifier], theirs[classifier], inputs, range(count))
    return copied


def _silence(projection: _Product) -> bool:
    """Let a block with a residual begin as an identity."""
    norm = projection.norm
    if norm is None:
        return False
    nn.init.zeros_(norm.weight)
    return True
