import random
import threading
from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase
from optuna.trial import TrialState

from nas.study.neighbourhood import BudgetError, Neighbourhood, SpaceExhaustedError
from nas.study.objective import Objective, budget, pareto
from nas.study.samplers import (
    DEFAULT_SAMPLER,
    SAMPLERS,
    BayesianSampler,
    SamplerError,
    distributions,
    make_proposer,
)
from search_spaces.space import SearchSpace
from tests.cases import SMALL, MadeUpAccuracy, MadeUpLatency, small_space

BUDGET_MS = 2.0
# Blocks beyond the depth have no parameters; settings that differ only there are the same network.
CONDITIONAL = SearchSpace.from_dict(
    SMALL
    | {
        "name": "conditional",
        "stages": [
            {"stride": 2, "depths": [1, 2, 3], "widths": [24], "kernels": [3, 5], "expansions": [3, 4, 6]},
            {"stride": 2, "depths": [0, 1, 2], "widths": [48], "expansions": [3, 6], "se": [False, True]},
        ],
    }
)


def neighbourhood(space: SearchSpace = CONDITIONAL, budget_ms: float | None = BUDGET_MS) -> Neighbourhood:
    return Neighbourhood(space, MadeUpLatency(), budget_ms)


def sampler(objective: Objective | None = None, seed: int = 0) -> BayesianSampler:
    return BayesianSampler(neighbourhood(), objective or pareto(), seed)


def evaluate(trial: optuna.Trial) -> tuple[float, float]:
    architecture = CONDITIONAL.suggest(trial)
    latency_ms = MadeUpLatency().latency(architecture).latency_ms
    trial.set_user_attr("architecture", architecture.id)
    return MadeUpAccuracy().accuracy(architecture).top1, latency_ms


def study_of(chosen: BaseSampler) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"], sampler=chosen)


def architectures(study: optuna.Study) -> list[str]:
    return [trial.user_attrs["architecture"] for trial in study.trials if "architecture" in trial.user_attrs]


