import csv
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.accuracy.csv import read_extra
from nas.accuracy.features import FEATURES, SPREADS, RunArrays, features_of, uncovered_choices
from nas.accuracy.imagenet import SHIPPED_PARAMETERS, Predictor, shipped_predictor
from nas.accuracy.joint import JointPrediction
from nas.accuracy.networks import AccuracyDataError, TrainedNetwork, read_networks
from nas.accuracy.process import ParametersError, Posterior
from nas.accuracy.recipes import RecipeError
from nas.accuracy.source import Accuracy, AccuracyError, ask
from nas.cost import layer_cost
from nas.tensors import read_tensors, write_tensors
from search_spaces.architecture import Architecture
from search_spaces.blocks import Block
from search_spaces.gate import Gate
from search_spaces.layers import layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from search_spaces.stage import Stage

# Written by the loop in test_predicts_the_golden_numbers after a new fit.
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "predictions.json").read_text())


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return shipped_predictor()


@pytest.fixture(scope="module")
def members(mobilenet_space: SearchSpace) -> list[Architecture]:
    generator = random.Random(0)
    return [mobilenet_space.sample(generator) for _ in range(300)]


@pytest.mark.parametrize("name", GOLDEN)
def test_predicts_the_golden_numbers(predictor: Predictor, name: str) -> None:
    assert predictor.predict(reference(name)) == pytest.approx(GOLDEN[name], abs=0.01)


def test_shipped_file_is_small() -> None:
    assert SHIPPED_PARAMETERS.stat().st_size < 2e6


# -- sanity ----------------------------------------------------------------------------------------


def _with_blocks(base: Architecture, change: Callable[[Block], Block]) -> Architecture:
    return replace(base, blocks=tuple(change(block) for block in base.blocks))


