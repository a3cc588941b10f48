"""``python -m nas.compare``: time networks on every runtime installed; which to deploy, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from nas.command import command
from nas.console import console, measuring_progress, print_columns, print_summary, warn
from nas.latency.deployment import best_of_each, matrix, measured_deployments, save
from nas.latency.hardware import check_threads
from nas.measuring.conditions import usable_cores
from nas.page.reading import read_study, report_of
from nas.quantities import latency_text
from nas.runtimes.runtime import ENGINES, Runtime, installed
from nas.runtimes.subject import Precision
from nas.saving import check_folder
from nas.settings import ROUNDS
from nas.shell import shell_line
from nas.spread import evenly_spread
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.references import UnknownReferenceError, reference
from search_spaces.tasks import Task, TaskNetwork, task_of


@dataclass
class CompareSettings:
    """The networks to time, and on what.

    Attributes:
        networks: names of references, YAML files of architectures, or folders of studies.
        front: networks at most of a study's front, spread over its latencies.
        runtimes: names; null for all that are installed and meant for deployment.
        precisions: fp32, int8 or both; a runtime without int8 is timed in fp32 only.
        threads: numbers of threads.
        resolution: of references, in pixels.
        task: classification, segmentation or detection: what is timed with them.
        task_classes: that it tells apart, the background included; null: torchvision's 21 or 91.
        rounds: every network runs once per round on every runtime; at least 4.
        seed: of the order of measuring.
        output: folder of the figures.
    """

    networks: list[str] = field(default_factory=list)
    front: int = 6
    runtimes: list[str] | None = None
    precisions: list[str] = field(default_factory=lambda: ["fp32", "int8"])
    threads: list[int] = field(default_factory=lambda: [1])
    resolution: int = 224
    task: str = "classification"
    task_classes: int | None = None
    rounds: int = ROUNDS
    seed: int = 0
    output: str = "results/compare"


@dataclass
class CompareConfig:
    """Everything ``python -m nas.compare`` can be told."""

    compare: CompareSettings = field(default_factory=CompareSettings)


def main(config: CompareConfig) -> None:
    """Measure, write the figures, name the fastest deployment of each network."""
    settings = config.compare
    task = task_of(settings.task, settings.task_classes, "compare")
    architectures: dict[str, Architecture] = {}
    for text in settings.networks:
        architectures |= _read(text, settings)
    if not architectures:
        raise InputError("name networks to time, e.g.: compare.networks=[mobilenet_v3_large,results/STUDY]")
    if settings.rounds < 4 or settings.front < 1:
        raise InputError("compare.rounds must be at least 4 and compare.front at least 1")
    networks = {name: TaskNetwork(each, task) if task else each for name, each in architectures.items()}
    runtimes = _runtimes(settings, task)
    console.print(f"{len(networks)} networks on {len(runtimes)} configurations, {settings.rounds} rounds")
    folder = Path(settings.output)
    check_folder(folder, "compare.output", overwrite=True)
    asked = networks, runtimes, folder, settings.rounds, settings.seed
    with measuring_progress() as bars, measured_deployments(*asked, bars) as (found, refused):
        save(found, folder)
    header, *rows = matrix(found)
    what = f", the whole model for {task.name} ({task.classes} classes)" if task else ""
    print_columns(
        f"p50 in milliseconds{what}", header, [[cell.replace("**", "") for cell in row] for row in rows]
    )
    for label, reason in refused.items():
        warn(f"not run: {label}: {reason}")
    deploy = {
        each.network: (
            f"{latency_text(each.p50_ms)} (p90 {latency_text(each.p90_ms, unit='')}, "
            f"p99 {latency_text(each.p99_ms, unit='')}) with {each.runtime.name} "
            f"{each.version}, {each.runtime.precision}, {each.runtime.threads} thread"
            f"{'s' if each.runtime.threads > 1 else ''}"
        )
        for each in best_of_each(found)
    }
    notes = {"mind": "what int8 costs in accuracy is not predicted here: quantise and test with your images"}
    if all(each.precision == "fp32" for each in runtimes):
        notes = {}
    files = {"files": f"{folder}/deployments.md, deployments.csv"}
    print_summary("the fastest way to deploy each", deploy | notes | files, _next(settings, architectures))


def _next(settings: CompareSettings, networks: Mapping[str, Architecture]) -> str:
    first = Path(settings.networks[0])
    # Of a study the front's networks have files.
    table = first / "architectures" / f"{next(iter(networks.values())).id}.yaml" if first.is_dir() else first
    task = settings.task if settings.task != "classification" else None
    return shell_line("nas.export", export__architecture=str(table), export__task=task)


def _read(text: str, settings: CompareSettings) -> dict[str, Architecture]:
    path = Path(text)
    if path.is_dir():
        front = [each for each in report_of(read_study(path), importances=False).front if each.architecture]
        front.sort(key=lambda each: each.latency_ms)
        if not front:
            raise InputError(f"{path}: this study has no network on its front yet")
        chosen = evenly_spread(front, settings.front)
        return {each.label: each.architecture for each in chosen if each.architecture}
    if path.suffix in (".yaml", ".yml"):
        return {path.stem: Architecture.from_file(path)}
    try:
        return {text: reference(text, settings.resolution)}
    except UnknownReferenceError as error:
        raise InputError(f"{error}; or give a YAML file or the folder of a study") from None


def _runtimes(settings: CompareSettings, task: Task | None) -> list[Runtime]:
    """Every configuration asked for, all of them installed; a runtime need not have every precision."""
    precisions = [cast(Precision, each) for each in settings.precisions if each == "fp32" or not task]
    if not precisions or not settings.threads:
        lacking = " (networks for other tasks run in fp32 only)" if task else ""
        raise InputError(f"compare.precisions and compare.threads must not be empty{lacking}")
    for precision in precisions:
        Runtime(precision=precision)  # refuses one that does not exist
    if settings.runtimes:
        names = list(settings.runtimes)
    else:
        here = dict.fromkeys(name for precision in precisions for name in installed(precision))
        names = [each for each in here if ENGINES[each].deploys and (not task or ENGINES[each].tasks)]
    check_threads("compare.threads", max(settings.threads), usable_cores())
    found: list[Runtime] = []
    for name in names:
        known = ENGINES[name].precisions if name in ENGINES else ()  # what is unknown is refused below
        able = [each for each in precisions if each in known] or precisions
        found += [Runtime(name, precision, threads) for precision in able for threads in settings.threads]
    for each in found:
        each.version()
        if task:
            each.check_task(task)
    return found


if __name__ == "__main__":
    command("compare", CompareConfig, main)
