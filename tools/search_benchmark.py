"""The quality and the speed of the search engine.

    python -m tools.search_benchmark stages          # samplers on a space whose true front is known
    python -m tools.search_benchmark candidates      # the same, another kind of space
    python -m tools.search_benchmark space           # samplers on the default space
    python -m tools.search_benchmark throughput      # durable trials per second, 3,000 trials
    python -m tools.search_benchmark workers         # 2 against 1 with trials of a second
    python -m tools.search_benchmark netadapt        # V3-Large with expansions of 6, refined

Accuracy is the ImageNet predictor's; on spaces with a known front with the scatter of real training
runs, a fixed random deviation of each network. Latency is the shipped estimate of a Raspberry Pi 4,
so that the figures can be reproduced anywhere, or that of a measured table (--latency FOLDER).
Comparisons take long: with --runs FILE they can be made in parts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import optuna

from nas.accuracy.imagenet import shipped_predictor
from nas.accuracy.source import Accuracy
from nas.help import CONFIG_FOLDER
from nas.latency.hardware import Hardware, estimated_table
from nas.latency.provision import reference_architectures
from nas.latency.table import LatencyTable
from nas.runtimes.runtime import Runtime
from nas.study.loop import Execution, Progress, Sampling, Stop, run_search
from nas.study.netadapt import refine
from nas.study.objective import budget, pareto
from nas.study.pareto import front, hypervolume
from nas.study.problem import Problem
from nas.study.storage import StudySetting, close_storage, open_storage, open_study
from search_spaces.architecture import Architecture
from search_spaces.layers import layer_keys, reachable_layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tools.sampler_comparison import SAMPLERS, Array, Runs, World

MARKS = (100, 300, 1000)
_BUDGET_MARK = 100
# What the same network scores in two training runs differs by about so many points of top-1.
_SCATTER = 0.15
_REFERENCES = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")


def benchmark_table(
    problem: World, samplers: Sequence[str], seeds: int, evaluations: int, runs: Runs
) -> None:
    """Share of the true hypervolume after some evaluations, and regret within a budget after 100.

    Args:
        problem: the space with its latencies and accuracies.
        samplers: their names.
        seeds: runs of each.
        evaluations: networks evaluated in a run.
        runs: those known from before.
    """
    everything = problem.members()
    true_front = everything[front(everything)]
    worst, nadir = everything.max(axis=0), np.nextafter(true_front.max(axis=0), np.inf)
    budget_ms = float(np.median(everything[:, 1]))
    best = everything[everything[:, 1] <= budget_ms, 0].min()
    marks = [mark for mark in MARKS if mark <= evaluations]
    print(
        f"\n{len(everything)} networks, {len(true_front)} on the front, "
        f"top-1 {-worst[0]:.1f} to {-everything[:, 0].min():.1f} %, budget {budget_ms:.1f} ms\n"
    )
    _print_head([*(f"HV@{mark}" for mark in marks), f"HV@{marks[-1]}, nadir", f"regret@{_BUDGET_MARK}"])
    for sampler in samplers:
        rows = []
        for seed in range(seeds):
            name = f"{sampler}, seed {seed}"
            found = runs.get(
                name,
                marks[-1],
                lambda: problem.run(sampler, pareto(), seed, marks[-1]),  # noqa: B023
            )
            within = runs.get(
                f"{name}, within {budget_ms:.4g} ms",
                _BUDGET_MARK,
                lambda: problem.run(sampler, budget(), seed, _BUDGET_MARK, budget_ms),  # noqa: B023
            )
            shares = [_share(found[:mark], true_front, worst) for mark in marks]
            rows.append([*shares, _share(found, true_front, nadir), float(within[:, 0].min() - best)])
        _print_row(sampler, np.array(rows), worst_of=(*(min for _ in marks), min, max))


def benchmark_space(
    problem: World, samplers: Sequence[str], seeds: int, evaluations: int, runs: Runs
) -> None:
    """Hypervolume on a space too large to know its front, as a share of the best front found by all.

    Args:
        problem: the space with its latencies and accuracies.
        samplers: their names.
        seeds: runs of each.
        evaluations: networks evaluated in a run.
        runs: those known from before.
    """
    marks = [mark for mark in MARKS if mark <= evaluations]
    known = [reference(name) for name in _REFERENCES]
    encoded = [candidate for each in known if (candidate := problem.neighbourhood().encode(each))]
    slowest_ms = max(candidate.latency.latency_ms for candidate in encoded)
    found: dict[str, list[Array]] = {}
    for sampler in samplers:
        # Everybody starts from the references and has the slowest of them as budget.
        found[sampler] = [
            runs.get(
                f"{sampler}, seed {seed}",
                marks[-1],
                lambda: problem.run(sampler, pareto(), seed, marks[-1], slowest_ms, known),  # noqa: B023
            )
            for seed in range(seeds)
        ]
    everything = runs.everything()
    best = everything[front(everything)]
    bound = np.nextafter(np.array([-40.0, slowest_ms]), np.inf)
    print(f"\n{problem.space.size:.1e} settings, budget {slowest_ms:.0f} ms\n")
    _print_head([f"HV@{mark}" for mark in marks])
    for sampler, each in found.items():
        rows = np.array([[_share(run[:mark], best, bound) for mark in marks] for run in each])
        _print_row(sampler, rows, worst_of=(min,) * len(marks))


def benchmark_throughput(space: SearchSpace, latency: LatencyTable, trials: int = 3_000) -> None:
    """Completed trials per second of a search with a durable study, proposals and all.

    Args:
        space: that is searched.
        latency: of its layers.
        trials: candidates evaluated.
    """
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(str(Path(folder) / "study.journal"))
        study = open_study(storage, "throughput", StudySetting(pareto(), space))
        started = time.process_time()
        problem = Problem(space, pareto(), shipped_predictor(), latency)
        result = run_search(study, problem, Sampling(), Stop(trials))
        processor_s = time.process_time() - started
        close_storage(storage)
    print(
        f"\n{result.evaluated} trials in {result.seconds:.1f} s ({processor_s:.1f} s of processor time): "
        f"{result.evaluated / result.seconds:.0f} a second"
    )


class Second:
    """Takes a second for any network."""

    expensive = True

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """The number of blocks."""
        time.sleep(1.0)
        return Accuracy(float(len(architecture.blocks)), "measured")


def benchmark_workers(space: SearchSpace, latency: LatencyTable, trials: int = 20) -> None:
    """Trials per second of 1 and of 2 workers where each trial takes a second.

    Args:
        space: that is searched.
        latency: of its layers.
        trials: candidates evaluated.
    """
    rates = []
    for workers in (1, 2):
        study = optuna.create_study(directions=["maximize", "minimize"])
        # The first trials include the start of the worker processes: a fixed cost, not the rate.
        marks: list[tuple[int, float]] = []

        def mark(progress: Progress, marks: list[tuple[int, float]] = marks) -> None:
            if progress.done:
                marks.append((progress.done, time.monotonic()))

        problem = Problem(space, pareto(), Second(), latency)
        run_search(study, problem, Sampling(), Stop(trials), Execution(workers), mark)
        rates.append((marks[-1][0] - marks[0][0]) / (marks[-1][1] - marks[0][1]))
        print(f"{workers} workers: {rates[-1]:.2f} trials a second")
    print(f"ratio {rates[1] / rates[0]:.2f}")


def demonstrate_netadapt(space: SearchSpace, latency: LatencyTable) -> None:
    """V3-Large with all expansions set to 6, shrunk to V3-Large's latency."""
    large, predictor = reference("mobilenet_v3_large"), shipped_predictor()
    sixes = {name: 6 if name.endswith("expansion") else value for name, value in space.encode(large).items()}
    large_ms = latency.latency(large).latency_ms
    study = optuna.create_study(directions=["maximize", "minimize"])
    problem = Problem(space, pareto(), predictor, latency)
    result = refine(study, problem, space.build(sixes), large_ms)
    print(f"\n{len(result.path) - 1} steps, {result.search.evaluated} networks evaluated\n")
    print("| network | predicted top-1 (%) | latency (ms) |\n|---|---|---|")
    print(f"| MobileNetV3-Large | {predictor.accuracy(large).top1:.2f} | {large_ms:.1f} |")
    for name, step in (("all expansions 6", result.path[0]), ("refined", result.path[-1])):
        print(f"| {name} | {step.top1:.2f} | {step.latency_ms:.1f} |")
    print(f"\n{'; '.join(step.change for step in result.path[1:])}")


