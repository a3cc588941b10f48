"""How to propose the next network: a sampler of our own, and Optuna's as they are.

    proposer = make_proposer("nsga2", objective, Neighbourhood(space, latency, budget_ms), seed=0)

Optuna's samplers work on a study in memory that mirrors the durable one. They see a fixed set of
parameters (those of blocks that do not exist included), no network outside the space, and their
proposals above the budget or already known as failed trials.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from nas.engine.evolution import Evolution, first_unseen
from nas.engine.neighbourhood import Candidate, Neighbourhood
from nas.objective import Objective, directions
from search_spaces.block import Architecture
from search_spaces.errors import InputError


def _nsga3(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return NSGAIIISampler(seed=seed)


_OPTUNA_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "nsga3": _nsga3,
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
    "gp": lambda seed: GPSampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
SAMPLERS: tuple[str, ...] = ("evolution", *_OPTUNA_SAMPLERS)

# So many proposals of an Optuna sampler may be too slow or known before a feasible one is drawn for it.
# A Gaussian process takes seconds for each and, with nothing learned from a rejection, repeats itself.
_PATIENCE = 50
_PATIENCE_GP = 2


class SamplerError(InputError):
    """A sampler that does not exist. The message lists those that do."""


class Proposer(Protocol):
    """Proposes networks within the budget, each once."""

    seen: set[Architecture]

    def propose(self) -> Candidate:
        """A candidate that is not in ``seen``, and now is.

        Raises:
            BudgetError: if nothing is within the budget.
            SpaceExhaustedError: if nothing new is left.
        """

    def observe(self, candidate: Candidate, values: Sequence[float] | None) -> None:
        """Learn the values of a candidate, proposed here or elsewhere; None where it has none."""


class OptunaProposer:
    """An Optuna sampler as a proposer.

    Args:
        sampler: the sampler.
        objective: gives the directions.
        neighbourhood: the space and the budget.
        seed: of the candidates drawn when the sampler finds none.
    """

    def __init__(
        self, sampler: BaseSampler, objective: Objective, neighbourhood: Neighbourhood, seed: int
    ) -> None:
        self.seen: set[Architecture] = set()
        self._neighbourhood = neighbourhood
        self._generator = random.Random(seed)
        self._distributions = distributions(neighbourhood)
        self._patience = _PATIENCE_GP if isinstance(sampler, GPSampler) else _PATIENCE
        self._pending: dict[Architecture, optuna.Trial] = {}
        self._study = optuna.create_study(directions=list(directions(objective)), sampler=sampler)

    def propose(self) -> Candidate:
        """See :class:`Proposer`."""
        self._neighbourhood.fastest()
        for _ in range(self._patience):
            trial = self._study.ask(fixed_distributions=self._distributions)
            candidate = self._neighbourhood.propose(trial.params)
            if candidate is not None and candidate.architecture not in self.seen:
                self.seen.add(candidate.architecture)
                self._pending[candidate.architecture] = trial
                return candidate
            self._study.tell(trial, state=TrialState.FAIL)
        for _ in range(_PATIENCE):
            candidate = self._neighbourhood.random(self._generator)
            if candidate.architecture not in self.seen:
                self.seen.add(candidate.architecture)
                return candidate
        candidate = first_unseen(self._neighbourhood, self.seen)
        self.seen.add(candidate.architecture)
        return candidate

    def observe(self, candidate: Candidate, values: Sequence[float] | None) -> None:
        """See :class:`Proposer`."""
        self.seen.add(candidate.architecture)
        trial = self._pending.pop(candidate.architecture, None)
        if trial is not None:
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            self._study.tell(trial, values, state=state)
        elif values is not None:
            self._study.add_trial(
                optuna.create_trial(
                    params=dict(candidate.genes), distributions=self._distributions, values=list(values)
                )
            )


def make_proposer(
    name: str, objective: Objective, neighbourhood: Neighbourhood, seed: int, dear: bool = False
) -> Proposer:
    """A proposer by the name of its sampler, one of :data:`SAMPLERS`.

    Args:
        name: the sampler.
        objective: what a network is worth.
        neighbourhood: the space and the budget.
        seed: of all random choices.
        dear: whether an evaluation takes longer than a tenth of a second or so.

    Raises:
        SamplerError: if there is no such sampler.
    """
    if name == "evolution":
        return Evolution(neighbourhood, objective, seed, dear)
    if name not in _OPTUNA_SAMPLERS:
        raise SamplerError(f"unknown sampler {name!r}: known are {', '.join(SAMPLERS)}")
    return OptunaProposer(_OPTUNA_SAMPLERS[name](seed), objective, neighbourhood, seed)


def distributions(
    neighbourhood: Neighbourhood, parameters: Mapping[str, Any] | None = None
) -> dict[str, BaseDistribution]:
    """Optuna's distributions of the parameters of a space, of all or of those given."""
    return {
        name: CategoricalDistribution(choices)
        for name, choices in neighbourhood.choices.items()
        if parameters is None or name in parameters
    }
