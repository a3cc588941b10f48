"""The cost of long and large things as they grow: trials of a study, layers of a table, members of a front.

    python -m tools.long_study_benchmark --trials 20000 --output results/long-study

Accuracy is predicted and latency estimated, so that the study itself is what takes time. Each measurement has
a process of its own, whose peak of memory is told; seconds are the processor's. Prints the figures, and
writes them with a plot: time and memory of trials, of a table and of a front as they grow. What a report of
the long study takes is told part by part, and as a command.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from nas.accuracy.imagenet import shipped_predictor
from nas.help import CONFIG_FOLDER
from nas.latency.hardware import Hardware, estimated_table
from nas.latency.table import LatencyTable
from nas.page.figures import save_pareto_figures
from nas.page.files import pareto_csv
from nas.page.importances import parameter_importances
from nas.page.reading import read_study, report_of
from nas.page.rendering import report_page, summary
from nas.runtimes.runtime import Runtime
from nas.saving import write_atomically
from nas.study.loop import Progress, Sampling, Stop, run_search
from nas.study.objective import pareto
from nas.study.problem import Problem
from nas.study.scorer import BatchScorer, layer_latency
from nas.study.storage import StudySetting, close_storage, open_storage, open_study
from search_spaces.layers import reachable_layer_keys
from search_spaces.space import SearchSpace

_ROWS = 20
# Sides of images in pixels: with each the default space has some 7,200 layers more.
_SIDES = (224, 192, 160, 128, 96, 256, 288, 240)
_SIZES = (1, 3, 5, 8)
_MEMBERS = (250, 500, 1_000, 2_000)
_LOOK_UPS = 500
_SCORED = 20_000
_SEARCHED = 300
# What a report imports when it first needs them.
_LIBRARIES = ("jinja2", "pandas", "matplotlib.figure", "sklearn.ensemble")

# Rows, what they grow by, the axis of time, and what is drawn on it.
_PANELS = (
    ("trials", "trials", "ms a trial", ("ms_a_trial",)),
    ("tables", "layers", "s", ("load_s", "save_s", "scorer_s")),
    ("fronts", "members", "s", ("files_s", "front_s")),
)

_P = ParamSpec("_P")
_T = TypeVar("_T")
Row = dict[str, float]


def alone(function: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """The result of a function in a process of its own, whose peak of memory is nobody else's."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh) as pool:
        return pool.submit(function, *arguments, **named).result()


def peak_mb() -> float:
    """The most memory this process has held, in megabytes."""
    # Not getrusage: what a process was before it became another program counts there.
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in each)
    return int(line.split()[1]) * 1024 / 1e6


@contextmanager
def timed(found: Row, name: str, times: int = 1) -> Iterator[None]:
    """Note the seconds of processor that something takes.

    Args:
        found: takes them, each of so many times.
        name: under which.
        times: how often it is done.
    """
    start = time.process_time()
    yield
    found[name] = (time.process_time() - start) / times


def _space(sides: int) -> SearchSpace:
    path = CONFIG_FOLDER / "search_space" / "mobilenet.yaml"
    return SearchSpace.from_yaml(path).restricted(_SIDES[:sides])


def _table(space: SearchSpace) -> LatencyTable:
    board = Hardware(name="rpi4", measured_here=False, estimate="rpi4")
    return estimated_table(board, sorted(reachable_layer_keys(space), key=str), Runtime())


def _search(
    folder: Path, space: SearchSpace, table: LatencyTable, trials: int, note: Callable[[Progress], None]
) -> None:
    torch.set_num_threads(1)
    storage = open_storage(str(folder / "study.journal"))
    study = open_study(storage, folder.name, StudySetting(pareto(), space, table=table))
    problem = Problem(space, pareto(), shipped_predictor(), table)
    run_search(study, problem, Sampling(seed=0), Stop(trials), progress=note)
    close_storage(storage)


def grow(folder: Path, trials: int) -> list[Row]:
    """Run a study of so many trials; milliseconds a trial and megabytes, as they grow."""
    space = _space(1)
    rows: list[Row] = []
    last = (0, time.process_time())

    def note(progress: Progress) -> None:
        nonlocal last
        if progress.done - last[0] >= trials // _ROWS:
            now = time.process_time()
            each_ms = (now - last[1]) / (progress.done - last[0]) * 1e3
            rows.append({"trials": progress.done, "ms_a_trial": each_ms, "peak_mb": peak_mb()})
            print("{:>7,} trials: {:.2f} ms a trial, {:,.0f} MB".format(*rows[-1].values()), flush=True)
            last = (progress.done, now)

    _search(folder, space, _table(space), trials, note)
    return rows


