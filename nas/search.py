"""``python -m nas.search``: networks for the target hardware, accuracy against latency."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nas import data
from nas.accuracy.estimator import AccuracyEstimator, PublishedFirst
from nas.accuracy.predictor import Predictor, shipped_predictor
from nas.accuracy.proxy import ProxyAccuracy
from nas.accuracy.table import AccuracyTable
from nas.accuracy.training import TrainedAccuracy
from nas.boards.hardware import Hardware, table_without_measuring
from nas.config import (
    DatasetConfig,
    HardwareConfig,
    ObjectiveConfig,
    ProfileSettings,
    RuntimeConfig,
    SamplerConfig,
    SearchSettings,
    StudyConfig,
    TrainConfig,
    command,
    dataset_settings,
    hardware_of,
    plain,
    read_space,
    recipe_of,
)
from nas.console import console, measuring_progress, print_report_summary
from nas.engine import study
from nas.engine.netadapt import refine
from nas.engine.storage import close_storage, open_storage, open_study, refresh_study
from nas.latency.devices import Target
from nas.latency.provision import Effort, measure_layers, ready_table, reference_architectures, table_folder
from nas.latency.runtimes import Runtime
from nas.latency.table import LatencyTable, write_atomically
from nas.latency.timing import MeasurementError
from nas.latency.validation import Card, load_card
from nas.layers import layer_keys, reachable_layer_keys
from nas.objective import Budget, MnasNet, Objective, Pareto
from nas.reporting.data import Report, report_of
from nas.reporting.torchvision_reference import (
    is_torchvision,
    measure_end_to_end,
    record,
    torchvision_reference,
)
from nas.reporting.writer import write_report
from search_spaces.block import Architecture
from search_spaces.errors import InputError
from search_spaces.mobilenet import published_top1
from search_spaces.space import SearchSpace

_VERSIONS_OF = ("mobilenet-nas", "torch", "torchvision", "optuna", "onnxruntime", "numpy", "scikit-learn")
# After measuring the front's layers the front may be another one: look again, but not for ever.
_FRONT_PASSES = 3


@dataclass
class SearchConfig:
    """Everything ``python -m nas.search`` can be told."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Any = None
    accuracy: Any = None
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    search: SearchSettings = field(default_factory=SearchSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)


def main(config: Any) -> None:
    """Measure what is missing, search, measure the front, report."""
    settings = plain(config.search, SearchSettings)
    board = hardware_of(plain(config.hardware, HardwareConfig))
    profiling = plain(config.profile, ProfileSettings)
    runtime = Runtime(config.runtime.name, config.runtime.precision, config.runtime.threads)
    foreign = [torchvision_reference(name) for name in settings.references if is_torchvision(name)]
    settings.references = [name for name in settings.references if not is_torchvision(name)]
    space, accuracy, resolution = _accuracy(config, read_space(config.search_space), settings)
    references = reference_architectures(space, settings.references, resolution)
    folder = Path(config.study.folder) / config.study.name
    tables = table_folder(Path(profiling.folder), board.name, runtime)
    latencies = _Latencies(board, runtime, tables, profiling)

    table = latencies.table(space, list(references.values()))
    console.print(f"latency: {table.header.title}")
    card = load_card(tables)
    _check_card(card, table, board, runtime, settings.require_validation)
    budget_ms = _budget_ms(settings.budget_ms, table, space, resolution)
    objective = _objective(plain(config.objective, ObjectiveConfig), settings.caution)
    storage = open_storage(config.study.storage or str(folder / "study.journal"))
    try:
        opened = open_study(
            storage,
            config.study.name,
            objective,
            space,
            _fingerprint(config, table, space, references),
            _provenance(config, table, card, budget_ms),
        )
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        with _search_progress(settings.trials) as show:
            result = study.run_search(
                opened,
                space,
                objective,
                accuracy,
                table,
                references,
                sampler=config.sampler.name,
                trials=settings.trials,
                budget_ms=budget_ms,
                time_limit_s=settings.minutes * 60 if settings.minutes is not None else None,
                seed=settings.seed,
                progress=show,
                dear=config.accuracy.name == "train",
                workers=settings.workers,
                shared=storage if config.study.storage else None,
            )
        console.print(
            f"stopped: {result.stopped} ({result.evaluated:,} candidates in {result.seconds:.0f} s)"
        )
        if settings.refine:
            _refine(opened, space, objective, accuracy, table, settings, references, budget_ms)
        table = _measure_front(opened, table, latencies)
        if foreign:
            journal = folder / "torchvision.jsonl"
            record(opened, foreign, measure_end_to_end(foreign, table, runtime, journal))
            journal.unlink()
        # Measuring the front changed the table: from now on this one is the study's.
        refresh_study(
            opened,
            _fingerprint(config, table, space, references),
            {
                **_provenance(config, table, card, budget_ms),
                "layers": _layers(report_of(opened, importances=False), table),
            },
        )
        print_report_summary(write_report(folder, opened))
    finally:
        close_storage(storage)


