"""The Pareto plot for papers: one page column wide, no title, fonts embedded as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.report_data import NetworkResult, Report

# Okabe and Ito's palette, safe for colour-blind readers; shapes differ as well.
CANDIDATE_COLOUR = "#9aa0a6"
FRONT_COLOUR = "#0072b2"
REFERENCE_COLOUR = "#d55e00"

# Fixed, so that the same study gives the same bytes.
_SETTINGS: Any = {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "mobilenet-nas"}
_PNG_DPI = 300
_INCHES = (5.0, 3.4)


def save_pareto_figures(report: Report, folder: Path) -> list[Path]:
    """Write ``pareto.png`` and ``pareto.svg``: accuracy in percent against milliseconds."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=_INCHES, layout="constrained")
        _draw(figure.add_subplot(), report)
        paths = [folder / "pareto.png", folder / "pareto.svg"]
        figure.savefig(paths[0], dpi=_PNG_DPI, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _draw(axes: Axes, report: Report) -> None:
    axes.scatter(
        *_coordinates(report.candidates),
        s=6,
        color=CANDIDATE_COLOUR,
        alpha=0.5,
        linewidths=0,
        label=f"candidates ({len(report.candidates):,})",
        rasterized=True,
    )
    if report.front:
        latencies, accuracies = _coordinates(report.front)
        axes.step(latencies, accuracies, where="post", color=FRONT_COLOUR, linewidth=1)
        deviations = [network.deviation or 0.0 for network in report.front]
        if any(deviations):
            axes.errorbar(
                latencies,
                accuracies,
                yerr=deviations,
                fmt="none",
                ecolor=FRONT_COLOUR,
                elinewidth=0.5,
                alpha=0.5,
            )
        axes.scatter(latencies, accuracies, s=12, color=FRONT_COLOUR, zorder=3, label="front")
    if report.references:
        axes.scatter(
            *_coordinates(report.references),
            s=28,
            marker="D",
            color=REFERENCE_COLOUR,
            edgecolors="white",
            linewidths=0.5,
            zorder=4,
            label="references",
        )
    right = axes.get_xlim()[1]
    for reference in report.references:
        leftwards = reference.latency_ms > 0.6 * right
        axes.annotate(
            reference.label,
            (reference.latency_ms, reference.top1),
            xytext=(-5 if leftwards else 5, 4 if leftwards else -9),
            textcoords="offset points",
            ha="right" if leftwards else "left",
            color=REFERENCE_COLOUR,
            fontsize=7,
        )
    if report.budget_ms is not None:
        axes.axvline(report.budget_ms, color="black", linestyle="--", linewidth=0.8)
        axes.annotate(
            f"budget {report.budget_ms:.3g} ms",
            (report.budget_ms, 0.01),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 0),
            textcoords="offset points",
            ha="right",
            fontsize=7,
        )
    axes.set_xlabel(f"latency in ms ({_sources(report, 'latency_source')})\n{report.title}")
    axes.set_ylabel(f"top-1 accuracy in % ({_sources(report, 'accuracy_source')})")
    axes.grid(linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)


def _coordinates(networks: tuple[NetworkResult, ...]) -> tuple[list[float], list[float]]:
    return [network.latency_ms for network in networks], [network.top1 for network in networks]


def _sources(report: Report, attribute: str) -> str:
    return ", ".join(report.source_counts(attribute))
