"""``python -m nas.predictor fit``: fit the ImageNet predictor and judge it on networks left out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import MISSING
from rich.table import Table

from nas.accuracy.csv import read_accel, read_extra, read_supernet
from nas.accuracy.evaluation import (
    Evaluation,
    LeftOut,
    error_by_band,
    error_slope,
    evaluate,
    is_like_target,
    promises,
)
from nas.accuracy.fit import Effort, fit_predictor, fit_regression
from nas.accuracy.imagenet import DEFAULT_RECIPE, SHIPPED_PARAMETERS, Predictor
from nas.accuracy.networks import TrainedNetwork, read_networks
from nas.accuracy.recipes import TARGETS
from nas.command import command
from nas.console import console, print_summary
from nas.saving import check_output
from nas.shell import shell_line
from search_spaces.errors import InputError

_USAGE = "usage: python -m nas.predictor fit data=FOLDER [extra=FILE] [output=FILE] [evaluate=false] [--help]"

_EFFORT = Effort()


@dataclass
class FitConfig:
    """Everything that ``python -m nas.predictor fit`` can be told.

    Attributes:
        data: folder of the files below.
        networks: published networks, one JSON object a line.
        specialised: the same of networks specialised for devices; null for none.
        supernet: CSV of once-for-all's subnetworks.
        accel: CSV of Accel-NASBench's networks.
        extra: CSV of networks of one's own.
        output: file of the parameters, null for the shipped one.
        evaluate: also fit without the networks left out.
        seed: of the choice of networks that the scales are fitted to.
        inducing: points that summarise what recipes share.
        own_inducing: points that summarise what is Accel-NASBench's and the supernet's own.
        sample: networks of each benchmark that the scales are fitted to.
        steps: optimiser steps.
    """

    data: str = MISSING
    networks: str = "${data}/imagenet_networks.jsonl"
    specialised: str | None = "${data}/ofa_specialised.jsonl"
    supernet: str = "${data}/ofa_supernet.csv"
    accel: str = "${data}/accel_nasbench_imagenet.csv"
    extra: str | None = None
    output: str | None = None
    evaluate: bool = True
    seed: int = 0
    inducing: int = _EFFORT.inducing
    own_inducing: list[int] = field(default_factory=lambda: list(_EFFORT.own_inducing))
    sample: int = _EFFORT.sample
    steps: int = _EFFORT.steps

    def __post_init__(self) -> None:
        for name in ("inducing", "sample", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if len(self.own_inducing) != 2 or min(self.own_inducing) < 1:
            raise InputError(f"own_inducing must be two positive numbers, not {list(self.own_inducing)}")

    @property
    def effort(self) -> Effort:
        """The amount of computing that a fit takes."""
        accel, supernet = self.own_inducing
        return Effort(self.inducing, (accel, supernet), self.sample, self.steps)


def fit(settings: FitConfig) -> None:
    """Read, evaluate, fit, save.

    Raises:
        AccuracyDataError: on a bad file.
        AccuracyError: for a network that the predictor does not cover.
    """
    torch.set_num_threads(1)
    output = Path(settings.output) if settings.output else SHIPPED_PARAMETERS
    check_output(output, "output", overwrite=output == SHIPPED_PARAMETERS)
    networks = read_networks(Path(settings.networks))
    if settings.specialised:
        networks += read_networks(Path(settings.specialised))
    networks += read_supernet(Path(settings.supernet)) + read_accel(Path(settings.accel))
    recipes = {each.recipe for each in networks} | {*TARGETS}
    extra = read_extra(Path(settings.extra), recipes, DEFAULT_RECIPE) if settings.extra else []
    found = {}
    if settings.evaluate:
        for doing, evaluation in evaluate(networks, settings.effort, settings.seed):
            if evaluation is None:
                console.print(f"left out: {doing}")
                continue
            for table in _tables(evaluation):
                console.print(table)
            published = evaluation.published
            found["published, left out"] = (
                f"{published.mean_error:.2f} points mean error, {published.levelled_error:.2f} after one "
                f"constant a recipe, Kendall tau {published.tau:.3f}"
            )
    regression = fit_regression(networks, settings.effort, settings.seed)
    predictor = Predictor(fit_predictor(regression, settings.effort, settings.seed))
    if extra:
        predictor = predictor.with_networks(extra)
    notes = _notes(networks, extra)
    predictor.save(output, notes)
    own = None if output == SHIPPED_PARAMETERS else str(output)
    rows = {
        "fitted to": "; ".join(notes.values()),
        **found,
        "file": f"{output} ({output.stat().st_size / 1e3:.0f} kB)",
    }
    print_summary("ImageNet predictor", rows, shell_line("nas.search", accuracy__parameters=own))


def _notes(networks: list[TrainedNetwork], extra: list[TrainedNetwork]) -> dict[str, str]:
    counts = dict.fromkeys(("published", "specialised", "ofa_supernet", "accel_nasbench"), 0)
    for each in networks:
        name = each.recipe if each.recipe in counts else "specialised" if each.device else "published"
        counts[name] += 1
    recipes = {each.recipe for each in networks if not each.device} - counts.keys()
    notes = {
        "published": f"{counts['published']} published networks of {len(recipes)} recipes",
        "specialised": f"{counts['specialised']} networks specialised by once-for-all (MIT)",
        "supernet": f"{counts['ofa_supernet']} of its supernet (IntelLabs/DyNAS-T, Apache-2.0)",
        "benchmark": f"{counts['accel_nasbench']} networks of Accel-NASBench (Apache-2.0)",
    }
    return notes | {"extra": f"{len(extra)} networks of one's own"} if extra else notes


def _tables(found: Evaluation) -> list[Table]:
    summary = Table(
        "left out",
        "number",
        "mean error",
        "one constant a recipe",
        "worst",
        "tau",
        "within 1 sd",
        "within 2 sd",
    )
    like = found.published.where(is_like_target)
    slim = found.published.where(lambda each: each.recipe == "mobilenet_v2_v3")
    sources = found.sources.where(is_like_target)
    parts = {
        "published, tables whole": found.published,
        "  of the default target's kind": like,
        "  V2 and V3 of slim": slim,
        "published, recipes whole, predicted as the target": sources,
        "once-for-all fine-tuned, devices whole": found.specialised,
        "once-for-all supernet, a fifth": found.supernet,
        "Accel-NASBench, a tenth": found.benchmark,
    }
    for name, left_out in parts.items():
        if left_out.networks:
            summary.add_row(name, *_cells(left_out))
    levels = Table("recipe left out whole, predicted as the target", "number", "mean error with sign")
    for name in sorted({each.recipe for each in sources.networks}):
        part = sources.where(lambda each, name=name: each.recipe == name)  # type: ignore[misc]
        levels.add_row(name, str(len(part.networks)), f"{part.errors.mean():+.2f}")
    tables = [summary, levels]
    without = found.without_supernet
    if without.networks:
        bands = error_by_band(without)
        slope = Table("without the supernet: MACs from", *(f"{band} M" for band in bands), "slope")
        slope.add_row("error", *(f"{error:+.2f}" for error in bands.values()), f"{error_slope(without):+.2f}")
        tables.append(slope)
    promised = Table(
        "best predicted of the supernet, MACs from", "of", "chosen", "promised", "true", "difference"
    )
    for each in promises(found.supernet):
        promised.add_row(
            f"{each.macs_m} M",
            str(each.networks),
            str(each.chosen),
            f"{each.promised:.2f}",
            f"{each.true:.2f}",
            f"{each.promised - each.true:+.2f}",
        )
    return [*tables, promised]


def _cells(left_out: LeftOut) -> list[str]:
    levelled = left_out.levelled_error
    return [
        str(len(left_out.networks)),
        f"{left_out.mean_error:.3f}",
        "–" if levelled != levelled else f"{levelled:.3f}",
        f"{left_out.worst_error:.2f}",
        f"{left_out.tau:.3f}",
        f"{left_out.coverage(1):.0%}",
        f"{left_out.coverage(2):.0%}",
    ]


def main(config: FitConfig) -> None:
    """Read the files named in the configuration, evaluate, fit and save."""
    fit(config)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:
        del sys.argv[1]
    elif not {"--help", "-h"} & set(sys.argv):
        sys.exit(_USAGE)
    command("predictor", FitConfig, main)
