from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from nas.study.loop import (
    Progress,
    Sampling,
    SearchError,
    SearchResult,
    Stop,
    run_search,
)
from nas.study.neighbourhood import BudgetError, Neighbourhood
from nas.study.objective import Objective, budget, mnasnet, pareto
from nas.study.problem import Problem
from nas.study.samplers import DEFAULT_SAMPLER, SAMPLERS, SamplerError
from nas.study.storage import StudySetting, close_storage, open_storage, open_study
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tests.cases import SMALL, MadeUpAccuracy, MadeUpLatency, architecture_of, small_space

OUTSIDE = {"mobilenet_v1": reference("mobilenet_v1", 32, 10)}
Search = Callable[..., SearchResult]


def search(study: optuna.Study, accuracy: MadeUpAccuracy, **options: Any) -> SearchResult:
    def given(section: type[Problem | Stop | Sampling]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name in section.__dataclass_fields__}

    parts: dict[str, Any] = {"space": small_space(), "objective": pareto(), "references": OUTSIDE}
    problem = Problem(accuracy=accuracy, latency=MadeUpLatency(), **parts | given(Problem))
    stop = Stop(**{"trials": 300} | given(Stop))
    return run_search(study, problem, Sampling(**given(Sampling)), stop, progress=options.get("progress"))


