"""Samplers, ours and Optuna's, all behind Optuna's ``BaseSampler``; and what the search asks of one.

    sampler = BayesianSampler(Neighbourhood(space, latency, budget_ms), pareto(), seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(lambda trial: evaluate(space.suggest(trial)), n_trials=100)

    run_search(study, problem, Sampling("nsga2"), Stop(300))                  # by the name it has in SAMPLERS
    run_search(study, problem, Sampling("BruteForceSampler"), Stop(300))      # or in optuna.samplers
    run_search(study, problem, Sampling(NSGAIISampler(population_size=20)), Stop(300))     # or as it is

The first is our sampler in any Optuna study. The search asks it without the detour of
:meth:`optuna.Study.ask`, which would cost more time than all the rest, see :meth:`BayesianSampler.proposer`.

Optuna's samplers work on a study in memory that mirrors the durable one. They see a fixed set of
parameters (those of blocks that do not exist included), no network outside the space, and their
proposals above the budget or already known as failed trials.
"""

from __future__ import annotations

import inspect
import random
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning, TrialPruned
from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.settings import RENAMED_SAMPLERS
from nas.study.bayesian import BayesianProposer, first_unseen
from nas.study.neighbourhood import Candidate, Neighbourhood, SpaceExhaustedError
from nas.study.objective import Objective
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.space import NotInSpaceError

# So many proposals of an Optuna sampler may be too slow or known before a feasible one is drawn for it.
# A Gaussian process takes seconds for each and, with nothing learned from a rejection, repeats itself.
_PATIENCE = 50
_PATIENCE_GP = 2


class SamplerError(InputError):
    """A sampler that does not exist. The message lists those that do."""


class Proposer(Protocol):
    """Proposes networks within the budget, each once."""

    seen: set[Architecture]

    @property
    def settled(self) -> int:
        """The number of further proposals that are decided already, whatever is observed before them."""

    def propose(self) -> Candidate:
        """A candidate that is not in ``seen``, and now is.

        Raises:
            BudgetError: if nothing is within the budget.
            SpaceExhaustedError: if nothing new is left.
        """

    def observe(self, candidate: Candidate, values: Sequence[float] | None) -> None:
        """Learn the values of a candidate, proposed here or elsewhere; None where it has none."""


