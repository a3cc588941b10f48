import csv
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nas.accuracy.csv import AccuracyDataError, TrainedNetwork, read_accel, read_extra, read_published
from nas.accuracy.evaluation import leave_variants_out, predict_left_out
from nas.accuracy.features import FEATURES, features_of
from nas.accuracy.fit import Effort, fit_benchmark, fit_posterior
from nas.accuracy.imagenet import SHIPPED_PARAMETERS, Predictor, shipped_predictor
from nas.accuracy.process import RECIPES, ParametersError, Posterior, Recipe
from nas.accuracy.source import Accuracy, AccuracyError, PublishedFirst, ask
from nas.cost import layer_cost
from search_spaces.architecture import Architecture
from search_spaces.blocks import Block
from search_spaces.layers import layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace

# Written by the loop in test_predicts_the_golden_numbers after a new fit.
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "predictions.json").read_text())
ACCEL_COLUMNS = [
    f"stage{stage}_{name}" for stage in range(1, 8) for name in ("expansion", "kernel", "layers", "se")
]


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
    assert SHIPPED_PARAMETERS.stat().st_size < 5e6


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
    assert top1["mobilenet_v3_large"] > top1["mobilenet_v2"] > top1["mobilenet_v1"]
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
        (lambda base: replace(base, resolution=64), "96 to 224 px, not 64"),
        (lambda base: replace(base, resolution=256), "96 to 224 px, not 256"),
        (
            lambda base: _with_blocks(base, lambda block: replace(block, kernel=7)),
            "row 1: .* kernels 3 and 5, not 7",
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
    source = PublishedFirst({members[2]: 71.5}, predictor)
    answers = ask(source, asked)
    for architecture, answer in zip(asked, answers, strict=True):
        if isinstance(answer, AccuracyError):
            with pytest.raises(AccuracyError, match=re.escape(str(answer))):
                source.accuracy(architecture)
        else:
            alone = source.accuracy(architecture)
            assert (answer.top1, answer.deviation) == pytest.approx((alone.top1, alone.deviation), abs=1e-3)
            assert answer.source == alone.source
    assert answers[2] == Accuracy(71.5, "published")
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
    table = features_of([reference(name) for name in names])
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
        ParametersError, match=r"old.safetensors has format 0, this version reads 1; run: python"
    ):
        Posterior.load(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ParametersError, match="holds no tensors"):
        Posterior.load(path)
    with pytest.raises(ParametersError, match=r"cannot read .*run: python -m nas.predictor fit"):
        Posterior.load(tmp_path / "missing.safetensors")


# -- fitting ---------------------------------------------------------------------------------------


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _accel_rows(count: int) -> list[dict[str, object]]:
    # A made-up law that the fit has to find: more of everything is better.
    generator = random.Random(0)
    choices = {"expansion": (1, 4, 6), "kernel": (3, 5), "layers": (1, 2, 3), "se": (0, 1)}
    rows: list[dict[str, object]] = []
    for _ in range(count):
        row: dict[str, object] = {c: generator.choice(choices[c.partition("_")[2]]) for c in ACCEL_COLUMNS}
        strength = sum(float(row[c]) / max(choices[c.partition("_")[2]]) for c in ACCEL_COLUMNS)  # type: ignore[arg-type]
        rows.append(row | {"top1": 40 + 0.9 * strength})
    return rows


PUBLISHED_ROWS: list[dict[str, object]] = [
    {"model": "mobilenet_v2", "width_multiplier": width, "resolution": resolution, "top1": top1}
    for width, resolution, top1 in ((1.0, 224, 71.8), (1.0, 160, 68.8), (0.75, 224, 69.8), (0.5, 224, 65.4))
]


def test_fit_finds_a_law_and_returns_after_a_round_trip(tmp_path: Path) -> None:
    networks = read_accel(_write(tmp_path / "accel.csv", _accel_rows(160)))
    published = read_published(_write(tmp_path / "published.csv", PUBLISHED_ROWS))
    effort = Effort(inducing=24, steps=60)
    posterior = fit_posterior(fit_benchmark(networks[:120], effort, 0), [*networks[:120], *published])
    left_out = predict_left_out(posterior, networks[120:])
    assert left_out.mean_error < 0.4
    assert left_out.tau > 0.8
    posterior.save(tmp_path / "p.safetensors", {})
    again = predict_left_out(Posterior.load(tmp_path / "p.safetensors"), networks[120:])
    assert np.allclose(again.predicted, left_out.predicted, rtol=0, atol=1e-6)
    assert predict_left_out(posterior, published).mean_error < 0.5

    variants = leave_variants_out([*networks, *published], 0, effort)
    assert len(variants.networks) == len(published)
    # Left out, a variant is known less well than when it was fitted.
    fitted = predict_left_out(posterior, published)
    assert (variants.deviation > fitted.deviation).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_predictions_are_those_of_double_precision(members: list[Architecture], recipe: Recipe) -> None:
    posterior = Posterior.load(SHIPPED_PARAMETERS)
    inputs = features_of(members)
    scaled = (torch.from_numpy(inputs) - posterior.feature_offset) / posterior.feature_scale
    cross = posterior.inducing.cross(posterior.hyper, scaled, recipe)
    error = torch.exp(posterior.offset + cross @ posterior.weights)
    noise = torch.exp(2 * posterior.hyper.noise[RECIPES.index(recipe)])
    explained = (cross @ posterior.root.T).square().sum(1)
    variance = posterior.hyper.variance(scaled, recipe) - explained + noise
    deviation = error * variance.sqrt() * posterior.calibration[RECIPES.index(recipe)]
    found = posterior.predict(inputs, recipe)
    assert found[0] == pytest.approx((100 - error).numpy(), abs=0.002)
    assert found[1] == pytest.approx(deviation.numpy(), abs=0.002)