def _share(points: Array, best: Array, bound: Array) -> float:
    return 100 * hypervolume(points, bound) / hypervolume(best, bound)


def _print_head(columns: Sequence[str]) -> None:
    print("| sampler | " + " | ".join(columns) + " |\n" + "|---" * (1 + len(columns)) + "|")


def _print_row(name: str, rows: Array, worst_of: Sequence[Callable[[Array], float]]) -> None:
    cells = [
        f"{np.median(column):.2f} ({worst(column):.2f})"
        for column, worst in zip(rows.T, worst_of, strict=True)
    ]
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def estimated(space: SearchSpace) -> LatencyTable:
    """The shipped estimate of a Raspberry Pi 4 for a space and the references."""
    references = reference_architectures(space).values()
    keys = reachable_layer_keys(space).union(*(layer_keys(each) for each in references))
    board = Hardware("rpi4", measured_here=False, estimate="rpi4")
    return estimated_table(board, sorted(keys, key=str), Runtime())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.search_benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = ["stages", "candidates", "space", "throughput", "workers", "netadapt"]
    parser.add_argument("what", choices=benchmarks)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, choices=MARKS, default=MARKS[-1])
    parser.add_argument("--latency", type=Path, help="folder of a measured latency table")
    parser.add_argument("--runs", type=Path, help="file that keeps runs, to go on with")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    is_table = options.what in ("stages", "candidates")
    name = f"benchmark_{options.what}" if is_table else "mobilenet"
    space = SearchSpace.from_yaml(CONFIG_FOLDER / "search_space" / f"{name}.yaml")
    latency = LatencyTable.load(options.latency) if options.latency else estimated(space)
    if is_table or options.what == "space":
        print(f"{space.name}; latency: {latency.header.title}")
        print("Median and, in brackets, worst seed; HV is the share of the hypervolume in percent.")
        problem = World(space, latency, shipped_predictor(), _SCATTER if is_table else 0.0)
        benchmark = benchmark_table if is_table else benchmark_space
        runs = Runs(options.runs, f"{space.name}, table {latency.digest(reachable_layer_keys(space))}")
        benchmark(problem, options.samplers, options.seeds, options.evaluations, runs)
    elif options.what == "throughput":
        benchmark_throughput(space, latency)
    elif options.what == "workers":
        benchmark_workers(space, latency)
    else:
        demonstrate_netadapt(space, latency)


if __name__ == "__main__":
    main()