class OptunaProposer:
    """An Optuna sampler as a proposer. No proposal is settled before all is observed.

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
        self.settled = 0
        self._neighbourhood = neighbourhood
        self._generator = random.Random(seed)
        self._distributions = distributions(neighbourhood)
        self._patience = _PATIENCE_GP if isinstance(sampler, GPSampler) else _PATIENCE
        self._pending: dict[Architecture, optuna.Trial] = {}
        self._study = optuna.create_study(directions=list(objective.directions), sampler=sampler)

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
            self._study.enqueue_trial(dict(candidate.genes))
            trial = self._study.ask(fixed_distributions=self._distributions)
            if isinstance(self._study.sampler, BaseGASampler):
                # Only members of a generation become parents.
                frozen = self._study.get_trials(deepcopy=False)[trial.number]
                self._study.sampler.get_trial_generation(self._study, frozen)
            self._study.tell(trial, values)


class BayesianSampler(BaseSampler):
    """Our sampler, :class:`nas.study.bayesian.BayesianProposer`, for any Optuna study.

    It learns from all complete trials of the study whose parameters are a network of the space, whoever
    made them, and proposes no network twice, those of running and failed trials included. Parameters
    that the space does not have are drawn at random. All that it knows is in the study: after
    ``optuna.load_study`` a new sampler goes on where the old one stopped.

    Args:
        neighbourhood: the space and the budget.
        objective: what the values of a trial mean: utility first, then the costs. If the study minimises
            its first value, that is minus the utility.
        seed: of all random choices, None for one from the operating system.
        expensive: whether an evaluation takes longer than a tenth of a second or so.
    """

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        objective: Objective,
        seed: int | None = None,
        expensive: bool = False,
    ) -> None:
        self._neighbourhood = neighbourhood
        self._objective = objective
        self._expensive = expensive
        self._generator = random.Random(seed)
        self._others = RandomSampler(seed)
        self._distributions = distributions(neighbourhood)
        self._study_name: str | None = None
        # Optuna asks one sampler from several threads where n_jobs > 1.
        self._lock = threading.Lock()

    def proposer(self, neighbourhood: Neighbourhood, seed: int) -> BayesianProposer:
        """The proposer behind it, without a study around it; the search asks it directly.

        Args:
            neighbourhood: the space and the budget.
            seed: of all random choices.
        """
        return BayesianProposer(neighbourhood, self._objective, seed, self._expensive)

    def reseed_rng(self) -> None:
        """Draw other random numbers from now on."""
        self._others.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the space."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, object]:
        """The parameters of a network within the budget that the study does not hold.

        Raises:
            BudgetError: if nothing is within the budget.
            SpaceExhaustedError: if nothing new is left; within ``Study.optimize`` that ends instead.
            ValueError: if the study has not the values of the objective.
        """
        with self._lock:
            self._learn(study, trial)
            try:
                candidate = self._proposer.propose()
            except SpaceExhaustedError as error:
                try:
                    study.stop()
                except RuntimeError:
                    raise error from None  # asked by hand, there is no loop to stop
                raise TrialPruned(str(error)) from None
        return {name: value for name, value in candidate.parameters.items() if name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> object:
        """A random value of a parameter that the space does not have."""
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def _learn(self, study: Study, asking: FrozenTrial) -> None:
        """Observe what the study holds beyond what is known already."""
        if study.study_name != self._study_name:
            if len(study.directions) != 1 + len(self._objective.costs):
                wanted = ", ".join(self._objective.names)
                raise ValueError(f"the study has {len(study.directions)} values, not {wanted}")
            seed = self._generator.getrandbits(32)
            self._proposer = self.proposer(self._neighbourhood, seed)
            self._study_name, self._observed = study.study_name, set[int]()
        sign = 1 if study.directions[0] == StudyDirection.MAXIMIZE else -1
        for trial in study.get_trials(deepcopy=False):
            if trial.number in self._observed or trial.number == asking.number:
                continue
            candidate = self._candidate(trial)
            if candidate is not None and trial.state == TrialState.COMPLETE:
                utility, *costs = trial.values
                self._proposer.observe(candidate, (sign * utility, *costs))
            elif candidate is not None:
                self._proposer.seen.add(candidate.architecture)
            if trial.state.is_finished():
                self._observed.add(trial.number)

    def _candidate(self, trial: FrozenTrial) -> Candidate | None:
        # A running trial may not have been asked for all of its parameters yet, a waiting one has them fixed.
        parameters = trial.system_attrs.get("fixed_params", {}) | trial.params
        try:
            self._neighbourhood.space.build(parameters)
        except NotInSpaceError:
            return None
        return self._neighbourhood.realise(parameters)


def make_proposer(
    sampler: str | BaseSampler,
    objective: Objective,
    neighbourhood: Neighbourhood,
    seed: int,
    expensive: bool = False,
) -> Proposer:
    """A proposer, which a search asks for networks.

    Args:
        sampler: :data:`DEFAULT_SAMPLER`, one of :data:`SAMPLERS`, the name of a class in
            :mod:`optuna.samplers`, or a sampler itself.
        objective: what a network is worth.
        neighbourhood: the space and the budget.
        seed: of all random choices; those of a sampler given as it is are its own.
        expensive: whether an evaluation takes longer than a tenth of a second or so.

    Raises:
        SamplerError: if there is no such sampler.
    """
    if isinstance(sampler, str):
        if sampler in RENAMED_SAMPLERS:
            today = RENAMED_SAMPLERS[sampler]
            warnings.warn(f"the sampler {sampler} is called {today} now", FutureWarning, stacklevel=2)
            sampler = today
        if sampler == DEFAULT_SAMPLER:
            return BayesianProposer(neighbourhood, objective, seed, expensive)
        make = SAMPLERS.get(sampler) or _of_optuna(sampler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = make(seed)
    if isinstance(sampler, BayesianSampler):
        return sampler.proposer(neighbourhood, seed)
    return OptunaProposer(sampler, objective, neighbourhood, seed)


def _of_optuna(name: str) -> Callable[[int], BaseSampler]:
    of_optuna: object = getattr(optuna.samplers, name, None)
    if not isinstance(of_optuna, type) or not issubclass(of_optuna, BaseSampler):
        known = ", ".join((DEFAULT_SAMPLER, *SAMPLERS))
        raise SamplerError(f"unknown sampler {name!r}: known are {known}, and the classes of optuna.samplers")
    settings = inspect.signature(of_optuna).parameters
    lacking = [each for each, setting in settings.items() if setting.default is inspect.Parameter.empty]
    if lacking or "seed" not in settings:
        raise SamplerError(
            f"optuna.samplers.{name} cannot be made of a seed alone: {', '.join(lacking) or 'it has none'}"
        )
    return lambda seed: of_optuna(**{"seed": seed})


# Ours, which takes more than a seed.
DEFAULT_SAMPLER = "bayesian"
# Any other sampler is a line here, that makes it of a seed, and a YAML in conf/sampler.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "nsga3": lambda seed: NSGAIIISampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
    "gp": lambda seed: GPSampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


def distributions(
    neighbourhood: Neighbourhood, parameters: Mapping[str, object] | None = None
) -> dict[str, BaseDistribution]:
    """Optuna's distributions of the parameters of a space, of all or of those given."""
    return {
        name: CategoricalDistribution(choices)
        for name, choices in neighbourhood.choices.items()
        if parameters is None or name in parameters
    }
