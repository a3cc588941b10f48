"""The study loop: propose, reject what is too slow, evaluate, record, report progress.

    problem = Problem(space, objective, accuracy, latency, references, budget_ms=20.0)
    result = run_search(study, problem, Sampling(seed=0), Stop(trials=300), progress=print)

The study is an ordinary Optuna study (see nas.study.storage). A complete trial has the parameters of the
space that count for its network, the values of the objective, and what :class:`nas.study.trial.Trial` says
of the network, which the space that the study keeps builds again of the parameters. A network whose accuracy
cannot be told is a failed trial; one whose training was stopped on its way is a pruned trial.
"""

from __future__ import annotations

import math
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.accuracy.source import Accuracy, AccuracyError, StagedEstimator
from nas.cost import Cost, cost
from nas.latency.table import Latency
from nas.study.halving import Halving
from nas.study.leases import Ledger, SharedLedger, SoleLedger
from nas.study.neighbourhood import Candidate, Neighbourhood, SpaceExhaustedError
from nas.study.objective import Objective
from nas.study.pareto import box_bounds, dominated_share, front
from nas.study.problem import Problem
from nas.study.samplers import DEFAULT_SAMPLER, Proposer, distributions, make_proposer
from nas.study.trial import SETTLED, Trial, TrialKind
from nas.study.workers import Workers
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.stage import Parameters

_PROGRESS_INTERVAL_S = 0.25
_POLL_INTERVAL_S = 0.05
_FAILURES_IN_A_ROW = 20


class SearchError(InputError):
    """A search that cannot go on. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Best:
    """The most accurate network within the budget so far, with caution where the objective has some.

    Attributes:
        architecture: its id.
        name: its name if it is a reference.
        top1: accuracy in percent, as reports state it.
        deviation: its standard deviation; None where nobody knows.
        latency_ms: milliseconds for one image.
        source: of the accuracy; a ``proxy`` is no percentage.
    """

    architecture: str
    name: str | None
    top1: float
    deviation: float | None
    latency_ms: float
    source: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a running search.

    Attributes:
        done: completed candidates in the study, those of earlier runs included.
        total: completed candidates wanted.
        trials_per_second: of this run.
        best: the most accurate network within the budget, references included; None before any.
        hypervolume: share, 0 to 1, of the box between 0 and 100 % and between 0 and the budget that the
            networks so far dominate in accuracy, latency and a third objective, as the report has it
            (see :func:`nas.study.pareto.box_bounds`), whatever else the objective makes of them.
        seconds_left: until the last trial or the time limit; None while unknown.
    """

    done: int
    total: int
    trials_per_second: float
    best: Best | None
    hypervolume: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The end of a search.

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


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampler that proposes candidates, and where it begins.

    Attributes:
        sampler: ours by its name, one of :data:`nas.study.samplers.SAMPLERS`, a class of
            :mod:`optuna.samplers` by its name, or any of Optuna's samplers as it is.
        seed: of all its random choices.
        first: members of the space to evaluate before it is asked, as far as they are within the budget and
            not in the study.
    """

    sampler: str | BaseSampler = DEFAULT_SAMPLER
    seed: int = 0
    first: Sequence[Parameters] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """When a search is over.

    Attributes:
        trials: completed candidates wanted in the study, those of earlier runs included.
        time_limit_s: after so many seconds no further candidate is started, None for no limit.
    """

    trials: int
    time_limit_s: float | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """Who evaluates networks.

    Attributes:
        workers: networks evaluated at once; above 1 each in a process of its own.
        shared: the storage of the study if other processes write to the study too, see
            :mod:`nas.study.leases`.
        lease_s: a process sharing the study is taken for dead after so many seconds without a sign;
            :data:`nas.study.leases.LEASE_S` where None.
    """

    workers: int = 1
    shared: BaseStorage | None = None
    lease_s: float | None = None


def run_search(
    study: optuna.Study,
    problem: Problem,
    sampling: Sampling,
    stop: Stop,
    execution: Execution | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Evaluate references, then candidates until enough of them are complete in the study.

    Args:
        study: from :func:`nas.study.storage.open_study`; what it holds already is continued.
        problem: what is searched.
        sampling: what proposes candidates.
        stop: when it is over.
        execution: who evaluates them; this process where None.
        progress: called a few times a second, and at the end.

    Raises:
        BudgetError: if the budget is not positive or below the fastest possible latency.
        SamplerError: if there is no such sampler.
        SearchError: if accuracy cannot be told for many candidates in a row.
        ValueError: if the number of workers is not positive.
    """
    by = execution or Execution()
    neighbourhood = problem.neighbourhood()
    neighbourhood.fastest()
    # A continued study must not repeat the random choices of its first run, nor machines each other's.
    begun = len(study.get_trials(deepcopy=False))
    seed = sampling.seed + begun if by.shared is None else secrets.randbits(32)
    proposer = make_proposer(sampling.sampler, problem.objective, neighbourhood, seed, problem.expensive)
    ledger: Ledger = SoleLedger(study) if by.shared is None else SharedLedger(study, by.shared, by.lease_s)
    try:
        with Workers[_Job](problem.accuracy, by.workers) as evaluators:
            search = _Search(ledger, proposer, evaluators, problem, neighbourhood, stop.trials)
            search.begin_with(sampling.first)
            return search.run(stop.time_limit_s, progress)
    finally:
        ledger.close()


