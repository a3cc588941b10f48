import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas.network import Network
from nas.training import supernet as supernet_module
from nas.training.supernet import Supernet, calibrate, extreme_member
from search_spaces.architecture import Architecture
from search_spaces.references import reference
from search_spaces.space import NotInSpaceError, SearchSpace
from tests.cases import small_space

# Everything there is to choose: depth (an absent stage too), width, multiplier, kernel, expansion (none too),
# squeeze-and-excitation, activation, stem, head, resolution.
ELASTIC: dict[str, Any] = {
    "name": "elastic",
    "resolutions": [16, 24],
    "width_multipliers": [0.5, 1.0],
    "stems": [{"channels": 8, "activation": "hswish"}, {"channels": 16}],
    "stages": [
        {
            "stride": 2,
            "depths": [1, 2],
            "widths": [16, 24],
            "kernels": [3, 5],
            "expansions": [1, 3, 4],
            "se": [False, True],
            "activations": ["relu", "hswish"],
            "per_block": ["kernels", "expansions", "se"],
        },
        {"stride": 2, "depths": [0, 1], "widths": [32], "kernels": [3, 7], "expansions": [2]},
        {"stride": 1, "depths": [1], "widths": [24], "expansions": [1], "kind": "depthwise_separable"},
    ],
    "heads": [{"conv_channels": 32}, {"conv_ratio": 2, "hidden_channels": 16, "activation": "hswish"}],
    "classes": 4,
}


# Universal bottlenecks in all their forms, and kinds to choose from.
UNIVERSAL: dict[str, Any] = {
    "name": "universal",
    "resolutions": [16],
    "width_multipliers": [0.5, 1.0],
    "stems": [{"channels": 16, "activation": "relu"}],
    "stages": [
        {
            "stride": 2,
            "depths": [1],
            "widths": [16],
            "kinds": ["convolution_pair", "fused_inverted_bottleneck"],
            "kernels": [3, 5],
            "expansions": [1, 2],
        },
        {
            "stride": 2,
            "depths": [1, 3],
            "widths": [24, 32],
            "kind": "universal_inverted_bottleneck",
            "start_kernels": [0, 3, 5],
            "kernels": [0, 3, 5],
            "expansions": [1, 3],
            "se": [False, True],
            "per_block": ["start_kernels", "kernels", "expansions", "se"],
        },
    ],
    "heads": [{"conv_channels": 32, "hidden_channels": 16, "activation": "relu", "hidden_norm": True}],
    "classes": 4,
}


def universal_space() -> SearchSpace:
    return SearchSpace.from_dict(UNIVERSAL)


def elastic_space() -> SearchSpace:
    return SearchSpace.from_dict(ELASTIC)


def members(space: SearchSpace, count: int) -> list[Architecture]:
    generator = random.Random(1)
    extremes = [extreme_member(space, "largest"), extreme_member(space, "smallest")]
    return [*extremes, *(space.sample(generator) for _ in range(count))]


def images(member: Architecture, seed: int = 0, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, member.resolution, member.resolution, generator=generator)


@pytest.mark.parametrize(
    "space", [elastic_space(), universal_space(), small_space()], ids=["values", "universal", "candidates"]
)
def test_a_member_taken_out_gives_the_supernet_s_output_exactly(space: SearchSpace) -> None:
    supernet = Supernet(space)
    with torch.no_grad():
        for each in supernet.parameters():
            each += 0.1 * torch.rand_like(each)
    for member in members(space, 12):
        network = supernet.network(member)
        statistics = calibrate(network, [images(member, seed) for seed in range(3)])
        seen = images(member, 9)
        assert torch.equal(supernet(seen, member, statistics), network(seen))
        assert not torch.equal(supernet(seen, member), network(seen))
        # In training: the statistics of the batch, and a classifier that drops nothing.
        for module in network.train().modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        assert torch.equal(supernet(seen, member), network(seen))


def test_a_member_is_the_first_channels_first_blocks_and_centre_of_the_kernels() -> None:
    supernet = Supernet(elastic_space())
    large, small = (extreme_member(supernet.space, end) for end in ("largest", "smallest"))
    of_large, of_small = (dict(supernet.network(each).named_parameters()) for each in (large, small))
    assert (large.blocks[0].kernel, small.blocks[0].kernel) == (5, 3)
    kernel, cropped = supernet.shared["stage1/block1/ir/depthwise/weight"], small.blocks[0].expanded_channels
    # Without an expansion the depthwise convolution comes first.
    assert torch.equal(of_small["layers.1.body.0.weight"], kernel[:cropped, :, 1:4, 1:4])
    assert torch.equal(of_large["layers.1.body.3.weight"], kernel)
    stem = supernet.shared["stem/conv/weight"]
    assert torch.equal(of_small["layers.0.body.0.weight"], stem[: small.stem.channels])


