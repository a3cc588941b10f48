"""The default sampler: evolution by single design steps, within the budget, never the same network twice.

proposer = Evolution(Neighbourhood(space, latency, budget_ms=20.0), seed=0)
candidate = proposer.propose()
proposer.observe(candidate, (top1, latency_ms))
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from nas.neighbourhood import ENUMERABLE, Candidate, Neighbourhood, SpaceExhaustedError
from nas.pareto import front
from search_spaces.block import Architecture
from search_spaces.stage import Parameters

_ATTEMPTS = 200
_RANDOM_START = 16
_CROSSOVER = 0.3


class Evolution:
    """Parents are drawn from the front, children differ by one to three design steps.

    Args:
        neighbourhood: the space and the budget.
        seed: of all random choices.
    """

    def __init__(self, neighbourhood: Neighbourhood, seed: int) -> None:
        self.neighbourhood = neighbourhood
        self.seen: set[Architecture] = set()
        self._generator = random.Random(seed)
        self._candidates: list[Candidate] = []
        self._losses: list[tuple[float, ...]] = []

    def propose(self) -> Candidate:
        """A candidate within the budget that was never proposed or observed.

        Raises:
            BudgetError: if nothing is within the budget.
            SpaceExhaustedError: if nothing new is left.
        """
        for attempt in range(_ATTEMPTS):
            candidate = self._candidate(explore=attempt > _ATTEMPTS // 2)
            if candidate is not None and candidate.architecture not in self.seen:
                self.seen.add(candidate.architecture)
                return candidate
        return first_unseen(self.neighbourhood, self.seen)

    def observe(self, candidate: Candidate, values: Sequence[float] | None) -> None:
        """Learn the values of a candidate (utility first, then costs); None where it has none."""
        self.seen.add(candidate.architecture)
        if values is not None and candidate.latency.latency_ms <= self.neighbourhood.budget_ms:
            self._insert(candidate, (-values[0], *values[1:]))

    def _insert(self, candidate: Candidate, losses: tuple[float, ...]) -> None:
        # Only the front is kept: parents come from nowhere else.
        self._candidates.append(candidate)
        self._losses.append(losses)
        kept = front(np.array(self._losses))
        self._candidates = [self._candidates[index] for index in kept]
        self._losses = [self._losses[index] for index in kept]

    def _candidate(self, explore: bool) -> Candidate | None:
        fastest = self.neighbourhood.fastest()
        if fastest.architecture not in self.seen:
            return fastest
        if explore or len(self.seen) < _RANDOM_START or not self._candidates:
            return self.neighbourhood.random(self._generator)
        return self.neighbourhood.propose(self._child())

    def _child(self) -> Parameters:
        generator = self._generator
        parent = generator.choice(self._candidates)
        genes = dict(parent.genes)
        if generator.random() < _CROSSOVER:
            other = generator.choice(self._candidates)
            genes = {name: generator.choice((value, other.genes[name])) for name, value in genes.items()}
        for _ in range(generator.choice((1, 1, 2, 3))):
            name = generator.choice(list(parent.parameters))
            genes[name] = generator.choice(self.neighbourhood.alternatives(name, genes[name]))
        return genes


def first_unseen(neighbourhood: Neighbourhood, seen: set[Architecture]) -> Candidate:
    """A member within the budget that is not in ``seen``, by listing the space if it is small.

    Raises:
        SpaceExhaustedError: if there is none, or none was found.
    """
    within = "" if neighbourhood.budget_ms == float("inf") else f" within {neighbourhood.budget_ms:g} ms"
    if neighbourhood.space.size > ENUMERABLE:
        raise SpaceExhaustedError(
            f"found no further network{within} in the space {neighbourhood.space.name!r} after {len(seen)}"
        )
    for candidate in neighbourhood.members():
        if candidate.architecture not in seen:
            seen.add(candidate.architecture)
            return candidate
    raise SpaceExhaustedError(f"all networks{within} of the space {neighbourhood.space.name!r} are evaluated")
