"""How good the samplers are, on tables whose true front is known and on the default space.

    python -m nas.search_benchmark stages
    python -m nas.search_benchmark candidates
    python -m nas.search_benchmark space --seeds 5 --evaluations 1000
    python -m nas.search_benchmark throughput            # durable trials per second, 3,000 trials
    python -m nas.search_benchmark workers               # 2 against 1 with trials of a second

Accuracy is the ImageNet predictor's, latency the shipped estimate of a Raspberry Pi 4: both come
with the project, so that the figures can be reproduced anywhere. A table also carries the scatter of
real training runs, a fixed random deviation of each network.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from nas.accuracy.estimator import Accuracy, AccuracyError
from nas.accuracy.predictor import shipped_predictor
from nas.cost import cost
from nas.engine.neighbourhood import Candidate, Neighbourhood
from nas.engine.pareto import front, hypervolume
from nas.engine.samplers import Proposer, make_proposer
from nas.engine.storage import close_storage, open_storage, open_study
from nas.engine.study import Progress, run_search
from nas.latency.estimate import EstimatedLayers
from nas.latency.table import Latency
from nas.layers import layer_keys
from nas.objective import Budget, Objective, Pareto
from nas.options import CONFIG_FOLDER
from search_spaces.block import Architecture
from search_spaces.mobilenet import reference
from search_spaces.space import SearchSpace

Array = NDArray[np.float64]

SAMPLERS = ("evolution", "nsga2", "tpe", "random", "regularised_evolution")
MARKS = (100, 300, 1000)
# What the same network scores in two training runs differs by about so many points of top-1.
_SCATTER = 0.15


def _stage(
    stride: int, depths: list[int], width: int, expansions: list[float], se: list[bool]
) -> dict[str, Any]:
    return {
        "stride": stride,
        "depths": depths,
        "widths": [width],
        "kernels": [3, 5],
        "expansions": expansions,
        "se": se,
        "activations": ["hswish"],
        "per_block": [],
    }


# 6,144 settings around MobileNetV3-Large: lists of values, as MnasNet's space.
STAGES: dict[str, Any] = {
    "name": "stages",
    "resolutions": [160, 192, 224],
    "stems": [{"channels": 16, "activation": "hswish"}],
    "stages": [
        {"stride": 1, "depths": [1], "widths": [16], "expansions": [1]},
        {"stride": 2, "depths": [2], "widths": [24], "expansions": [4]},
        _stage(2, [2, 3], 40, [3], [False, True]),
        _stage(2, [3, 4], 80, [2.5], [False]),
        _stage(1, [2], 112, [4, 6], [False, True]),
        _stage(2, [3], 160, [3, 6], [False, True]),
    ],
    "heads": [{"conv_ratio": 6, "hidden_channels": 1280, "activation": "hswish"}],
}

_WHOLE_BLOCKS = [{"kernel": 3, "expansion": 3}, {"kernel": 5, "expansion": 6}]

# 6,561 settings: three whole candidates for each of eight layers, as NAS-Bench-Macro (Su et al. 2021).
CANDIDATES: dict[str, Any] = {
    "name": "candidates",
    "resolutions": [224],
    "stems": [{"channels": 32}],
    "stages": [
        {"stride": stride, "width": width, "layers": layers, "candidates": [third, *_WHOLE_BLOCKS]}
        for width in (24, 40, 96, 160)
        for stride, layers, third in ((2, 1, {"kernel": 3, "expansion": 6}), (1, 1, {"kind": "skip"}))
    ],
    "heads": [{"conv_channels": 1280}],
}

TABLES = {"stages": STAGES, "candidates": CANDIDATES}


class EstimatedLatency:
    """Sum of the estimated layers of a Raspberry Pi 4."""

    def __init__(self) -> None:
        self._layers = EstimatedLayers.load("rpi4")
        self._latency_ms = lru_cache(maxsize=None)(self._sum)

    def latency(self, architecture: Architecture) -> Latency:
        """Latency of a network."""
        return Latency(self._latency_ms(architecture), "estimated")

    def _sum(self, architecture: Architecture) -> float:
        return sum(self._layers.layer_ms(key) for key in layer_keys(architecture))


@dataclass
class Table:
    """Accuracies of networks, each asked for once; with the scatter of training runs.

    Attributes:
        scatter: standard deviation of the scatter in points of top-1.
        top1: what is known so far.
    """

    scatter: float
    top1: dict[Architecture, float] = field(default_factory=dict)

    def __getitem__(self, architecture: Architecture) -> float:
        if architecture not in self.top1:
            digest = hashlib.sha256(architecture.id.encode()).digest()
            luck = np.random.default_rng(int.from_bytes(digest[:8], "big")).normal(0.0, self.scatter)
            self.top1[architecture] = shipped_predictor().predict(architecture)[0] + luck
        return self.top1[architecture]


class RegularisedEvolution:
    """Regularised evolution (Real et al. 2019): tournaments in a population from which the oldest dies.

    With two objectives the tournament is won by the first front's member of a random weighting, the
    usual extension. Population 50, tournaments of 10; the paper's 100 and 25 are for 20,000 trials.
    """

    def __init__(self, neighbourhood: Neighbourhood, objective: Objective, seed: int) -> None:
        self.seen: set[Architecture] = set()
        self._neighbourhood = neighbourhood
        self._generator = random.Random(seed)
        self._population: deque[tuple[Candidate, Array]] = deque(maxlen=50)

    def propose(self) -> Candidate:
        """A step away from the winner of a tournament; random while the population grows."""
        while True:
            candidate = self._child() if len(self._population) == 50 else None
            candidate = candidate or self._neighbourhood.random(self._generator)
            if candidate.architecture not in self.seen:
                self.seen.add(candidate.architecture)
                return candidate

    def observe(self, candidate: Candidate, values: Sequence[float] | None) -> None:
        """Join the population."""
        assert values is not None
        self._population.append((candidate, np.array([-values[0], *values[1:]])))

    def _child(self) -> Candidate | None:
        entrants = self._generator.sample(list(self._population), 10)
        losses = np.array([loss for _, loss in entrants])
        low, span = losses.min(axis=0), np.ptp(losses, axis=0) + 1e-12
        weights = np.array([self._generator.random() for _ in low])
        winner = entrants[int(np.argmin(np.max(weights * (losses - low) / span, axis=1)))][0]
        name = self._generator.choice(list(winner.parameters))
        value = self._generator.choice(
            [v for v in self._neighbourhood.choices[name] if v != winner.genes[name]]
        )
        return self._neighbourhood.propose(winner.genes | {name: value})


def proposer(name: str, neighbourhood: Neighbourhood, objective: Objective, seed: int) -> Proposer:
    """A sampler by its name in :data:`SAMPLERS`."""
    if name == "regularised_evolution":
        return RegularisedEvolution(neighbourhood, objective, seed)
    return make_proposer(name, objective, neighbourhood, seed)


def losses(
    chosen: Proposer,
    objective: Objective,
    table: Table,
    evaluations: int,
    references: Iterable[Candidate] = (),
) -> Array:
    """(evaluations, 2), minus top-1 and latency of what a sampler evaluates one after the other."""
    rows = []

    def evaluate(candidate: Candidate) -> None:
        latency_ms = candidate.latency.latency_ms
        try:
            top1 = table[candidate.architecture]
        except AccuracyError:
            # Unlike everything the predictor knows; does not count, as in a search.
            chosen.observe(candidate, None)
            return
        chosen.observe(candidate, (top1, *objective.costs(latency_ms, cost(candidate.architecture))))
        rows.append((-top1, latency_ms))

    for candidate in references:
        evaluate(candidate)
    while len(rows) < evaluations:
        evaluate(chosen.propose())
    return np.array(rows)


def benchmark_table(space: SearchSpace, scatter: float, samplers: Sequence[str], seeds: int) -> None:
    """Share of the true hypervolume after 100 and 300 evaluations, and regret within a budget after 100."""
    latency, table = EstimatedLatency(), Table(scatter)
    members = {candidate.architecture: candidate for candidate in Neighbourhood(space, latency).members()}
    everything = np.array([(-table[each], members[each].latency.latency_ms) for each in members])
    true_front = everything[front(everything)]
    worst, nadir = everything.max(axis=0), np.nextafter(true_front.max(axis=0), np.inf)
    budget_ms = float(np.median(everything[:, 1]))
    best = everything[everything[:, 1] <= budget_ms, 0].min()
    print(
        f"\n{space.name}, scatter {scatter:g}: {len(members)} networks, {len(true_front)} on the front, "
        f"top-1 {-worst[0]:.1f} to {-everything[:, 0].min():.1f} %, budget {budget_ms:.1f} ms\n"
    )
    print("| sampler | HV@100 | HV@300 | HV@300, nadir | regret@100 |")
    print("|---|---|---|---|---|")
    for name in samplers:
        rows = []
        for seed in range(seeds):
            found = losses(
                proposer(name, Neighbourhood(space, latency), Pareto(), seed), Pareto(), table, 300
            )
            bounded = Neighbourhood(space, latency, budget_ms)
            within = losses(proposer(name, bounded, Budget(), seed), Budget(), table, 100)
            rows.append(
                (
                    _share(found[:100], true_front, worst),
                    _share(found, true_front, worst),
                    _share(found, true_front, nadir),
                    float(within[:, 0].min() - best),
                )
            )
        _print_row(name, np.array(rows), worst_of=(min, min, min, max))


def benchmark_space(space: SearchSpace, samplers: Sequence[str], seeds: int, evaluations: int) -> None:
    """Hypervolume on a space too large to know its front, as a share of the best front found by all."""
    latency, table = EstimatedLatency(), Table(0.0)
    marks = [mark for mark in MARKS if mark <= evaluations]
    plain = Neighbourhood(space, latency)
    names = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
    known = [candidate for name in names if (candidate := plain.encode(reference(name))) is not None]
    slowest_ms = max(candidate.latency.latency_ms for candidate in known)
    found: dict[str, list[Array]] = {}
    for name in samplers:
        found[name] = []
        for seed in range(seeds):
            # Everybody starts from the references and has the slowest of them as budget.
            neighbourhood = Neighbourhood(space, latency, slowest_ms)
            chosen = proposer(name, neighbourhood, Pareto(), seed)
            found[name].append(losses(chosen, Pareto(), table, evaluations, known))
            print(f"{name}, seed {seed}", file=sys.stderr)
    everything = np.concatenate([run for runs in found.values() for run in runs])
    best = everything[front(everything)]
    bound = np.nextafter(np.array([-40.0, slowest_ms]), np.inf)
    print(f"\n{space.name}: {space.size:.1e} settings, budget {slowest_ms:.0f} ms, {seeds} seeds\n")
    print("| sampler | " + " | ".join(f"HV@{mark}" for mark in marks) + " |")
    print("|---" * (1 + len(marks)) + "|")
    for name, runs in found.items():
        rows = np.array([[_share(run[:mark], best, bound) for mark in marks] for run in runs])
        _print_row(name, rows, worst_of=(min,) * len(marks))


def benchmark_throughput(space: SearchSpace, trials: int = 3_000) -> None:
    """Completed trials per second of a search with a durable study, proposals and all."""
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(str(Path(folder) / "study.journal"))
        study = open_study(storage, "throughput", Pareto(), space, {})
        result = run_search(
            study, space, Pareto(), shipped_predictor(), EstimatedLatency(), {}, trials=trials
        )
        close_storage(storage)
    rate = result.evaluated / result.seconds
    print(f"\n{result.evaluated} trials in {result.seconds:.1f} s: {rate:.0f} a second")


class Second:
    """Takes a second for any network."""

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """The number of blocks."""
        time.sleep(1.0)
        return Accuracy(float(len(architecture.blocks)), "measured")


def benchmark_workers(space: SearchSpace, trials: int = 30) -> None:
    """Trials per second of 1 and of 2 workers where each trial takes a second."""
    seconds = []
    for workers in (1, 2):
        study = optuna.create_study(directions=["maximize", "minimize"])
        # The first trials include the start of the worker processes: a fixed cost, not the rate.
        marks: list[tuple[int, float]] = []

        def mark(progress: Progress, marks: list[tuple[int, float]] = marks) -> None:
            marks.append((progress.done, time.monotonic()))

        run_search(
            study,
            space,
            Pareto(),
            Second(),
            EstimatedLatency(),
            {},
            trials=trials,
            workers=workers,
            dear=True,
            progress=mark,
        )
        started = [each for each in marks if each[0] > 0]
        rate = (started[-1][0] - started[0][0]) / (started[-1][1] - started[0][1])
        seconds.append(rate)
        print(f"{workers} workers: {rate:.2f} trials a second")
    print(f"ratio {seconds[1] / seconds[0]:.2f}")


def _share(points: Array, best: Array, bound: Array) -> float:
    return 100 * hypervolume(points, bound) / hypervolume(best, bound)


def _print_row(name: str, rows: Array, worst_of: Sequence[Callable[[Array], float]]) -> None:
    cells = [
        f"{np.median(column):.2f} ({worst(column):.2f})"
        for column, worst in zip(rows.T, worst_of, strict=True)
    ]
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m nas.search_benchmark", description=__doc__)
    parser.add_argument("what", choices=["stages", "candidates", "space", "throughput", "workers"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("Median and, in brackets, worst seed; HV is the share of the true hypervolume in percent.")
    if options.what in TABLES:
        space = SearchSpace.from_dict(TABLES[options.what])
        benchmark_table(space, _SCATTER, options.samplers, options.seeds)
        return
    space = SearchSpace.from_yaml(CONFIG_FOLDER / "search_space" / "mobilenet.yaml")
    if options.what == "space":
        benchmark_space(space, options.samplers, options.seeds, options.evaluations)
    elif options.what == "throughput":
        benchmark_throughput(space)
    else:
        benchmark_workers(space)


if __name__ == "__main__":
    main()