def candidates(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    complete = study.get_trials(states=[TrialState.COMPLETE])
    return [trial for trial in complete if trial.user_attrs["kind"] == "candidate"]


def memory_study(values: int = 2) -> optuna.Study:
    study = optuna.create_study(directions=pareto("macs").directions[:values])
    study.set_user_attr("space", small_space().to_dict())
    return study


@pytest.mark.parametrize("sampler", [DEFAULT_SAMPLER, *SAMPLERS])
def test_every_sampler_keeps_to_the_budget_and_repeats_nothing(sampler: str) -> None:
    study, accuracy = memory_study(), MadeUpAccuracy()
    inside = small_space().build({name: choices[-1] for name, choices in small_space().parameters().items()})
    references = OUTSIDE | {"slow": inside}
    # Optuna's Gaussian process takes seconds a proposal once its ten random ones are done, TPE a quarter.
    trials = {"gp": 11, "tpe": 14}.get(sampler, 30)
    result = search(study, accuracy, references=references, sampler=sampler, trials=trials, budget_ms=2.0)
    assert result.evaluated == len(candidates(study)) == trials
    assert all(trial.user_attrs["latency_ms"] <= 2.0 for trial in candidates(study))
    assert set(accuracy.asked.values()) == {1}
    # References are evaluated whatever they take, and every network can be rebuilt from the study.
    named = {t.user_attrs["name"]: t for t in study.trials if t.user_attrs["kind"] == "reference"}
    assert named["slow"].user_attrs["latency_ms"] > 2.0
    assert {name: architecture_of(study, trial) for name, trial in named.items()} == references
    for trial in study.trials:
        assert architecture_of(study, trial).id == trial.user_attrs["architecture"]
        assert trial.values == [trial.user_attrs["top1"], trial.user_attrs["latency_ms"]]


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, accuracy = str(tmp_path / "study.journal"), MadeUpAccuracy()
    for trials in (20, 20, 45):
        storage = open_storage(path)
        study = open_study(storage, "s", StudySetting(pareto(), small_space()))
        result = search(study, accuracy, trials=trials)
        close_storage(storage)
    assert result.evaluated == 25
    assert result.progress.done == 45
    study = open_study(open_storage(path), "s", StudySetting(pareto(), small_space()))
    assert len(candidates(study)) == 45
    assert len(study.trials) == 46
    assert set(accuracy.asked.values()) == {1}


@pytest.mark.parametrize("sampler", ["bayesian", "nsga2"])
def test_stops_when_all_members_are_evaluated(sampler: str) -> None:
    tiny = SMALL | {"resolutions": [32], "stages": SMALL["stages"][:1]}
    study, accuracy = memory_study(), MadeUpAccuracy()
    space = SearchSpace.from_dict(tiny)
    networks = {architecture for _, architecture in space.members()}
    result = search(study, accuracy, space=space, references={}, sampler=sampler, trials=100)
    assert "all networks" in result.stopped
    assert set(accuracy.asked) == networks
    assert result.evaluated == len(networks)


def test_a_budget_nothing_meets_names_the_fastest_latency() -> None:
    latency = MadeUpLatency()
    fastest = min(latency.latency(member).latency_ms for _, member in small_space().members())
    assert Neighbourhood(small_space(), latency).fastest().latency.latency_ms == fastest
    accuracy = MadeUpAccuracy()
    with pytest.raises(BudgetError, match=f"the fastest network takes {fastest:.3g} ms"):
        search(memory_study(), accuracy, budget_ms=fastest * 0.99)
    for budget_ms in (0.0, -1.0, float("nan")):
        with pytest.raises(BudgetError, match="must be a positive latency"):
            search(memory_study(), accuracy, budget_ms=budget_ms)
    assert not accuracy.asked


def test_networks_without_accuracy_are_failed_trials_and_not_tried_again() -> None:
    networks = [member.id for _, member in small_space().members()]
    study, accuracy = memory_study(), MadeUpAccuracy(refused=frozenset(networks[::3]))
    result = search(study, accuracy, trials=40)
    failed = study.get_trials(states=[TrialState.FAIL])
    assert len(candidates(study)) == 40
    assert len(failed) == result.failed > 0
    assert failed[0].user_attrs["error"] == "no accuracy for this network"
    search(study, accuracy, trials=60)
    assert set(accuracy.asked.values()) == {1}
    with pytest.raises(SearchError, match=r"20 networks in a row.*no accuracy for this network"):
        search(memory_study(), MadeUpAccuracy(refused=frozenset({"all"})))


def test_a_reference_known_under_another_name_is_not_evaluated_again() -> None:
    study, accuracy = memory_study(), MadeUpAccuracy()
    search(study, accuracy, references=OUTSIDE | {"twin": OUTSIDE["mobilenet_v1"]}, trials=5)
    found = architecture_of(study, candidates(study)[0])
    search(study, accuracy, references={"found": found}, trials=5)
    assert set(accuracy.asked.values()) == {1}
    named = {t.user_attrs["name"]: t.values for t in study.trials if t.user_attrs["name"]}
    assert named["twin"] == named["mobilenet_v1"]
    assert named["found"] == candidates(study)[0].values


def test_progress_tells_the_best_within_the_budget() -> None:
    seen: list[Progress] = []
    study = memory_study()
    told: dict[str, Any] = {"objective": pareto(caution=2.0), "progress": seen.append}
    result = search(study, MadeUpAccuracy(), trials=25, budget_ms=2.0, **told)
    last = seen[-1]
    assert last == result.progress
    feasible = [trial for trial in study.trials if trial.user_attrs["latency_ms"] <= 2.0]
    assert last.best is not None
    # As reports state it: caution is for choosing.
    assert last.best.top1 == max(trial.user_attrs["top1"] for trial in feasible)
    assert last.best.deviation == 0.5
    assert (last.done, last.total) == (25, 25)
    assert 0 < last.hypervolume < 1


def test_the_time_limit_starts_no_further_trial() -> None:
    study = memory_study()
    result = search(study, MadeUpAccuracy(), time_limit_s=0.0)
    assert result.evaluated == 0
    assert "time limit" in result.stopped
    assert len(study.trials) == 1  # the reference


@pytest.mark.parametrize("objective", [budget(), mnasnet(1.0), pareto(third="parameters")])
def test_other_objectives(objective: Objective) -> None:
    study = memory_study(1 + len(objective.costs))
    result = search(study, MadeUpAccuracy(), objective=objective, trials=20, budget_ms=3.0)
    assert result.evaluated == 20
    assert all(len(trial.values) == 1 + len(objective.costs) for trial in study.trials)


def test_unknown_samplers_are_named() -> None:
    with pytest.raises(SamplerError, match=r"unknown sampler 'annealing': known are bayesian, nsga2"):
        search(memory_study(), MadeUpAccuracy(), sampler="annealing")