def test_recipes_differ(predictor: Predictor) -> None:
    posterior = Posterior.load(SHIPPED_PARAMETERS)
    inputs = features_of([reference("mobilenet_v2")])
    published, short = (
        posterior.predict(inputs, recipe)[0].item() for recipe in ("mobilenet", "accel_nasbench")
    )
    assert published - short > 5


# -- networks of one's own -------------------------------------------------------------------------


def test_own_networks_are_read(tmp_path: Path) -> None:
    mine = replace(reference("mobilenet_v2"), resolution=192)
    (tmp_path / "mine.yaml").write_text(mine.to_yaml())
    path = _write(
        tmp_path / "extra.csv",
        [
            {"architecture": "mine.yaml", "resolution": 192, "top1": 70.0, "recipe": ""},
            {"architecture": "mine.yaml", "resolution": "", "top1": 71.0, "recipe": "longer"},
            {"architecture": "mobilenet_v2_075", "resolution": "", "top1": 61.0, "recipe": "accel_nasbench"},
        ],
    )
    assert read_extra(path) == [
        TrainedNetwork(mine, 70.0, "mobilenet", "mine.yaml"),
        TrainedNetwork(mine, 71.0, "longer", "mine.yaml"),
        TrainedNetwork(reference("mobilenet_v2_075"), 61.0, "accel_nasbench", "mobilenet_v2_075"),
    ]


EXTRA_ROW: dict[str, object] = {"architecture": "mobilenet_v2", "resolution": 224, "top1": 72.0, "recipe": ""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, r"unknown column 'colour'; known: architecture, top1, resolution, recipe"),
        ({"top1": ""}, r"extra.csv, line 2: top1 is empty"),
        ({"architecture": " "}, r"line 2: architecture is empty"),
        ({"top1": "-3"}, r"line 2: top1 must be between 0 and 100, not -3"),
        ({"top1": "100"}, r"line 2: top1 is 100, which no network reaches"),
        ({"architecture": "resnet"}, r"line 2: unknown reference 'resnet'"),
        ({"resolution": "large"}, r"line 2: resolution is no whole number: 'large'"),
        ({"resolution": "512"}, r"line 2: .* resolutions of 96 to 224 px, not 512"),
        ({"architecture": "none.yaml"}, r"line 2: cannot read .*none.yaml: No such file"),
        ({"architecture": "bad.yaml"}, r"line 2: .*bad.yaml is not valid YAML"),
        ({"architecture": "v2.yaml", "resolution": 160}, r"line 2: v2.yaml has resolution 224"),
    ],
)
def test_bad_lines_of_own_networks_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "bad.yaml").write_text("blocks: [")
    (tmp_path / "v2.yaml").write_text(reference("mobilenet_v2").to_yaml())
    with pytest.raises(AccuracyDataError, match=message):
        read_extra(_write(tmp_path / "extra.csv", [EXTRA_ROW | change]))


def test_own_networks_that_disagree_are_named(tmp_path: Path) -> None:
    def read(**change: object) -> list[TrainedNetwork]:
        return read_extra(_write(tmp_path / "extra.csv", [EXTRA_ROW, EXTRA_ROW | change]))

    with pytest.raises(AccuracyDataError, match=r"line 3: repeats the architecture of line 2 with top-1 75"):
        read(top1=75)
    assert len(read(top1=75, recipe="longer")) == 2
    assert len(read(top1=72.3)) == 2  # two trainings of one network


