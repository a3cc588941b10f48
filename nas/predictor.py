"""``python -m nas.predictor fit``: fit the ImageNet predictor and judge it on networks left out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from rich.table import Table

from nas.accuracy.csv import TrainedNetwork, read_accel, read_extra, read_published
from nas.accuracy.evaluation import LeftOut, leave_benchmark_out, leave_variants_out
from nas.accuracy.fit import Effort, fit_benchmark, fit_posterior
from nas.accuracy.imagenet import SHIPPED_PARAMETERS, Predictor
from nas.command import command
from nas.console import console, print_summary
from nas.settings import plain
from search_spaces.errors import InputError

_USAGE = "usage: python -m nas.predictor fit accel=FILE published=FILE [extra=FILE] [output=FILE] [--help]"


@dataclass
class FitConfig:
    """Everything that ``python -m nas.predictor fit`` can be told.

    Attributes:
        accel: CSV of Accel-NASBench's networks.
        published: CSV of published MobileNets.
        extra: CSV of networks of one's own.
        output: file of the parameters, null for the shipped one.
        evaluate: also fit without the networks left out.
        held_out: share of the benchmark left out in the evaluation.
        seed: of what is left out and of the fit.
        inducing: points that summarise the benchmark.
        steps: optimiser steps.
    """

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
    found = {}
    if settings.evaluate:
        benchmark = leave_benchmark_out(networks, settings.held_out, settings.seed, effort)
        variants = leave_variants_out(networks, settings.seed, effort)
        for table in _tables(benchmark, variants):
            console.print(table)
        for name, left_out in (("left out of the benchmark", benchmark), ("published, left out", variants)):
            found[name] = f"{left_out.mean_error:.2f} points mean error, Kendall tau {left_out.tau:.3f}"
    predictor = Predictor(fit_posterior(fit_benchmark(networks, effort, settings.seed), networks))
    if extra:
        predictor = predictor.with_networks(extra)
    notes = _notes(networks, extra)
    output = Path(settings.output) if settings.output else SHIPPED_PARAMETERS
    predictor.save(output, notes)
    own = "" if output == SHIPPED_PARAMETERS else f" accuracy.parameters={output}"
    rows = {
        "fitted to": "; ".join(notes.values()),
        **found,
        "file": f"{output} ({output.stat().st_size / 1e3:.0f} kB)",
    }
    print_summary("ImageNet predictor", rows, f"python -m nas.search{own}")


def _notes(networks: list[TrainedNetwork], extra: list[TrainedNetwork]) -> dict[str, str]:
    published = sum(each.recipe == "mobilenet" for each in networks)
    notes = {
        "benchmark": f"{len(networks) - published} networks of Accel-NASBench's recipe (Apache-2.0)",
        "published": f"{published} networks of the published MobileNet recipe",
    }
    return notes | {"extra": f"{len(extra)} networks of one's own"} if extra else notes


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


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:
        del sys.argv[1]
    elif not {"--help", "-h"} & set(sys.argv):
        sys.exit(_USAGE)
    command("predictor", FitConfig, main)
