import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from nas.data import DatasetSettings, Split, load
from nas.training.processes import Processes
from nas.training.steps import TrainingError
from nas.training.supernet import Supernet, calibrate, extreme_member
from nas.training.supernet_checkpoint import CheckpointError, check_fits, read
from nas.training.supernet_training import SupernetProgress, SupernetTraining
from nas.training_recipes import SupernetRecipe
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "name": "stripes",
        "resolutions": [12, 16],
        "stems": [{"channels": 8}],
        "stages": [
            {"stride": 2, "depths": [1, 2], "widths": [8, 16], "kernels": [3, 5], "expansions": [2, 3]},
        ],
        "heads": [{"conv_channels": 32}],
        "classes": 4,
    }
)
RECIPE = SupernetRecipe(epochs=3, batch_size=48, learning_rate=0.01, warmup_epochs=0.5)
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def split() -> Split:
    return load(DatasetSettings("synthetic"), 16)


def training(
    split: Split, path: Path | None = None, recipe: SupernetRecipe = RECIPE, **settings: Any
) -> SupernetTraining:
    torch.manual_seed(recipe.seed)
    return SupernetTraining(Supernet(SPACE), split, recipe, ALONE, path, **settings)


def test_every_member_learns(split: Split) -> None:
    trained = training(split, recipe=replace(RECIPE, epochs=10))
    reports: list[SupernetProgress] = []
    trained.run(reports.append)
    assert len(trained.curve) == 10
    assert all(last < first for first, last in zip(trained.curve[0], trained.curve[-1], strict=True))
    assert (reports[-1].step, reports[-1].seconds_left) == (trained.steps, 0)
    for end, least in (("largest", 75), ("smallest", 60)):
        member = extreme_member(SPACE, end)  # type: ignore[arg-type]
        images = load(DatasetSettings("synthetic"), member.resolution)
        network = trained.supernet.network(member)
        calibrate(network, [batch for batch, _ in images.train.batches(48, True, 0)])
        right = sum(
            int((network(batch).argmax(1) == labels).sum())
            for batch, labels in images.validation.batches(64, False, 0)
        )
        assert 100 * right / len(images.validation) > least


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 6])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    split: Split, tmp_path: Path, stop: int
) -> None:
    whole = training(split, tmp_path / "whole.safetensors")
    whole.run()

    def interrupt(progress: SupernetProgress) -> None:
        if progress.step == stop + 1:
            raise StoppedError

    path = tmp_path / "parts.safetensors"
    with pytest.raises(StoppedError):
        training(split, path, save_interval_s=0).run(interrupt)
    again = training(split, path)
    assert again.step == stop
    again.run()
    assert again.curve == whole.curve
    found, expected = read(path), read(tmp_path / "whole.safetensors")
    assert all(torch.equal(found.weights[name], each) for name, each in expected.weights.items())
    assert found.is_finished


def test_a_finished_training_has_nothing_left_to_do(split: Split, tmp_path: Path) -> None:
    path = tmp_path / "supernet.safetensors"
    training(split, path).run()
    before = path.read_bytes()
    again = training(split, path)
    again.run()
    assert again.step == again.steps
    assert path.read_bytes() == before
    member = extreme_member(SPACE, "largest")
    kept = read(path).supernet().network(member)
    assert all(
        torch.equal(a, b)
        for a, b in zip(kept.parameters(), again.supernet.network(member).parameters(), strict=True)
    )


def test_another_training_is_not_continued(split: Split, tmp_path: Path) -> None:
    path = tmp_path / "supernet.safetensors"
    training(split, path, replace(RECIPE, epochs=1), made={"dataset": {"limit": 3}}).run()
    with pytest.raises(
        CheckpointError, match=r"begun with another recipe \(label_smoothing 0\.1, now 0\.2\)"
    ):
        training(split, path, replace(RECIPE, epochs=1, label_smoothing=0.2), made={"dataset": {"limit": 3}})
    with pytest.raises(CheckpointError, match=r"begun with another dataset \(limit 3, now 4\)"):
        training(split, path, replace(RECIPE, epochs=1), made={"dataset": {"limit": 4}})


