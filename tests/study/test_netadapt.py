import math

import optuna
import pytest

from nas.accuracy.source import Accuracy
from nas.cost import cost
from nas.latency.table import Latency
from nas.study.netadapt import RefinementError, refine
from nas.study.objective import pareto
from nas.study.problem import Problem
from search_spaces.architecture import Architecture
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tests.cases import architecture_of

TARGET_MS = 22.0


class MacsLatency:
    def latency(self, architecture: Architecture) -> Latency:
        return Latency(cost(architecture).macs / 1e7, "estimated")


class MacsAccuracy:
    """Grows with the logarithm of multiply-accumulates; the third stage is worth more than it costs."""

    def accuracy(self, architecture: Architecture) -> Accuracy:
        third = sum(block.expanded_channels for block in architecture.blocks if block.out_channels == 40)
        return Accuracy(10 + 3 * math.log(cost(architecture).macs) + third / 200, "predicted")


def all_sixes(space: SearchSpace) -> Architecture:
    """V3-Large with every expansion that is a choice set to 6."""
    encoded = space.encode(reference("mobilenet_v3_large"))
    return space.build(
        {name: 6.0 if name.endswith("expansion") else value for name, value in encoded.items()}
    )


def memory_study(space: SearchSpace) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.set_user_attr("space", space.to_dict())
    return study


def test_v3_large_with_expansions_of_6_shrinks_to_v3_large_s_latency(mobilenet_space: SearchSpace) -> None:
    study, start, latency = memory_study(mobilenet_space), all_sixes(mobilenet_space), MacsLatency()
    assert latency.latency(start).latency_ms > TARGET_MS
    result = refine(study, Problem(mobilenet_space, pareto(), MacsAccuracy(), latency), start, TARGET_MS)
    assert result.reached
    assert result.path[0].architecture == start
    assert result.path[-1].latency_ms <= TARGET_MS < result.path[-2].latency_ms
    # Each step saves its share, changes one parameter, and was the best of its proposals.
    saving_ms = 0.01 * result.path[0].latency_ms
    known = {architecture_of(study, trial): trial.values for trial in study.trials}
    for before, after in zip(result.path, result.path[1:], strict=False):
        assert after.latency_ms <= before.latency_ms - saving_ms
        old, new = (mobilenet_space.encode(step.architecture) for step in (before, after))
        changed = [name for name in old if old[name] != new[name]]
        assert after.change == f"{changed[0]} {old[changed[0]]} -> {new[changed[0]]}"
        assert len(changed) == 1
        assert known[after.architecture] == [after.top1, after.latency_ms]
    # What costs more than it is worth goes first: the third stage keeps its expansions.
    last = mobilenet_space.encode(result.path[-1].architecture)
    assert [last[f"stage3.block{n}.expansion"] for n in (1, 2, 3)] == [6, 6, 6]
    assert {trial.user_attrs["kind"] for trial in study.trials} == {"refinement"}


def test_nothing_is_evaluated_twice_and_known_networks_not_at_all(mobilenet_space: SearchSpace) -> None:
    study, start = memory_study(mobilenet_space), all_sixes(mobilenet_space)
    first = refine(study, Problem(mobilenet_space, pareto(), MacsAccuracy(), MacsLatency()), start, TARGET_MS)
    trials = len(study.trials)
    again = refine(study, Problem(mobilenet_space, pareto(), MacsAccuracy(), MacsLatency()), start, TARGET_MS)
    assert again.path == first.path
    assert len(study.trials) == trials == len({t.user_attrs["architecture"] for t in study.trials})


def test_an_unreachable_latency_ends_at_the_smallest(mobilenet_space: SearchSpace) -> None:
    study, start = memory_study(mobilenet_space), all_sixes(mobilenet_space)
    result = refine(
        study, Problem(mobilenet_space, pareto(), MacsAccuracy(), MacsLatency()), start, 0.001, share=0.05
    )
    assert not result.reached
    assert "nothing is left to shrink" in result.search.stopped


def test_starts_outside_the_space_and_wrong_shares_are_refused(mobilenet_space: SearchSpace) -> None:
    study, outside = memory_study(mobilenet_space), reference("mobilenet_v1")
    problem = Problem(mobilenet_space, pareto(), MacsAccuracy(), MacsLatency())
    with pytest.raises(RefinementError, match="is not in the space 'mobilenet'"):
        refine(study, problem, outside, TARGET_MS)
    with pytest.raises(RefinementError, match="between 0 and 1, not 0"):
        refine(study, problem, outside, TARGET_MS, share=0)
