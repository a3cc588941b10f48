import random

import pytest

from nas.cost import Cost, Limits, cost
from nas.latency.table import Latency
from nas.study.neighbourhood import BudgetError, Neighbourhood
from search_spaces.architecture import Architecture
from search_spaces.references import reference
from search_spaces.space import NotInSpaceError, SearchSpace
from tests.cases import MadeUpLatency, small_space


def neighbourhood(budget_ms: float | None = None) -> Neighbourhood:
    return Neighbourhood(small_space(), MadeUpLatency(), budget_ms)


def test_a_reference_of_the_space_becomes_the_candidate_that_is_it(mobilenet_space: SearchSpace) -> None:
    place = Neighbourhood(mobilenet_space, MadeUpLatency(), 1.0)
    architecture = reference("mobilenet_v3_small")
    candidate = place.encode(architecture)
    assert candidate is not None
    assert candidate.architecture == architecture == mobilenet_space.build(candidate.parameters)
    assert set(candidate.parameters) < set(candidate.genes) == set(mobilenet_space.parameters())
    # Above the budget it can be looked at, but not proposed.
    assert place.propose(candidate.genes) is None
    assert place.encode(reference("mobilenet_v1")) is None


def test_values_that_are_no_candidates_are_refused() -> None:
    with pytest.raises(NotInSpaceError, match=r"resolution: 48 is not among \[32, 64\]"):
        neighbourhood().realise({"resolution": 48})


def test_a_step_goes_to_the_next_number_or_to_any_other_label(mobilenet_space: SearchSpace) -> None:
    place = Neighbourhood(mobilenet_space, MadeUpLatency())
    assert place.alternatives("resolution", 160) == (128, 192)
    assert place.alternatives("resolution", 96) == (128,)
    assert place.alternatives("stage3.block1.expansion", 6) == (4.5,)
    assert set(place.alternatives("stage2.activation", "relu")) == {"relu6", "hswish"}
    assert place.alternatives("stage2.se", True) == (False,)


def test_proposals_above_the_budget_do_not_exist() -> None:
    place = neighbourhood(1.1)
    proposed = [place.propose(parameters) for parameters, _ in small_space().members()]
    within = [candidate for candidate in proposed if candidate is not None]
    assert 0 < len(within) < len(proposed)
    assert all(candidate.latency.latency_ms <= 1.1 for candidate in within)
    assert within == list(neighbourhood(1.1).members())


def test_random_candidates_are_repaired_not_rejected() -> None:
    place, generator = neighbourhood(2.0), random.Random(0)
    found = [place.random(generator) for _ in range(50)]
    assert all(candidate.latency.latency_ms <= 2.0 for candidate in found)
    assert len({candidate.architecture for candidate in found}) > 10
    within = {candidate.architecture for candidate in place.members()}
    assert {candidate.architecture for candidate in found} <= within


class MoreIsFaster:
    """The other way round than one would think: descent has to look, not to assume."""

    def latency(self, architecture: Architecture) -> Latency:
        return Latency(1000.0 / (architecture.resolution + len(architecture.blocks)), "measured")


def test_corners_follow_the_latency_not_the_size() -> None:
    place = Neighbourhood(small_space(), MoreIsFaster())
    latencies = [candidate.latency.latency_ms for candidate in place.members()]
    assert place.fastest().latency.latency_ms == min(latencies)
    assert place.slowest().latency.latency_ms == max(latencies)


def test_a_budget_is_positive_and_above_the_fastest() -> None:
    for budget_ms in (0.0, -1.0, float("nan")):
        with pytest.raises(BudgetError, match="must be a positive latency"):
            neighbourhood(budget_ms)
    with pytest.raises(BudgetError, match=r"the fastest network takes \d"):
        neighbourhood(1e-3).random(random.Random(0))


def test_what_is_above_a_limit_does_not_exist() -> None:
    free = [cost(each.architecture) for each in neighbourhood().members()]
    values = sorted(each.peak_values for each in free)
    limits = Limits(
        parameters=sorted(each.parameters for each in free)[len(free) // 2],
        peak_memory_mb=values[len(values) // 2] * 4e-6,
    )
    place = Neighbourhood(small_space(), MadeUpLatency(), None, limits)
    found = [cost(each.architecture) for each in place.members()]
    allowed = [each for each in free if limits.excess(each) <= 1]
    assert 0 < len(found) == len(allowed) < len(free)
    generator = random.Random(0)
    drawn = [cost(place.random(generator).architecture) for _ in range(50)]
    assert all(limits.excess(each) <= 1 for each in (*drawn, cost(place.slowest().architecture)))


def test_limits_that_nothing_meets_are_named() -> None:
    with pytest.raises(BudgetError, match=r"meets search\.limits: the smallest network .* has [\d,]+ param"):
        Neighbourhood(small_space(), MadeUpLatency(), None, Limits(parameters=10)).fastest()


def test_limits_count_bytes_of_their_precision() -> None:
    counted = Cost(macs=100, parameters=1_000_000, peak_values=500_000)
    assert Limits(model_size_mb=4, peak_memory_mb=2).excess(counted) == 1
    assert Limits(model_size_mb=4, peak_memory_mb=2, bytes_per_value=1).excess(counted) == 0.25
    assert Limits(macs=50).excess(counted) == 2
    assert not Limits().any