def table_costs(folder: Path, sides: int) -> Row:
    """The cost of a table of all layers of the default space at so many sides of images: kept and used."""
    space = _space(sides)
    table = _table(space)
    found: Row = {"layers": len(table.entries)}
    with timed(found, "save_s"):
        table.save(folder / "table")
    with timed(found, "load_s"):
        table = LatencyTable.load(folder / "table")
    found["file_mb"] = (folder / "table" / "table.csv").stat().st_size / 1e6
    networks = [space.sample(random.Random(seed)) for seed in range(_LOOK_UPS)]
    with timed(found, "look_up_s", _LOOK_UPS):
        for network in networks:
            table.latency(network)
    found["table_mb"] = peak_mb()
    torch.set_num_threads(1)
    with timed(found, "scorer_s"):
        scorer = BatchScorer(space, shipped_predictor(), layer_latency(table))
    with timed(found, "score_s", _SCORED):
        scorer.score(scorer.sample(_SCORED, np.random.default_rng(0)))
    with timed(found, "trial_s", _SEARCHED):
        _search(folder, space, table, _SEARCHED, lambda progress: None)
    return found | {"peak_mb": peak_mb()}


def report_costs(folder: Path) -> Row:
    """The seconds of each part of a study's report, and of the whole command in a fresh process."""
    found: Row = {}
    with timed(found, "open_s"):
        study = read_study(folder)
    with timed(found, "report_s"):
        report = report_of(study, importances=False)
    for name in _LIBRARIES:  # or what needs them first would pay for it
        importlib.import_module(name)
    with timed(found, "page_s"):
        report_page(report)
    with timed(found, "importances_s"):
        parameter_importances(study.get_trials(deepcopy=False))
    with timed(found, "figures_s"):
        save_pareto_figures(report, folder)
    found["study_mb"] = (folder / "study.journal").stat().st_size / 1e6
    found["imports_s"] = _command("-c", f"import nas.report, {', '.join(_LIBRARIES)}")
    found["command_s"] = _command("-m", "nas.report", str(folder))
    return found | {"front": len(report.front)}


def _command(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)  # noqa: S603 - words of our own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def front_costs(folder: Path, members: int) -> Row:
    """The cost of a report of so many networks of a study, had they latencies and accuracies of a front."""
    report = report_of(read_study(folder), importances=False)
    candidates = islice(cycle(each for each in report.networks if each.network is not None), members)
    networks = tuple(
        replace(each, trial=number, id=f"{number:010x}", top1=50 + number / 100, latency_ms=1 + number / 10)
        for number, each in enumerate(candidates)
    )
    found: Row = {}
    made = replace(report, networks=networks, budget_ms=None)
    with timed(found, "front_s"):
        found["members"] = len(made.front)
    with timed(found, "files_s"):
        pareto_csv(made)
        summary(made)
        report_page(made)
    return found | {"peak_mb": peak_mb()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--output", type=Path, required=True, help="of .json and .png, without ending")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "long"
        found = {
            "trials": alone(grow, folder, arguments.trials),
            "report": [alone(report_costs, folder)],
            "tables": [alone(table_costs, Path(temporary) / f"table{size}", size) for size in _SIZES],
            "fronts": [alone(front_costs, folder, members) for members in _MEMBERS],
        }
    for name in ("report", "tables", "fronts"):
        for row in found[name]:
            print(name, ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    write_atomically(arguments.output.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    _plot(found, arguments.output.with_suffix(".png"))


def _plot(found: Mapping[str, Sequence[Row]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for axes, (name, by, label, columns) in zip(panels, _PANELS, strict=True):
        rows = found[name]
        sizes = [row[by] for row in rows]
        for column, line in zip(columns, ("-", "--", ":"), strict=False):
            values = [row[column] for row in rows]
            axes.plot(sizes, values, color="#0072b2", linestyle=line, marker="o", markersize=3, label=column)
        axes.set(xlabel=by, ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.legend(loc="lower right", fontsize=7, frameon=False)
        memory = axes.twinx()
        peaks = [row["peak_mb"] for row in rows]
        memory.plot(sizes, peaks, color="#d55e00", linewidth=0.8)
        memory.set_ylabel("peak memory, MB", color="#d55e00")
        memory.set_ylim(0, 1.1 * max(peaks))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