def _deeper(base: Architecture) -> Architecture:
    rows = [number for number, block in enumerate(base.blocks) if block.keeps_shape]
    row = rows[len(rows) // 2] if rows else 0
    repeated = (base.blocks[row],) if rows else ()
    return replace(base, blocks=(*base.blocks[:row], *repeated, *base.blocks[row:]))


def _stage_se(base: Architecture, stage: int) -> Architecture:
    widths = list(dict.fromkeys(block.out_channels for block in base.blocks))
    width = widths[stage % len(widths)]
    return _with_blocks(base, lambda block: replace(block, se=block.se or block.out_channels == width))


IMPROVEMENTS: dict[str, Callable[[Architecture], Architecture]] = {
    "se": lambda base: _with_blocks(base, lambda block: replace(block, se=True)),
    **{f"se in stage {n}": lambda base, n=n: _stage_se(base, n) for n in range(6)},  # type: ignore[misc]
    "resolution": lambda base: replace(base, resolution=min(224, base.resolution + 32)),
    "depth": _deeper,
}


@pytest.mark.parametrize("name", IMPROVEMENTS)
def test_an_improvement_is_never_a_loss_beyond_the_uncertainty(
    predictor: Predictor, members: list[Architecture], name: str
) -> None:
    before = predictor.predict_many(members)
    after = predictor.predict_many([IMPROVEMENTS[name](each) for each in members])
    deviation = np.fmin(before[1], after[1])
    gain = after[0] - before[0]
    assert (gain > 0).any()
    assert not (gain < -deviation).any()


def test_widening_is_never_a_loss_beyond_the_uncertainty(
    predictor: Predictor, members: list[Architecture], mobilenet_space: SearchSpace
) -> None:
    candidates = mobilenet_space.parameters()
    for member in members[:30]:
        parameters = mobilenet_space.encode(member)
        top1, deviation = predictor.predict(member)
        for name in parameters:
            larger = candidates[name].index(parameters[name]) + 1
            if name.rpartition(".")[2] not in ("width", "expansion", "width_multiplier"):
                continue
            if larger < len(candidates[name]):
                wider = mobilenet_space.build(parameters | {name: candidates[name][larger]})
                assert predictor.predict(wider)[0] >= top1 - deviation, name


def test_orders_the_families(predictor: Predictor) -> None:
    top1 = {name: predictor.predict(reference(name))[0] for name in GOLDEN}
    # Trained alike, V1 with its 569M MACs is ahead of V2 with 301M: 73.3 against 72.0 in gluoncv.
    assert top1["mobilenet_v3_large"] > top1["mobilenet_v1"] > top1["mobilenet_v2"]
    for size in ("large", "small"):
        original = predictor.predict(reference(f"mobilenet_v3_{size}"))[0]
        assert predictor.predict(reference(f"mobilenet_v3_{size}_minimalistic"))[0] < original


# -- borders ---------------------------------------------------------------------------------------


def test_uncertainty_grows_off_the_data(predictor: Predictor) -> None:
    def deviation(name: str) -> float:
        return predictor.predict(reference(name))[1]

    assert deviation("mobilenet_v2") < deviation("mobilenet_v2_200") < deviation("mobilenet_v2_300")
    assert deviation("mobilenet_v3_large") < deviation("mobilenet_v3_large_r160")
    assert deviation("mobilenet_v3_large_r160") < deviation("mobilenet_v3_large_r096")


def _first_strided_skip(base: Architecture) -> Architecture:
    row = base.blocks[1]
    skip = Block("skip", 1, row.in_channels, row.in_channels, row.out_channels, 2, "relu", False, False)
    return replace(base, blocks=(base.blocks[0], skip, *base.blocks[2:]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda base: replace(base, classes=10), "1000 classes, not 10"),
        (lambda base: replace(base, resolution=32), "48 to 320 px, not 32"),
        (lambda base: replace(base, resolution=352), "48 to 320 px, not 352"),
        (
            lambda base: _with_blocks(base, lambda block: replace(block, kernel=9)),
            "row 1: .* kernels 3, 5 and 7, not 9",
        ),
        (
            lambda base: _with_blocks(base, lambda block: replace(block, stride=1)),
            "reduce the image by 32, not by 2",
        ),
        (lambda base: replace(base, stem=replace(base.stem, kernel=5)), "stems of kernel 3, not 5"),
        (_first_strided_skip, "row 2: .* no strided or widening skip"),
    ],
)
def test_refuses_what_it_does_not_know(
    predictor: Predictor, change: Callable[[Architecture], Architecture], reason: str
) -> None:
    with pytest.raises(AccuracyError, match=reason):
        predictor.predict(change(reference("mobilenet_v2")))


def test_refuses_where_the_deviation_is_too_large(predictor: Predictor) -> None:
    with pytest.raises(AccuracyError, match="unlike everything"):
        predictor.predict(reference("mobilenet_v1_001"))


def test_many_networks_get_the_answers_of_single_ones(
    predictor: Predictor, members: list[Architecture]
) -> None:
    small = replace(members[1], classes=10)
    refused = reference("mobilenet_v1_001")
    asked = [*members[:5], small, refused, *members[5:9]]
    source = predictor
    answers = ask(source, asked)
    for architecture, answer in zip(asked, answers, strict=True):
        if isinstance(answer, AccuracyError):
            with pytest.raises(AccuracyError, match=re.escape(str(answer))):
                source.accuracy(architecture)
        else:
            alone = source.accuracy(architecture)
            assert (answer.top1, answer.deviation) == pytest.approx((alone.top1, alone.deviation), abs=1e-3)
            assert answer.source == alone.source
    assert [number for number, each in enumerate(answers) if isinstance(each, AccuracyError)] == [5, 6]
    assert np.isnan(predictor.predict_many(asked)[0][5:7]).all()
    assert ask(source, []) == []


def test_sources_without_batches_are_asked_one_by_one() -> None:
    class Odd:
        def accuracy(self, architecture: Architecture) -> Accuracy:
            if architecture.resolution % 64:
                raise AccuracyError("odd")
            return Accuracy(float(architecture.resolution) / 4, "measured")

    base = reference("mobilenet_v2")
    answers = ask(Odd(), [replace(base, resolution=r) for r in (128, 160, 192)])
    assert answers[::2] == [Accuracy(32.0, "measured"), Accuracy(48.0, "measured")]
    assert isinstance(answers[1], AccuracyError)


