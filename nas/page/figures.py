"""The Pareto plot for papers: one page column wide, no title, fonts embedded as text."""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.page.report_data import Report
from nas.page.sentences import accuracy_label
from nas.quantities import latency_text
from nas.saving import write_atomically
from search_spaces.errors import printable, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, safe for colour-blind readers; shapes differ as well.
CANDIDATE_COLOUR = "#9aa0a6"
FRONT_COLOUR = "#0072b2"
REFERENCE_COLOUR = "#d55e00"

# Of the frame.
_COLUMNS = ("label", "kind", "top1", "deviation", "latency_ms", "accuracy_source", "latency_source")
# Fixed, so that the same study gives the same bytes.
_SETTINGS: Any = {
    "font.size": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "mobilenet-nas",
    "text.parse_math": False,  # names of boards and networks are shown as they are
}
_REFERENCE_MARKERS = "DsP^vX*ph"
_PNG_DPI = 300
_INCHES = (5.0, 3.4)
_LABEL_CHARACTERS = 75
# A front of more networks is a line with a band, its points small.
_DENSE_FRONT = 60
# Points of accuracy shown below the least accurate reference.
_BELOW_REFERENCES = 15.0


def save_pareto_figures(report: Report, folder: Path) -> list[Path]:
    """Write ``pareto.png`` and ``pareto.svg``: accuracy in percent against milliseconds."""
    # A second to import: not before something is drawn.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Of names in scripts that the fonts have not.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=_INCHES, layout="constrained")
        _draw(figure.add_subplot(), report)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=_PNG_DPI, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None})
    contents = {folder / "pareto.png": png, folder / "pareto.svg": svg}
    for path, content in contents.items():
        write_atomically(path, content.getvalue())
    return [*contents]


def _draw(axes: Axes, report: Report) -> None:
    frame = report.frame(columns=_COLUMNS)
    by_latency = frame.sort_values("latency_ms", kind="stable")
    candidates = frame[frame.kind != "reference"]
    references = by_latency[by_latency.kind == "reference"]
    front = by_latency[by_latency.on_front]
    floor = (references.top1.min() if len(references) else 0.0) - _BELOW_REFERENCES
    below = int((candidates.top1 < floor).sum())
    axes.scatter(
        candidates.latency_ms,
        candidates.top1,
        s=6,
        color=CANDIDATE_COLOUR,
        alpha=0.5,
        linewidths=0,
        label=f"candidates ({len(candidates):,}{f', {below:,} below' if below else ''})",
        rasterized=True,
    )
    if len(front):
        latencies, accuracies, deviations = front.latency_ms, front.top1, front.deviation.fillna(0.0)
        axes.step(latencies, accuracies, where="post", color=FRONT_COLOUR, linewidth=1)
        dense = len(front) > _DENSE_FRONT
        if deviations.any() and dense:
            low, high = accuracies - deviations, accuracies + deviations
            axes.fill_between(latencies, low, high, color=FRONT_COLOUR, alpha=0.2, linewidth=0)
        elif deviations.any():
            axes.errorbar(
                latencies,
                accuracies,
                yerr=deviations,
                fmt="none",
                ecolor=FRONT_COLOUR,
                elinewidth=0.5,
                alpha=0.5,
            )
        axes.scatter(latencies, accuracies, s=2 if dense else 12, color=FRONT_COLOUR, zorder=3, label="front")
    # Names in the legend, not beside the points: they would cover each other. Of many, those of the family.
    family = references.index >= 0
    named, foreign = (
        (references[family], references[~family]) if family.any() else (references, references[:0])
    )
    if len(foreign):
        axes.scatter(
            foreign.latency_ms,
            foreign.top1,
            s=14,
            marker="x",
            color=REFERENCE_COLOUR,
            linewidths=0.8,
            zorder=4,
            label=f"published ({len(foreign)})",
        )
    for number, marker in zip(range(len(named)), itertools.cycle(_REFERENCE_MARKERS), strict=False):
        reference = named.iloc[[number]]
        axes.scatter(
            reference.latency_ms,
            reference.top1,
            s=30,
            marker=marker,
            color=REFERENCE_COLOUR,
            edgecolors="white",
            linewidths=0.5,
            zorder=4,
            label=printable(reference.label.item()),
        )
    if report.bound_ms is not None:
        axes.axvline(report.bound_ms, color="black", linestyle="--", linewidth=0.8)
        axes.annotate(
            f"budget {latency_text(report.bound_ms)}",
            (report.bound_ms, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    title = textwrap.fill(shorten(report.title), _LABEL_CHARACTERS)
    sources = {
        each: printable(", ".join(frame[f"{each}_source"].unique())) for each in ("latency", "accuracy")
    }
    axes.set_xlabel(f"latency in ms ({sources['latency']})\n{title}")
    axes.set_ylabel(f"{accuracy_label(report)} ({sources['accuracy']})")
    if below:
        axes.set_ylim(bottom=floor)
    axes.grid(linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Where networks would be slow and inaccurate there are few points to cover.
    axes.legend(loc="lower right", fontsize=7, framealpha=0.85, edgecolor="none")
