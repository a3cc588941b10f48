import copy
import random
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from search_spaces.references import reference
from search_spaces.schema import SpaceError
from search_spaces.space import NotInSpaceError, SearchSpace

CONTAINED = [
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "mobilenet_v3_large_minimalistic",
    "mobilenet_v3_small_minimalistic",
    "mobilenet_v2_075",
    "mobilenet_v3_large_075",
]

# As NAS-Bench-Macro: three whole candidates for every layer.
MACRO: dict[str, Any] = {
    "name": "macro",
    "resolutions": [32],
    "stems": [{"channels": 32}],
    "stages": [
        {
            "stride": 2,
            "width": width,
            "layers": layers,
            "candidates": [
                {"kind": "skip", "name": "identity"},
                {"kernel": 3, "expansion": 3},
                {"kernel": 5, "expansion": 6},
            ],
        }
        for width, layers in ((64, 2), (128, 3), (256, 3))
    ],
    "heads": [{"conv_channels": 1280}],
    "classes": 10,
}


@pytest.mark.parametrize("name", CONTAINED)
def test_contains_the_mobilenets_exactly(mobilenet_space: SearchSpace, name: str) -> None:
    encoded = mobilenet_space.encode(reference(name))
    trial = optuna.trial.FixedTrial(encoded)  # type: ignore[arg-type]
    assert mobilenet_space.suggest(trial) == reference(name)
    assert trial.params == encoded


def test_does_not_contain_v1_and_says_why(mobilenet_space: SearchSpace) -> None:
    with pytest.raises(NotInSpaceError, match="does not contain"):
        mobilenet_space.encode(reference("mobilenet_v1"))
    with pytest.raises(NotInSpaceError, match="has 1000 classes, not 10"):
        mobilenet_space.encode(reference("mobilenet_v2", classes=10))
    with pytest.raises(NotInSpaceError, match="not 200"):
        mobilenet_space.encode(reference("mobilenet_v2", resolution=200))


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "mobilenetv4_conv_medium_r256"])
def test_the_space_of_universal_bottlenecks_contains_mobilenetv4_exactly(
    mobilenetv4_space: SearchSpace, name: str
) -> None:
    encoded = mobilenetv4_space.encode(reference(name))
    assert mobilenetv4_space.build(encoded) == reference(name)
    with pytest.raises(NotInSpaceError, match="no such stem"):
        mobilenetv4_space.encode(reference("mobilenet_v3_small"))


def test_random_members_survive_encoding(
    mobilenet_space: SearchSpace, mobilenetv4_space: SearchSpace
) -> None:
    generator = random.Random(7)
    for space in (mobilenet_space, mobilenetv4_space):
        for _ in range(200):
            member = space.sample(generator)
            assert space.build(space.encode(member)) == member


def test_a_space_is_written_as_before_fields_came_later(mobilenet_space: SearchSpace) -> None:
    written = mobilenet_space.to_dict()
    assert written["stages"][0]["kind"] == "inverted_residual"
    later = {"kinds", "start_kernels", "start_kernel", "hidden_norm"}
    parts = [*written["stages"], *written["heads"], *SearchSpace.from_dict(MACRO).to_dict()["stages"]]
    for part in (*parts, *parts[-1]["candidates"]):
        assert not later & set(part)


def test_whole_candidates_can_be_universal_bottlenecks() -> None:
    kind = {"kind": "universal_inverted_bottleneck", "activation": "relu"}
    candidates = [
        {"kind": "skip"},
        {**kind, "start_kernel": 3, "kernel": 0, "expansion": 4},
        {**kind, "start_kernel": 5, "kernel": 3, "expansion": 2},
        {"kind": "fused_inverted_bottleneck", "expansion": 4},
    ]
    stage = {"stride": 2, "width": 32, "layers": 2, "candidates": candidates}
    space = SearchSpace.from_dict({**MACRO, "stages": [stage]})
    labels = ("skip", "uib_a3_k0_e4_relu", "uib_a5_k3_e2_relu", "fused_k3_e4_relu6")
    assert space.parameters()["stage1.block1"] == labels
    assert SearchSpace.from_dict(space.to_dict()) == space
    for parameters, architecture in space.members():
        assert space.encode(architecture) == parameters


def test_an_optuna_study_suggests_members(mobilenet_space: SearchSpace) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):
        trial = study.ask()
        architecture = mobilenet_space.suggest(trial)
        assert mobilenet_space.build(trial.params) == architecture
        assert set(trial.params) <= set(mobilenet_space.parameters())


def test_macro_space_counts_and_lists_its_members() -> None:
    space = SearchSpace.from_dict(MACRO)
    members = list(space.members())
    assert space.size == len(members) == 3**8
    assert len({architecture for _, architecture in members}) == 3**8
    for parameters, architecture in members[::500]:
        assert space.build(parameters) == architecture
        assert space.build(space.encode(architecture)) == architecture


def test_members_of_a_space_with_optional_stages_match_its_size() -> None:
    small = {
        **MACRO,
        "stages": [
            {"stride": 1, "depths": [0, 2], "widths": [16, 24], "expansions": [3, 6], "se": [False, True]},
            {"stride": 2, "depths": [1], "widths": [32], "kernels": [3, 5], "per_block": ["kernels"]},
        ],
    }
    space = SearchSpace.from_dict(small)
    members = list(space.members())
    assert space.size == len(members) == (1 + 2 * 2 * 4) * 2
    assert len({architecture for _, architecture in members}) == len(members)


