"""Networks trained to the end: one for ``nas.train``, the best of a search for ``search.train_best``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import optuna
import torch
from rich.progress import Progress, TaskID
from torch import nn

from nas import data
from nas.accuracy.train import TrainedAccuracy, judge_on
from nas.console import console, progress_bars, warn
from nas.data import DatasetSettings
from nas.model_card import RANKING, TEST, FinishedNetwork, bundle, shown
from nas.network import Network, WeightsError
from nas.page.network_result import NetworkResult
from nas.page.reading import report_of
from nas.page.report_data import Report
from nas.quantities import latency_text
from nas.saving import within
from nas.settings import FinalRecipeSettings
from nas.study.provenance import TrainedBest
from nas.study.trial import record_scatter, scatter_of, train_to_the_end, trained
from nas.training.final import Checkpoints, FinalProgress, FinalTraining
from nas.training.inherit import inherit
from nas.training.pretrained import pretrained, torchvision_weights
from nas.training.processes import Processes, joined
from nas.training.steps import TrainingError
from nas.training_recipes import FinalRecipe
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import Gate, is_plain_name
from search_spaces.space import SearchSpace

_TORCHVISION = "torchvision:"
# Each is trained with, the search's own included: enough when several networks have so many.
_SEEDS = 3
_JUDGED_AT_ONCE = 256


def finish(
    architecture: Architecture,
    images: DatasetSettings,
    settings: FinalRecipeSettings,
    checkpoint: Path,
    processes: Processes,
    label: str,
) -> FinishedNetwork | None:
    """Train a network to the end, or go on from a checkpoint, and judge it.

    Args:
        architecture: with as many classes as the images have.
        images: which they are.
        settings: how to train.
        checkpoint: what is trained.
        processes: that train together.
        label: of the progress bar.

    Returns:
        The trained network; None in all processes but the first.

    Raises:
        InputError: if settings, images and weights to begin with do not fit each other.
        TrainingError: if the loss is not finite or memory does not suffice; the checkpoint is kept.
    """
    split = data.load(images, architecture.resolution)
    torch.manual_seed(settings.seed)
    network = Network(architecture)
    rows = {}
    if settings.init != "scratch":
        rows["begun with"] = str(inherit(network, pretrained(settings.init), settings.init))
    teacher = _teacher(settings.teacher, architecture) if settings.teacher else None
    recipe, checkpoints = final_recipe(settings), Checkpoints(checkpoint)
    training = FinalTraining(network, split, recipe, processes, checkpoints, teacher)
    begun = training.step
    with _progress(processes, training, label) as report:
        training.run(report)
    if not processes.is_first:
        return None
    found = training.result
    rows["trained"] = f"{training.step:,} steps, {begun:,} of them before; last loss {training.curve[-1]:.3f}"
    judged = {RANKING: judge_on(found, split.validation, split.classes, _JUDGED_AT_ONCE)}
    if split.test is not None:
        judged[TEST] = judge_on(found, split.test, split.classes, _JUDGED_AT_ONCE)
    rows |= {f"top-1, {name}": shown(each) for name, each in judged.items()}
    return FinishedNetwork(found, split, images, _described(settings), judged, rows)


def final_recipe(settings: FinalRecipeSettings) -> FinalRecipe:
    """The recipe that settings describe.

    Raises:
        InputError: if a setting is wrong.
    """
    return FinalRecipe(**{each.name: getattr(settings, each.name) for each in fields(FinalRecipe)})


def _described(settings: FinalRecipeSettings) -> dict[str, object]:
    """A recipe in words, for people and for telling whether it has changed."""
    return {**asdict(final_recipe(settings)), "init": settings.init, "teacher": settings.teacher}


def check_trainable(space: SearchSpace, images: DatasetSettings, settings: FinalRecipeSettings) -> None:
    """Refuse ``search.train_best`` before anything is measured, where it could not be done.

    Args:
        space: of the search.
        images: that networks would be trained on.
        settings: how.

    Raises:
        InputError: naming the setting to change.
    """
    final_recipe(settings)
    classes = data.class_count(images)
    if classes != space.classes:
        raise InputError(
            f"search.train_best needs images of the networks' {space.classes:,} classes, dataset="
            f"{images.name} has {classes:,}: search with accuracy=train or supernet, or use nas.train"
        )
    if settings.init != "scratch":
        pretrained(settings.init)


def train_best(
    study: optuna.Study,
    count: int,
    images: DatasetSettings,
    settings: FinalRecipeSettings,
    folder: Path,
) -> TrainedBest:
    """Train the best networks of a search and its references to the end, and write a bundle of each.

    What was trained is in the study; the same command trains no network again, and goes on with one that was
    interrupted.

    Args:
        study: after its search; gets accuracies by the final recipe.
        count: networks of the front, besides the references.
        images: that they are trained on.
        settings: how.
        folder: of the study: bundles are written below it.

    Returns:
        What the report has to know of it.
    """
    report = report_of(study, importances=False)
    recipe = _described(settings)
    trials = sum(each.trial >= 0 for each in report.networks)
    gate = Gate(f"the study {study.study_name!r}")
    kept = {name: gate.mapping(each, name) for name, each in trained(study.user_attrs).items()}
    known = {
        name: each
        for name, each in kept.items()
        if each.get("recipe") == recipe and within(folder, "bundles", _place(each, name)).exists()
    }
    # Timed anew, a front is a little different: that alone is no reason to train others.
    wanted = finalists(report, count, [name for name, each in known.items() if each.get("trials") == trials])
    judged_on = RANKING
    with joined(settings.device) as processes:
        for number, (name, found) in enumerate(wanted.items(), start=1):
            if found.id in known:
                judged_on = gate.string("judged_on", known[found.id]["judged_on"])
                continue
            assert found.architecture is not None
            # Names of a study from elsewhere may be paths.
            place = name if is_plain_name(name) else found.id
            checkpoint = within(folder, "training", f"{place}.safetensors")
            bundled = within(folder, "bundles", place)
            label = f"{name} ({number} of {len(wanted)})"
            try:
                finished = finish(found.architecture, images, settings, checkpoint, processes, label)
            except TrainingError as error:
                # The others are not lost with it.
                warn(f"warning: {name} was not trained to the end: {error}")
                continue
            if finished is None:
                continue
            judged_on, judged = list(finished.judged.items())[-1]
            console.print(f"{name}: {shown(judged)} ({judged_on})")
            bundle(bundled, finished, _latency_rows(report, found), name)
            made = {"judged_on": judged_on, "recipe": recipe, "trials": trials, "label": place}
            train_to_the_end(study, found.id, judged, made)
            checkpoint.unlink()
    return TrainedBest(trials, len(wanted), judged_on, recipe)


def _place(kept: Mapping[str, object], name: str) -> str:
    """The name of a network's bundle, as the study has it."""
    label = kept.get("label", name)
    return label if isinstance(label, str) and is_plain_name(label) else name


