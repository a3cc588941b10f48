"""The default sampler: Bayesian optimisation whose candidates are children of the front.

    proposer = BayesianProposer(Neighbourhood(space, latency, budget_ms=20.0), pareto(), seed=0)
    candidate = proposer.propose()
    proposer.observe(candidate, (top1, latency_ms))

It starts from the references, the fastest and the slowest corner of the space within the budget and
a few random networks. Then a Gaussian process over the networks evaluated so far ranks a pool of new
ones by the hypervolume improvement it expects (as LINAS, Cummings et al. 2022, and BRP-NAS, Dudziak et
al. 2020, rank by predictors of their own). The pool is all of a small space, else children of the front,
what the last ranking liked without proposing it, and the children of that: little by little an inner
search for the largest improvement. No network is proposed twice, none above the budget.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.gaussian_process.kernels import Kernel

from nas.cost import cost
from nas.study.neighbourhood import Candidate, Neighbourhood, SpaceExhaustedError
from nas.study.objective import Objective
from nas.study.surrogate import Array, GaussianProcess, expected_improvement, tuned_kernel
from search_spaces.architecture import Architecture
from search_spaces.stage import Parameters

# A space of at most this many settings is listed as a whole.
LISTED = 10_000

_ATTEMPTS = 100
_CROSSOVER = 0.3
_RANDOM_START = 12
# Networks that stay in the pool from one ranking to the next, and how many of the best of them have children.
_RESERVE = 300
_PROMISING = 50
_LISTED_POOL = 2_000
_TRAINING_POINTS = 400
_TUNING_GROWTH = 1.5
# A ranking serves several proposals; after so many of its rounds the front is taken to be as believed.
_ROUNDS = 8
# Parents where there is no front, the cells of a front of more than two objectives at most.
_RUNNERS_UP = 20
_CELLS_PER_COST = 25


@dataclass(frozen=True, slots=True)
class ProposalEffort:
    """The amount of computing that a proposal takes.

    Attributes:
        growth: the process learns anew when the study has grown by this share; in between proposals
            come from one ranking.
        pool: networks ranked, where the space is too large to be listed.
        pool_per_proposal: further networks ranked for each proposal wanted.
        unguided: share of proposals that are plain children of the front.
        tuning_points: networks on which the process's hyperparameters are tuned.
    """

    growth: float
    pool: int
    pool_per_proposal: float
    unguided: float
    tuning_points: int


# Training a network takes minutes: think for a second. A predictor takes a fraction of a millisecond: a
# proposal may take a few, fewer when there are many.
DEAR = ProposalEffort(growth=0.0, pool=400, pool_per_proposal=2, unguided=0.1, tuning_points=300)
CHEAP = ProposalEffort(growth=0.06, pool=60, pool_per_proposal=2, unguided=0.1, tuning_points=150)
_CHEAP_AND_MANY = ProposalEffort(growth=0.25, pool=60, pool_per_proposal=1.5, unguided=0.4, tuning_points=150)
_MANY = 1_000


@dataclass(frozen=True, slots=True)
class _Known:
    """A candidate as the process sees it."""

    candidate: Candidate
    features: Array
    costs: tuple[float, ...]
    factor: float


class BayesianProposer:
    """Proposes networks within the budget, each once; see the module's docstring.

    Args:
        neighbourhood: the space and the budget.
        objective: what a network is worth.
        seed: of all random choices.
        expensive: whether an evaluation takes longer than a tenth of a second or so.
    """

    def __init__(
        self, neighbourhood: Neighbourhood, objective: Objective, seed: int, expensive: bool = False
    ) -> None:
        self.neighbourhood = neighbourhood
        self.seen: set[Architecture] = set()
        self._objective = objective
        self._expensive = expensive
        self._generator = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._encoder = Encoder(neighbourhood)
        self._known: list[_Known] = []
        self._top1: list[float] = []
        self._within: list[int] = []
        self._front: list[int] = []
        self._front_losses: Array = np.empty(0)
        self._queue: list[Candidate] = []
        self._reserve: list[_Known] = []
        self._described: dict[Architecture, _Known] = {}
        self._ranked_at = 0
        self._tuned_at = 0
        self._kernel: Kernel | None = None
        self._listed: list[_Known] | None = None

    @property
    def settled(self) -> int:
        """The number of proposals left of the last ranking."""
        return len(self._queue)

    def propose(self) -> Candidate:
        """A candidate within the budget that was never proposed or observed.

        Raises:
            BudgetError: if nothing is within the budget.
            SpaceExhaustedError: if nothing new is left.
        """
        candidate = self._corner()
        if candidate is None and len(self._front) and len(self.seen) >= _RANDOM_START:
            guided = self._generator.random() >= self._effort.unguided
            candidate = self._guided() if guided else self._unguided()
        if candidate is None:
            candidate = self._random()
        self.seen.add(candidate.architecture)
        return candidate

    def observe(self, candidate: Candidate, values: Sequence[float] | None) -> None:
        """Learn the values of a candidate (utility first, then costs); None where it has none."""
        self.seen.add(candidate.architecture)
        if values is None and not self._top1:
            return
        known = self._describe(candidate)
        self._known.append(known)
        if values is None:
            # Whatever kept it from having an accuracy is likely to hold for its neighbours.
            self._top1.append(min(self._top1))
            return
        self._top1.append(values[0] / known.factor)
        if candidate.latency.latency_ms <= self.neighbourhood.budget_ms:
            self._within.append(len(self._known) - 1)
            self._join_front(len(self._known) - 1)

    # -- proposals -----------------------------------------------------------------------------

    def _corner(self) -> Candidate | None:
        fastest = self.neighbourhood.fastest()
        if fastest.architecture not in self.seen:
            return fastest
        slowest = self.neighbourhood.slowest()
        return slowest if slowest.architecture not in self.seen else None

    def _guided(self) -> Candidate | None:
        effort = self._effort
        due = self._ranked_at + max(1, int(effort.growth * self._ranked_at))
        if len(self._known) >= due or not self._queue:
            self._rank(max(1, int(effort.growth * (1 - effort.unguided) * len(self._known))))
        while self._queue:
            candidate = self._queue.pop(0)
            if candidate.architecture not in self.seen:
                return candidate
        return None

    def _unguided(self) -> Candidate | None:
        for _ in range(_ATTEMPTS):
            candidate = self.neighbourhood.propose(self._child(self._parents()))
            if candidate is not None and candidate.architecture not in self.seen:
                return candidate
        return None

    def _random(self) -> Candidate:
        for _ in range(_ATTEMPTS):
            candidate = self.neighbourhood.random(self._generator)
            if candidate.architecture not in self.seen:
                return candidate
        return first_unseen(self.neighbourhood, self.seen)

    def _child(self, parents: Sequence[Candidate]) -> Parameters:
        generator = self._generator
        parent = generator.choice(parents)
        genes = dict(parent.genes)
        if generator.random() < _CROSSOVER:
            other = generator.choice(parents)
            genes = {name: generator.choice((value, other.genes[name])) for name, value in genes.items()}
        for _ in range(generator.choice((1, 1, 2, 3))):
            name = generator.choice(list(parent.parameters))
            genes[name] = generator.choice(self.neighbourhood.alternatives(name, genes[name]))
        return genes

    def _parents(self) -> list[Candidate]:
        if self._objective.costs:
            return [self._known[index].candidate for index in self._front]
        # Without costs the front is a single network; its runners-up keep the search from narrowing.
        utilities = np.array([self._utility(index) for index in self._within])
        best = np.argsort(-utilities, kind="stable")[:_RUNNERS_UP]
        return [self._known[self._within[rank]].candidate for rank in best]

    # -- the process ---------------------------------------------------------------------------

    def _rank(self, count: int) -> None:
        """Fill the queue with the ``count`` proposals that are expected to improve the front most."""
        self._ranked_at = len(self._known)
        self._queue, self._described = [], {}
        pool = self._pool(int(self._effort.pool + self._effort.pool_per_proposal * count))
        if not pool:
            return
        process = self._learn()
        mean, deviation = process.predict(np.array([each.features for each in pool]))
        factors = np.array([each.factor for each in pool])
        mean, deviation = mean * factors, deviation * factors
        costs = np.array([each.costs for each in pool]).reshape(len(pool), -1)
        utilities = [self._utility(index) for index in self._front]
        front_costs = [self._known[index].costs for index in self._front]
        observed = np.array([each.costs for each in self._known]).reshape(len(self._known), -1)
        bounds = np.maximum(costs.max(axis=0), observed[self._front].max(axis=0))
        left = np.arange(len(pool))
        share = math.ceil(count / _ROUNDS)
        while len(left) and len(self._queue) < count:
            known = np.arange(len(utilities))
            if costs.shape[1] > 1 and len(known) > _CELLS_PER_COST:
                # Cells are combinations of costs: a part of the front has to do.
                known = self._noise.choice(known, _CELLS_PER_COST, replace=False)
            gains = expected_improvement(
                mean[left],
                deviation[left],
                costs[left],
                np.array(utilities)[known],
                np.array(front_costs).reshape(len(utilities), -1)[known],
                bounds,
            )
            left = left[np.argsort(-gains, kind="stable")]
            best, left = left[:share], left[share:]
            self._queue += [pool[index].candidate for index in best]
            self._described |= {pool[index].candidate.architecture: pool[index] for index in best}
            # Believe the mean, so that the next proposals improve something else.
            utilities += [float(mean[index]) for index in best]
            front_costs += [pool[index].costs for index in best]
        self._reserve = [pool[index] for index in left[:_RESERVE]]

    def _learn(self) -> GaussianProcess:
        indices = np.arange(len(self._known))
        if len(indices) > _TRAINING_POINTS:
            rest = np.setdiff1d(indices, self._front)
            room = max(0, _TRAINING_POINTS - len(self._front))
            indices = np.concatenate([self._front, self._noise.choice(rest, room, replace=False)])
        features = np.array([self._known[index].features for index in indices])
        targets = np.array(self._top1)[indices]
        if self._kernel is None or len(self._known) >= _TUNING_GROWTH * self._tuned_at:
            self._tuned_at = len(self._known)
            self._kernel = tuned_kernel(features, targets, self._noise, self._effort.tuning_points)
        return GaussianProcess(features, targets, self._kernel)

    def _pool(self, size: int) -> list[_Known]:
        if self.neighbourhood.space.size <= LISTED:
            if self._listed is None:
                unique = {each.architecture: each for each in self.neighbourhood.members()}
                self._listed = [self._describe(each) for each in unique.values()]
            self._listed = [each for each in self._listed if each.candidate.architecture not in self.seen]
            if len(self._listed) <= _LISTED_POOL:
                return self._listed
            return self._generator.sample(self._listed, _LISTED_POOL)
        # The best of the last ranking that were not proposed stay in the pool, and have children too.
        kept = [each for each in self._reserve if each.candidate.architecture not in self.seen]
        found = {each.candidate.architecture: each for each in kept}
        front, promising = self._parents(), [each.candidate for each in kept[:_PROMISING]]
        for number in range(size):
            parents = promising if promising and number % 2 else front
            candidate = self.neighbourhood.propose(self._child(parents))
            if candidate is None or candidate.architecture in self.seen:
                continue
            if candidate.architecture not in found:
                found[candidate.architecture] = self._describe(candidate)
        return list(found.values())

    # -- what is known -------------------------------------------------------------------------

    def _describe(self, candidate: Candidate) -> _Known:
        described = self._described.pop(candidate.architecture, None)
        if described is not None:
            return described
        counted = cost(candidate.architecture)
        latency_ms = candidate.latency.latency_ms
        return _Known(
            candidate,
            self._encoder.encode(candidate),
            self._objective.cost_values(latency_ms, counted),
            self._objective.factor(latency_ms),
        )

    def _join_front(self, index: int) -> None:
        losses = self._losses(index)
        others = self._front_losses.reshape(-1, len(losses))
        if not np.any(np.all(others <= losses, axis=1)):
            beaten = np.all(losses <= others, axis=1)
            self._front = [other for other, lost in zip(self._front, beaten, strict=True) if not lost]
            self._front.append(index)
            self._front_losses = np.vstack([others[~beaten], losses])

    @property
    def _effort(self) -> ProposalEffort:
        if self._expensive:
            return DEAR
        return CHEAP if len(self._known) < _MANY else _CHEAP_AND_MANY

    def _utility(self, index: int) -> float:
        return self._top1[index] * self._known[index].factor

    def _losses(self, index: int) -> Array:
        return np.array([-self._utility(index), *self._known[index].costs])


class Encoder:
    """Features of a candidate: its parameters, and its size relative to the fastest member."""

    def __init__(self, neighbourhood: Neighbourhood) -> None:
        self._columns: dict[str, dict[object, Array]] = {}
        scale = 1.0 / math.sqrt(max(1, len(neighbourhood.choices)))  # a space of one has no choices
        widths = []
        for name, choices in neighbourhood.choices.items():
            if isinstance(choices[0], str):
                codes = np.eye(len(choices))
            else:
                codes = np.linspace(-1.0, 1.0, len(choices))[:, None]
                choices = tuple(sorted(choices, key=float))
            self._columns[name] = dict(zip(choices, codes * scale, strict=True))
            widths.append(codes.shape[1])
        starts = np.cumsum([0, *widths])
        self._slices = {
            name: slice(starts[index], starts[index + 1]) for index, name in enumerate(self._columns)
        }
        self._width = int(starts[-1])
        self._smallest = self._sizes(neighbourhood.fastest())

    def encode(self, candidate: Candidate) -> Array:
        """(features,); parameters of blocks that do not exist are 0, the middle."""
        row = np.zeros(self._width + len(self._smallest))
        for name, value in candidate.parameters.items():
            row[self._slices[name]] = self._columns[name][value]
        row[self._width :] = self._sizes(candidate) - self._smallest
        return row

    @staticmethod
    def _sizes(candidate: Candidate) -> Array:
        counted = cost(candidate.architecture)
        blocks = sum(not block.is_identity for block in candidate.architecture.blocks)
        return np.log([candidate.latency.latency_ms, counted.macs, counted.parameters, 1 + blocks])


def first_unseen(neighbourhood: Neighbourhood, seen: set[Architecture]) -> Candidate:
    """A member within the budget that is not in ``seen``, by listing the space if it is small.

    Raises:
        SpaceExhaustedError: if there is none, or none was found.
    """
    within = "" if math.isinf(neighbourhood.budget_ms) else f" within {neighbourhood.budget_ms:g} ms"
    if not neighbourhood.is_small:
        raise SpaceExhaustedError(
            f"found no further network{within} in the space {neighbourhood.space.name!r} after {len(seen)}"
        )
    for candidate in neighbourhood.members():
        if candidate.architecture not in seen:
            return candidate
    raise SpaceExhaustedError(f"all networks{within} of the space {neighbourhood.space.name!r} are evaluated")
