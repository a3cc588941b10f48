"""The page for one study or for two side by side, and the summary in Markdown, as Jinja's templates fill in.

Whatever templates are given is escaped, for HTML or for Markdown. A page is one file with everything in it:
plots are drawn by page.js from embedded JSON. It may load nothing and run nothing but that script: its
content security policy says so.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context, select_autoescape
from jinja2.runtime import Context

from nas.latency.calibration import ERROR_ROWS, error_text
from nas.page import sentences
from nas.page.comparison import compare, plain
from nas.page.importances import MOST_TRIALS
from nas.page.payload import payload
from nas.page.report_data import Report
from nas.quantities import latency_text
from nas.saving import markdown_text
from nas.study.journal import without_collecting
from nas.study.provenance import LatencyOrigin
from search_spaces.errors import printable

# Beside how many references the answers are shown at once.
_SHOWN_ANSWERS = 6
# Of the provenance: what is said elsewhere on the page, or is no words, as the covariance of predictions.
_ELSEWHERE = ("layers", "joint", "command", "versions", "classes", "budget_margin")
# What of the rest is shown at once.
_FIRST = ("hardware", "dataset", "sampler", "seed", "created")
_ELSEWHERE_OF_LATENCY = ("title", "counts", "calibration", "card", "warning", "error_percent")


def report_page(report: Report) -> str:
    """The page of one study."""
    return _page("report.html", [report], title=f"{report.name}: report", report=report)


def comparison_page(first: Report, second: Report) -> str:
    """The page that shows two studies beside each other."""
    names = (first.name, second.name)
    title = f"{first.name} and {second.name}: comparison"
    comparison = compare(first, second)
    return _page("comparison.html", [first, second], title=title, names=names, comparison=comparison)


def summary(report: Report) -> str:
    """The answers and the front in Markdown, for READMEs and notes."""
    command = _Verbatim(printable(" ".join((report.provenance.command or "").split())))
    return _templates().get_template("summary.md").render(report=report, command=command)


class _Verbatim(str):
    """Text of one line that stands in a block of Markdown's code, where nothing is markup."""

    __slots__ = ()


@pass_context
def _in_markdown(context: Context, value: object) -> object:
    """A value as it stands in a template; in pages Jinja escapes it."""
    is_page = str(context.name).endswith(".html")
    return value if is_page or isinstance(value, _Verbatim) else markdown_text(str(value))


@without_collecting()
def _page(template: str, reports: Sequence[Report], **values: object) -> str:
    assets = resources.files("nas.page") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    data = payload(reports)
    return (
        _templates()
        .get_template(template)
        .render(style=style, script=script, data=data, reports=reports, **values)
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("nas.page", "templates"),
        autoescape=select_autoescape(["html"]),
        finalize=_in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["digest"] = _digest
    environment.globals |= {
        "counts": _counts,
        "error_table": _error_table,
        "latency_text": latency_text,
        "most_trials": MOST_TRIALS,
        "noted_facts": _noted_facts,
        "origin_facts": _origin_facts,
        "sentences": sentences,
        "shown_answers": _SHOWN_ANSWERS,
        "trust_facts": _trust_facts,
        "words": sentences.WORDS,
        "words_used": _words_used,
    }
    return environment


def _digest(text: str) -> str:
    """The source expression by which a content security policy allows a text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _counts(report: Report, attribute: str) -> str:
    counts = report.source_counts(attribute)
    return ", ".join(f"{source} ({count:,})" for source, count in sorted(counts.items()))


def _error_table(latency: LatencyOrigin) -> tuple[list[str], list[tuple[str, ...]]]:
    """Errors of whole networks' latencies: heads and rows, empty where nobody knows."""
    found = {
        "sums": latency.calibration.uncorrected,
        "calibrated": latency.calibration.left_out,
        "fresh, uncorrected": latency.card.uncorrected,
        "fresh, calibrated": latency.card.calibrated,
    }
    columns = {name: errors for name, errors in found.items() if errors}
    rows = [
        (text, *(error_text(name, getattr(errors, name)) for errors in columns.values()))
        for name, text in ERROR_ROWS.items()
    ]
    return (["", *columns], rows) if columns else ([], [])


def _trust_facts(latency: LatencyOrigin) -> dict[str, str]:
    card, counts = latency.card, latency.counts
    return {
        "layers of the table": ", ".join(f"{count:,} {name}" for name, count in counts.items() if count),
        "validated": card.created[:10],
        "drift since the table": "" if card.drift is None else error_text("bias", card.drift),
        "predicted layers in them": ""
        if card.predicted_layers is None
        else error_text("worst", card.predicted_layers),
    }


def _origin_facts(report: Report) -> dict[str, str]:
    """Where a study comes from, in words."""
    found = {"study": report.name, "trials": f"{len(report.candidates):,} complete, {report.failed:,} failed"}
    found |= {f"{count:,} failed": reason for reason, count in report.failures}
    if report.foreign:
        found["left out"] = f"{report.foreign:,} trials that this program did not make"
    found |= dict(_flat({name: getattr(report.provenance, name) for name in _FIRST}))
    if report.provenance.classes:
        found["classes"] = ", ".join(report.provenance.classes)
    versions = report.provenance.versions.items()
    found["versions"] = ", ".join(f"{name} {version}" for name, version in versions if version)
    return found


def _noted_facts(report: Report) -> dict[str, str]:
    """Everything else that was noted of a study, as it was noted."""
    noted = asdict(replace(report.provenance, joint=None, layers={}))
    provenance = {name: value for name, value in noted.items() if name not in (*_ELSEWHERE, *_FIRST)}
    latency = noted["latency"].items()
    provenance["latency"] = {name: value for name, value in latency if name not in _ELSEWHERE_OF_LATENCY}
    return dict(_flat(provenance))


def _flat(mapping: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in mapping.items():
        title = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            # Settings that change nothing are not worth a line each.
            if any(value.values()):
                yield from _flat(value, f"{title} ")
        elif value not in (None, "", []):
            yield title, plain(value)


def _words_used(reports: Sequence[Report]) -> dict[str, str]:
    """Meanings of the labels beside numbers, as far as they are used."""
    latencies = {name for report in reports for name in report.source_counts("latency_source")}
    latencies |= {layer.source for report in reports for layer in report.layers.values()}
    accuracies = {name for report in reports for name in report.source_counts("accuracy_source")}
    return sentences.vocabulary(accuracies, latencies)