def test_identities_change_nothing(predictor: Predictor) -> None:
    base = reference("mobilenet_v2")
    identity = Block("skip", 1, 24, 24, 24, 1, "relu", False, False)
    padded = replace(base, blocks=(*base.blocks[:3], identity, *base.blocks[3:]))
    assert predictor.predict(padded) == predictor.predict(base)


# -- features --------------------------------------------------------------------------------------


def test_features_lay_tables_onto_seven_stages() -> None:
    names = ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"]
    table = features_of([reference(name) for name in names]) * SPREADS
    depths = np.expm1(table[:, [FEATURES.index(f"stage{stage}.depth") for stage in range(1, 8)]])
    assert depths == pytest.approx(
        np.array([[1, 2, 2, 6, 0, 2, 0], [1, 2, 3, 4, 3, 3, 1], [0, 1, 2, 3, 2, 3, 0]]), abs=1e-9
    )
    macs = sum(layer_cost(key).macs for key in layer_keys(reference("mobilenet_v2"))[:-1])
    assert np.exp(table[1, FEATURES.index("macs")]) * 2e8 == pytest.approx(macs)


# -- the parameters file ---------------------------------------------------------------------------


def test_refuses_parameters_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = Posterior.load(SHIPPED_PARAMETERS)
    path = tmp_path / "old.safetensors"
    monkeypatch.setattr("nas.accuracy.process.FORMAT_VERSION", "0")
    posterior.save(path, {})
    monkeypatch.undo()
    with pytest.raises(
        ParametersError, match=r"old.safetensors has format 0, this version reads 3; run: python"
    ):
        Posterior.load(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ParametersError, match="holds no tensors"):
        Posterior.load(path)
    with pytest.raises(ParametersError, match=r"cannot read .*run: python -m nas.predictor fit"):
        Posterior.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("recipes", "reason"),
    [
        ("[" * 5000 + "]" * 5000, "nested more than"),
        ('[["scratch", "nokind"]]', "must be one of scratch"),
        ('[["scratch"]]', "is damaged"),
        ("7", "must hold a list"),
    ],
)
def test_refuses_recipes_that_are_none(tmp_path: Path, recipes: str, reason: str) -> None:
    path = tmp_path / "p.safetensors"
    tensors, header = read_tensors(SHIPPED_PARAMETERS, Gate("the parameters"))
    write_tensors(path, tensors, {**header, "recipes": recipes})
    with pytest.raises(ParametersError, match=reason) as refusal:
        Posterior.load(path)
    assert len(str(refusal.value).splitlines()) == 1


# -- recipes ---------------------------------------------------------------------------------------


def test_predictions_are_for_the_recipe_asked_for(predictor: Predictor) -> None:
    large = reference("mobilenet_v3_large")
    top1 = {name: Predictor.load(recipe=name).predict(large)[0] for name in ("mobilenet_v2_v3", "long")}
    assert 75.0 <= predictor.predict(large)[0] <= 75.6
    assert top1["mobilenet_v2_v3"] == pytest.approx(75.2, abs=0.3)
    assert top1["long"] > top1["mobilenet_v2_v3"] + 0.5


@pytest.mark.parametrize(
    ("name", "published"),
    [("mobilenet_v3_small_035", 49.8), ("mobilenet_v3_small_050", 58.0), ("mobilenet_v3_large_125", 76.6)],
)
def test_variants_at_the_ends_of_the_family(name: str, published: float) -> None:
    top1, deviation = Predictor.load(recipe="mobilenet_v2_v3").predict(reference(name))
    assert abs(top1 - published) < 2 * deviation + 0.5


def test_a_network_tells_of_its_authors_other_recipes() -> None:
    name = "timm_ra_in1k"
    seen = TrainedNetwork(reference("mobilenet_v3_small"), 60.0, name, "v3 small")
    large, changes = reference("mobilenet_v3_large"), []
    for recipe in (f"{name} tested above training size", "torchvision_v1"):
        predictor = Predictor.load(recipe=recipe)
        changes.append(predictor.with_networks([seen]).predict(large)[0] - predictor.predict(large)[0])
    inside, outside = changes
    assert inside < -0.2
    assert abs(outside) < 0.5 * abs(inside)


