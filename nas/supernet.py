"""``python -m nas.supernet``: train shared weights for all members of a search space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from rich.progress import Progress, TaskID

from nas import data
from nas.assembly import dataset_settings
from nas.command import command
from nas.console import console, print_summary, progress_bars
from nas.network import Network
from nas.saving import check_apart, check_output
from nas.settings import Chosen, DatasetConfig, SupernetSettings
from nas.shell import shell_line
from nas.tensors import read_tensors
from nas.training.processes import Processes, joined
from nas.training.supernet import Supernet
from nas.training.supernet_training import SupernetProgress, SupernetTraining
from nas.training_recipes import SupernetRecipe
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.space import NotInSpaceError, SearchSpace


@dataclass
class SupernetConfig:
    """Everything ``python -m nas.supernet`` can be told."""

    search_space: Chosen = None
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    supernet: SupernetSettings = field(default_factory=SupernetSettings)


def main(config: SupernetConfig) -> None:
    """Read the images, train or go on training, say what came of it."""
    settings = config.supernet
    torch.set_num_threads(settings.threads)
    dataset = config.dataset
    images = dataset_settings(dataset)
    path = Path(settings.checkpoint)
    start = Path(settings.start_from) if settings.start_from else None
    check_apart({"supernet.checkpoint": path, "supernet.start_from": start})
    check_output(path, "supernet.checkpoint", overwrite=True)
    with joined(settings.device) as processes:
        if processes.is_first:
            console.print(data.check(images))
        space = SearchSpace.from_dict(config.search_space).restricted(
            dataset.resolutions, data.class_count(images)
        )
        split = data.load(images, max(space.resolutions))
        # The same in all processes.
        torch.manual_seed(settings.seed)
        supernet = Supernet(space)
        if settings.start_from:
            supernet.load(_start(settings, space))
        training = SupernetTraining(
            supernet, split, _recipe(settings), processes, path, {"dataset": dataset.name}
        )
        begun = training.step
        with _progress(processes, training) as report:
            training.run(report)
        if not processes.is_first:
            return
    losses = [f"{each:.3f}" for each in training.curve[-1]]
    rows = {
        "members": f"{space.size:.3g} networks share {supernet.parameter_count() / 1e6:.2f} M weights",
        "trained": f"{training.step:,} steps, {begun:,} of them before",
        "last losses": f"largest {losses[0]}, smallest {losses[1]}, random {losses[2]}",
        "file": f"{path} ({path.stat().st_size / 1e6:.1f} MB)",
    }
    settings_ = {"accuracy": "supernet", "accuracy__checkpoint": str(path), "dataset": dataset.name}
    print_summary("supernet", rows, shell_line("nas.search", carry=True, **settings_))


def _recipe(settings: SupernetSettings) -> SupernetRecipe:
    return SupernetRecipe(**{each.name: getattr(settings, each.name) for each in fields(SupernetRecipe)})


def _start(settings: SupernetSettings, space: SearchSpace) -> Network:
    """A member with the weights to begin with.

    Raises:
        InputError: if table and weights do not fit each other or the space.
    """
    if settings.architecture is None:
        raise InputError("supernet.start_from needs supernet.architecture, the block table of these weights")
    network = Network(Architecture.from_file(Path(settings.architecture)))
    gate = Gate(str(settings.start_from), InputError)
    tensors, _ = read_tensors(Path(str(settings.start_from)), gate)
    try:
        network.load_state_dict(tensors)
        space.encode(network.architecture)
    except RuntimeError as error:
        gate.fail(f"does not fit {settings.architecture}: {str(error).splitlines()[-1].strip()}")
    except NotInSpaceError as error:
        raise InputError(
            f"{settings.architecture} is no member of the space {space.name!r}: {error}"
        ) from None
    return network


@contextmanager
def _progress(
    processes: Processes, training: SupernetTraining
) -> Iterator[Callable[[SupernetProgress], None] | None]:
    """A callback that prints steps, losses and the time left; nothing in all processes but the first."""
    if not processes.is_first:
        yield None
        return
    with progress_bars() as bars:
        yield _Report(bars, bars.add_task("training", total=training.steps))


@dataclass(frozen=True, slots=True)
class _Report:
    bars: Progress
    task: TaskID

    def __call__(self, progress: SupernetProgress) -> None:
        loss = ", ".join(f"{each:.2f}" for each in progress.loss)
        text = f"training, losses {loss}, {progress.images_per_second:,.0f} images/s, steps"
        self.bars.update(self.task, completed=progress.step, description=text)


if __name__ == "__main__":
    command("supernet", SupernetConfig, main)
