"""``python -m tools.gains STUDY``: what a study gains at four latencies over each hand-designed network.

At the latencies of MobileNetV3-Small, V3-Large and V2, and at twice V3-Large's: the best network that was
found, and its gain over V1, V2 and V3 predicted for the same recipe, as in ``results/accuracy.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nas.console import console
from nas.page.reading import read_study, report_of
from nas.page.report_data import Report
from nas.quantities import signed
from search_spaces.errors import InputError

_REFERENCES = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")


def gain_rows(report: Report) -> list[str]:
    """Lines of a Markdown table.

    Raises:
        InputError: if the study lacks one of the references.
    """
    references = {each.name: each for each in report.references}
    missing = [name for name in _REFERENCES if name not in references]
    if missing:
        raise InputError(f"{report.name} lacks the reference {missing[0]}")
    large = references["mobilenet_v3_large"]
    bounds = {
        f"{name} {references[name].latency_ms:.2f} ms": references[name].latency_ms for name in _REFERENCES
    }
    bounds[f"2 x mobilenet_v3_large {2 * large.latency_ms:.2f} ms"] = 2 * large.latency_ms
    lines = [f"| at the latency of | best found | {' | '.join(f'over {name}' for name in _REFERENCES)} |"]
    lines.append("|---" * (2 + len(_REFERENCES)) + "|")
    for name, latency_ms in sorted(bounds.items(), key=lambda pair: pair[1]):
        cells = []
        for answer in (report.answer_at(references[each], latency_ms) for each in _REFERENCES):
            best, gained = answer.as_fast, answer.gained
            deviation = None if gained is None else gained.deviation
            error = "" if deviation is None else f" ± {deviation:.1f}"
            cells.append("–" if gained is None else f"{signed(gained.points, 1)}{error}")
        found = "nothing" if best is None else f"{best.accuracy}, {best.latency} ({best.latency_source})"
        lines.append(f"| {name}, {latency_ms:.2f} ms | {found} | {' | '.join(cells)} |")
    return lines


def main(arguments: list[str]) -> None:
    """Print the table of the study in a folder."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m tools.gains results/STUDY")
    try:
        report = report_of(read_study(Path(arguments[0])), importances=False)
        for line in gain_rows(report):
            console.print(line, markup=False, soft_wrap=True)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