@pytest.mark.parametrize(("name", "hint"), [("scrach", "did you mean 'scratch'"), ("zzz", "known: scratch")])
def test_an_unknown_recipe_is_one_line(name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=f"unknown recipe {name!r}; {hint}"):
        Predictor.load(recipe=name)


# -- several networks together ---------------------------------------------------------------------


def test_a_difference_is_known_better_than_its_ends(predictor: Predictor) -> None:
    networks = {each.id: each for each in map(reference, ("mobilenet_v3_large", "mobilenet_v3_large_125"))}
    joint = predictor.joint(networks)
    first, second = networks
    difference = joint.difference(second, first)
    assert difference.points == pytest.approx(joint.top1[1] - joint.top1[0])
    alone = [predictor.predict(each)[1] for each in networks.values()]
    assert 0 < difference.deviation < math.hypot(*alone)
    assert joint.difference(first, first).points == 0
    again = JointPrediction.from_dict(json.loads(json.dumps(joint.to_dict())), Gate("joint"))
    assert again.difference(second, first).deviation == pytest.approx(difference.deviation, abs=1e-3)


def test_the_best_of_many_is_expected_to_disappoint(
    predictor: Predictor, members: list[Architecture]
) -> None:
    joint = predictor.joint({each.id: each for each in members[:40]})
    near = sorted(joint.ids, key=lambda each: -joint.top1[joint.ids.index(each)])
    assert joint.disappointment(near[:1]) == 0
    assert joint.disappointment(near[:2]) > 0
    assert joint.disappointment(near[:20]) > 0
    # Of networks that promise the same, more are worse; where they differ, a third may change nothing.
    alike = replace(joint, top1=np.full(40, 75.0))
    assert 0 < alike.disappointment(near[:2]) < alike.disappointment(near[:20])


def test_disappointment_is_that_of_independent_draws() -> None:
    ids = tuple(map(str, range(10)))
    joint = JointPrediction("scratch", ids, np.full(10, 75.0), np.eye(10), np.zeros(10))
    assert joint.disappointment(ids) == pytest.approx(1.539, abs=0.05)  # of ten standard normal draws


def test_batches_are_those_of_single_networks(predictor: Predictor, members: list[Architecture]) -> None:
    top1, deviation = predictor.predict_batch(RunArrays.from_architectures(members[:20]))
    for number, member in enumerate(members[:20]):
        answer = ask(predictor, [member])[0]
        if isinstance(answer, AccuracyError):
            assert np.isnan(top1[number])
        else:
            assert (top1[number], deviation[number]) == pytest.approx(
                (answer.top1, answer.deviation), abs=2e-3
            )


# -- networks of one's own -------------------------------------------------------------------------


def test_own_networks_pull_predictions_near_them(predictor: Predictor) -> None:
    network = reference("mobilenet_v3_large_125")
    before = predictor.predict(network)
    taught = predictor.with_networks([TrainedNetwork(network, before[0] + 2, "scratch", "x")])
    after = taught.predict(network)
    assert before[0] < after[0] <= before[0] + 2
    assert after[1] < before[1]
    # A recipe of one's own tells differences, not levels.
    own = predictor.with_networks([TrainedNetwork(network, before[0] + 2, "own", "x")]).predict(network)
    assert abs(own[0] - before[0]) < abs(after[0] - before[0])


def _extra(folder: Path, **change: object) -> Path:
    row = {"architecture": "mobilenet_v3_large", "resolution": 224, "top1": 75.2, "recipe": ""} | change
    path = folder / "extra.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return path