def measure_seed_scatter(study: optuna.Study, accuracy: TrainedAccuracy, count: int) -> None:
    """Train a few networks of the front with other seeds, to know how much of an accuracy is chance.

    What is found goes into the study, and into the ± of its trained accuracies; it is not done twice.

    Args:
        study: after its search.
        accuracy: that judged its networks.
        count: networks to train again; 0: none.
    """
    if not count or scatter_of(study.user_attrs):
        return
    front = [each for each in report_of(study, importances=False).front if each.architecture]
    chosen = front[:: max(1, math.ceil(len(front) / count))][:count]
    found: dict[str, list[float]] = {}
    with progress_bars() as bars:
        task = bars.add_task("training again with other seeds", total=len(chosen) * (_SEEDS - 1))
        for network in chosen:
            assert network.architecture is not None
            found[network.id] = [network.top1]
            for seed in range(1, _SEEDS):
                recipe = replace(accuracy.recipe, seed=accuracy.recipe.seed + seed)
                other = replace(accuracy, recipe=recipe, checkpoints=None)
                found[network.id].append(other.accuracy(network.architecture).top1)
                bars.advance(task)
    points = math.sqrt(statistics.fmean(statistics.variance(each) for each in found.values()))
    record_scatter(study, points, found)
    console.print(f"with other seeds accuracies scatter by {points:.2f} points")


def finalists(report: Report, count: int, known: Container[str] = ()) -> dict[str, NetworkResult]:
    """Which networks are trained to the end, by label: some candidates, and the references.

    Args:
        report: of the search.
        count: how many candidates.
        known: ids of those that were trained already: they count first. Then the most accurate of the front,
            those found at the references' latencies, the budget's first, and what is farthest from these.
    """
    front = [each for each in report.front if each.kind != "reference" and each.architecture]
    # The most accurate one stands beside the budget, or at the end of the front.
    beside = [*front[-1:], *(answer.as_fast for answer in report.answers if answer.as_fast)]
    first = [each for each in report.candidates if each.id in known and each.architecture]
    found = {each.label: each for each in (*first, *(each for each in beside if each in front))}
    while front and len(found) < min(count, len(front)):
        chosen = [each.latency_ms for each in found.values()]
        farthest = max(front, key=lambda each: min(abs(math.log(each.latency_ms / ms)) for ms in chosen))
        found[farthest.label] = farthest
    references = (each for each in report.references if each.architecture and each.trial >= 0)
    return dict(list(found.items())[:count]) | {each.label: each for each in references}


def _latency_rows(report: Report, network: NetworkResult) -> dict[str, str]:
    """Rows of a model card: latency on the searched hardware, and whether the budget is met."""
    rows = {"hardware": report.title, "p50": f"{network.latency} ({network.latency_source})"}
    for name, value in (("p90", network.p90_ms), ("p99", network.p99_ms)):
        if value is not None:
            rows[name] = latency_text(value)
    if network.energy_mj is not None:
        rows["energy"] = f"{network.energy_mj:.3g} mJ an inference, of the processor's whole package"
    if report.bound_ms is not None:
        met = "met" if report.is_within_budget(network) else "not met"
        rows["budget"] = f"{latency_text(report.bound_ms)} at p{report.percentile}: {met}"
    return rows


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
        torchvision_weights(model)  # looked at before torchvision unpickles them
        found: nn.Module = models.get_model(model, weights="DEFAULT")
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


@contextmanager
def _progress(
    processes: Processes, training: FinalTraining, label: str
) -> Iterator[Callable[[FinalProgress], None] | None]:
    """A callback that prints steps, the loss and the time left; nothing in all processes but the first."""
    if not processes.is_first:
        yield None
        return
    with progress_bars() as bars:
        yield _Report(bars, bars.add_task(label, total=training.steps), label)


@dataclass(frozen=True, slots=True)
class _Report:
    bars: Progress
    task: TaskID
    label: str

    def __call__(self, progress: FinalProgress) -> None:
        text = (
            f"{self.label}, loss {progress.loss:.2f}, {progress.images_per_second:,.0f} images/s "
            f"({progress.loading_share:.0%} of the time loading), steps"
        )
        self.bars.update(self.task, completed=progress.step, description=text)