def test_no_shared_tensor_is_larger_than_its_members_need() -> None:
    for space in (elastic_space(), universal_space(), small_space()):
        supernet = Supernet(space)
        # Each weight has a value of its own, by which it is known again in the networks of members.
        count = 0
        with torch.no_grad():
            for each in supernet.shared.values():
                each.copy_(torch.arange(count, count + each.numel()).view_as(each))
                count += each.numel()
        taken = torch.zeros(count, dtype=torch.bool)
        for member in members(space, 40):
            for each in supernet.network(member).parameters():
                taken[each.detach().flatten().long()] = True
        for name, each in supernet.shared.items():
            touched = taken[each.detach().long()]
            assert all(touched.select(axis, -1).any() for axis in range(touched.ndim)), name


def test_universal_bottlenecks_share_weights_whatever_their_depthwise_convolutions() -> None:
    space = universal_space()
    supernet = Supernet(space)
    place = "stage2/block1/uib"
    roles = {name.split("/")[3] for name in supernet.shared if name.startswith(f"{place}/")}
    assert roles == {"start", "expand", "depthwise", "squeeze", "excite", "project"}
    first = space.encode(extreme_member(space, "largest"))
    for start in (0, 3, 5):
        for kernel in (0, 3, 5):
            changed = {"stage2.block1.start_kernel": start, "stage2.block1.kernel": kernel}
            layer = supernet.network(space.build({**first, **changed})).layers[2]
            tensors = [each for each in layer.parameters() if each.ndim == 4]
            expand = tensors[1 if start else 0]
            assert torch.equal(expand, supernet.shared[f"{place}/expand/weight"])
            if start:
                margin = (5 - start) // 2
                whole = supernet.shared[f"{place}/start/weight"]
                assert torch.equal(tensors[0], whole[:, :, margin : 5 - margin, margin : 5 - margin])
    kinds = {each.split("/")[2] for each in supernet.shared if each.startswith("stage1")}
    assert kinds == {"pair", "fused"}


def test_gradients_reach_the_member_s_weights_alone() -> None:
    supernet = Supernet(elastic_space())
    small = extreme_member(supernet.space, "smallest")
    supernet(images(small), small).square().sum().backward()
    gradient = supernet.shared["stem/conv/weight"].grad
    assert gradient is not None
    assert gradient[: small.stem.channels].abs().sum() > 0
    assert gradient[small.stem.channels :].abs().sum() == 0
    assert supernet.shared["stage2/block1/ir/depthwise/weight"].grad is None


def test_a_member_s_weights_can_be_taken_over() -> None:
    supernet, other = Supernet(elastic_space()), Supernet(elastic_space())
    for member in members(supernet.space, 3):
        network = supernet.network(member)
        other.load(network)
        taken = other.network(member)
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), taken.parameters(), strict=True))


def test_calibration_is_the_average_over_the_batches_without_touching_the_supernet() -> None:
    supernet = Supernet(elastic_space())
    member = extreme_member(supernet.space, "largest")
    network = supernet.network(member)
    batches = [images(member, seed, 8) for seed in range(4)]
    mean, _ = calibrate(network, batches)[0]
    with torch.no_grad():
        exact = [network.layers[0].body[0](batch).mean((0, 2, 3)) for batch in batches]  # type: ignore[index, operator, union-attr]
    assert torch.allclose(mean, torch.stack(exact).mean(0), atol=1e-5)
    assert not network.training


def test_building_members_spends_no_random_numbers() -> None:
    supernet = Supernet(elastic_space())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for member in members(supernet.space, 3):
        supernet(images(member), member)
        supernet.network(member)
    assert torch.equal(torch.rand(3), expected)


def test_a_foreign_network_is_refused() -> None:
    with pytest.raises(NotInSpaceError, match="the space 'elastic' has 4 classes, not 1000"):
        Supernet(elastic_space()).network(reference("mobilenet_v2"))


def test_extremes_have_the_most_and_the_fewest_weights() -> None:
    for space in (elastic_space(), small_space()):
        counts = [sum(each.numel() for each in Network(m).parameters()) for m in members(space, 40)]
        assert counts[0] == max(counts)
        assert counts[1] == min(counts)


@pytest.mark.parametrize("shape", [(6, 5, 4, 4), (6, 5)], ids=["maps", "pooled"])
def test_sums_over_processes_normalise_like_one_process(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    norm = supernet_module._Norm(1e-3)
    norm.scale, norm.shift = torch.rand(5), torch.rand(5)
    features = torch.randn(shape)
    alone = norm(features)
    # Another process with the same features.
    monkeypatch.setattr(supernet_module, "world_size", lambda: 2)
    monkeypatch.setattr(supernet_module, "_sum_of_all", lambda own: 2 * own)
    assert torch.allclose(norm(features), alone, atol=1e-6)