def test_yaml_round_trip(mobilenet_space: SearchSpace, mobilenetv4_space: SearchSpace) -> None:
    for space in (mobilenet_space, mobilenetv4_space, SearchSpace.from_dict(MACRO)):
        assert SearchSpace.from_dict(space.to_dict()) == space


def test_every_member_is_made_of_reachable_parts(mobilenet_space: SearchSpace) -> None:
    parts = mobilenet_space.reachable()
    generator = random.Random(3)
    for _ in range(100):
        member = mobilenet_space.sample(generator)
        sizes = member.sizes()
        assert (member.resolution, member.stem) in parts.stems
        assert {(size, block) for size, block in zip(sizes, member.blocks, strict=False)} <= parts.blocks
        assert (sizes[-1], member.out_channels, member.head) in parts.heads


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("stages", 0, "strid"), 2, "stages: entry 1: unknown field 'strid'"),
        (("stages", 0, "candidates"), [], "candidates: expected a list with at least one entry"),
        (("stages", 0, "candidates", 1, "kernel"), 4, "stages: entry 1: candidates: entry 2: block: kernel"),
        (("stages", 0, "stride"), 3, "stride must be 1 or 2"),
        (("resolutions",), [32, 32], "listed twice"),
        (("resolutions",), "32", "expected a list of candidates"),
        (("stems", 0, "channels"), -1, "channels must be a positive integer"),
        (("heads", 0, "conv_ratio"), 6, "not both"),
        (("width_multipliers",), [0], "at least 0.01"),
        (("colour",), "blue", "unknown field 'colour'"),
        (("name",), "", "name must be a text"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[Any, ...], value: object, message: str) -> None:
    description = copy.deepcopy(MACRO)
    target: Any = description
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(SpaceError, match=message):
        SearchSpace.from_dict(description)


def test_a_stage_with_wrong_lists_is_named() -> None:
    stage = {"stride": 1, "depths": [1], "widths": [16]}
    for change, message in [
        ({"kernels": [2]}, "kernels must be odd"),
        ({"activations": ["gelu"]}, "'gelu' is not one of relu"),
        ({"per_block": ["width"]}, "'width' is not one of kinds, start_kernels, kernels"),
        ({"kind": "skip"}, "kind must be one of"),
        ({"kind": "depthwise_separable"}, r"needs expansions: \[1\]"),
        ({"se": [0]}, "expected bool"),
        ({"kinds": ["inverted_residual", "skip"]}, "kinds: 'skip' is not one of inverted_residual"),
        ({"kinds": 3}, "kinds: expected a list"),
        ({"kind": "skip", "kinds": ["inverted_residual"]}, "give kind or kinds, not both"),
        ({"kernels": [0, 3]}, "kernels: must be at least 1; only universal_inverted_bottleneck"),
        ({"start_kernels": [0, 3]}, "start_kernels: only universal_inverted_bottleneck has them"),
    ]:
        with pytest.raises(SpaceError, match=message):
            SearchSpace.from_dict({**MACRO, "stages": [{**stage, **change}]})


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"nowhere\.yaml"):
        SearchSpace.from_yaml(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("stages: [")
    with pytest.raises(SpaceError, match=r"broken\.yaml is not valid YAML"):
        SearchSpace.from_yaml(broken)


def test_build_names_a_wrong_parameter(mobilenet_space: SearchSpace) -> None:
    encoded = mobilenet_space.encode(reference("mobilenet_v3_large"))
    with pytest.raises(NotInSpaceError, match=r"'stage4\.depth' is missing"):
        mobilenet_space.build({name: value for name, value in encoded.items() if name != "stage4.depth"})
    with pytest.raises(NotInSpaceError, match=r"resolution: 223"):
        mobilenet_space.build({**encoded, "resolution": 223})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"depths": [1, 2**63]}, "depths: must be at most 64"),
        ({"depths": list(range(1, 70))}, "depths: expected a list of candidates, at most 64"),
        ({"expansions": [1e308]}, "expansions: must be at most 64"),
        ({"widths": [65_000]}, "expanded 6 times are more than 65,536 channels"),
        ({"kernels": [33]}, "kernels: must be at most 31"),
        (
            {"widths": list(range(8, 520, 8)), "expansions": [float(n) for n in range(1, 65)]},
            "different layers",
        ),
        ({"kernels": None}, "kernels: expected a list"),
        ({"per_block": ["kernels"] * 2}, "listed twice"),
    ],
)
def test_a_space_that_nobody_can_walk_is_refused_at_once(changes: dict[str, Any], reason: str) -> None:
    stage = {"stride": 2, "depths": [1, 2], "widths": [24]} | changes
    description = {
        "name": "hostile",
        "resolutions": [64, 128],
        "stems": [{"channels": 16}],
        "stages": [stage, stage],
        "heads": [{"conv_channels": 128}],
    }
    start = time.process_time()
    with pytest.raises(SpaceError, match=reason):
        SearchSpace.from_dict(description)
    assert time.process_time() - start < 2


def test_candidate_layers_are_bounded() -> None:
    stage = {"stride": 2, "width": 24, "layers": 16_777_216, "candidates": [{"kernel": 3}]}
    with pytest.raises(SpaceError, match="layers: must be at most 64"):
        SearchSpace.from_dict(
            {"name": "x", "resolutions": [64], "stems": [{"channels": 16}], "stages": [stage], "heads": [{}]}
        )
