"""The front of very many networks, scored at once before a study begins.

A predictor and a latency table score a hundred thousand networks a second (:mod:`nas.study.scorer`), a
study takes a few hundred trials a second. So an evolution runs on scores alone, and only its front becomes
trials. The layers of that front are also those worth measuring before the search relies on them.
"""

from __future__ import annotations

import numpy as np

from nas.accuracy.features import Floats
from nas.accuracy.source import lower_bound
from nas.cost import Limits
from nas.study.pareto import front
from nas.study.scorer import BatchScorer, Choices
from search_spaces.stage import Parameters

# The front is kept as the most accurate network of each of so many bands of latency, equal in logarithm.
_BANDS = 300
_FIRST = 20_000  # random networks to begin with
_CHILDREN = 4_000  # networks of a generation
_CROSSOVER = 0.5
_MUTATION = 0.03  # share of parameters drawn anew


def screen(
    scorer: BatchScorer,
    budget_ms: float,
    caution: float,
    networks: int,
    seed: int,
    limits: Limits | None = None,
) -> list[Parameters]:
    """The front of an evolution over many networks, slowest first.

    Args:
        scorer: with a predictor and latencies.
        budget_ms: slower networks do not count.
        caution: standard deviations subtracted from predicted accuracies.
        networks: how many to score.
        seed: of all random choices.
        limits: on parameters and multiply-accumulates; that on memory is one on single layers, whose latency
            is infinite where they exceed it, see :func:`nas.study.scorer.layer_latency`.
    """
    most = limits or Limits()
    generator = np.random.default_rng(seed)
    counts = scorer.counts

    def random_rows(number: int) -> Choices:
        # Cells of blocks that do not exist are drawn too: scores ignore them, descendants may need them.
        return (generator.random((number, len(counts)), np.float32) * counts).astype(np.int64)

    rows = random_rows(min(networks, _FIRST))
    best, bounds, latencies = rows[:0], np.zeros(0), np.zeros(0)
    scored = 0
    while True:
        scores = scorer.score(rows)
        scored += len(rows)
        usable = np.isfinite(scores.top1 + scores.latency_ms) & (scores.latency_ms <= budget_ms)
        usable &= scores.latency_ms > 0  # a calibration made on a busy machine may say less
        usable &= (scores.parameters <= most.all_parameters) & (scores.macs <= most.macs)
        best = np.concatenate([best, rows[usable]])
        bounds = np.concatenate([bounds, lower_bound(scores.top1, scores.deviation, caution)[usable]])
        latencies = np.concatenate([latencies, scores.latency_ms[usable]])
        kept = _best_by_band(bounds, latencies)
        best, bounds, latencies = best[kept], bounds[kept], latencies[kept]
        if scored >= networks or not len(best):
            break
        count = min(_CHILDREN, networks - scored)
        first, second = best[generator.integers(0, len(best), (2, count))]
        crossed = generator.random((count, 1)) < _CROSSOVER
        taken = crossed & (generator.random(first.shape, np.float32) < 0.5)
        drawn = generator.random(first.shape, np.float32) < _MUTATION
        rows = np.where(drawn, random_rows(count), np.where(taken, second, first))
    fastest_first = front(np.column_stack([latencies, -bounds]))
    return [scorer.decode(row) for row in scorer.canonical(best[fastest_first[::-1]])]


def _best_by_band(bounds: Floats, latencies: Floats) -> Choices:
    if not len(bounds):
        return np.zeros(0, np.int64)
    logarithms = np.log(latencies)
    low, high = logarithms.min(), logarithms.max()
    bands = ((logarithms - low) / max(high - low, 1e-9) * (_BANDS - 1)).astype(np.int64)
    order = np.lexsort((-bounds, bands))
    return order[np.unique(bands[order], return_index=True)[1]]
