from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nas.accuracy.source import AccuracyError
from nas.accuracy.train import Recipe, TrainedAccuracy, fit, judge, judge_on, judge_quantized
from nas.data import DatasetSettings, load
from nas.training.final import FinalTraining
from search_spaces.architecture import Architecture
from search_spaces.blocks import Block, Head, Stem
from search_spaces.errors import InputError
from tests.conftest import CONF

SMALL = Architecture(
    resolution=16,
    stem=Stem(8),
    blocks=(
        Block("inverted_residual", 3, 8, 24, 16, 2, "hswish", True),
        Block("inverted_residual", 3, 16, 48, 16, 1, "hswish", False),
    ),
    head=Head(32, 0, "hswish"),
    classes=4,
)
STRIPES = DatasetSettings("synthetic")
RECIPE = Recipe(epochs=8, batch_size=32, learning_rate=0.01, device="cpu", threads=1)


def test_a_network_learns_and_is_judged_on_unseen_images() -> None:
    split = load(STRIPES, 16)
    network = fit(SMALL, split, RECIPE)
    found = judge(network, split, RECIPE)
    assert found.top1 >= 75
    assert found == judge_on(network, split.validation, split.classes, 7)
    untrained = fit(SMALL, split, replace(RECIPE, epochs=1, learning_rate=1e-9))
    assert judge(untrained, split, RECIPE).top1 < 60


def test_training_is_deterministic_for_a_seed() -> None:
    split = load(STRIPES, 16)
    recipe = replace(RECIPE, epochs=2)
    one, two = fit(SMALL, split, recipe), fit(SMALL, split, recipe)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = fit(SMALL, split, replace(recipe, seed=1))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_accuracy_says_that_it_was_measured() -> None:
    estimator = TrainedAccuracy(partial(load, STRIPES), replace(RECIPE, epochs=1))
    found = estimator.accuracy(SMALL)
    assert found.source == "measured"
    assert 0 <= found.top1 <= 100


def test_where_networks_run_in_int8_the_quantised_one_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    split = load(STRIPES, 16)
    network = fit(SMALL, split, RECIPE)
    quantised = judge_quantized(network, split).top1
    assert abs(quantised - judge(network, split, RECIPE).top1) <= 5
    # Without any range worth the name it recognises nothing: the answer is the integers' own.
    monkeypatch.setattr("nas.graphs.quantize.activation_ranges", lambda model, images: {"input": (0.0, 1e-6)})
    assert judge_quantized(network, split).top1 < 60
    monkeypatch.undo()
    found = TrainedAccuracy(partial(load, STRIPES), RECIPE, int8=True).accuracy(SMALL)
    assert found.top1 == quantised


def test_a_training_is_looked_at_on_its_way_and_stopped(tmp_path: Path) -> None:
    source = TrainedAccuracy(partial(load, STRIPES), replace(RECIPE, epochs=9), halving=3)
    assert source.rungs == (1, 3)
    assert TrainedAccuracy(source.load, replace(RECIPE, epochs=2), halving=3).rungs == (1,)
    assert TrainedAccuracy(source.load, RECIPE).rungs == ()
    with pytest.raises(InputError, match=r"accuracy\.halving must be 0, or at least 2, not 1"):
        replace(source, halving=1)
    asked: list[tuple[int, float]] = []

    def stop_at_three(epochs: int, top1: float) -> bool:
        asked.append((epochs, top1))
        return epochs < 3

    stopped = source.staged(SMALL, stop_at_three)
    assert stopped.stopped
    assert [*stopped.curve] == asked
    assert [epochs for epochs, _ in asked] == [1, 3]
    whole = source.accuracy(SMALL)
    assert not whole.stopped
    # It went the same way, and is judged at the same places.
    assert whole.curve[:2] == stopped.curve
    assert whole.curve[-1] == (9, whole.top1)


def test_epochs_done_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.accuracy.train._EPOCH_INTERVAL_S", 0.0)
    source = TrainedAccuracy(partial(load, STRIPES), replace(RECIPE, epochs=4), False, 0, tmp_path)
    whole = source.accuracy(SMALL)
    assert not list(tmp_path.iterdir())
    steps: list[int] = []
    step = FinalTraining._step

    def interrupted(self: FinalTraining, *batch: Any) -> float:
        if len(steps) == 15:
            raise KeyboardInterrupt
        steps.append(self.step)
        return step(self, *batch)

    monkeypatch.setattr(FinalTraining, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source.accuracy(SMALL)
    assert list(tmp_path.iterdir())
    seen = steps.copy()
    steps.clear()
    assert source.accuracy(SMALL) == whole
    # Six batches an epoch: the third epoch had begun.
    assert len(seen) == 15
    assert steps == [*range(12, 24)]
    # Of other settings nothing is taken over.
    steps.clear()
    with pytest.raises(KeyboardInterrupt):
        source.accuracy(SMALL)
    monkeypatch.setattr(FinalTraining, "_step", step)
    again = TrainedAccuracy(source.load, replace(source.recipe, epochs=5), False, 0, tmp_path).accuracy(SMALL)
    assert again == TrainedAccuracy(source.load, replace(source.recipe, epochs=5)).accuracy(SMALL)


def test_classes_must_fit() -> None:
    with pytest.raises(AccuracyError, match="the network has 10 classes, the dataset 4"):
        fit(replace(SMALL, classes=10), load(STRIPES, 16), RECIPE)


def test_divergence_is_said() -> None:
    with pytest.raises(AccuracyError, match=r"not finite in epoch 1, .* lower accuracy\.learning_rate"):
        fit(SMALL, load(STRIPES, 16), replace(RECIPE, learning_rate=1e30))


def test_recipes_are_checked() -> None:
    with pytest.raises(InputError, match=r"accuracy\.epochs must be at least 1"):
        Recipe(epochs=0)
    with pytest.raises(InputError, match=r"accuracy\.learning_rate"):
        Recipe(learning_rate=0)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"accuracy\.device=cpu"):
            Recipe(device="cuda")


def test_the_recipe_of_the_command_is_the_library_s() -> None:
    config = yaml.safe_load((CONF / "accuracy" / "train.yaml").read_text())
    names = [field.name for field in fields(Recipe) if field.name != "seed"]
    assert Recipe(**{name: config[name] for name in names}) == Recipe()
