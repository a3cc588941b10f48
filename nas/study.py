"""The study loop: propose, reject what is too slow, evaluate, record, report progress.

    result = run_search(study, space, objective, accuracy, latency, references,
                        sampler="evolution", trials=300, budget_ms=20.0, progress=print)

The study is an ordinary Optuna study (see nas.storage). A complete trial has the parameters of the
space that count for its network, the values of the objective and these user attributes:

    architecture     id of the network
    kind             "candidate" or "reference"; references do not count towards `trials`
    name             name of the reference, else null
    top1, deviation, accuracy_source, latency_ms, latency_source, macs, parameters
    table            Architecture.to_dict() of a reference (it may lie outside the space)

`architecture_of(study, trial)` rebuilds the network from the study alone. A network whose accuracy
cannot be told is a failed trial with the attribute `error`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.accuracy import AccuracyError, AccuracyEstimator
from nas.cost import cost
from nas.neighbourhood import Candidate, Neighbourhood, SpaceExhaustedError
from nas.objective import Evaluation, Latency, LatencyModel, Objective, values
from nas.pareto import front, hypervolume
from nas.samplers import Proposer, distributions, make_proposer
from search_spaces.block import Architecture
from search_spaces.space import SearchSpace

Kind = Literal["candidate", "reference"]

_PROGRESS_INTERVAL_S = 0.25
_FAILURES_IN_A_ROW = 20


class SearchError(RuntimeError):
    """A search that cannot go on. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Best:
    """The most accurate network within the budget so far.

    Attributes:
        architecture: its id.
        name: its name if it is a reference.
        top1: accuracy in percent, cautious where the objective is.
        latency_ms: milliseconds for one image.
    """

    architecture: str
    name: str | None
    top1: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is.

    Attributes:
        done: completed candidates in the study, those of earlier runs included.
        total: completed candidates wanted.
        trials_per_second: of this run.
        feasible_share: share of this run's proposals within the budget, 1 without one.
        best: the most accurate network within the budget, references included; None before any.
        hypervolume: share, 0 to 1, of the box between 0 and 100 % and between 0 and the budget (or
            the largest cost of any reference) that the front dominates; best utility / 100 where
            there are no costs.
        seconds_left: until the last trial or the time limit; None while unknown.
    """

    done: int
    total: int
    trials_per_second: float
    feasible_share: float
    best: Best | None
    hypervolume: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """How a search ended.

    Attributes:
        progress: as reported last.
        evaluated: candidates completed by this run.
        failed: candidates of this run whose accuracy could not be told.
        seconds: duration of this run.
        stopped: why it ended, one line.
    """

    progress: Progress
    evaluated: int
    failed: int
    seconds: float
    stopped: str


def run_search(
    study: optuna.Study,
    space: SearchSpace,
    objective: Objective,
    accuracy: AccuracyEstimator,
    latency: LatencyModel,
    references: Mapping[str, Architecture],
    sampler: str = "evolution",
    trials: int = 300,
    budget_ms: float | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Evaluate references, then candidates until ``trials`` of them are complete in the study.

    Args:
        study: from :func:`nas.storage.open_study`; what it holds already is continued.
        space: where candidates come from.
        objective: what a trial is worth.
        accuracy: the one source of accuracy, for references and candidates alike.
        latency: asked before any accuracy is.
        references: networks to evaluate beside the candidates, by name, also above the budget.
        sampler: one of :data:`nas.samplers.SAMPLERS`.
        trials: completed candidates wanted in the study, those of earlier runs included.
        budget_ms: hard bound on the latency of candidates, None for none.
        time_limit_s: after so many seconds no further trial is started, None for no limit.
        seed: of the sampler.
        progress: called a few times a second, and at the end.

    Raises:
        BudgetError: if the budget is not positive or below the fastest possible latency.
        SamplerError: if there is no such sampler.
        SearchError: if accuracy cannot be told for many candidates in a row.
    """
    neighbourhood = Neighbourhood(space, latency, budget_ms)
    neighbourhood.fastest()
    search = _Search(study, objective, accuracy, neighbourhood, trials, time_limit_s, progress)
    # A continued study must not repeat the random choices of its first run.
    search.proposer = make_proposer(sampler, objective, neighbourhood, seed + len(study.get_trials(False)))
    search.restore()
    for name, architecture in references.items():
        search.evaluate_reference(name, architecture, latency.latency(architecture))
    return search.run()