@dataclass(frozen=True, slots=True)
class _Latencies:
    """Where latencies come from: this machine, a board over SSH, an earlier table or an estimate."""

    board: Hardware
    runtime: Runtime
    folder: Path
    settings: ProfileSettings

    @property
    def target(self) -> Target | None:
        """Who can measure, None if nobody can from here."""
        return self.board.target(self.runtime, self.settings.seed, console.print)

    def table(self, space: SearchSpace, references: Sequence[Architecture]) -> LatencyTable:
        """A table that covers the space and the references."""
        target = self.target
        if target is None:
            keys = reachable_layer_keys(space).union(*(layer_keys(each) for each in references))
            return table_without_measuring(self.board, sorted(keys, key=str), self.runtime, self.folder)
        effort = Effort(
            self.settings.max_keys, self.settings.networks, self.settings.rounds, self.settings.seed
        )
        with measuring_progress() as bars:
            return ready_table(
                space,
                references,
                target,
                self.runtime,
                self.board.name,
                self.folder,
                effort,
                bars,
                console.print,
            )

    def measured(self, table: LatencyTable, networks: Sequence[Architecture]) -> LatencyTable:
        """The table with every layer of these networks measured, where that can be done from here."""
        keys = {key for each in networks for key, entry in table.layer_latencies(each) if entry.samples == 0}
        target = self.target
        if target is None or not keys:
            return table
        console.print(f"measuring {len(keys)} layers of the front that were predicted so far")
        with measuring_progress() as bars:
            return measure_layers(
                table, networks, target, self.runtime, self.folder, self.settings.rounds, bars
            )


def _accuracy(
    config: Any, space: SearchSpace, settings: SearchSettings
) -> tuple[SearchSpace, AccuracyEstimator, int | None]:
    """The source of accuracy, the space as it suits it, and the references' resolution."""
    if config.accuracy.name == "imagenet":
        path = config.accuracy.parameters
        predictor = Predictor.load(Path(path)) if path else shipped_predictor()
        references = reference_architectures(space, settings.references)
        published = {
            architecture: top1
            for name, architecture in references.items()
            if (top1 := published_top1(name, architecture.resolution)) is not None
        }
        return space, PublishedFirst(published, predictor), None
    if config.accuracy.name == "proxy":
        return space, ProxyAccuracy(config.accuracy.score, config.accuracy.resolution), None
    if config.accuracy.name == "table":
        return space, AccuracyTable(space, Path(config.accuracy.path)), None
    dataset = plain(config.dataset, DatasetConfig)
    images = dataset_settings(dataset)
    space = space.restricted(dataset.resolutions, data.class_count(images))
    load = functools.cache(functools.partial(data.load, images))
    load(dataset.resolutions[-1])  # a missing or broken dataset is said before anything is measured
    recipe = recipe_of(plain(config.accuracy, TrainConfig), settings.seed)
    return space, TrainedAccuracy(load, recipe), dataset.resolutions[-1]