def test_a_loss_that_is_no_number_stops_it_and_keeps_the_last_checkpoint(
    split: Split, tmp_path: Path
) -> None:
    path = tmp_path / "supernet.safetensors"
    begun = training(split, path)

    def spoil(progress: SupernetProgress) -> None:
        if progress.step == 6:
            with torch.no_grad():
                begun.supernet.shared["stem/conv/weight"].fill_(float("nan"))

    with pytest.raises(
        TrainingError, match=r"not finite in epoch 2, batch 3: lower supernet.* last checkpoint"
    ):
        begun.run(spoil)
    assert read(path).epoch == 1
    assert training(split, path).step == 4


def test_out_of_memory_names_a_batch_size_that_fits(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = training(split)
    forward = Supernet.forward

    def short_of_memory(self: Supernet, images: Tensor, *rest: Any, **more: Any) -> Tensor:
        if len(images) > 15:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, *rest, **more)

    monkeypatch.setattr(Supernet, "forward", short_of_memory)
    with pytest.raises(TrainingError, match=r"out of memory with supernet\.batch_size=48: 12 would fit"):
        trained.run()


def test_images_and_space_must_fit(split: Split) -> None:
    with pytest.raises(InputError, match="the space has 10 classes, the dataset 4"):
        SupernetTraining(Supernet(SPACE.restricted(classes=10)), split, RECIPE, ALONE)
    single = Split(split.train, split.validation, ("stripe",), split.preprocessing)
    with pytest.raises(InputError, match="one class"):
        SupernetTraining(Supernet(SPACE), single, RECIPE, ALONE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("learning_rate", float("nan")),
        ("warmup_epochs", -1.0),
        ("label_smoothing", 1.0),
        ("precision", "fp64"),
        ("random_members", -1),
    ],
)
def test_recipes_are_checked(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"supernet\.{field} must be"):
        replace(RECIPE, **{field: value})


# -- foreign and damaged files ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("supernet") / "supernet.safetensors"
    training(split, path, replace(RECIPE, epochs=1)).run()
    return path


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("unpickled"),)  # type: ignore[return-value]


def test_a_pickled_file_is_refused_without_unpickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "foreign.pth"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"foreign\.pth holds no tensors"):
        read(path)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"foreign\.pth holds no tensors"):
        read(path)
    assert not (tmp_path / "unpickled").exists()


def test_damaged_and_foreign_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = checkpoint.read_bytes()
    path = tmp_path / "damaged.safetensors"
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"damaged\.safetensors"):
            read(path)
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no supernet's"):
        read(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*missing"):
        read(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(version=9), "version 9"),
        (lambda state: state.update(epoch="one"), "epoch must be a whole number"),
        (lambda state: state.pop("classes"), "classes is missing"),
        (lambda state: state.update(classes=["a"]), "names 1 classes, its space has 4"),
        (lambda state: state["space"].update(stems=[{"channels": 24}]), r"has head|has stem|of shape"),
        (lambda state: state["space"].update(widths=[1]), "widths"),
    ],
)
def test_changed_notes_are_refused(checkpoint: Path, tmp_path: Path, change: Any, message: str) -> None:
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = json.loads(file.metadata()["supernet"])
    change(state)
    path = tmp_path / "changed.safetensors"
    safetensors.torch.save_file(tensors, path, {"supernet": json.dumps(state)})
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_another_space_or_class_count_is_named(checkpoint: Path) -> None:
    found = read(checkpoint)
    check_fits(checkpoint, found, replace(SPACE, name="renamed"))
    with pytest.raises(CheckpointError, match="trained for 4 classes, here are 10"):
        check_fits(checkpoint, found, SPACE.restricted(classes=10))
    with pytest.raises(CheckpointError, match=r"another search space \(stripes: resolutions differ\)"):
        check_fits(checkpoint, found, SPACE.restricted([16]))


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_batch(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(json.dumps(SPACE.to_dict()))
    images = ["search_space=space.yaml", "dataset=synthetic", "dataset.resolutions=[16]"]
    recipe = ["supernet.epochs=2", "supernet.batch_size=32", "supernet.threads=1"]
    curves = []
    for count in (1, 2):
        started = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "-m", "nas.supernet"]
        path = tmp_path / f"{count}.safetensors"
        done = subprocess.run(
            [sys.executable, *started, *images, *recipe, f"supernet.checkpoint={path}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        curves.append(read(path).curve)
    for one, two in zip(*curves, strict=True):
        assert two == pytest.approx(one, abs=2e-5)
