"""``python -m nas.scoring_benchmark``: how many networks a second get accuracy and latency, on one core."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from nas.accuracy.predictor import shipped_predictor
from nas.boards.hardware import table_without_measuring
from nas.command import command
from nas.config import HardwareConfig, RuntimeConfig, hardware_of, plain, read_space
from nas.console import console
from nas.engine.batch import BatchScorer, layer_latency
from nas.latency.provision import table_folder
from nas.latency.runtimes import Runtime
from nas.layers import reachable_layer_keys


@dataclass
class ScoringConfig:
    """Schema of ``conf/scoring_benchmark.yaml``."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Any = None
    tables: str = "results/latency"
    networks: int = 100_000
    repeats: int = 5
    seed: int = 0


def main(config: Any) -> None:
    """Score many random members of a space for accuracy and latency on one core, and say how fast."""
    space = read_space(config.search_space)
    board = hardware_of(plain(config.hardware, HardwareConfig))
    runtime = Runtime(config.runtime.name, config.runtime.precision, config.runtime.threads)
    keys = sorted(reachable_layer_keys(space), key=str)
    table = table_without_measuring(
        board, keys, runtime, table_folder(Path(config.tables), board.name, runtime)
    )
    start = time.perf_counter()
    scorer = BatchScorer(space, shipped_predictor(), layer_latency(table))
    console.print(f"look-up tables of {len(keys):,} layers: {time.perf_counter() - start:.1f} s")
    rows = scorer.sample(config.networks, np.random.default_rng(config.seed))
    rates = []
    with threadpool_limits(1):
        for _ in range(config.repeats):
            start = time.perf_counter()
            scorer.score(rows)
            rates.append(config.networks / (time.perf_counter() - start))
    console.print(
        f"{config.networks:,} networks in one call, accuracy and latency: {np.median(rates):,.0f} a second "
        f"on one core (median of {config.repeats} calls, {min(rates):,.0f} to {max(rates):,.0f})"
    )


if __name__ == "__main__":
    command("scoring_benchmark", ScoringConfig, main)
