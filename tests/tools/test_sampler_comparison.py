from pathlib import Path

import numpy as np
import pytest

from nas.study.objective import budget, pareto
from nas.study.pareto import front
from tests.cases import MadeUpAccuracy, MadeUpLatency, small_space
from tools.sampler_comparison import SAMPLERS, Array, Runs, World


def problem(scatter: float = 0.0, refused: frozenset[str] = frozenset()) -> World:
    return World(small_space(), MadeUpLatency(), MadeUpAccuracy(refused), scatter)


def test_members_are_all_networks_with_an_accuracy() -> None:
    networks = {network for _, network in small_space().members()}
    refused = frozenset(sorted(network.id for network in networks)[:5])
    rows = problem(refused=refused).members()
    assert rows.shape == (len(networks) - 5, 2)
    assert (rows[:, 0] < 0).all()
    assert (rows[:, 1] > 0).all()


def test_luck_is_a_network_s_own() -> None:
    plain, first, again = problem().members(), problem(0.5).members(), problem(0.5).members()
    assert np.array_equal(first, again)
    assert np.array_equal(first[:, 1], plain[:, 1])
    assert np.std(first[:, 0] - plain[:, 0]) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    "sampler", [name for name in SAMPLERS if name != "tpe"]
)  # slow where it repeats itself
def test_runs_are_members_each_once_within_the_budget(sampler: str) -> None:
    references = [network for _, network in small_space().members()][-3:]
    found = problem(0.1).run(sampler, pareto(), 0, 30, budget_ms=2.0, references=references)
    assert found.shape == (30, 2)
    everything = {tuple(row) for row in problem(0.1).members()}
    assert {tuple(row) for row in found} <= everything
    assert (found[3:, 1] <= 2.0).all()
    assert np.array_equal(found, problem(0.1).run(sampler, pareto(), 0, 30, 2.0, references))
    assert len(np.unique(found, axis=0)) == 30


def test_regularised_evolution_beats_chance_once_its_population_is_full() -> None:
    best = [
        np.median([problem().run(sampler, budget(), seed, 150)[:, 0].min() for seed in range(5)])
        for sampler in ("regularised_evolution", "random")
    ]
    assert best[0] <= best[1]


def test_runs_are_made_once_and_kept(tmp_path: Path) -> None:
    made: list[int] = []

    def make(count: int) -> Array:
        made.append(count)
        return np.arange(2.0 * count).reshape(count, 2)

    path = tmp_path / "runs.jsonl"
    runs = Runs(path, "small")
    assert len(runs.get("a", 3, lambda: make(3))) == 3
    again = Runs(path, "small")
    assert np.array_equal(again.get("a", 2, lambda: make(2)), [[0, 1], [2, 3]])
    assert len(again.get("a", 5, lambda: make(5))) == 5  # the one kept was too short
    assert len(Runs(path, "large").get("a", 3, lambda: make(3))) == 3
    assert made == [3, 5, 3]
    assert front(Runs(path, "small").everything()).tolist() == [0]
