import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from nas.accuracy.imagenet import shipped_predictor
from nas.cost import Cost, Limits, cost, layer_cost
from nas.latency.table import Latency
from nas.study.scorer import BatchScorer, Scores
from nas.study.screening import screen
from search_spaces.architecture import Architecture
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.space import SearchSpace

# 768 members: few enough to score them all.
SPACE = SearchSpace.from_dict(
    {
        "name": "small",
        "resolutions": [128, 160, 192, 224],
        "stems": [{"channels": 16, "activation": "hswish"}],
        "stages": [
            {"stride": 2, "depths": [1, 2], "widths": [24], "expansions": [3]},
            {"stride": 2, "depths": [2], "widths": [40], "expansions": [3], "se": [False, True]},
            {
                "stride": 2,
                "depths": [2, 3, 4],
                "widths": [64, 80],
                "expansions": [4],
                "activations": ["hswish"],
            },
            {"stride": 2, "depths": [2], "widths": [112, 160], "kernels": [3, 5], "expansions": [6]},
        ],
        "heads": [{"conv_ratio": 6, "hidden_channels": n, "activation": "hswish"} for n in (1024, 1280)],
    }
)
CAUTION = 1.0


def _layer_ms(key: LayerKey, stride: int = 1) -> float:
    return 0.02 + layer_cost(key).macs * 1e-7


class _Sums:
    def latency(self, architecture: Architecture) -> Latency:
        return Latency(sum(map(_layer_ms, layer_keys(architecture))), "measured")


@pytest.fixture(scope="module")
def scorer() -> BatchScorer:
    return BatchScorer(SPACE, shipped_predictor(), _layer_ms)


def _points(scorer: BatchScorer, rows: np.ndarray) -> list[tuple[float, float]]:
    scores = scorer.score(rows)
    return list(zip(scores.latency_ms, scores.top1 - CAUTION * scores.deviation, strict=True))


@pytest.mark.parametrize("budget_ms", [math.inf, 20.0])
def test_finds_the_front_of_a_space_that_can_be_listed(scorer: BatchScorer, budget_ms: float) -> None:
    everything = np.array(list(itertools.product(*(range(count) for count in scorer.counts))))
    points = [each for each in _points(scorer, everything) if each[0] <= budget_ms]
    found = screen(scorer, budget_ms, CAUTION, networks=30_000, seed=0)
    screened = _points(scorer, np.array([scorer.encode(each) for each in found]))
    assert screened == sorted(screened, reverse=True)
    # Whatever there is, something as accurate has been found that is at most one band of latency slower.
    slowest, fastest = max(points)[0], min(points)[0]
    band = (slowest / fastest) ** (1 / 299)
    for latency_ms, bound in points:
        assert any(a <= latency_ms * band and b >= bound - 0.01 for a, b in screened), (latency_ms, bound)
    assert max(b for _, b in screened) == pytest.approx(max(b for _, b in points), abs=0.01)
    assert len(screened) < len(points) / 4


def test_repeats_for_a_seed_and_finds_nothing_below_the_fastest(scorer: BatchScorer) -> None:
    first = screen(scorer, 20.0, CAUTION, networks=500, seed=1)
    assert first == screen(scorer, 20.0, CAUTION, networks=500, seed=1)
    assert first != screen(scorer, 20.0, CAUTION, networks=500, seed=2)
    assert screen(scorer, 0.001, CAUTION, networks=500, seed=1) == []


@pytest.mark.filterwarnings("error")
def test_what_would_take_less_than_nothing_is_left_out(
    scorer: BatchScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = np.array([scorer.encode(parameters) for parameters, _ in SPACE.members()])
    latencies = scorer.score(every).latency_ms
    score, too_much = scorer.score, float(np.median(latencies))

    def less(rows: np.ndarray) -> Scores:
        scores = score(rows)
        return replace(scores, latency_ms=scores.latency_ms - too_much)

    monkeypatch.setattr(scorer, "score", less)
    found = screen(scorer, math.inf, CAUTION, networks=2_000, seed=0)
    left = scorer.score(np.array([scorer.encode(each) for each in found])).latency_ms
    assert left.min() > 0
    assert len(left) > 10


def test_what_is_above_a_limit_is_not_on_the_front() -> None:
    every = [cost(each) for _, each in SPACE.members()]
    limits = Limits(
        model_size_mb=sorted(each.parameters for each in every)[len(every) // 2] * 4e-6,
        peak_memory_mb=sorted(each.peak_values for each in every)[len(every) // 2] * 4e-6,
    )

    def layer_ms(key: LayerKey, stride: int) -> float:
        return math.inf if layer_cost(key).peak_values > limits.peak_values else _layer_ms(key, stride)

    def costs(most: Limits | None) -> list[Cost]:
        scorer = BatchScorer(SPACE, shipped_predictor(), layer_ms if most else _layer_ms)
        return [cost(SPACE.build(each)) for each in screen(scorer, math.inf, CAUTION, 3_000, 0, most)]

    assert max(limits.excess(each) for each in costs(None)) > 1
    assert costs(limits)
    assert max(limits.excess(each) for each in costs(limits)) <= 1