def _objective(config: ObjectiveConfig, caution: float) -> Objective:
    if config.name == "pareto":
        if config.third not in (None, "parameters", "macs", "model_size_mb"):
            raise InputError(f"objective.third must be parameters, macs or model_size_mb, not {config.third}")
        return Pareto(config.third, caution)  # type: ignore[arg-type]
    if config.name == "budget":
        return Budget(caution)
    assert config.target_ms is not None
    return MnasNet(config.target_ms, config.exponent, caution)


def _budget_ms(
    budget: str | None, table: LatencyTable, space: SearchSpace, resolution: int | None
) -> float | None:
    """A number of milliseconds, or the latency of the reference of that name."""
    if budget is None:
        return None
    try:
        return float(budget)
    except ValueError:
        (architecture,) = reference_architectures(space, [budget], resolution).values()
        return table.latency(architecture).latency_ms


def _fingerprint(
    config: Any,
    table: LatencyTable,
    space: SearchSpace,
    references: Mapping[str, Architecture],
) -> dict[str, Any]:
    """What must not change while a study goes on."""
    keys = reachable_layer_keys(space).union(*(layer_keys(each) for each in references.values()))
    header = table.header
    settings: dict[str, Any] = {
        "accuracy": OmegaConf.to_container(config.accuracy, resolve=True),
        "latency table": {
            "hardware": header.hardware,
            "device": header.device,
            "runtime": f"{header.runtime} {header.runtime_version}",
            "precision": header.precision,
            "threads": header.threads,
            "content": table.digest(keys),
        },
        "search.budget_ms": config.search.budget_ms,
        "search.caution": config.search.caution,
        "search.seed": config.search.seed,
        "objective": OmegaConf.to_container(config.objective, resolve=True),
    }
    for name in ("trials", "minutes"):
        settings["accuracy"].pop(name, None)
    if config.accuracy.name == "train":
        settings["dataset"] = OmegaConf.to_container(config.dataset, resolve=True)
    return settings


def _check_card(
    card: Card | None, table: LatencyTable, board: Hardware, runtime: Runtime, required: bool
) -> None:
    """Say how far the table can be trusted.

    Raises:
        InputError: if a good card is required and there is none.
    """
    if table.header.statistic == "estimate":
        problem, remedy = "is estimated, nothing was measured on the board", board.how_to_measure(runtime)
    elif card is not None and card.is_good:
        console.print(f"  {card.headline}")
        return
    else:
        problem = (
            "has no validation card" if card is None else f"has a poor validation card ({card.headline})"
        )
        remedy = f"python -m nas.validate hardware={board.name}"
    if required:
        raise InputError(f"search.require_validation=true, but the latency table {problem}; run: {remedy}")
    console.print(f"  [yellow]warning: the latency table {problem}; better: {remedy}[/]")


