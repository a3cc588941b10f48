import numpy as np
import pytest

from nas.engine.evolution import Evolution
from nas.engine.neighbourhood import Neighbourhood
from nas.engine.pareto import hypervolume
from nas.engine.samplers import make_proposer
from nas.objective import Budget, MnasNet, Objective, Pareto
from nas.search_benchmark import RegularisedEvolution, Table, losses
from search_spaces.block import Architecture
from search_spaces.space import SearchSpace
from tests.engine.search_cases import MadeUpAccuracy, MadeUpLatency, small_space


class MadeUpTable(Table):
    """The made-up accuracy in place of the predictor's."""

    def __getitem__(self, architecture: Architecture) -> float:
        return MadeUpAccuracy().accuracy(architecture).top1


TABLE = MadeUpTable(0.0)


@pytest.mark.parametrize("dear", [False, True])
@pytest.mark.parametrize("objective", [Pareto(), Pareto(third="parameters"), Budget(), MnasNet(1.5)])
def test_proposals_are_new_and_within_the_budget(objective: Objective, dear: bool) -> None:
    proposer = Evolution(Neighbourhood(small_space(), MadeUpLatency(), 2.0), objective, seed=3, dear=dear)
    proposed = set()
    for _ in range(40):
        candidate = proposer.propose()
        assert candidate.architecture not in proposed
        assert candidate.latency.latency_ms <= 2.0
        proposed.add(candidate.architecture)
        top1 = TABLE[candidate.architecture]
        costs = (candidate.latency.latency_ms, 1.0)[: len(objective.cost_names)]
        proposer.observe(candidate, (top1 * objective.factor(candidate.latency.latency_ms), *costs))


def test_starts_from_the_fast_and_the_slow_corner() -> None:
    neighbourhood = Neighbourhood(small_space(), MadeUpLatency(), 2.0)
    proposer = Evolution(neighbourhood, Pareto(), seed=0)
    within = [member.latency.latency_ms for member in neighbourhood.members()]
    assert proposer.propose().latency.latency_ms == min(within)
    # The slow corner cannot be enlarged by any single step.
    slow = proposer.propose()
    assert slow.latency.latency_ms > np.median(within)
    assert all(step.latency.latency_ms <= slow.latency.latency_ms for step in neighbourhood.steps(slow))


def test_finds_more_than_random_and_regularised_evolution() -> None:
    shares: dict[str, list[float]] = {}
    for seed in range(3):
        for name in ("evolution", "random", "regularised"):
            neighbourhood = Neighbourhood(small_space(), MadeUpLatency())
            proposer = (
                RegularisedEvolution(neighbourhood, Pareto(), seed)
                if name == "regularised"
                else make_proposer(name, Pareto(), neighbourhood, seed)
            )
            found = losses(proposer, Pareto(), TABLE, 60)
            shares.setdefault(name, []).append(hypervolume(found, np.array([-20.0, 12.0])))
    assert min(shares["evolution"]) > max(shares["random"])
    assert min(shares["evolution"]) > max(shares["regularised"])


def test_the_same_seed_proposes_the_same() -> None:
    def run(seed: int) -> list[str]:
        proposer = Evolution(Neighbourhood(small_space(), MadeUpLatency()), Pareto(), seed)
        found = []
        for _ in range(30):
            candidate = proposer.propose()
            proposer.observe(candidate, (TABLE[candidate.architecture], candidate.latency.latency_ms))
            found.append(candidate.architecture.id)
        return found

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_large_spaces_are_searched_too(mobilenet_space: SearchSpace) -> None:
    neighbourhood = Neighbourhood(mobilenet_space, MadeUpLatency(), 300.0)
    proposer = Evolution(neighbourhood, Pareto(), seed=0)
    found = losses(proposer, Pareto(), TABLE, 40)
    assert len(proposer.seen) == 40
    assert found[:, 1].max() <= 300.0
