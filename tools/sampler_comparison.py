"""Samplers compared on equal terms: what each has found after so many evaluations, seed by seed.

    problem = World("stages", space, latency, scatter=0.15)
    found = problem.run("nsga2", pareto(), seed=0, evaluations=300)     # (300, 2): minus top-1, latency
    share = hypervolume(found, bound) / hypervolume(problem.members(), bound)

Accuracy is the ImageNet predictor's, if wanted with a fixed random deviation of each network: the
luck that two training runs of one network differ by.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.accuracy.source import AccuracyError, AccuracyEstimator, ask
from nas.cost import cost
from nas.latency.table import LatencyModel
from nas.study.neighbourhood import Candidate, Neighbourhood
from nas.study.objective import Objective
from nas.study.samplers import Proposer, make_proposer
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace

Array = NDArray[np.float64]

SAMPLERS = ("bayesian", "nsga2", "tpe", "random", "regularised_evolution")


class World:
    """A space with a latency and an accuracy of every network.

    Args:
        space: the space.
        latency: latency of a network.
        accuracy: accuracy of a network.
        scatter: standard deviation, in points of top-1, of each network's fixed luck.
    """

    def __init__(
        self, space: SearchSpace, latency: LatencyModel, accuracy: AccuracyEstimator, scatter: float = 0.0
    ) -> None:
        self.space = space
        self._latency = latency
        self._accuracy = accuracy
        self._scatter = scatter
        self._top1: dict[Architecture, float | None] = {}

    def neighbourhood(self, budget_ms: float | None = None) -> Neighbourhood:
        """The space within a budget."""
        return Neighbourhood(self.space, self._latency, budget_ms)

    def members(self) -> Array:
        """Minus top-1 and latency of every network, (networks, 2)."""
        members = {each.architecture: each for each in self.neighbourhood().members()}
        self._learn(list(members))
        told = {each: top1 for each in members if (top1 := self._top1[each]) is not None}
        return np.array([(-top1, members[each].latency.latency_ms) for each, top1 in told.items()])

    def run(
        self,
        sampler: str,
        objective: Objective,
        seed: int,
        evaluations: int,
        budget_ms: float | None = None,
        references: Iterable[Architecture] = (),
    ) -> Array:
        """Minus top-1 and latency, (evaluations, 2), of what a sampler evaluates one after the other.

        Args:
            sampler: one of :data:`SAMPLERS`, or another of :data:`nas.study.samplers.SAMPLERS`.
            objective: what it is to find.
            seed: of its random choices.
            evaluations: networks with an accuracy.
            budget_ms: hard bound on their latency.
            references: evaluated first.
        """
        neighbourhood = self.neighbourhood(budget_ms)
        chosen: Proposer
        if sampler == "regularised_evolution":
            chosen = RegularisedEvolution(neighbourhood, seed)
        else:
            chosen = make_proposer(sampler, objective, neighbourhood, seed)
        rows: list[tuple[float, float]] = []

        def evaluate(candidate: Candidate) -> None:
            self._learn([candidate.architecture])
            top1, latency_ms = self._top1[candidate.architecture], candidate.latency.latency_ms
            if top1 is None:
                # Unlike everything the source knows; does not count, as in a search.
                chosen.observe(candidate, None)
                return
            utility = top1 * objective.factor(latency_ms)
            chosen.observe(
                candidate, (utility, *objective.cost_values(latency_ms, cost(candidate.architecture)))
            )
            rows.append((-top1, latency_ms))

        for architecture in references:
            candidate = neighbourhood.encode(architecture)
            if candidate is not None:
                evaluate(candidate)
        while len(rows) < evaluations:
            evaluate(chosen.propose())
        return np.array(rows)

    def _learn(self, architectures: Sequence[Architecture]) -> None:
        new = [each for each in architectures if each not in self._top1]
        for architecture, answer in zip(new, ask(self._accuracy, new), strict=True):
            if isinstance(answer, AccuracyError):
                self._top1[architecture] = None
            else:
                self._top1[architecture] = answer.top1 + self._luck(architecture)

    def _luck(self, architecture: Architecture) -> float:
        if not self._scatter:
            return 0.0
        digest = hashlib.sha256(architecture.id.encode()).digest()
        return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).normal(0.0, self._scatter))


class RegularisedEvolution:
    """Regularised evolution (Real et al. 2019): tournaments in a population from which the oldest dies.

    With two objectives the tournament is won by the first front's member of a random weighting, the
    usual extension. Population 50, tournaments of 10; the paper's 100 and 25 are for 20,000 trials.
    """

    def __init__(self, neighbourhood: Neighbourhood, seed: int) -> None:
        self.seen: set[Architecture] = set()
        self.settled = 0
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
        self.seen.add(candidate.architecture)
        if values is not None:
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


class Runs:
    """Runs made so far; with a file a long comparison can be made in parts, also by several processes.

    Args:
        path: one JSON line a run, or None to keep nothing.
        problem: what the runs are about; runs of other problems may be in the same file.
    """

    def __init__(self, path: Path | None, problem: str) -> None:
        self._path = path
        self._problem = problem
        self._known: dict[str, Array] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                record = json.loads(line)
                if record["problem"] == problem:
                    self._known[record["run"]] = np.array(record["losses"])

    def get(self, name: str, evaluations: int, make: Callable[[], Array]) -> Array:
        """The run of that name, made now if it is not known to that length.

        Args:
            name: of the run.
            evaluations: how much of it is wanted.
            make: makes the run, at least of that length.
        """
        known = self._known.get(name)
        if known is None or len(known) < evaluations:
            known = self._known[name] = make()
            if self._path is not None:
                record = {"problem": self._problem, "run": name, "losses": known.round(6).tolist()}
                with self._path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
        return known[:evaluations]

    def everything(self) -> Array:
        """All that was found in any run of the problem."""
        return np.concatenate(list(self._known.values()))
