import numpy as np
import pytest

from nas.study.bayesian import BayesianProposer
from nas.study.neighbourhood import Neighbourhood
from nas.study.objective import Objective, budget, mnasnet, pareto
from nas.study.pareto import hypervolume
from search_spaces.space import SearchSpace
from tests.cases import MadeUpAccuracy, MadeUpLatency, small_space
from tools.sampler_comparison import World

ACCURACY = MadeUpAccuracy()


@pytest.mark.parametrize("expensive", [False, True])
@pytest.mark.parametrize("objective", [pareto(), pareto(third="parameters"), budget(), mnasnet(1.5)])
def test_proposals_are_new_and_within_the_budget(objective: Objective, expensive: bool) -> None:
    proposer = BayesianProposer(
        Neighbourhood(small_space(), MadeUpLatency(), 2.0), objective, seed=3, expensive=expensive
    )
    proposed = set()
    for _ in range(40):
        candidate = proposer.propose()
        assert candidate.architecture not in proposed
        assert candidate.latency.latency_ms <= 2.0
        proposed.add(candidate.architecture)
        top1 = ACCURACY.accuracy(candidate.architecture).top1
        costs = (candidate.latency.latency_ms, 1.0)[: len(objective.costs)]
        proposer.observe(candidate, (top1 * objective.factor(candidate.latency.latency_ms), *costs))


def test_starts_from_the_fast_and_the_slow_corner() -> None:
    neighbourhood = Neighbourhood(small_space(), MadeUpLatency(), 2.0)
    proposer = BayesianProposer(neighbourhood, pareto(), seed=0)
    within = [member.latency.latency_ms for member in neighbourhood.members()]
    assert proposer.propose().latency.latency_ms == min(within)
    # The slow corner cannot be enlarged by any single step.
    slow = proposer.propose()
    assert slow.latency.latency_ms > np.median(within)
    steps = [
        neighbourhood.propose(slow.genes | {name: other})
        for name, value in slow.parameters.items()
        for other in neighbourhood.alternatives(name, value)
    ]
    assert all(step is None or step.latency.latency_ms <= slow.latency.latency_ms for step in steps)


def test_finds_more_than_random_and_regularised_evolution() -> None:
    problem = World(small_space(), MadeUpLatency(), ACCURACY)
    volumes = {
        name: [
            hypervolume(problem.run(name, pareto(), seed, 60), np.array([-20.0, 12.0])) for seed in range(3)
        ]
        for name in ("bayesian", "random", "regularised_evolution")
    }
    assert min(volumes["bayesian"]) > max(volumes["random"])
    assert min(volumes["bayesian"]) > max(volumes["regularised_evolution"])


def test_the_same_seed_proposes_the_same() -> None:
    def run(seed: int) -> list[str]:
        proposer = BayesianProposer(Neighbourhood(small_space(), MadeUpLatency()), pareto(), seed)
        found = []
        for _ in range(30):
            candidate = proposer.propose()
            top1 = ACCURACY.accuracy(candidate.architecture).top1
            proposer.observe(candidate, (top1, candidate.latency.latency_ms))
            found.append(candidate.architecture.id)
        return found

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_large_spaces_are_searched_too(mobilenet_space: SearchSpace) -> None:
    found = World(mobilenet_space, MadeUpLatency(), ACCURACY).run("bayesian", pareto(), 0, 40, 300.0)
    assert found.shape == (40, 2)
    assert found[:, 1].max() <= 300.0


def test_settled_proposals_are_what_one_ranking_gave() -> None:
    neighbourhood = Neighbourhood(small_space(), MadeUpLatency())
    cheap, expensive = (
        BayesianProposer(neighbourhood, pareto(), seed=0, expensive=expensive) for expensive in (False, True)
    )
    for proposer in (cheap, expensive):
        for candidate in list(neighbourhood.members())[::4]:
            top1 = ACCURACY.accuracy(candidate.architecture).top1
            proposer.observe(candidate, (top1, candidate.latency.latency_ms))
        known = len(proposer.seen)
        while not proposer.settled and len(proposer.seen) < known + 20:
            proposer.propose()
    # Training is expensive: nothing is decided before the last result is known.
    assert cheap.settled > expensive.settled == 0
