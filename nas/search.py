"""``python -m nas.search``: networks for the target hardware, accuracy against latency."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nas import data, study
from nas.accuracy import AccuracyEstimator
from nas.boards import table_without_measuring
from nas.config import (
    DatasetConfig,
    HardwareConfig,
    ObjectiveConfig,
    ProfileSettings,
    RuntimeConfig,
    SamplerConfig,
    SearchSettings,
    StudyConfig,
    command,
    hardware_of,
    plain,
    read_space,
)
from nas.console import console, measuring_progress
from nas.devices import Target
from nas.latency import LatencyTable, write_atomically
from nas.layers import layer_keys, reachable_layer_keys
from nas.objective import Budget, MnasNet, Objective, Pareto
from nas.report_data import Report, report_of
from nas.report_writer import write_report
from nas.runtimes import Runtime
from nas.storage import close_storage, open_storage, open_study, refresh_study
from nas.tables import Effort, measure_layers, ready_table, reference_architectures, table_folder
from nas.train import Recipe, TrainedAccuracy
from nas.validation import Card, load_card
from search_spaces.block import Architecture
from search_spaces.errors import InputError
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
    hardware = plain(config.hardware, HardwareConfig)
    profiling = plain(config.profile, ProfileSettings)
    runtime = Runtime(config.runtime.name, config.runtime.precision, config.runtime.threads)
    space, accuracy, resolution = _accuracy(config, read_space(config.search_space), settings)
    references = reference_architectures(space, settings.references, resolution)
    folder = Path(config.study.folder) / config.study.name

    board = hardware_of(hardware)
    target = board.target(runtime, profiling.seed, console.print)
    tables = table_folder(Path(profiling.folder), hardware.name, runtime)
    effort = Effort(profiling.max_keys, profiling.networks, profiling.rounds, profiling.seed)
    if target is None:
        keys = reachable_layer_keys(space).union(*(layer_keys(each) for each in references.values()))
        table = table_without_measuring(board, sorted(keys, key=str), runtime, tables)
    else:
        with measuring_progress() as bars:
            table = ready_table(
                space,
                list(references.values()),
                target,
                runtime,
                hardware.name,
                tables,
                effort,
                bars,
                console.print,
            )
    budget_ms = _budget_ms(settings.budget_ms, table, space, resolution)
    objective = _objective(plain(config.objective, ObjectiveConfig), settings.caution)
    console.print(f"latency: {table.header.title}")
    card = None if table.is_estimated else load_card(tables)
    _check_card(card, table, hardware.name, settings.require_validation)

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
        result = _search(opened, config, settings, space, objective, accuracy, table, references, budget_ms)
        console.print(f"stopped: {result.stopped}")
        if target is not None:
            table = _measure_front(opened, table, target, runtime, tables, effort)
        # Measuring the front changed the table: from now on this one is the study's.
        refresh_study(
            opened,
            _fingerprint(config, table, space, references),
            {
                **_provenance(config, table, card, budget_ms),
                "layers": _layers(report_of(opened, importances=False), table),
            },
        )
        files = write_report(folder, opened)
        print_report_summary(files)
    finally:
        close_storage(storage)


def _accuracy(
    config: Any, space: SearchSpace, settings: SearchSettings
) -> tuple[SearchSpace, AccuracyEstimator, int | None]:
    """The source of accuracy, the space as it suits it, and the references' resolution."""
    if config.accuracy.name == "train":
        dataset = plain(config.dataset, DatasetConfig)
        images = data.DatasetSettings(
            name=dataset.name,  # type: ignore[arg-type]  # DatasetSettings checks it
            root=Path(dataset.root) if dataset.root else None,
            validation_share=dataset.validation_share,
            limit=dataset.limit,
            workers=dataset.workers,
            seed=0,
            download=dataset.download,
        )
        space = space.restricted(dataset.resolutions, data.class_count(images))
        load = functools.cache(functools.partial(data.load, images))
        load(dataset.resolutions[-1])
        fields = set(Recipe.__dataclass_fields__) - {"seed"}
        recipe = Recipe(**{name: config.accuracy[name] for name in fields}, seed=settings.seed)
        return space, TrainedAccuracy(load, recipe), dataset.resolutions[-1]
    raise InputError(f"accuracy={config.accuracy.name} is unknown")


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


def _check_card(card: Card | None, table: LatencyTable, hardware: str, required: bool) -> None:
    """Say how far the table can be trusted.

    Raises:
        InputError: if a good card is required and there is none.
    """
    if table.is_estimated:
        if required:
            raise InputError(
                "search.require_validation=true, but every latency is estimated; "
                f"measure: {table.profile_command}"
            )
        console.print(
            f"  [yellow]warning: every latency is ESTIMATED; measure instead: {table.profile_command}[/]"
        )
        return
    validate = f"python -m nas.validate hardware={hardware}"
    if card is not None and card.is_good:
        console.print(f"  {card.headline}")
        return
    problem = "no validation card" if card is None else f"a poor validation card ({card.headline})"
    if required:
        raise InputError(
            f"search.require_validation=true, but the latency table has {problem}; run: {validate}"
        )
    console.print(f"  [yellow]warning: the latency table has {problem}; run: {validate}[/]")


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
    if table.is_estimated:
        return f"every latency is estimated, not measured; measure with: {table.profile_command}"
    return None if card and card.is_good else "no good validation card"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _search(
    opened: optuna.Study,
    config: Any,
    settings: SearchSettings,
    space: SearchSpace,
    objective: Objective,
    accuracy: AccuracyEstimator,
    table: LatencyTable,
    references: Mapping[str, Architecture],
    budget_ms: float | None,
) -> study.SearchResult:
    columns = (TextColumn("searching"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("training references", total=settings.trials)

        def show(progress: study.Progress) -> None:
            best = progress.best
            left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
            bars.update(
                task,
                completed=progress.done,
                description=(
                    f"{progress.done}/{progress.total} trials, {progress.trials_per_second:.2g}/s, "
                    f"{progress.feasible_share:.0%} feasible, hypervolume {progress.hypervolume:.3f}"
                    + (f", best {best.top1:.2f} % at {best.latency_ms:.2f} ms" if best else "")
                    + left
                ),
            )

        return study.run_search(
            opened,
            space,
            objective,
            accuracy,
            table,
            references,
            config.sampler.name,
            settings.trials,
            budget_ms,
            settings.minutes * 60 if settings.minutes is not None else None,
            settings.seed,
            show,
        )


def _measure_front(
    opened: optuna.Study,
    table: LatencyTable,
    target: Target,
    runtime: Runtime,
    tables: Path,
    effort: Effort,
) -> LatencyTable:
    """Measure the predicted layers of the networks that are going to be recommended."""
    for _ in range(_FRONT_PASSES):
        networks = [
            each.architecture for each in report_of(opened, importances=False).front if each.architecture
        ]
        predicted = {
            key
            for network in networks
            for key, entry in table.layer_latencies(network)
            if entry.source == "predicted"
        }
        if not predicted:
            break
        console.print(f"measuring {len(predicted)} layers of the front that were predicted so far")
        with measuring_progress() as bars:
            table = measure_layers(table, networks, target, runtime, tables, effort.rounds, bars)
        study.remeasure(
            opened,
            {each.id: (table.latency(each).latency_ms, table.latency(each).source) for each in networks},
        )
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
