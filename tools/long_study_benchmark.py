"""The cost of a trial as a study grows, and of the report of a long study.

    python -m tools.long_study_benchmark --trials 20000 --output results/long-study

Accuracy is predicted and latency estimated, so that the study itself is what takes time. Prints the cost a
trial and the memory at every thousand trials, then the seconds of opening and reporting the study, and those
of a made-up study whose front has 2,000 members; writes them with a plot.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from nas.accuracy.imagenet import shipped_predictor
from nas.help import CONFIG_FOLDER
from nas.latency.hardware import Hardware, estimated_table
from nas.page.files import pareto_csv
from nas.page.reading import read_study, report_of
from nas.page.rendering import report_page, summary
from nas.page.report_data import Report
from nas.runtimes.runtime import Runtime
from nas.saving import write_atomically
from nas.study.loop import Progress, Sampling, Stop, run_search
from nas.study.objective import pareto
from nas.study.problem import Problem
from nas.study.storage import StudySetting, close_storage, open_storage, open_study
from search_spaces.layers import reachable_layer_keys
from search_spaces.space import SearchSpace

_STEP = 1_000


def grow(folder: Path, trials: int) -> list[tuple[int, float, float]]:
    """Run a study of so many trials; (trials, milliseconds a trial, megabytes) for each thousand."""
    space = SearchSpace.from_yaml(CONFIG_FOLDER / "search_space" / "mobilenet.yaml").restricted([224])
    board = Hardware(name="rpi4", measured_here=False, estimate="rpi4")
    table = estimated_table(board, sorted(reachable_layer_keys(space), key=str), Runtime())
    storage = open_storage(str(folder / "study.journal"))
    study = open_study(storage, folder.name, StudySetting(pareto(), space, table=table))
    rows: list[tuple[int, float, float]] = []
    last = (0, time.perf_counter())

    def note(progress: Progress) -> None:
        nonlocal last
        if progress.done - last[0] >= _STEP:
            now = time.perf_counter()
            memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            rows.append((progress.done, (now - last[1]) / (progress.done - last[0]) * 1e3, memory_mb))
            print("{:>7,} trials: {:.2f} ms a trial, {:,.0f} MB".format(*rows[-1]), flush=True)
            last = (progress.done, now)

    problem = Problem(space, pareto(), shipped_predictor(), table)
    run_search(study, problem, Sampling(seed=0), Stop(trials), progress=note)
    close_storage(storage)
    return rows


def report_seconds(folder: Path) -> dict[str, float]:
    """Seconds of opening a study, of its report and of the page."""
    start = time.perf_counter()
    study = read_study(folder)
    opened = time.perf_counter()
    report = report_of(study, importances=False)
    made = time.perf_counter()
    report_page(report)
    drawn = time.perf_counter()
    return {"open_s": opened - start, "report_s": made - opened, "page_s": drawn - made}


def large_front(report: Report, members: int) -> dict[str, float]:
    """Seconds of a report whose front has many members."""
    (first, *_) = (each for each in report.networks if each.kind == "candidate")
    networks = tuple(
        replace(
            first,
            trial=number,
            id=f"{number:010x}",
            top1=50 + number / 100,
            latency_ms=1 + number / 10,
        )
        for number in range(members)
    )
    start = time.perf_counter()
    made = replace(report, networks=networks, budget_ms=None)
    count = len(made.front)
    fronted = time.perf_counter()
    pareto_csv(made)
    summary(made)
    report_page(made)
    return {"members": count, "front_s": fronted - start, "files_s": time.perf_counter() - fronted}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--output", type=Path, required=True, help="of .json and .png, without ending")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "long"
        rows = grow(folder, arguments.trials)
        found: dict[str, object] = {
            "rows": rows,
            "journal_mb": (folder / "study.journal").stat().st_size / 1e6,
            "report": report_seconds(folder),
            "large_front": large_front(report_of(read_study(folder), importances=False), 2_000),
        }
    print({name: each for name, each in found.items() if name != "rows"})
    write_atomically(arguments.output.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    _plot(rows, arguments.output.with_suffix(".png"))


def _plot(rows: list[tuple[int, float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    axes.plot([row[0] for row in rows], [row[1] for row in rows], color="#0072b2", marker="o", markersize=3)
    axes.set(xlabel="trials in the study", ylabel="ms a trial", ylim=(0, None))
    memory = axes.twinx()
    memory.plot([row[0] for row in rows], [row[2] for row in rows], color="#d55e00", linewidth=0.8)
    memory.set(ylabel="peak memory, MB", ylim=(0, None))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