@pytest.mark.parametrize("recipe", ["mobilenet", "accel_nasbench"])
def test_own_networks_pull_predictions_near_them(
    predictor: Predictor, members: list[Architecture], recipe: str
) -> None:
    def predict(by: Predictor, architecture: Architecture) -> tuple[float, float]:
        inputs = features_of([architecture])
        mean, spread = by._posterior.predict(inputs, recipe)  # type: ignore[arg-type]
        return float(mean[0]), float(spread[0])

    mine = members[0]
    near = _deeper(mine)
    top1, deviation = predict(predictor, mine)
    told = TrainedNetwork(mine, top1 + deviation, recipe, "mine")
    informed = predictor.with_networks([told])
    assert predict(informed, mine)[0] == pytest.approx(told.top1, abs=0.1 * deviation)
    assert predict(informed, mine)[1] < 0.4 * deviation
    assert predict(informed, near)[0] > predict(predictor, near)[0] + 0.5 * deviation
    assert predict(informed, near)[1] < predict(predictor, near)[1]
    # What is far away stays nearly as it was, and the published recipe follows its neighbour.
    far = reference("mobilenet_v1")
    assert informed.predict(far)[0] == pytest.approx(predictor.predict(far)[0], abs=0.2)
    assert informed.predict(mine)[0] > predictor.predict(mine)[0]


def test_own_networks_tell_as_much_as_if_they_had_been_fitted(tmp_path: Path) -> None:
    networks = read_accel(_write(tmp_path / "accel.csv", _accel_rows(60)))
    published = read_published(_write(tmp_path / "published.csv", PUBLISHED_ROWS))
    start = fit_benchmark(networks, Effort(inducing=16, steps=10), 0)
    jointly = fit_posterior(start, [*networks, *published])
    later = fit_posterior(start, [*networks, *published[:2]])
    told = Predictor(later).with_networks(published[2:])
    before, after = (predict_left_out(each, [*networks, *published]) for each in (jointly, told._posterior))
    assert after.predicted == pytest.approx(before.predicted, abs=0.1)


def test_a_recipe_of_ones_own_tells_differences_only(
    predictor: Predictor, members: list[Architecture]
) -> None:
    before = [predictor.predict(each)[0] for each in members[:2]]

    def told(recipe: str, *errors: float) -> list[float]:
        """Predictions after errors of so many times what was predicted."""
        seen = [
            TrainedNetwork(each, 100 - factor * (100 - top1), recipe, "mine")
            for each, top1, factor in zip(members, before, errors, strict=False)
        ]
        return [predictor.with_networks(seen).predict(each)[0] for each in members[:2]]

    # Both a tenth better: under the published recipe they are, otherwise it is mostly the recipe.
    for new, same, old in zip(told("mine", 0.9, 0.9), told("mobilenet", 0.9, 0.9), before, strict=True):
        gain = 0.1 * (100 - old)
        assert same - old == pytest.approx(gain, rel=0.1)
        assert 0 < new - old < gain / 3
    # What is learnt is that the first gains on the second, whatever the level.
    first, second = told("mine", 0.9, 1.0)
    assert (100 - first) / (100 - second) == pytest.approx(
        0.9 * (100 - before[0]) / (100 - before[1]), rel=0.02
    )


def test_own_networks_survive_the_file(
    predictor: Predictor, members: list[Architecture], tmp_path: Path
) -> None:
    informed = predictor.with_networks([TrainedNetwork(members[0], 70.0, "mobilenet", "mine")])
    informed.save(tmp_path / "p.safetensors", {})
    again = Predictor.load(tmp_path / "p.safetensors")
    assert again.predict(members[1]) == pytest.approx(informed.predict(members[1]), abs=1e-6)


# -- bad files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, r"unknown column 'colour'; known: model, width_multiplier"),
        ({"top1": ""}, r"published.csv, line 2: top1 is empty"),
        ({"top1": "171.8"}, r"line 2: top1 must be between 0 and 100, not 171.8"),
        ({"top1": "high"}, r"line 2: top1 is no number: 'high'"),
        ({"top1": "nan"}, r"line 2: top1 must be between 0 and 100"),
        ({"model": "resnet"}, r"line 2: unknown reference 'resnet'"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(AccuracyDataError, match=message):
        read_published(_write(tmp_path / "published.csv", [PUBLISHED_ROWS[0] | change]))


def test_contradictions_are_named(tmp_path: Path) -> None:
    rows = [PUBLISHED_ROWS[0], PUBLISHED_ROWS[1], PUBLISHED_ROWS[0] | {"top1": 60}]
    with pytest.raises(
        AccuracyDataError, match=r"line 4: repeats the architecture of line 2 with top-1 60, not 71.8"
    ):
        read_published(_write(tmp_path / "published.csv", rows))
    with pytest.raises(AccuracyDataError, match="column 'top1' is missing"):
        read_published(
            _write(tmp_path / "empty.csv", [{"model": "a", "width_multiplier": 1, "resolution": 1}])
        )
    with pytest.raises(AccuracyDataError, match=r"cannot read .*nowhere.csv: No such file"):
        read_published(tmp_path / "nowhere.csv")