def remeasure(study: optuna.Study, latencies: Mapping[str, tuple[float, str]]) -> None:
    """Record better latencies of networks than their trials hold: {architecture id: (ms, source)}.

    Trials cannot change once they are complete; reports put these in their place.
    """
    known = study.user_attrs.get("remeasured", {})
    study.set_user_attr("remeasured", {**known, **{name: list(each) for name, each in latencies.items()}})


def architecture_of(study: optuna.Study, trial: FrozenTrial) -> Architecture:
    """The network of a trial, rebuilt from the study alone."""
    if "table" in trial.user_attrs:
        return Architecture.from_dict(trial.user_attrs["table"])
    return SearchSpace.from_dict(study.user_attrs["space"]).build(trial.params)


class _Search:
    """State of one run."""

    proposer: Proposer

    def __init__(
        self,
        study: optuna.Study,
        objective: Objective,
        accuracy: AccuracyEstimator,
        neighbourhood: Neighbourhood,
        trials: int,
        time_limit_s: float | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._study = study
        self._objective = objective
        self._accuracy = accuracy
        self._neighbourhood = neighbourhood
        self._total = trials
        self._time_limit_s = time_limit_s
        self._report = progress
        self._started = time.monotonic()
        self._reported = self._started
        self._loop_started = self._started
        self._done_before = 0
        self._done = 0
        self._failed = 0
        self._board = _Board(objective, neighbourhood.budget_ms)
        self._references: dict[str, FrozenTrial] = {}
        self._known: dict[str, FrozenTrial] = {}

    # -- the study so far ----------------------------------------------------------------------

    def restore(self) -> None:
        """Take up what the study holds already."""
        for trial in self._study.get_trials(deepcopy=False):
            attributes = trial.user_attrs
            if "architecture" not in attributes or not trial.state.is_finished():
                continue
            complete = trial.state == TrialState.COMPLETE
            if trial.params:
                candidate = self._neighbourhood.realise(trial.params)
                self.proposer.observe(candidate, trial.values if complete else None)
            if complete:
                self._known[attributes["architecture"]] = trial
                self._board.add(trial)
                if attributes["kind"] == "reference":
                    self._references[attributes["name"]] = trial
                else:
                    self._done += 1
        self._done_before = self._done

    # -- one network ---------------------------------------------------------------------------

    def evaluate_reference(self, name: str, architecture: Architecture, latency: Latency) -> None:
        """Evaluate a reference unless the study holds it; copy the result if it is known as another trial."""
        if name in self._references:
            return
        candidate = self._neighbourhood.encode(architecture)
        known = self._known.get(architecture.id)
        attributes = _attributes(architecture, latency, "reference", name)
        attributes["table"] = architecture.to_dict()
        started = datetime.now()
        if known is not None:
            measured = ("top1", "deviation", "accuracy_source")
            attributes |= {key: known.user_attrs[key] for key in measured}
            trial_values: tuple[float, ...] | None = tuple(known.values)
        else:
            evaluation = self._evaluate(architecture, latency, attributes)
            trial_values = None if evaluation is None else values(self._objective, evaluation)
            if candidate is not None:
                self.proposer.observe(candidate, trial_values)
        trial = self._record(candidate, attributes, trial_values, started)
        self._references[name] = trial

    def run(self) -> SearchResult:
        """Evaluate candidates until enough are complete, the time is over or none is left."""
        self._loop_started = time.monotonic()
        failures = 0
        stopped = f"{self._total} trials are complete"
        while self._done < self._total:
            if self._time_limit_s is not None and time.monotonic() - self._started >= self._time_limit_s:
                stopped = f"the time limit of {self._time_limit_s:g} s is over"
                break
            started = datetime.now()
            try:
                candidate = self.proposer.propose()
            except SpaceExhaustedError as error:
                stopped = str(error)
                break
            attributes = _attributes(candidate.architecture, candidate.latency, "candidate", None)
            evaluation = self._evaluate(candidate.architecture, candidate.latency, attributes)
            trial_values = None if evaluation is None else values(self._objective, evaluation)
            self.proposer.observe(candidate, trial_values)
            self._record(candidate, attributes, trial_values, started)
            failures = 0 if evaluation is not None else failures + 1
            if failures >= _FAILURES_IN_A_ROW:
                raise SearchError(
                    f"the accuracy of {failures} networks in a row cannot be told: {attributes['error']}"
                )
        final = self._progress()
        if self._report is not None:
            self._report(final)
        return SearchResult(
            progress=final,
            evaluated=self._done - self._done_before,
            failed=self._failed,
            seconds=time.monotonic() - self._started,
            stopped=stopped,
        )

    def _evaluate(
        self, architecture: Architecture, latency: Latency, attributes: dict[str, Any]
    ) -> Evaluation | None:
        counted = cost(architecture)
        attributes |= {"macs": counted.macs, "parameters": counted.parameters}
        try:
            accuracy = self._accuracy.accuracy(architecture)
        except AccuracyError as error:
            attributes["error"] = str(error)
            return None
        attributes |= {
            "top1": accuracy.top1,
            "deviation": accuracy.deviation,
            "accuracy_source": accuracy.source,
        }
        return Evaluation(accuracy, latency.latency_ms, latency.source, counted)

    def _record(
        self,
        candidate: Candidate | None,
        attributes: dict[str, Any],
        trial_values: tuple[float, ...] | None,
        started: datetime,
    ) -> FrozenTrial:
        parameters = candidate.parameters if candidate is not None else {}
        trial = optuna.create_trial(
            state=TrialState.FAIL if trial_values is None else TrialState.COMPLETE,
            params=dict(parameters),
            distributions=distributions(self._neighbourhood, parameters),
            values=trial_values,
            user_attrs=attributes,
        )
        trial.datetime_start = started
        self._study.add_trial(trial)
        if trial_values is None:
            self._failed += attributes["kind"] == "candidate"
        else:
            self._known[attributes["architecture"]] = trial
            self._board.add(trial)
            self._done += attributes["kind"] == "candidate"
        if self._report is not None and time.monotonic() - self._reported >= _PROGRESS_INTERVAL_S:
            self._report(self._progress())
            self._reported = time.monotonic()
        return trial

    # -- how far -------------------------------------------------------------------------------

    def _progress(self) -> Progress:
        now = time.monotonic()
        evaluated = self._done - self._done_before
        seconds = now - self._loop_started
        rate = evaluated / seconds if evaluated and seconds > 0 else 0.0
        limits = []
        if rate:
            limits.append((self._total - self._done) / rate)
        if self._time_limit_s is not None:
            limits.append(max(0.0, self._started + self._time_limit_s - now))
        tried = self._neighbourhood.tried
        return Progress(
            done=self._done,
            total=self._total,
            trials_per_second=rate,
            feasible_share=self._neighbourhood.feasible / tried if tried else 1.0,
            best=self._board.best,
            hypervolume=self._board.hypervolume(),
            seconds_left=min(limits) if limits else None,
        )


class _Board:
    """Best network and hypervolume of the complete trials."""

    def __init__(self, objective: Objective, budget_ms: float) -> None:
        self._objective = objective
        self._budget_ms = budget_ms
        self._losses: list[tuple[float, ...]] = []
        self._reference_costs: list[tuple[float, ...]] = []
        self.best: Best | None = None

    def add(self, trial: FrozenTrial) -> None:
        """Take in a complete trial."""
        attributes = trial.user_attrs
        utility, *costs = trial.values
        self._losses.append((-utility, *costs))
        if attributes["kind"] == "reference":
            self._reference_costs.append(tuple(costs))
        latency_ms = attributes["latency_ms"]
        top1 = attributes["top1"] - self._objective.caution * (attributes["deviation"] or 0.0)
        if latency_ms <= self._budget_ms and (self.best is None or top1 > self.best.top1):
            self.best = Best(attributes["architecture"], attributes["name"], top1, latency_ms)

    def hypervolume(self) -> float:
        """See :class:`Progress`."""
        if not self._losses:
            return 0.0
        losses = np.array(self._losses)
        losses = losses[front(losses)]
        self._losses = [tuple(row) for row in losses]
        bounds = (
            np.array(self._reference_costs).max(axis=0)
            if self._reference_costs
            else losses[:, 1:].max(axis=0)
        )
        if "latency_ms" in self._objective.cost_names and np.isfinite(self._budget_ms):
            bounds[self._objective.cost_names.index("latency_ms")] = self._budget_ms
        # A point on the bound still counts.
        bounds = np.nextafter(bounds, np.inf)
        return hypervolume(losses, np.array([0.0, *bounds])) / (100.0 * float(np.prod(bounds)))


def _attributes(architecture: Architecture, latency: Latency, kind: Kind, name: str | None) -> dict[str, Any]:
    return {
        "architecture": architecture.id,
        "kind": kind,
        "name": name,
        "latency_ms": latency.latency_ms,
        "latency_source": latency.source,
    }
