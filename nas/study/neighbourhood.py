"""Ways through a search space that respect a latency budget: single design steps, corners, repair.

neighbourhood = Neighbourhood(space, latency_model, budget_ms=20.0)
fastest = neighbourhood.fastest()                     # BudgetError if even that one is too slow
neighbourhood.alternatives("stage3.depth", 3)         # one design step away: 2 and 4
neighbourhood.propose(fastest.genes | {"stage3.depth": 4})    # None if that is above the budget
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from nas.cost import Limits, cost
from nas.latency.table import Latency, LatencyModel
from nas.quantities import latency_text
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.space import NotInSpaceError, SearchSpace
from search_spaces.stage import Parameters, Value

# A space of at most this many settings is listed when sampling finds nothing new.
ENUMERABLE = 100_000


class BudgetError(InputError):
    """A latency budget that nothing can meet. The message names the fastest possible latency."""


class SpaceExhaustedError(RuntimeError):
    """No further member of the space is within the budget."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member of the space with its latency.

    Attributes:
        genes: a value for every parameter of the space, also for those of blocks that do not exist.
        parameters: the values that count, in the order in which the space asks for them.
        architecture: the network they describe.
        latency: its latency.
    """

    genes: Parameters
    parameters: Parameters
    architecture: Architecture
    latency: Latency


class Neighbourhood:
    """A space seen through a latency model and a budget.

    Args:
        space: where candidates come from.
        latency: asked for every candidate.
        budget_ms: candidates above it do not exist; None for no bound.
        limits: nor do those above these.

    Raises:
        BudgetError: if the budget is not positive.
    """

    def __init__(
        self,
        space: SearchSpace,
        latency: LatencyModel,
        budget_ms: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        if budget_ms is not None and not budget_ms > 0:
            raise BudgetError(f"search.budget_ms must be a positive latency in ms, not {budget_ms:g}")
        self.space = space
        self.choices: dict[str, tuple[Value, ...]] = space.parameters()
        self.budget_ms = math.inf if budget_ms is None else budget_ms
        self._limits = limits if limits is not None and limits.any else None
        self._latency = latency
        self._fastest: Candidate | None = None
        self._slowest: Candidate | None = None

    def realise(self, genes: Mapping[str, Value]) -> Candidate:
        """The candidate of these values; parameters that are missing get their first candidate.

        Raises:
            NotInSpaceError: if a value is not a candidate of its parameter.
        """
        full: Parameters = {name: genes.get(name, values[0]) for name, values in self.choices.items()}
        parameters: Parameters = {}

        def choose(name: str, choices: tuple[Value, ...]) -> Value:
            value = full[name]
            if value not in choices:
                raise NotInSpaceError(f"{name}: {value!r} is not among {list(choices)}")
            # The space makes each name anew; those of all candidates are kept once.
            parameters[sys.intern(name)] = value
            return value

        architecture = self.space.compose(choose)
        return Candidate(full, parameters, architecture, self._latency.latency(architecture))

    def propose(self, genes: Mapping[str, Value]) -> Candidate | None:
        """The candidate of these values if it is within the budget and the limits."""
        candidate = self.realise(genes)
        if candidate.latency.refused or candidate.latency.latency_ms > self.budget_ms:
            return None
        if self._excess(candidate) > 1:
            return None
        return candidate

    def encode(self, architecture: Architecture) -> Candidate | None:
        """The candidate that is this architecture, None if it is outside the space."""
        try:
            return self.realise(self.space.encode(architecture))
        except NotInSpaceError:
            return None

    def alternatives(self, name: str, value: Value) -> tuple[Value, ...]:
        """Values one design step away: the next smaller and larger number, or any other label."""
        choices = self.choices[name]
        if isinstance(value, str | bool):
            return tuple(choice for choice in choices if choice != value)
        ordered = sorted(choices, key=float)
        index = ordered.index(value)
        return (*ordered[max(0, index - 1) : index], *ordered[index + 1 : index + 2])

    def fastest(self) -> Candidate:
        """The fastest member within the limits, by coordinate descent from the smallest.

        Raises:
            BudgetError: if it is above the budget, or nothing was found within the limits, or none that the
                runtime takes.
        """
        if self._fastest is None:
            self._fastest = self._descend()
        latency_ms, refused = self._fastest.latency.latency_ms, self._fastest.latency.refused
        if refused:
            raise BudgetError(
                f"nothing in the space {self.space.name!r} can be run: the runtime refuses {len(refused)} "
                f"layer{'s' if len(refused) > 1 else ''} even of the network it takes most of, e.g. "
                f"{refused[0]}; take another runtime, or leave such layers out of the search space"
            )
        if self._excess(self._fastest) > 1:
            found = cost(self._fastest.architecture)
            raise BudgetError(
                f"nothing in the space {self.space.name!r} meets search.limits: the smallest network found "
                f"has {found.parameters:,} parameters, {found.macs:,} multiply-accumulates and holds "
                f"{found.peak_values:,} values at once"
            )
        if latency_ms > self.budget_ms:
            raise BudgetError(
                f"nothing in the space {self.space.name!r} meets search.budget_ms={self.budget_ms:g}: "
                f"the fastest network takes {latency_text(latency_ms)}"
            )
        return self._fastest

    def slowest(self) -> Candidate:
        """The slow corner within the budget: the fastest member, enlarged step by step while it fits."""

        def is_slower(other: Candidate, best: Candidate) -> bool:
            slower = best.latency.latency_ms < other.latency.latency_ms <= self.budget_ms
            return slower and not other.latency.refused and self._excess(other) <= 1

        if self._slowest is None:
            self._slowest = self._climb(self.fastest(), is_slower)
        return self._slowest

    @property
    def is_small(self) -> bool:
        """True if listing the whole space is sensible."""
        return self.space.size <= ENUMERABLE

    def random(self, generator: random.Random) -> Candidate:
        """A random candidate; one that is too slow is moved towards the fastest until it fits.

        Raises:
            BudgetError: if nothing fits.
        """
        genes = {name: generator.choice(values) for name, values in self.choices.items()}
        candidate = self.propose(genes)
        if candidate is not None:
            return candidate
        fastest = self.fastest()
        order = list(self.choices)
        generator.shuffle(order)
        # Bisection: how many of the parameters, in this order, have to be the fastest's.
        fitting, low, high = fastest, 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            repaired = self.propose(genes | {name: fastest.genes[name] for name in order[:middle]})
            if repaired is None:
                low = middle
            else:
                fitting, high = repaired, middle
        return fitting

    def members(self) -> Iterator[Candidate]:
        """Every member within the budget; only sensible up to :data:`ENUMERABLE` settings."""
        for parameters, _ in self.space.members():
            candidate = self.propose(parameters)
            if candidate is not None:
                yield candidate

    def _descend(self) -> Candidate:
        def smallest(choices: tuple[Value, ...]) -> Value:
            return choices[0] if isinstance(choices[0], str) else min(choices, key=float)

        start = self.realise({name: smallest(choices) for name, choices in self.choices.items()})
        return self._climb(start, lambda other, best: self._rank(other) < self._rank(best))

    def _climb(self, start: Candidate, is_better: Callable[[Candidate, Candidate], bool]) -> Candidate:
        """The candidate reached by changing one parameter after the other, as long as it gets better."""
        best, improved = start, True
        while improved:
            improved = False
            for name, choices in self.choices.items():
                for value in choices:
                    if name in best.parameters and value != best.parameters[name]:
                        other = self.realise(best.genes | {name: value})
                        if is_better(other, best):
                            best, improved = other, True
        return best

    def _excess(self, candidate: Candidate) -> float:
        """See :meth:`nas.cost.Limits.excess`; 1 where there are no limits."""
        return 1.0 if self._limits is None else self._limits.excess(cost(candidate.architecture))

    def _rank(self, candidate: Candidate) -> tuple[float, int, float]:
        """Within the limits first, then of layers that the runtime takes, then fast."""
        latency = candidate.latency
        return max(1.0, self._excess(candidate)), len(latency.refused), latency.latency_ms