def test_own_networks_are_read(predictor: Predictor, tmp_path: Path) -> None:
    (found,) = read_extra(_extra(tmp_path), predictor.recipe_names, "scratch")
    assert (found.architecture, found.top1, found.recipe) == (
        reference("mobilenet_v3_large"),
        75.2,
        "scratch",
    )
    (found,) = read_extra(_extra(tmp_path, recipe="own:mine"), predictor.recipe_names, "scratch")
    assert found.recipe == "own:mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "scrach"}, "line 2: unknown recipe 'scrach'; did you mean 'scratch'"),
        ({"top1": 0.752}, "line 2: top1"),
        ({"top1": "high"}, "line 2: top1"),
        ({"architecture": "mobilenet_v9"}, "line 2: unknown reference"),
        ({"architecture": "nowhere.yaml"}, "line 2: cannot read"),
    ],
)
def test_bad_lines_of_own_networks_are_named(
    predictor: Predictor, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(AccuracyDataError, match=message):
        read_extra(_extra(tmp_path, **change), predictor.recipe_names, "scratch")


def test_more_networks_than_can_be_learnt_from_are_refused(tmp_path: Path) -> None:
    # A file of 40 kilobytes took 27 s and 700 MB, one of 8 MB would have taken terabytes.
    path = tmp_path / "extra.csv"
    path.write_text("architecture,top1\n" + "mobilenet_v2,70\n" * 1_001)
    with pytest.raises(AccuracyDataError, match="holds 1,001 networks, at most 1,000 can be learnt from"):
        read_extra(path, None, "scratch")


PUBLISHED = {
    "stem": {"channels": 16, "activation": "hswish", "kernel": 3},
    "blocks": [["inverted_residual", 3, 16, 64, 24, 2, "relu", False, True, 0]] * 1
    + [["inverted_residual", 3, 24, 96, 24, 2, "swish", True, True, 8]] * 3,
    "head": {"conv_channels": 96, "hidden_channels": 0, "activation": "hswish"},
    "resolution": 224,
    "top1": 51.5,
    "recipe": "gluoncv",
    "variant": "tiny",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top1": None}, "line 1: top1 has the wrong type"),
        ({"blocks": [[1, 2]]}, "line 1: row 1: must have"),
        ({"resolution": "224"}, "line 1: resolution has the wrong type"),
        ({"stem": {"channels": -1}}, "line 1: stem"),
    ],
)
def test_bad_published_networks_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "networks.jsonl"
    path.write_text(json.dumps(PUBLISHED) + "\n")
    (found,) = read_networks(path)
    assert found.architecture.blocks[1].squeezed_channels == 8
    path.write_text(json.dumps(PUBLISHED | change) + "\n")
    with pytest.raises(AccuracyDataError, match=message):
        read_networks(path)


def test_choices_that_cannot_be_judged_are_named_before_the_search(
    mobilenet_space: SearchSpace, mobilenetv4_space: SearchSpace
) -> None:
    assert uncovered_choices(mobilenet_space) == []
    stages = list(mobilenet_space.stages)
    assert isinstance(stages[1], Stage)
    stages[1] = replace(stages[1], kernels=(3, 9))
    some = replace(mobilenet_space, stages=tuple(stages), resolutions=(8, 224, 384))
    assert uncovered_choices(some) == ["resolutions 8, 384", "stage 2 kernels 9"]
    with pytest.raises(AccuracyError, match="knows no resolutions 384, and the space 'mobilenet' offers"):
        uncovered_choices(replace(mobilenet_space, resolutions=(384,)))
    with pytest.raises(AccuracyError, match="networks of 1000 classes, the space 'mobilenet' has 10"):
        uncovered_choices(replace(mobilenet_space, classes=10))
    with pytest.raises(
        AccuracyError, match=r"stage 1: .* of kind convolution_pair or fused.*=train, supernet"
    ):
        uncovered_choices(mobilenetv4_space)
    first, second, third, *others = mobilenet_space.stages
    assert isinstance(third, Stage)
    mixed = replace(third, kinds=("inverted_residual", "fused_inverted_bottleneck"))
    some = replace(mobilenet_space, stages=(first, second, mixed, *others))
    assert uncovered_choices(some) == ["stage 3 kinds fused_inverted_bottleneck"]