class TestOptunasOwnTests(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    """What Optuna expects of every sampler, also where the parameters are not those of our space."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: sampler(budget())


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_plain_study_repeats_nothing_and_keeps_to_the_budget(jobs: int) -> None:
    study = study_of(sampler())
    study.optimize(evaluate, n_trials=60, n_jobs=jobs)
    assert len(set(architectures(study))) == 60
    assert all(trial.values[1] <= BUDGET_MS for trial in study.trials)
    # Only parameters that count are in the study.
    assert all(trial.params == CONDITIONAL.encode(CONDITIONAL.build(trial.params)) for trial in study.trials)


def test_a_plain_study_proposes_what_the_search_proposes() -> None:
    study = study_of(sampler(seed=5))
    study.optimize(evaluate, n_trials=30)
    seed = random.Random(5).getrandbits(32)  # a sampler serves several studies, each with a seed of its own
    proposer = make_proposer("bayesian", pareto(), neighbourhood(), seed)
    found = []
    for _ in range(30):
        candidate = proposer.propose()
        found.append(candidate.architecture.id)
        top1 = MadeUpAccuracy().accuracy(candidate.architecture).top1
        proposer.observe(candidate, (top1, candidate.latency.latency_ms))
    assert architectures(study) == found


def test_a_new_sampler_goes_on_with_a_study_and_with_trials_of_others() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(
        storage=storage, study_name="s", directions=["maximize", "minimize"], sampler=sampler()
    )
    study.optimize(evaluate, n_trials=30)
    reloaded = optuna.load_study(study_name="s", storage=storage, sampler=sampler())
    reloaded.optimize(evaluate, n_trials=30)
    other = optuna.load_study(study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler(seed=1))
    other.optimize(evaluate, n_trials=10)
    foreign = optuna.distributions.FloatDistribution(0, 1)
    other.add_trial(optuna.create_trial(params={"x": 0.5}, distributions={"x": foreign}, values=[99.0, 0.1]))
    before = set(architectures(reloaded))
    reloaded.optimize(evaluate, n_trials=20)
    after = architectures(reloaded)[-20:]
    assert len(set(after)) == 20
    assert not set(after) & before


def test_failed_running_and_waiting_trials_are_not_proposed_again() -> None:
    study = study_of(sampler())
    asked = study.ask()
    running = CONDITIONAL.suggest(asked)
    fixed = CONDITIONAL.build({name: choices[-1] for name, choices in CONDITIONAL.parameters().items()})
    study.enqueue_trial(dict(CONDITIONAL.encode(fixed)))

    def failing(trial: optuna.Trial) -> tuple[float, float]:
        result = evaluate(trial)
        if trial.number % 3 == 0:
            raise ValueError
        return result

    study.optimize(failing, n_trials=60, catch=ValueError)
    found = architectures(study)
    assert found[0] == fixed.id  # enqueued trials come first, also above the budget
    assert len(set(found)) == 60
    assert running.id not in found
    assert sum(trial.state == TrialState.FAIL for trial in study.trials) == 20


def test_the_study_ends_when_every_network_is_proposed() -> None:
    tiny = SearchSpace.from_dict(SMALL | {"resolutions": [32], "stages": SMALL["stages"][:1]})
    study = study_of(BayesianSampler(neighbourhood(tiny, None), pareto(), seed=0))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        tiny.suggest(trial)
        return 1.0, 1.0

    study.optimize(objective, n_trials=100)
    complete = study.get_trials(states=[TrialState.COMPLETE])
    assert {tiny.build(trial.params) for trial in complete} == {network for _, network in tiny.members()}
    assert len(complete) == len({tiny.build(trial.params) for trial in complete})
    with pytest.raises(SpaceExhaustedError, match="all networks of the space 'small' are evaluated"):
        tiny.suggest(study.ask())


def test_minimised_error_and_maximised_accuracy_are_the_same_search() -> None:
    accuracy = optuna.create_study(direction="maximize", sampler=sampler(budget(), seed=2))
    accuracy.optimize(lambda trial: evaluate(trial)[0], n_trials=30)
    error = optuna.create_study(direction="minimize", sampler=sampler(budget(), seed=2))
    error.optimize(lambda trial: -evaluate(trial)[0], n_trials=30)
    assert architectures(accuracy) == architectures(error)


def test_other_parameters_of_the_objective_are_drawn_at_random() -> None:
    study = study_of(sampler())
    rates = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        rates.append(trial.suggest_float("learning_rate", 0.1, 1.0))
        return evaluate(trial)

    study.optimize(objective, n_trials=15)
    assert len(set(rates)) == 15
    assert len(set(architectures(study))) == 15


def test_a_study_with_other_values_and_an_impossible_budget_are_refused() -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler())
    with pytest.raises(ValueError, match="the study has 1 values, not top1, latency_ms"):
        CONDITIONAL.suggest(study.ask())
    impossible = BayesianSampler(neighbourhood(budget_ms=1e-6), pareto(), seed=0)
    with pytest.raises(BudgetError, match="the fastest network takes"):
        CONDITIONAL.suggest(study_of(impossible).ask())


@pytest.mark.parametrize("name", [name for name in (DEFAULT_SAMPLER, *SAMPLERS) if name != "gp"])
def test_every_proposer_learns_of_networks_proposed_elsewhere(name: str) -> None:
    place = neighbourhood(small_space())
    proposer = make_proposer(name, pareto(), place, seed=0)
    known = [candidate for _, candidate in zip(range(20), place.members(), strict=False)]
    for candidate in known:
        proposer.observe(candidate, (50.0, candidate.latency.latency_ms))
    proposer.observe(proposer.propose(), None)  # an accuracy that cannot be told
    proposed = {proposer.propose().architecture for _ in range(20)}
    assert len(proposed) == 20
    assert not proposed & {candidate.architecture for candidate in known}


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_networks_proposed_elsewhere_become_parents(name: str) -> None:
    # Screened networks, references and trials of earlier runs: a generation of 50, all of one resolution.
    place = neighbourhood(small_space(), None)
    proposer = make_proposer(name, pareto(), place, seed=0)
    known = [each for each in place.members() if each.parameters["resolution"] == 64][:200:4]
    for candidate in known:
        top1 = MadeUpAccuracy().accuracy(candidate.architecture).top1
        proposer.observe(candidate, (top1, candidate.latency.latency_ms))
    children = [proposer.propose().parameters["resolution"] for _ in range(40)]
    # Drawn at random half of them would be of 64 pixels; mutation changes one parameter in nine.
    assert children.count(64) >= 32


def test_distributions_are_those_of_the_space() -> None:
    place = neighbourhood()
    trial = optuna.trial.FixedTrial({name: values[0] for name, values in place.choices.items()})
    CONDITIONAL.suggest(trial)
    wanted = distributions(place, trial.params)
    assert {name: trial.distributions[name] for name in wanted} == wanted
    assert set(distributions(place)) == set(CONDITIONAL.parameters())


def test_threads_do_not_get_the_same_network() -> None:
    study, found = study_of(sampler()), []
    threads = [
        threading.Thread(target=lambda: found.append(CONDITIONAL.suggest(study.ask()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8


def test_unknown_samplers_are_named() -> None:
    with pytest.raises(SamplerError, match=r"unknown sampler 'annealing': known are bayesian, nsga2"):
        make_proposer("annealing", pareto(), neighbourhood(), seed=0)


@pytest.mark.parametrize(
    "chosen", ["BruteForceSampler", optuna.samplers.NSGAIISampler(seed=3), sampler(seed=3)]
)
def test_any_sampler_of_optuna_s_proposes_for_a_search(chosen: str | BaseSampler) -> None:
    proposer = make_proposer(chosen, pareto(), neighbourhood(), seed=0)
    found = [proposer.propose() for _ in range(5)]
    assert len({each.architecture for each in found}) == 5
    assert all(each.latency.latency_ms <= BUDGET_MS for each in found)


def test_samplers_that_take_more_than_a_seed_are_refused() -> None:
    with pytest.raises(SamplerError, match="GridSampler cannot be made of a seed alone: search_space"):
        make_proposer("GridSampler", pareto(), neighbourhood(), seed=0)


def test_the_default_sampler_s_former_name_means_it_and_warns() -> None:
    with pytest.warns(FutureWarning, match="evolution is called bayesian now"):
        old = make_proposer("evolution", pareto(), neighbourhood(), 3)
    new = make_proposer("bayesian", pareto(), neighbourhood(), 3)
    assert [old.propose() for _ in range(5)] == [new.propose() for _ in range(5)]
