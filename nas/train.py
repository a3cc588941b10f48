"""``python -m nas.train``: train one network to the end, e.g. one that a search has found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import nn

from nas import data
from nas.accuracy.source import Judgement
from nas.accuracy.train import answers
from nas.assembly import dataset_settings
from nas.bundle import bundle, check_folder, shown
from nas.command import command
from nas.console import console, print_summary, progress_bars
from nas.data import ImageSource, Split
from nas.network import Network, WeightsError
from nas.settings import DatasetConfig, FinalTrainSettings, plain
from nas.shell import shell_line
from nas.tensors import write_tensors
from nas.training.final import FinalProgress, FinalRecipe, FinalTraining
from nas.training.inherit import inherit
from nas.training.pretrained import pretrained, table_note
from nas.training.processes import Processes, joined
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import MAX_YAML_BYTES, Gate
from search_spaces.references import is_reference, reference

_TORCHVISION = "torchvision:"


@dataclass
class FinalTrainConfig:
    """Everything ``python -m nas.train`` can be told."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    train: FinalTrainSettings = field(default_factory=FinalTrainSettings)


def main(config: Any) -> None:
    """Read the images, train or go on training, judge, write the weights."""
    settings = plain(config.train, FinalTrainSettings)
    torch.set_num_threads(settings.threads)
    images = dataset_settings(plain(config.dataset, DatasetConfig))
    if settings.bundle:
        # A training that goes on may have written its bundle already.
        check_folder(Path(settings.bundle), "train.bundle", Path(settings.checkpoint).exists())
    with joined(settings.device) as processes:
        if processes.is_first:
            console.print(data.check(images))
        architecture = replace(_architecture(settings), classes=data.class_count(images))
        split = data.load(images, architecture.resolution)
        torch.manual_seed(settings.seed)
        network = Network(architecture)
        rows = {}
        if settings.init != "scratch":
            rows["begun with"] = str(inherit(network, pretrained(settings.init), settings.init))
        checkpoint = Path(settings.checkpoint)
        teacher = _teacher(settings.teacher, architecture) if settings.teacher else None
        training = FinalTraining(network, split, _recipe(settings), processes, checkpoint, teacher)
        begun = training.step
        with _progress(processes, training) as report:
            training.run(report)
        if not processes.is_first:
            return
    found = training.result
    rows |= {
        "trained": f"{training.step:,} steps, {begun:,} of them before; last loss {training.curve[-1]:.3f}",
    }
    judged = {"images that rank candidates": _judged(found, split, split.validation)}
    if split.test is not None:
        judged["test images that ranked none"] = _judged(found, split, split.test)
    rows |= {f"top-1, {name}": shown(each) for name, each in judged.items()}
    notes = {
        **split.recognition.notes(),
        "dataset": json.dumps(images.to_dict(), ensure_ascii=False),
        **table_note(architecture),
    }
    output = Path(settings.output)
    write_tensors(output, found.state_dict(), notes)
    rows["weights"] = str(output)
    if settings.bundle:
        recipe = {**asdict(training.recipe), "init": settings.init, "teacher": settings.teacher}
        title = Path(settings.architecture).stem
        rows |= bundle(Path(settings.bundle), found, split, images, recipe, judged, title=title)
    following = shell_line(
        "nas.export", export__architecture=settings.architecture, export__weights=str(output)
    )
    print_summary(f"{architecture.id} trained", rows, following)


def _recipe(settings: FinalTrainSettings) -> FinalRecipe:
    return FinalRecipe(**{each.name: getattr(settings, each.name) for each in fields(FinalRecipe)})


def _architecture(settings: FinalTrainSettings) -> Architecture:
    name = settings.architecture
    found = (
        reference(name)
        if is_reference(name)
        else Architecture.from_yaml(Gate(name, InputError).text(Path(name), MAX_YAML_BYTES))
    )
    return found if settings.resolution is None else replace(found, resolution=settings.resolution)


def _teacher(name: str, architecture: Architecture) -> nn.Module:
    """A trained network with as many classes.

    Raises:
        WeightsError: if it cannot be had, or has other classes.
    """
    if name.startswith(_TORCHVISION):
        from torchvision import models

        model = name.removeprefix(_TORCHVISION)
        if model not in models.list_models(module=models):
            raise WeightsError(f"train.teacher={name}: torchvision has no classifier of this name")
        try:
            found: nn.Module = models.get_model(model, weights="DEFAULT")
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"torchvision cannot fetch the weights of {model}: {error}") from None
    else:
        found = pretrained(name)
    side = architecture.resolution
    with torch.no_grad():
        classes = found.eval()(torch.zeros(1, 3, side, side)).shape[1]
    if classes != architecture.classes:
        raise WeightsError(
            f"the teacher {name} knows {classes} classes, the dataset has {architecture.classes}"
        )
    return found


def _judged(network: nn.Module, split: Split, images: ImageSource) -> Judgement:
    return Judgement.of(answers(network, images, 256).tolist(), images.labels.tolist(), split.classes)


@contextmanager
def _progress(processes: Processes, training: FinalTraining) -> Iterator[Any]:
    """What reports steps, the loss and the time left; nothing in all processes but the first."""
    if not processes.is_first:
        yield None
        return
    with progress_bars() as bars:
        yield _Report(bars, bars.add_task("training", total=training.steps))


@dataclass(frozen=True, slots=True)
class _Report:
    bars: Progress
    task: TaskID

    def __call__(self, progress: FinalProgress) -> None:
        text = (
            f"training, loss {progress.loss:.2f}, {progress.images_per_second:,.0f} images/s "
            f"({progress.loading_share:.0%} of the time loading), steps"
        )
        self.bars.update(self.task, completed=progress.step, description=text)


if __name__ == "__main__":
    command("train", FinalTrainConfig, main)
