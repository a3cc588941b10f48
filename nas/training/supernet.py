"""One network that holds the weights of every member of a search space, each member a slice of them.

    supernet = Supernet(space)
    logits = supernet(images, member)         # with the statistics of the batch, for training
    network = supernet.network(member)        # a plain nas.network.Network with a copy of its weights
    calibrate(network, batches)               # batch normalisation's statistics, of this member alone

A member takes the first channels of each shared tensor and the centre of each shared kernel, and of each
stage the first blocks (Yu et al. 2019, arXiv 1812.08928; Cai et al. 2020, arXiv 1908.09791). What computes
it are the layers of :mod:`nas.network` themselves, which borrow their weights: a member and the network taken
out of it cannot drift apart. Blocks in the same place share weights whatever their kernel, expansion,
activation and squeeze-and-excitation, and universal inverted bottlenecks whatever their depthwise
convolutions; blocks of different kinds do not, nor do heads with other parts.
Statistics of batch normalisation are never shared: they belong to a member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from nas.network import Layer, Network, build_layer
from search_spaces.architecture import Architecture
from search_spaces.blocks import BLOCKS, Block, Head
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.ops import Linear, Operators, roles
from search_spaces.space import SearchSpace
from search_spaces.stage import CandidateStage, Stage, Value, reach, states_after

# Mean and variance of each batch normalisation of a network, in order.
Statistics = Sequence[tuple[Tensor, Tensor]]
# Layers of members that were met, kept ready: they hold no weights.
_KEPT_LAYERS = 20_000
_KEPT_MEMBERS = 4_096


class Supernet(nn.Module):
    """The shared weights of all members of a space.

    Args:
        space: what its members are.

    Attributes:
        space: the same.
        shared: the shared tensors by place and role, as ``stage2/block1/ir/expand/weight``.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.shared = nn.ParameterDict(
            {name: nn.Parameter(_initial(name, shape)) for name, shape in sorted(_shapes(space).items())}
        )
        self._places = lru_cache(_KEPT_MEMBERS)(_Places(space))
        self._layers = lru_cache(_KEPT_LAYERS)(_BorrowingLayer)

    def forward(
        self,
        images: Tensor,
        member: Architecture,
        statistics: Statistics | None = None,
        dropout: bool = False,
    ) -> Tensor:
        """Logits (N, classes) of a member for images (N, 3, H, W) of its resolution.

        Args:
            images: normalised.
            member: of the space.
            statistics: of its batch normalisations; None takes those of the batch, of all processes where
                several train together.
            dropout: whether the classifier drops inputs.

        Raises:
            NotInSpaceError: if the space does not contain the member.
        """
        remaining = iter(statistics) if statistics is not None else None
        features = images
        for key, place in zip(layer_keys(member), self._places(member), strict=True):
            layer = self._layers(key)
            features = layer(features, self._slices(place, layer.operators), remaining, dropout)
        return features

    def network(self, member: Architecture) -> Network:
        """A member as a network of its own, with a copy of its weights and fresh statistics.

        Raises:
            NotInSpaceError: if the space does not contain the member.
        """
        places = self._places(member)
        with torch.random.fork_rng(devices=[]):
            network = Network(member)
        network.to(next(self.parameters()).device)
        with torch.no_grad():
            for own, shared in self._pairs(network, places):
                own.copy_(shared)
        return network

    def load(self, network: Network) -> None:
        """Take over the weights of a member, for instance of one that was pretrained.

        Raises:
            NotInSpaceError: if the space does not contain it.
        """
        with torch.no_grad():
            for own, shared in self._pairs(network, self._places(network.architecture)):
                shared.copy_(own)

    def parameter_count(self) -> int:
        """Weights shared by all members."""
        return sum(each.numel() for each in self.parameters())

    def _pairs(self, network: Network, places: Sequence[str]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for layer, place in zip(network.layers, places, strict=True):
            assert isinstance(layer, Layer)
            yield from zip(layer.parameters(), self._slices(place, layer.operators), strict=True)

    def _slices(self, place: str, made_of: Operators) -> list[Tensor]:
        """The shared tensors of a layer as it needs them, in the order of its parameters."""
        found: list[Tensor] = []
        for role, conv in roles(made_of):
            name = f"{place}/{role}"
            weight = self.shared[f"{name}/weight"][: conv.out_channels, : conv.in_channels // conv.groups]
            if not isinstance(conv, Linear):
                margin = (weight.shape[-1] - conv.kernel) // 2
                weight = weight[:, :, margin : margin + conv.kernel, margin : margin + conv.kernel]
            found.append(weight)
            for each in _VECTORS[conv.norm]:
                found.append(self.shared[f"{name}/{each}"][: conv.out_channels])
        return found


# What a convolution has beside its weight: with a norm and without.
_VECTORS = {True: ("scale", "shift"), False: ("bias",)}


class _BorrowingLayer:
    """A layer of :mod:`nas.network` without weights of its own."""

    def __init__(self, key: LayerKey) -> None:
        # Its weights are thrown away: random numbers of the caller are not spent on them.
        with torch.random.fork_rng(devices=[]):
            layer = build_layer(key)
        self.operators = layer.operators
        self._layer = layer
        self._norms: list[_Norm] = []
        for number, module in enumerate(layer.body):
            if isinstance(module, nn.BatchNorm2d):
                norm = _Norm(module.eps)
                self._norms.append(norm)
                layer.body[number] = norm
            elif isinstance(module, nn.Dropout):
                layer.body[number] = _Dropout(module.p)
        # What is borrowed: (module, name), in the order of the layer's parameters.
        self._borrowed: list[tuple[nn.Module, str]] = []
        for module in layer.modules():
            if isinstance(module, _Norm):
                self._borrowed += [(module, "scale"), (module, "shift")]
            elif isinstance(module, nn.Conv2d | nn.Linear):
                names = [name for name, each in module._parameters.items() if each is not None]
                for name in names:
                    # A plain attribute can be any tensor, a slice of a parameter among them.
                    del module._parameters[name]
                self._borrowed += [(module, name) for name in names]

    def __call__(
        self,
        features: Tensor,
        weights: Sequence[Tensor],
        statistics: Iterator[tuple[Tensor, Tensor]] | None,
        dropout: bool,
    ) -> Tensor:
        for (module, name), weight in zip(self._borrowed, weights, strict=True):
            setattr(module, name, weight)
        for norm in self._norms:
            norm.statistics = next(statistics) if statistics is not None else None
        self._layer.train(dropout)
        computed: Tensor = self._layer(features)
        return computed


class _Norm(nn.Module):
    """Batch normalisation with given statistics, or with those of the batch of all processes."""

    scale: Tensor
    shift: Tensor

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.statistics: tuple[Tensor, Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) or (N, C), normalised in each channel."""
        if self.statistics is not None:
            mean, variance = self.statistics
            return functional.batch_norm(
                features, mean, variance, self.scale, self.shift, False, eps=self.epsilon
            )
        if world_size() == 1:
            return functional.batch_norm(features, None, None, self.scale, self.shift, True, eps=self.epsilon)
        return self._together(features)

    def _together(self, features: Tensor) -> Tensor:
        # torch's SyncBatchNorm exists for CUDA only; two sums, each with its gradient across processes.
        exact = features.float()
        count = exact[:, 0].numel() * world_size()
        # Feature maps, or pooled features.
        others, shape = [0, *range(2, exact.ndim)], (-1, *[1] * (exact.ndim - 2))
        mean: Tensor = _sum_of_all(exact.sum(others)) / count
        centred = exact - mean.reshape(shape)
        variance: Tensor = _sum_of_all(centred.square().sum(others)) / count
        scale = self.scale * torch.rsqrt(variance + self.epsilon)
        return (centred * scale.reshape(shape) + self.shift.reshape(shape)).to(features.dtype)


class _Dropout(nn.Dropout):
    """Dropout that does not depend on how a batch is shared among processes, given one seed for all."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, ...), single values set to zero."""
        if not self.training or not self.p:
            return features
        count, rank = world_size(), distributed.get_rank() if world_size() > 1 else 0
        whole = torch.rand(len(features) * count, *features.shape[1:], device=features.device)
        return features * (whole[rank::count] >= self.p) / (1 - self.p)


class _SumOfAll(torch.autograd.Function):
    """The sum over all processes; gradients flow back to each of them."""

    @staticmethod
    def forward(context: object, own: Tensor) -> Tensor:
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def _sum_of_all(own: Tensor) -> Tensor:
    total: Tensor = _SumOfAll.apply(own)
    return total


def world_size() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def calibrate(network: Network, batches: Iterable[Tensor]) -> Statistics:
    """Give a network the statistics of batch normalisation that its own features have.

    Args:
        network: changed in place; evaluates afterwards.
        batches: training images, (N, 3, H, W) each.

    Returns:
        Mean and variance of each normalisation, in order.
    """
    # Their plain average over the batches.
    update_bn(batches, network, next(network.parameters()).device)
    network.eval()
    found: list[tuple[Tensor, Tensor]] = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            found.append((module.running_mean, module.running_var))
    return found


# What orders choices that are no numbers.
_Ranks = dict[Value, tuple[float, ...]]


def extreme_member(space: SearchSpace, end: Literal["largest", "smallest"]) -> Architecture:
    """The member with the largest, or the smallest, value of every parameter.

    Of what has no order, activations for instance, the first candidate; but of kinds of blocks, which share
    no weights, the largest has the last.
    """
    stems: _Ranks = {each.label: (each.channels, each.kernel) for each in space.stems}
    heads: _Ranks = {
        each.label: (each.conv_ratio, each.conv_channels, each.hidden_channels) for each in space.heads
    }
    candidates: _Ranks = {
        candidate.label: (
            candidate.kind != "skip",
            candidate.expansion,
            candidate.start_kernel + candidate.kernel,
            candidate.se,
        )
        for stage in space.stages
        if isinstance(stage, CandidateStage)
        for candidate in stage.candidates
    }
    kinds: _Ranks = {
        kind: (place,)
        for stage in space.stages
        if isinstance(stage, Stage)
        for place, kind in enumerate(stage.kinds)
    }
    ranks = {**stems, **heads, **candidates, **kinds}
    largest = end == "largest"

    def choose(name: str, choices: tuple[Value, ...]) -> Value:
        numbers = [each for each in choices if not isinstance(each, str)]
        if len(numbers) == len(choices):
            return sorted(numbers, reverse=largest)[0]
        if all(each in ranks for each in choices):
            return sorted(choices, key=lambda each: ranks[each], reverse=largest)[0]
        return choices[0]

    return space.compose(choose)


# -- places and shapes -----------------------------------------------------------------------------


class _Places:
    """Where the weights of each layer of a member lie."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space

    def __call__(self, member: Architecture) -> tuple[str, ...]:
        parameters = self._space.encode(member)
        rows = iter(member.blocks)
        places = ["stem"]
        for number, stage in enumerate(self._space.stages, start=1):
            depth = int(parameters.get(f"stage{number}.depth", stage.depths[0]))
            for row in range(1, depth + 1):
                block = next(rows)
                if not block.is_identity:
                    places.append(_block_place(number, row, block))
        return (*places, _head_place(member.head))


def _block_place(stage: int, row: int, block: Block) -> str:
    return f"stage{stage}/block{row}/{BLOCKS[block.kind].word}"


def _head_place(head: Head) -> str:
    # Features of a hidden layer and of a convolution are not the same thing to a classifier.
    return "head" + "_conv" * bool(head.conv_channels) + "_hidden" * bool(head.hidden_channels)


def _reachable(space: SearchSpace) -> Iterator[tuple[str, Operators]]:
    """Every layer of every member by its place, for images of whatever size."""
    rounding = space.rounding
    for multiplier in space.width_multipliers:
        stems = {each.build(rounding, multiplier) for each in space.stems}
        yield from (("stem", each.operators(1)) for each in stems)
        states = {(each.channels, 1) for each in stems}
        for number, stage in enumerate(space.stages, start=1):
            after = states
            for row in range(1, max(stage.depths) + 1):
                layer = _one_layer(stage, row)
                found = reach(layer, after, rounding, multiplier)
                after = states_after(layer, after, rounding, multiplier)
                if row > 1:
                    # The width of a stage is chosen once.
                    found = {(size, each) for size, each in found if each.in_channels == each.out_channels}
                yield from (
                    (_block_place(number, row, each), each.operators(1))
                    for _, each in found
                    if not each.is_identity
                )
            states = states_after(stage, states, rounding, multiplier)
        for channels, _ in states:
            for choice in space.heads:
                head = choice.build(rounding, multiplier, channels)
                yield _head_place(head), head.operators(1, channels, space.classes)


def _one_layer(stage: Stage | CandidateStage, row: int) -> Stage | CandidateStage:
    stride = stage.stride if row == 1 else 1
    if isinstance(stage, CandidateStage):
        return replace(stage, stride=stride, layers=1)
    return replace(stage, stride=stride, depths=(1,))


def _shapes(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    """Shapes of the shared tensors: large enough for every layer in their place."""
    shapes: dict[str, tuple[int, ...]] = {}

    def enlarge(name: str, *needed: int) -> None:
        shapes[name] = tuple(map(max, shapes.get(name, needed), needed))

    for place, made_of in set(_reachable(space)):
        for role, conv in roles(made_of):
            kernel = () if isinstance(conv, Linear) else (conv.kernel, conv.kernel)
            enlarge(f"{place}/{role}/weight", conv.out_channels, conv.in_channels // conv.groups, *kernel)
            for each in _VECTORS[conv.norm]:
                enlarge(f"{place}/{role}/{each}", conv.out_channels)
    return shapes


def _initial(name: str, shape: tuple[int, ...]) -> Tensor:
    """As :mod:`nas.network` initialises networks."""
    tensor = torch.zeros(shape)
    if name.endswith("/scale"):
        tensor += 1
    elif len(shape) == 4:
        nn.init.kaiming_normal_(tensor, mode="fan_out")
    elif len(shape) == 2:
        nn.init.normal_(tensor, 0.0, 0.01)
    return tensor
