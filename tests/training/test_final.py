from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas.data import DatasetSettings, Split, load
from nas.network import Network
from nas.training.final import Checkpoints, FinalProgress, FinalTraining
from nas.training.processes import Processes, joined
from nas.training.steps import TrainingError
from nas.training_recipes import FinalRecipe
from search_spaces.errors import InputError
from search_spaces.references import reference

ALONE = Processes(0, 1, torch.device("cpu"))
SMALL = reference("mobilenet_v3_small_035", 16, 4)
RECIPE = FinalRecipe(
    epochs=2,
    batch_size=32,
    mixup=0.2,
    cutmix=1.0,
    erasing=0.2,
    drop_path=0.2,
    warmup_epochs=0.5,
    augment="rand",
)


@pytest.fixture(scope="module")
def split() -> Split:
    return load(DatasetSettings("synthetic"), 16)


def _network() -> Network:
    torch.manual_seed(1)
    return Network(SMALL)


class InterruptedRunError(Exception):
    pass


@pytest.mark.parametrize(
    "optimizer", ["sgd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "rmsprop"))]
)
def test_an_interrupted_training_goes_on_exactly(split: Split, tmp_path: Path, optimizer: str) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=0.01)
    whole = FinalTraining(_network(), split, recipe, ALONE)
    whole.run()

    def stop(progress: FinalProgress) -> None:
        if progress.step == 4:
            raise InterruptedRunError

    path = tmp_path / "training.safetensors"
    first = FinalTraining(_network(), split, recipe, ALONE, Checkpoints(path, interval_s=0.0))
    with pytest.raises(InterruptedRunError):
        first.run(stop)
    second = FinalTraining(Network(SMALL), split, recipe, ALONE, Checkpoints(path))
    assert second.step == 3
    second.run()
    for name, value in whole.result.state_dict().items():
        assert torch.equal(value, second.result.state_dict()[name]), name
    assert second.curve == pytest.approx(whole.curve)
    # What is finished is not trained again, and another recipe is refused.
    assert FinalTraining(Network(SMALL), split, recipe, ALONE, Checkpoints(path)).step == second.steps
    with pytest.raises(TrainingError, match=r"was begun with another recipe \(mixup 0\.2, now 0\.5\)"):
        FinalTraining(Network(SMALL), split, replace(recipe, mixup=0.5), ALONE, Checkpoints(path))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="holds no tensors"):
        FinalTraining(Network(SMALL), split, recipe, ALONE, Checkpoints(path))


@pytest.mark.slow
def test_something_is_learnt_and_averaged_weights_are_kept(split: Split) -> None:
    recipe = FinalRecipe(epochs=15, batch_size=32, augment="none", learning_rate=0.005, ema=0.9)
    training = FinalTraining(_network(), split, recipe, ALONE)
    training.run()
    images, labels = next(split.validation.batches(64, False, 0))
    with torch.no_grad():
        right = (training.result(images).argmax(1) == labels).float().mean()
    assert right > 0.6
    assert training.result is not training.network
    assert training.curve[-1] < training.curve[0]


def test_a_teacher_is_learnt_from(split: Split) -> None:
    teacher = _network()
    recipe = FinalRecipe(epochs=1, batch_size=32, distillation=1.0, augment="none", label_smoothing=0.0)
    losses: list[float] = []
    FinalTraining(_network(), split, recipe, ALONE, teacher=teacher).run(
        lambda each: losses.append(each.loss)
    )
    alone: list[float] = []
    FinalTraining(_network(), split, replace(recipe, distillation=0.0), ALONE).run(
        lambda each: alone.append(each.loss)
    )
    assert losses != alone
    with pytest.raises(InputError, match="needs a teacher"):
        FinalTraining(_network(), split, recipe, ALONE)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(split: Split, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    training = FinalTraining(_network(), split, RECIPE, ALONE, Checkpoints(path))
    training.save()
    before = path.read_bytes()
    with torch.no_grad():
        next(training.network.parameters()).fill_(torch.nan)
    with pytest.raises(
        TrainingError, match=r"not finite in epoch 1, batch 1: lower train\.learning_rate; .*is as it was"
    ):
        training.run()
    assert path.read_bytes() == before


def test_what_does_not_fit_is_refused(split: Split) -> None:
    with pytest.raises(InputError, match="the network has 10 classes, the dataset 4"):
        FinalTraining(Network(replace(SMALL, classes=10)), split, RECIPE, ALONE)
    single = Split(split.train, split.validation, ("stripe",), split.preprocessing)
    with pytest.raises(InputError, match="has one class"):
        FinalTraining(_network(), single, RECIPE, ALONE)
    with pytest.raises(InputError, match=r"train\.optimizer must be sgd, rmsprop, adamw, not lion"):
        FinalRecipe(optimizer="lion")
    with pytest.raises(InputError, match=r"train\.ema must be from 0 to below 1, not 1"):
        FinalRecipe(ema=1.0)


@pytest.mark.parametrize(
    ("name", "value"), [("WORLD_SIZE", "two"), ("WORLD_SIZE", "0"), ("LOCAL_RANK", "-1"), ("WORLD_SIZE", "2")]
)
def test_what_torchrun_did_not_set_is_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}='?{value}'?.*unset {name}"), joined("cpu"):
        pass