def run_proposer(
    study: optuna.Study,
    problem: Problem,
    proposer: Proposer,
    neighbourhood: Neighbourhood,
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Evaluate what a proposer proposes until it has nothing more: trials called refinements.

    Args:
        study: takes the trials.
        problem: what the proposals are judged by; its references are not evaluated.
        proposer: what proposes.
        neighbourhood: the space as the proposer sees it.
        workers: networks evaluated at once.
        progress: called a few times a second, and at the end.

    Raises:
        SearchError: if accuracy cannot be told for many networks in a row.
    """
    ledger, alone = SoleLedger(study), replace(problem, references={})
    with Workers[_Job](problem.accuracy, workers) as evaluators:
        search = _Search(ledger, proposer, evaluators, alone, neighbourhood, sys.maxsize, "refinement")
        return search.run(None, progress)


@dataclass(frozen=True, eq=False)
class _Job:
    """A network being evaluated."""

    architecture: Architecture
    candidate: Candidate | None
    cost: Cost
    record: Trial
    trial: FrozenTrial
    claim: int


class _Search:
    """State of one run."""

    def __init__(
        self,
        ledger: Ledger,
        proposer: Proposer,
        workers: Workers[_Job],
        problem: Problem,
        neighbourhood: Neighbourhood,
        total: int,
        kind: TrialKind = "candidate",
    ) -> None:
        objective, accuracy, latency = problem.objective, problem.accuracy, problem.latency
        self._kind = kind
        self._halving: Halving | None = None
        if isinstance(accuracy, StagedEstimator) and accuracy.halving and kind == "candidate":
            self._halving = Halving(objective, accuracy.halving)
        self._ledger = ledger
        self._proposer = proposer
        self._workers = workers
        self._objective = objective
        self._neighbourhood = neighbourhood
        self._wanted = {name: (each, latency.latency(each)) for name, each in problem.references.items()}
        self._total = total
        self._distributions = distributions(neighbourhood)
        self._gate = Gate("the study", SearchError)
        self._standings = _Standings(objective, neighbourhood.budget_ms)
        self._known: dict[str, tuple[Trial, tuple[float, ...]]] = {}
        self._running: set[str] = set()
        self._elsewhere: dict[int, str] = {}
        self._abandoned: list[Candidate] = []
        self._first: list[Candidate] = []
        self._done = 0
        self._evaluated = 0
        self._failed = 0
        self._failures_in_a_row = 0

    def begin_with(self, members: Sequence[Parameters]) -> None:
        """Evaluate these members of the space before the proposer is asked."""
        found = (self._neighbourhood.propose(each) for each in reversed(members))
        self._first = [each for each in found if each is not None]

    def run(self, time_limit_s: float | None, report: Callable[[Progress], None] | None) -> SearchResult:
        """Evaluate until enough is complete, the time is over or nothing new is left."""
        clock = _Clock(time_limit_s)
        for trial in self._ledger.news():
            self._take(trial)
        clock.start(self._done)
        while True:
            stopped = self._start_jobs(clock)
            for job, answer in self._workers.wait():
                self._finish(job, answer)
            if report is not None and clock.report_due():
                report(self._progress(clock))
            for trial in self._ledger.news():
                self._take(trial)
            if self._workers.in_flight:
                continue
            # What other workers still do matters only as long as it may come back to this one.
            settled = not self._wanted and (self._done >= self._total or not self._elsewhere)
            if stopped is not None and (settled or clock.over()):
                break
            if stopped is not None or self._elsewhere:
                time.sleep(_POLL_INTERVAL_S)
        final = self._progress(clock)
        if report is not None:
            report(final)
        return SearchResult(final, self._evaluated, self._failed, clock.seconds(), stopped)

    # -- starting ------------------------------------------------------------------------------

    def _start_jobs(self, clock: _Clock) -> str | None:
        """Give the workers what they can take; why there will be no further job, if so."""
        for name, (architecture, latency) in list(self._wanted.items()):
            busy = architecture.id in self._running or architecture.id in self._elsewhere.values()
            if not busy and self._workers.in_flight < self._workers.room:
                candidate = self._neighbourhood.encode(architecture)
                if self._start(architecture, candidate, latency, "reference", name):
                    self._wanted.pop(name, None)
        while self._wants_more():
            if self._done >= self._total:
                return f"{self._total} trials are complete"
            if clock.over():
                return f"the time limit of {clock.limit_s:g} s is over"
            if self._done + len(self._running) + len(self._elsewhere) >= self._total:
                return None
            try:
                candidate = self._next()
            except SpaceExhaustedError as error:
                return str(error)
            if not self._start(candidate.architecture, candidate, candidate.latency, self._kind, None):
                # Taken by another worker, of which the news tell; or not needed now.
                self._proposer.seen.discard(candidate.architecture)
                return None
        return None

    def _next(self) -> Candidate:
        """A network that another worker gave up, one to begin with, or what is proposed."""
        if self._abandoned:
            return self._abandoned.pop()
        while self._first:
            candidate = self._first.pop()
            if candidate.architecture not in self._proposer.seen:
                self._proposer.seen.add(candidate.architecture)
                return candidate
        return self._proposer.propose()

    def _wants_more(self) -> bool:
        """True if another network can be started without missing what those in flight would teach."""
        in_flight = self._workers.in_flight
        return in_flight < self._workers.count or (
            in_flight < self._workers.room and (bool(self._first) or self._proposer.settled > 0)
        )

    def _start(
        self,
        architecture: Architecture,
        candidate: Candidate | None,
        latency: Latency,
        kind: TrialKind,
        name: str | None,
    ) -> bool:
        counted = cost(architecture)
        record = Trial(
            architecture=architecture.id,
            kind=kind,
            latency_ms=latency.latency_ms,
            latency_source=latency.source,
            macs=counted.macs,
            parameters=counted.parameters,
            name=name,
            network=architecture if kind == "reference" else None,
        )
        known = self._known.get(architecture.id)
        if known is not None:
            record = replace(record, accuracy=known[0].accuracy)
        parameters = {} if candidate is None else candidate.parameters
        trial = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=dict(parameters),
            distributions={parameter: self._distributions[parameter] for parameter in parameters},
            user_attrs=record.attributes(),
            system_attrs={},
            intermediate_values={},
        )
        claim = self._ledger.claim(trial, self._total)
        if claim is None:
            return False
        job = _Job(architecture, candidate, counted, record, trial, claim)
        if known is not None:
            self._record(job, record, known[1])
            return True
        self._running.add(architecture.id)
        # References are trained to their end: they are shown whatever they reach.
        halving = None if name else self._halving
        rule = halving.rule(latency.latency_ms, counted) if halving else None
        self._workers.submit(job, architecture, rule)
        return True

    # -- finishing -----------------------------------------------------------------------------

    def _finish(self, job: _Job, answer: Accuracy | AccuracyError) -> None:
        self._running.discard(job.record.architecture)
        if isinstance(answer, AccuracyError):
            recorded = self._record(job, replace(job.record, error=str(answer)), None)
        else:
            found = self._objective.values(answer.top1, answer.deviation, job.record.latency_ms, job.cost)
            record = replace(job.record, accuracy=answer)
            recorded = self._record(job, record, None if answer.stopped else found)
        if job.record.kind != self._kind or not recorded:
            return
        failed = isinstance(answer, AccuracyError)
        self._evaluated += not failed
        self._failed += failed
        self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
        if self._failures_in_a_row >= max(_FAILURES_IN_A_ROW, self._evaluated):
            raise SearchError(
                f"the accuracy of {self._failures_in_a_row} networks in a row cannot be told: {answer}"
            )

    def _record(self, job: _Job, record: Trial, trial_values: tuple[float, ...] | None) -> bool:
        trial = job.trial
        stopped = record.accuracy is not None and record.accuracy.stopped
        failed = TrialState.PRUNED if stopped else TrialState.FAIL
        trial.state = failed if trial_values is None else TrialState.COMPLETE
        trial.values = trial_values
        trial.user_attrs = record.attributes()
        trial.datetime_complete = datetime.now()
        recorded = self._ledger.finish(job.claim, trial)
        if recorded:
            self._take(trial, record, job.candidate)
        return recorded

    def _take(
        self, trial: FrozenTrial, record: Trial | None = None, candidate: Candidate | None = None
    ) -> None:
        """Learn of a trial of this worker, of an earlier run or of another worker."""
        record = record or Trial.of(trial, self._gate)
        if record is None:
            return
        if trial.state == TrialState.RUNNING:
            self._elsewhere[trial.number] = record.architecture
        else:
            self._elsewhere.pop(trial.number, None)
        if candidate is None and (trial.params or not (self._distributions or record.network)):
            candidate = self._neighbourhood.realise(trial.params)
        complete, failed = trial.state == TrialState.COMPLETE, record.error is not None
        if record.kind == "reference" and record.name is not None and (complete or failed):
            self._wanted.pop(record.name, None)
        if complete and record.accuracy is not None:
            values = trial.values or []
            if len(values) != len(self._objective.directions):
                self._gate.fail(f"holds a complete trial of {len(values)} values, trial {trial.number}")
            found = tuple(self._gate.number("a value", each) for each in values)
            self._standings.add(record, record.accuracy, found)
            self._known[record.architecture] = (record, found)
        if trial.state in SETTLED:
            self._done += record.kind == self._kind
        if candidate is None:
            return
        promised = self._rungs_of(trial, record, candidate.architecture)
        if trial.state == TrialState.RUNNING:
            self._proposer.seen.add(candidate.architecture)
        elif trial.state in SETTLED or failed:
            self._proposer.observe(candidate, trial.values if complete else promised)
        elif record.abandoned and record.kind == "candidate":
            self._abandoned.append(candidate)

    def _rungs_of(
        self, trial: FrozenTrial, record: Trial, architecture: Architecture
    ) -> tuple[float, ...] | None:
        """Learn of a training's rungs; the values that one which was stopped on its way may have reached."""
        accuracy, complete = record.accuracy, trial.state == TrialState.COMPLETE
        if self._halving is None or accuracy is None or not accuracy.curve or trial.state not in SETTLED:
            return None
        counted = cost(architecture)
        self._halving.add(accuracy.curve, record.latency_ms, counted, complete)
        if complete:
            return None
        promised = self._halving.promise(accuracy.curve)
        return self._objective.values(promised, accuracy.deviation, record.latency_ms, counted)

    def _progress(self, clock: _Clock) -> Progress:
        rate = clock.rate(self._done)
        limits = [(self._total - self._done) / rate] if rate else []
        if clock.limit_s is not None:
            limits.append(max(0.0, clock.limit_s - clock.seconds()))
        return Progress(
            done=self._done,
            total=self._total,
            trials_per_second=rate,
            best=self._standings.best,
            hypervolume=self._standings.hypervolume(),
            seconds_left=min(limits) if limits else None,
        )


class _Clock:
    """Time since the start, and how fast trials complete."""

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self._start = self._reported = self._first = time.monotonic()
        self._done_at_start = 0

    def start(self, done: int) -> None:
        """Count the rate from here."""
        self._first, self._done_at_start = time.monotonic(), done

    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._start

    def over(self) -> bool:
        """True if the limit has passed."""
        return self.limit_s is not None and self.seconds() >= self.limit_s

    def rate(self, done: int) -> float:
        """Trials per second, 0 before the first."""
        return (done - self._done_at_start) / max(time.monotonic() - self._first, 1e-9)

    def report_due(self) -> bool:
        """True if it is time for progress again."""
        if time.monotonic() - self._reported < _PROGRESS_INTERVAL_S:
            return False
        self._reported = time.monotonic()
        return True


class _Standings:
    """Best network and hypervolume of the complete trials."""

    def __init__(self, objective: Objective, budget_ms: float) -> None:
        self._objective = objective
        self._budget_ms = budget_ms
        self._front: list[tuple[float, ...]] = []
        self._reference_costs: list[tuple[float, ...]] = []
        self.best: Best | None = None
        self._best_top1 = -math.inf

    def add(self, record: Trial, accuracy: Accuracy, found: tuple[float, ...]) -> None:
        """Take in a complete trial and its values."""
        latency_ms = record.latency_ms
        top1 = self._objective.cautious_top1(accuracy.top1, accuracy.deviation)
        costs = (latency_ms, *found[2:])
        self._front.append((-top1, *costs))
        if record.kind == "reference":
            self._reference_costs.append(costs)
        if latency_ms <= self._budget_ms and top1 > self._best_top1:
            self._best_top1 = top1
            known = accuracy.top1, accuracy.deviation
            self.best = Best(record.architecture, record.name, *known, latency_ms, accuracy.source)

    def hypervolume(self) -> float:
        """See :class:`Progress`."""
        if not self._front:
            return 0.0
        losses = np.array(self._front)
        losses = losses[front(losses)]
        self._front = [tuple(row) for row in losses]
        bounds = box_bounds(losses[:, 1:], np.array(self._reference_costs), self._budget_ms)
        return dominated_share(losses, bounds)
