"""``python -m tools.scoring_benchmark``: how many networks a second get accuracy and latency, on one core."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from nas.accuracy.imagenet import shipped_predictor
from nas.assembly import hardware_of, runtime_of
from nas.command import command
from nas.console import print_summary
from nas.latency.hardware import table_without_measuring
from nas.latency.provision import table_folder
from nas.settings import Chosen, HardwareConfig, RuntimeConfig
from nas.study.scorer import BatchScorer, layer_latency
from search_spaces.layers import reachable_layer_keys
from search_spaces.space import SearchSpace


@dataclass
class ScoringConfig:
    """Everything ``python -m tools.scoring_benchmark`` can be told.

    Attributes:
        tables: where measured latencies are looked for; estimates serve as well.
        networks: scored in one call.
        repeats: calls, of which the median counts.
        seed: of the networks.
    """

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Chosen = None
    tables: str = "results/latency"
    networks: int = 100_000
    repeats: int = 5
    seed: int = 0


def main(config: ScoringConfig) -> None:
    """Score many random members of a space for accuracy and latency on one core, and say how fast."""
    space = SearchSpace.from_dict(config.search_space)
    board = hardware_of(config.hardware)
    runtime = runtime_of(config.runtime)
    keys = sorted(reachable_layer_keys(space), key=str)
    table = table_without_measuring(
        board, keys, runtime, table_folder(Path(config.tables), board.name, runtime)
    )
    start = time.perf_counter()
    scorer = BatchScorer(space, shipped_predictor(), layer_latency(table))
    prepared_s = time.perf_counter() - start
    members = scorer.sample(config.networks, np.random.default_rng(config.seed))
    rates = []
    with threadpool_limits(1):
        for _ in range(config.repeats):
            start = time.perf_counter()
            scorer.score(members)
            rates.append(config.networks / (time.perf_counter() - start))
    rows = {
        "latency": table.header.title,
        "look-up tables": f"{len(keys):,} layers in {prepared_s:.1f} s",
        "one call": f"{config.networks:,} networks, accuracy and latency",
        "a second, on one core": f"{np.median(rates):,.0f} (median of {config.repeats} calls, "
        f"{min(rates):,.0f} to {max(rates):,.0f})",
    }
    print_summary("scoring", rows, f"python -m nas.search hardware={board.name}")


if __name__ == "__main__":
    command("scoring_benchmark", ScoringConfig, main)