def _provenance(
    config: Any, table: LatencyTable, card: Card | None, budget_ms: float | None
) -> dict[str, Any]:
    """What else a report should say."""
    header = table.header
    counts: dict[str, int] = {}
    for entry in table.entries.values():
        counts[entry.source] = counts.get(entry.source, 0) + 1
    return {
        "hardware": header.hardware,
        "latency": {
            "title": header.title,
            "device": header.device,
            "runtime": header.runtime,
            "runtime_version": header.runtime_version,
            "precision": header.precision,
            "threads": header.threads,
            "created": header.created,
            "counts": counts,
            "calibration": header.calibration.to_dict() if header.calibration else None,
            "card": card.to_dict() if card else None,
            "warning": _warning(card, table),
        },
        "accuracy": OmegaConf.to_container(config.accuracy, resolve=True),
        "dataset": config.dataset.name if config.accuracy.name == "train" else None,
        "budget_ms": budget_ms,
        "budget_name": config.search.budget_ms,
        "seed": config.search.seed,
        "sampler": config.sampler.name,
        "versions": {name: _version(name) for name in _VERSIONS_OF},
        "command": "python -m nas.search " + " ".join(sys.argv[1:]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _warning(card: Card | None, table: LatencyTable) -> str | None:
    if table.header.statistic == "estimate":
        return f"all latencies are estimated; measure with: {table.profile_command}"
    return None if card and card.is_good else "the latency table has no good validation card"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextmanager
def _search_progress(trials: int) -> Iterator[Callable[[study.Progress], None]]:
    columns = (TextColumn("searching"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("evaluating references", total=trials)

        def show(progress: study.Progress) -> None:
            best = progress.best
            parts = [
                f"{progress.done:,}/{progress.total:,} trials",
                f"{progress.trials_per_second:.3g}/s",
                f"{progress.feasible_share:.0%} feasible",
                f"hypervolume {progress.hypervolume:.3f}",
            ]
            if best is not None:
                parts.append(f"best {best.top1:.2f} % at {best.latency_ms:.2f} ms")
            if progress.seconds_left is not None:
                parts.append(f"{progress.seconds_left:.0f} s left")
            bars.update(task, completed=progress.done, description=", ".join(parts))

        yield show


def _refine(
    opened: optuna.Study,
    space: SearchSpace,
    objective: Objective,
    accuracy: AccuracyEstimator,
    table: LatencyTable,
    settings: SearchSettings,
    references: Mapping[str, Architecture],
    budget_ms: float | None,
) -> None:
    """Shrink a network of the study to a latency; every network on the way becomes a trial."""
    if settings.refine != "netadapt":
        raise InputError(f"search.refine must be netadapt or null, not {settings.refine}")
    target_ms = settings.refine_to_ms or budget_ms
    if target_ms is None:
        raise InputError("search.refine=netadapt needs search.refine_to_ms or search.budget_ms")
    front = {each.label: each.architecture for each in report_of(opened, importances=False).front}
    found: dict[str, Architecture | None] = {**front, **references}
    start = found.get(settings.refine_from or next(reversed(front)))
    if start is None:
        raise InputError(
            f"search.refine_from={settings.refine_from} is neither a reference nor on the front "
            f"({', '.join(front)})"
        )
    with _search_progress(0) as show:
        refinement = refine(
            opened,
            space,
            objective,
            accuracy,
            table,
            start,
            target_ms,
            progress=show,
            workers=settings.workers,
        )
    last = refinement.path[-1]
    console.print(
        f"NetAdapt: {len(refinement.path) - 1} steps to {last.latency_ms:.2f} ms, top-1 {last.top1:.2f} %"
        + ("" if refinement.reached else "; the target was not reached, nothing is left to shrink")
    )


def _measure_front(opened: optuna.Study, table: LatencyTable, latencies: _Latencies) -> LatencyTable:
    """Measure the predicted layers of the networks that are going to be recommended."""
    for _ in range(_FRONT_PASSES):
        front = report_of(opened, importances=False).front
        networks = [each.architecture for each in front if each.architecture]
        try:
            better = latencies.measured(table, networks)
        except MeasurementError as error:
            # A search of hours is not lost because the machine was busy at its end.
            console.print(f"[yellow]warning: layers of the front stay predicted: {error}[/]")
            break
        if better is table:
            break
        table = better
        found = {each.id: table.latency(each) for each in networks}
        study.remeasure(opened, {name: (each.latency_ms, each.source) for name, each in found.items()})
    return table


def _layers(report: Report, table: LatencyTable) -> dict[str, list[dict[str, Any]]]:
    """Where the time goes in the front and the references, layer by layer."""
    calibration = table.header.calibration
    result = {}
    for network in (*report.front, *report.references):
        if network.architecture is not None:
            result[network.id] = [
                {
                    "key": str(key),
                    "latency_ms": calibration.layer_ms(key, entry.latency_ms)
                    if calibration
                    else entry.latency_ms,
                    "source": entry.source,
                }
                for key, entry in table.layer_latencies(network.architecture)
            ]
    return result


if __name__ == "__main__":
    command("search", SearchConfig, main)
