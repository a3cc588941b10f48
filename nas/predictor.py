"""The ImageNet predictor: fit it and judge it on networks left out, or see how fast it is.

python -m nas.predictor fit accel=FILE published=FILE
python -m nas.predictor benchmark
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING
from rich.table import Table
from threadpoolctl import threadpool_limits

from nas.accuracy.evaluation import LeftOut, leave_benchmark_out, leave_variants_out
from nas.accuracy.fit import Effort, fit_benchmark, fit_posterior
from nas.accuracy.predictor import SHIPPED_PARAMETERS, Predictor, shipped_predictor
from nas.accuracy.records import TrainedNetwork, read_accel, read_extra, read_published
from nas.boards.hardware import table_without_measuring
from nas.command import command
from nas.config import HardwareConfig, RuntimeConfig, hardware_of, plain, read_space
from nas.console import console
from nas.engine.batch import BatchScorer, layer_latency
from nas.latency.provision import table_folder
from nas.latency.runtimes import Runtime
from nas.layers import reachable_layer_keys
from search_spaces.errors import InputError

_USAGE = """usage: python -m nas.predictor fit accel=FILE published=FILE [extra=FILE] [output=FILE] [--help]
       python -m nas.predictor benchmark [hardware=NAME] [search_space=NAME] [--help]"""


@dataclass
class FitConfig:
    """Schema of ``conf/predictor.yaml``."""

    accel: str = MISSING
    published: str = MISSING
    extra: str | None = None
    output: str | None = None
    evaluate: bool = True
    held_out: float = 0.1
    seed: int = 0
    inducing: int = 128
    steps: int = 200

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must lie between 0 and 1, not {self.held_out:g}")
        for name in ("inducing", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass
class ScoringConfig:
    """Schema of ``conf/scoring.yaml``."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Any = None
    tables: str = "results/latency"
    networks: int = 100_000
    repeats: int = 5
    seed: int = 0


def benchmark(config: Any) -> None:
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


def fit(settings: FitConfig) -> None:
    """Read, evaluate, fit, save.

    Raises:
        AccuracyDataError: on a bad file.
        AccuracyError: for a network that the predictor does not cover.
    """
    torch.set_num_threads(1)
    networks = read_accel(Path(settings.accel)) + read_published(Path(settings.published))
    extra = read_extra(Path(settings.extra)) if settings.extra else []
    effort = Effort(settings.inducing, settings.steps)
    if settings.evaluate:
        benchmark = leave_benchmark_out(networks, settings.held_out, settings.seed, effort)
        variants = leave_variants_out(networks, settings.seed, effort)
        for table in _tables(benchmark, variants):
            console.print(table)
    predictor = Predictor(fit_posterior(fit_benchmark(networks, effort, settings.seed), networks))
    if extra:
        predictor = predictor.with_networks(extra)
    output = Path(settings.output) if settings.output else SHIPPED_PARAMETERS
    predictor.save(output, _notes(networks, extra))
    console.print(f"wrote {output} ({output.stat().st_size / 1e3:.0f} kB)")


def _notes(networks: list[TrainedNetwork], extra: list[TrainedNetwork]) -> dict[str, str]:
    published = sum(each.recipe == "mobilenet" for each in networks)
    return {
        "extra": f"{len(extra)} networks of the user's",
        "benchmark": f"{len(networks) - published} networks of Accel-NASBench's recipe (Apache-2.0)",
        "published": f"{published} networks of the published MobileNet recipe",
    }


def _tables(benchmark: LeftOut, variants: LeftOut) -> list[Table]:
    summary = Table("networks left out", "number", "mean error", "worst", "tau", "within 1 sd", "within 2 sd")
    for name, left_out in (("Accel-NASBench, random", benchmark), ("published, by variant", variants)):
        summary.add_row(
            name,
            str(len(left_out.networks)),
            f"{left_out.mean_error:.3f}",
            f"{left_out.worst_error:.2f}",
            f"{left_out.tau:.3f}",
            f"{left_out.coverage(1):.0%}",
            f"{left_out.coverage(2):.0%}",
        )
    each = Table("published network left out", "px", "published", "predicted", "sd", "error")
    for network, top1, deviation, error in zip(
        variants.networks, variants.predicted, variants.deviation, variants.errors, strict=True
    ):
        each.add_row(
            network.variant,
            str(network.architecture.resolution),
            f"{network.top1:.1f}",
            f"{top1:.1f}",
            f"{deviation:.1f}",
            f"{error:+.1f}",
        )
    return [summary, each]


def main(config: Any) -> None:
    """Read the files named in the configuration, evaluate, fit and save."""
    fit(plain(config, FitConfig))


# (configuration, its schema, what to do) of each task.
TASKS: dict[str, tuple[str, type, Callable[[Any], None]]] = {
    "fit": ("predictor", FitConfig, main),
    "benchmark": ("scoring", ScoringConfig, benchmark),
}

if __name__ == "__main__":
    task = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if task not in TASKS:
        sys.exit(_USAGE)
    command(*TASKS[task])
