"""Successive halving: who goes on, and what a study holds of those who do not."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from nas.accuracy.source import Accuracy, GoesOn
from nas.cost import Cost
from nas.page.reading import report_of
from nas.page.sentences import notes
from nas.study.halving import Halving
from nas.study.loop import Execution, Sampling, Stop, run_search
from nas.study.objective import Objective, budget, pareto
from nas.study.problem import Problem
from nas.study.storage import StudySetting, close_storage, open_storage, open_study
from search_spaces.architecture import Architecture
from tests.cases import MadeUpLatency, small_space

RUNGS = (1, 3, 9)
COST = Cost(10, 10)


def _known(objective: Objective, *networks: tuple[float, float]) -> Halving:
    halving = Halving(objective, 3)
    for top1, latency_ms in networks:
        halving.add([(1, top1)], latency_ms, COST, complete=False)
    return halving


def test_the_best_third_goes_on_by_one_objective() -> None:
    halving = _known(budget(), *((top1, 5.0) for top1 in (10, 20, 30, 40, 50)))
    rule = pickle.loads(pickle.dumps(halving.rule(1.0, COST)))
    assert [rule(1, top1) for top1 in (5, 35, 41, 60)] == [False, False, True, True]
    # Nobody has come to the next rung.
    assert rule(3, 1)


def test_whoever_is_not_dominated_goes_on() -> None:
    rivals = [(10.0 * number, float(number)) for number in range(1, 9)]
    halving = _known(pareto(), *rivals)
    assert halving.rule(0.5, COST)(1, 1.0)
    assert halving.rule(4.5, COST)(1, 41.0)
    # All eight are on the front before it.
    assert not halving.rule(8.5, COST)(1, 5.0)


def test_few_rivals_stop_nobody() -> None:
    assert _known(budget(), (50, 1)).rule(1.0, COST)(1, 0.0)


def test_a_stopped_training_is_promised_what_others_gained() -> None:
    halving = Halving(budget(), 3)
    assert halving.promise([(1, 40.0)]) == 40.0
    for gain in (10, 12, 30):
        halving.add([(1, 50.0), (3, 55.0), (9, 50.0 + gain)], 1.0, COST, complete=True)
    assert halving.promise([(1, 40.0)]) == 52.0
    assert halving.promise([(1, 40.0), (3, 95.0)]) == 100.0


@dataclass
class Staged:
    """Top-1 that grows with the epochs, to an end that depends on the network."""

    halving: int = 3
    epochs: dict[str, int] = field(default_factory=dict)

    def accuracy(self, architecture: Architecture) -> Accuracy:
        return self.staged(architecture, None)

    def staged(self, architecture: Architecture, goes_on: GoesOn | None) -> Accuracy:
        end = 40 + int(architecture.id[:4], 16) % 50
        curve: list[tuple[int, float]] = []
        for epochs in RUNGS:
            curve.append((epochs, end * (1 - 0.5 / epochs)))
            self.epochs[architecture.id] = epochs
            if epochs < RUNGS[-1] and goes_on is not None and not goes_on(*curve[-1]):
                return Accuracy(curve[-1][1], "measured", 1.0, curve=tuple(curve), stopped=True)
        return Accuracy(curve[-1][1], "measured", 1.0, curve=tuple(curve))


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_search_stops_most_and_keeps_every_curve(tmp_path: Path, shared: bool) -> None:
    source, space = Staged(), small_space()
    storage = open_storage(f"sqlite:///{tmp_path}/study.db" if shared else str(tmp_path / "study.journal"))

    def search(trials: int, study: optuna.Study) -> None:
        problem = Problem(space, pareto(), source, MadeUpLatency())
        run_search(study, problem, Sampling(), Stop(trials), Execution(shared=storage if shared else None))

    def opened() -> optuna.Study:
        return open_study(storage, "halved", StudySetting(pareto(), space))

    search(30, opened())
    study = opened()
    states = [trial.state for trial in study.get_trials()]
    assert states.count(TrialState.PRUNED) + states.count(TrialState.COMPLETE) == 30
    assert states.count(TrialState.PRUNED) > 10
    for trial in study.get_trials():
        curve = trial.user_attrs["curve"]
        assert source.epochs[trial.user_attrs["architecture"]] == curve[-1][0]
        assert (trial.state == TrialState.COMPLETE) == (curve[-1][0] == RUNGS[-1])
        assert trial.user_attrs["top1"] == curve[-1][1]
    assert len({trial.user_attrs["architecture"] for trial in study.get_trials()}) == 30
    # Continued, it knows the rungs, and trains nobody again.
    before = dict(source.epochs)
    search(40, study)
    states = [trial.state for trial in opened().get_trials()]
    assert states.count(TrialState.PRUNED) + states.count(TrialState.COMPLETE) == 40
    assert len(source.epochs) == 40
    assert {name: source.epochs[name] for name in before} == before
    report = report_of(opened(), importances=False)
    assert report.stopped == states.count(TrialState.PRUNED)
    assert f"{report.stopped} candidates more were stopped on their way" in " ".join(notes(report))
    close_storage(storage)
