"""The page: one file with everything in it, for one study or for two side by side.

Text and tables are written here, plots are drawn by page.js from embedded JSON. The page may load
nothing and run nothing but that script: its content security policy says so.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from nas.cost import layer_cost
from nas.page import sentences
from nas.page.comparison import comparison_card
from nas.page.markup import (
    Markup,
    card,
    chooser,
    definitions,
    element,
    facts,
    milliseconds,
    plain,
    source,
    table,
)
from nas.page.network_result import NetworkResult
from nas.page.recommendation import Answer
from nas.page.report import JOINT, LayerLatency, Report, section
from nas.page.sentences import MIXED_KINDS, accuracy_label, signed
from search_spaces.architecture import PAPER_COLUMNS, Architecture
from search_spaces.layers import LayerKey, layer_keys

_ERROR_ROWS = {
    "networks": "networks",
    "mape": "mean error",
    "bias": "bias",
    "within_5_percent": "within 5 %",
    "within_10_percent": "within 10 %",
    "worst": "worst",
    "kendall_tau": "Kendall tau",
    "spearman_rho": "Spearman rho",
}
# What accuracy can be drawn against: fields of the page's data.
_AXES = {"latency_ms": "latency", "macs": "MACs", "parameters": "parameters"}
_PERCENTAGES = ("mape", "bias", "within_5_percent", "within_10_percent", "worst")
_SOURCES = {
    "measured": "Latency: the whole network was timed end to end on this hardware, interleaved with "
    "the others; the median is given. Accuracy: trained and validated here.",
    "table": "Latency: all layers of the network were timed on this hardware, and their sum is calibrated on "
    "whole networks.",
    "predicted": "Latency: like table, but at least one layer was not timed: it is predicted from timed "
    "layers of the same hardware. Accuracy: a model fitted to trained networks says so; nothing was "
    "trained here.",
    "estimated": "Latency: from a shipped preset, not from this hardware.",
    "supernet": "Accuracy: validated here with the weights that a supernet shares among all networks.",
    "given": "Accuracy: as the table that was given says.",
    "proxy": "Accuracy: none; a training-free score ranks the networks, and says nothing of their accuracy.",
    "published": "Accuracy: as its authors report it, with their training.",
}

# Block tables in a page, at most, besides those of the front, the references and the answers.
_MOST_TABLES = 1_500


def report_page(report: Report) -> str:
    """The page of one study."""
    body = [
        element("header", element("h1", report.name), element("p", report.title, class_="quiet")),
        _warning(report),
        _answers(report),
        _plot_card([report]),
        _selected_card(),
        _front_card(report),
        element("div", _hypervolume_card(), _importance_card(report), class_="columns"),
        element("div", _validation_card(report), _provenance_card(report), class_="columns"),
        _sources_card([report]),
    ]
    return _page(f"{report.name}: report", body, [report])


def comparison_page(first: Report, second: Report) -> str:
    """The page that shows two studies beside each other."""
    reports = [first, second]
    body = [
        element(
            "header",
            element("h1", f"{first.name} and {second.name}"),
            *(
                element("p", f"{each.name}: {each.title or 'device unknown'}", class_="quiet")
                for each in reports
            ),
        ),
        *dict.fromkeys(_warning(each) for each in reports),
        comparison_card(first, second),
        _plot_card(reports),
        _selected_card(),
        _hypervolume_card(),
    ]
    pairs = [
        [_front_card(each, number, f"Front of {each.name}") for number, each in enumerate(reports)],
        [
            _importance_card(each, number, f"What matters in {each.name}")
            for number, each in enumerate(reports)
        ],
        [_validation_card(each, f"Can {each.name}'s latencies be trusted?") for each in reports],
        [_provenance_card(each, f"Where {each.name} comes from") for each in reports],
    ]
    body += [element("div", *pair, class_="columns") for pair in pairs]
    body.append(_sources_card(reports))
    return _page(f"{first.name} and {second.name}: comparison", body, reports)


# -- the frame -------------------------------------------------------------------------------------


def _page(title: str, body: Iterable[str], reports: Sequence[Report]) -> str:
    assets = resources.files("nas.page") / "assets"
    template, style, script = (
        (assets / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    data = json.dumps([_payload(report) for report in reports], separators=(",", ":"), allow_nan=False)
    parts = {
        "policy": "default-src 'none'; img-src data:; "
        f"style-src {_digest(style)}; script-src {_digest(script)}",
        "title": html.escape(title),
        "style": style,
        "script": script,
        "body": "\n".join(body),
        # Nothing in a JSON string may end the script element.
        "data": data.replace("<", "\\u003c"),
    }
    # In one pass: what is filled in is not searched again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# -- the data of the plots -------------------------------------------------------------------------


def _payload(report: Report) -> dict[str, Any]:
    networks = report.networks
    sources = sorted({source for n in networks for source in (n.accuracy_source, n.latency_source)})
    front = [report.positions[network.trial] for network in report.front]
    found = [position for position in front if networks[position].kind != "reference"]
    layers = _Layers(report.layers)
    tabled = _with_table(report)
    return {
        "name": report.name,
        "columns": PAPER_COLUMNS,
        "budget_ms": report.bound_ms,
        "third": report.third,
        "accuracy_label": accuracy_label(report),
        "sources": sources,
        "names": {position: n.name for position, n in enumerate(networks) if n.name},
        "references": [report.positions[network.trial] for network in report.references],
        "front": front,
        "best": _first_shown(report, found),
        "networks": {
            "id": [n.id for n in networks],
            "trial": [n.trial for n in networks],
            "top1": [round(n.top1, 3) for n in networks],
            "deviation": [None if n.deviation is None else round(n.deviation, 3) for n in networks],
            "latency_ms": [_rounded(n.latency_ms) for n in networks],
            "latency_error_ms": [
                None if n.latency_error_ms is None else _rounded(n.latency_error_ms) for n in networks
            ],
            "percentiles_ms": {
                position: [_rounded(n.p90_ms), _rounded(n.p99_ms)]
                for position, n in enumerate(networks)
                if n.p90_ms is not None and n.p99_ms is not None
            },
            "accuracy_source": [sources.index(n.accuracy_source) for n in networks],
            "latency_source": [sources.index(n.latency_source) for n in networks],
            "macs": [n.macs for n in networks],
            "parameters": [n.parameters for n in networks],
            "resolution": [n.resolution for n in networks],
            "layers": [
                layers.indices(n.architecture) if position in tabled and n.architecture else None
                for position, n in enumerate(networks)
            ],
        },
        "layers": layers.rows,
        "hypervolume": [(trial, round(share, 6)) for trial, share in report.hypervolume],
        "importances": [(i.parameter, round(i.accuracy, 4), round(i.latency, 4)) for i in report.importances],
    }


def _rounded(latency_ms: float) -> float:
    # More digits than are ever printed, fewer than make the page large.
    return float(f"{latency_ms:.6g}")


def _with_table(report: Report) -> frozenset[int]:
    """Positions of the networks whose block tables the page holds: of a very long study not all."""
    count = len(report.networks)
    if count <= _MOST_TABLES:
        return frozenset(range(count))
    answers = [each for answer in report.answers for each in (answer.as_fast, answer.as_accurate) if each]
    chosen = (*report.front, *report.references, *answers)
    return frozenset(
        {report.positions[each.trial] for each in chosen} | {*range(0, count, 1 + count // _MOST_TABLES)}
    )


def _first_shown(report: Report, found: Sequence[int]) -> int | None:
    """The network that the page opens with: the one at the budget, or at MobileNetV3-Large's latency."""
    answers = {answer.reference.name: answer.as_fast for answer in report.answers if answer.as_fast}
    for name in (report.provenance.get("budget_name"), "mobilenet_v3_large"):
        if network := answers.get(name):
            return report.positions[network.trial]
    return found[-1] if found else None


class _Layers:
    """The distinct layers of all networks: thousands of networks share few of them."""

    def __init__(self, latencies: Mapping[str, LayerLatency]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._latencies = latencies
        self._index: dict[object, int] = {}

    def indices(self, architecture: Architecture) -> list[int]:
        """Where each layer of a network is found in :attr:`rows`."""
        keys = iter(layer_keys(architecture))
        printed = architecture.paper_rows()
        # An identity is a row of the table, but no layer: it takes no time.
        identities = [False, *(block.is_identity for block in architecture.blocks), False]
        return [
            self._add(None if identity else next(keys), rows)
            for rows, identity in zip(printed, identities, strict=True)
        ]

    def _add(self, key: LayerKey | None, rows: tuple[tuple[str, ...], ...]) -> int:
        identity = rows if key is None else key
        if identity not in self._index:
            self._index[identity] = len(self.rows)
            latency = LayerLatency(0.0, "measured") if key is None else self._latencies.get(str(key))
            self.rows.append(
                {"rows": rows, "macs": layer_cost(key).macs if key else 0}
                | ({"ms": round(latency.latency_ms, 5), "source": latency.source} if latency else {})
            )
        return self._index[identity]


# -- cards -----------------------------------------------------------------------------------------


def _warning(report: Report) -> Markup:
    text = section(report.provenance, "latency").get("warning")
    return element("p", str(text), class_="warning") if text else Markup()


def _answers(report: Report) -> Markup:
    cards = []
    for answer in report.answers:
        reference = answer.reference
        lines = [element("h3", reference.label), element("small", *facts(reference))]
        for what, result, found, better in (
            ("latency", sentences.gain(answer), answer.as_fast, answer.is_gain),
            ("accuracy", sentences.saving(answer), answer.as_accurate, (answer.latency_change or 0) < 0),
        ):
            line = [f"At {reference.label}'s {what}: ", element("b", result, class_="better" * better)]
            if found is not None:
                line.append(element("small", chooser(report, 0, found), ": ", *_against(answer, found)))
            lines.append(element("p", *line, data_answer=what))
        cards.append(element("article", *lines, class_="answer"))
    section_ = element("section", *cards, class_="answers", aria_label="What was found")
    notes = [*sentences.notes(report)]
    if any(answer.mixes_kinds for answer in report.answers):
        notes.append(MIXED_KINDS)
    if sentences.published_wins(report):
        notes.append(sentences.published_wins(report))
    if notes:
        section_ = Markup(section_ + element("p", " ".join(notes), class_="quiet"))
    return section_


def _against(answer: Answer, found: NetworkResult) -> Iterator[str]:
    """The numbers behind an answer, each with its kind."""
    yield f"{sentences.evidence(answer, found)}, "
    yield milliseconds(found)


def _plot_card(reports: Sequence[Report]) -> Markup:
    views = [
        element("button", text, type="button", data_view=view, aria_pressed=pressed)
        for view, text, pressed in (("all", "All trials", "true"), ("front", "Around the front", "false"))
    ]
    against = element(
        "select",
        *(element("option", text, value=value) for value, text in _AXES.items()),
        id="axis",
    )
    legend = []
    for number, report in enumerate(reports):
        of = f" of {report.name}" if len(reports) > 1 else ""
        tone = ("one", "two")[number]
        legend += [
            element(
                "li",
                _mark("circle", f"candidate {tone}", r="3"),
                f"{len(report.candidates):,} candidates{of}",
            ),
            element("li", _mark("circle", f"front {tone}", r="4.5"), f"front{of} ({len(report.front)})"),
            element("li", _mark("path", f"reference {tone}", d="M11 0l6 6l-6 6l-6 -6z"), f"references{of}"),
        ]
    return card(
        "Accuracy against latency",
        element("div", *views, element("label", "against ", against), class_="controls"),
        element("div", id="pareto", class_="plot", tabindex="0"),
        element("ul", *legend, class_="legend"),
        element(
            "p",
            *(
                f"{report.name}: accuracy {_counts(report, 'accuracy_source')}; "
                f"latency {_counts(report, 'latency_source')}. "
                for report in reports
            ),
            *(_caution(report) for report in reports),
            *(_third(report) for report in reports),
            "Latency is for one image; MACs count convolutions and linear layers alone. "
            "Error bars: one standard deviation, on the front and references. "
            "Click a point, or walk along the front with the arrow keys.",
            class_="quiet",
        ),
    )


def _caution(report: Report) -> str:
    if not report.caution:
        return ""
    return (
        f"The front of {report.name} goes by accuracy less {report.caution:.2g} standard "
        f"deviation{'' if abs(report.caution - 1) < 0.005 else 's'}, as its "
        "search did, so the most accurate points need not be on it. "
    )


def _third(report: Report) -> str:
    if report.third is None:
        return ""
    return (
        f"The front of {report.name} is in three objectives, the third is {report.third.replace('_', ' ')}: "
        "choose what accuracy is drawn against. "
    )


def _mark(name: str, class_: str, **attributes: str) -> Markup:
    place = {"cx": "11", "cy": "6"} if name == "circle" else {}
    return element("svg", element(name, class_=class_, **place, **attributes), viewBox="0 0 22 12")


def _counts(report: Report, attribute: str) -> str:
    counts = report.source_counts(attribute)
    return ", ".join(f"{source} ({count:,})" for source, count in sorted(counts.items()))


def _selected_card() -> Markup:
    chooser = element("label", "Beside it: ", element("select", id="against"))
    return card(
        "Selected network",
        element("div", chooser, class_="controls"),
        element("div", id="pair", class_="pair"),
        element("p", id="pair-note", class_="quiet"),
        class_="card long",
        id="selected",
    )


def _front_card(report: Report, study: int = 0, title: str = "Front and references") -> Markup:
    rows = {network.trial: network for network in (*report.front, *report.references)}
    on_front = {network.trial for network in report.front}
    lines = []
    for network in sorted(rows.values(), key=lambda each: each.latency_ms):
        note = ""
        if network.kind == "reference":
            note = " reference, on the front" if network.trial in on_front else " reference"
        lines.append(
            (
                element("span", chooser(report, study, network), element("small", note)),
                element("span", f"{network.top1:.2f} ", source(network.accuracy_source)),
                element("span", f"{network.latency} ", source(network.latency_source)),
                f"{network.macs / 1e6:,.0f}",
                f"{network.parameters / 1e6:.2f}",
                str(network.resolution or "–"),
            )
        )
    heads = ("network", accuracy_label(report), "latency in ms", "M MACs", "M parameters", "px")
    return card(title, element("div", table(heads, lines), class_="tall"), class_="card long")


def _hypervolume_card() -> Markup:
    return card(
        "Hypervolume over trials",
        element("div", id="hypervolume", class_="plot"),
        element(
            "p",
            "Share of the box between 0 and 100 % accuracy and between 0 ms and the budget (or the slowest "
            "network) that the networks so far dominate. Where the line is flat, trials found nothing new.",
            class_="quiet",
        ),
    )


def _importance_card(report: Report, study: int = 0, title: str = "What matters") -> Markup:
    if not report.importances:
        return card(title, element("p", "Too few trials to tell parameter importances.", class_="quiet"))
    return card(
        title,
        element("div", data_importances=str(study)),
        element(
            "p",
            "Share of the variation between the trials that each parameter explains, by itself or with "
            "others (functional ANOVA): of accuracy thick, with its number, of latency thin. "
            "It is about the networks that the sampler chose to try.",
            class_="quiet",
        ),
    )


def _validation_card(report: Report, title: str = "Can the latencies be trusted?") -> Markup:
    latency = section(report.provenance, "latency")
    calibration, fresh = section(latency, "calibration"), section(latency, "card")
    columns = {
        "sums": section(calibration, "uncorrected"),
        "calibrated": section(calibration, "left_out"),
    }
    columns |= {f"fresh, {name}": section(fresh, name) for name in ("uncorrected", "calibrated")}
    columns = {name: column for name, column in columns.items() if column}
    rows = [
        (text, *(_error(field, column.get(field)) for column in columns.values()))
        for field, text in _ERROR_ROWS.items()
    ]
    children: list[str] = [element("p", _verdict(latency))]
    if columns:
        children.append(
            element(
                "p",
                "Latency of whole networks from the table against the same networks measured end to end: "
                "plain sums of layers; calibrated sums, each network left out of its own calibration; "
                "and networks measured afresh for validation, where this was done.",
                class_="quiet",
            )
        )
        children.append(table(("", *columns), rows))
    counts = section(latency, "counts")
    entries = {
        "layers of the table": ", ".join(f"{count:,} {name}" for name, count in counts.items() if count),
        "validated": str(fresh.get("created", ""))[:10],
        "drift since the table": _error("bias", fresh["drift"]) if "drift" in fresh else "",
        "predicted layers in them": _error("worst", fresh["predicted_layers"])
        if "predicted_layers" in fresh
        else "",
    }
    children.append(definitions(entries))
    return card(title, *children)


def _verdict(latency: Mapping[str, Any]) -> str:
    """How far off the latencies of whole networks are, in a sentence."""
    fresh = section(section(latency, "card"), "calibrated")
    left_out = section(section(latency, "calibration"), "left_out")
    for errors, where in ((fresh, "networks it never saw"), (left_out, "networks left out one by one")):
        if "mape" in errors:
            return (
                f"On {errors.get('networks', '')} {where}, the table is off by "
                f"{_error('mape', errors['mape'])} on average; "
                f"{_error('within_5_percent', errors.get('within_5_percent'))} of them are within 5 %."
            )
    return "Nobody knows: this table was never compared with networks measured end to end."


def _error(field: str, value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    if field in _PERCENTAGES:
        return f"{signed(100 * value, 1) if field == 'bias' else f'{100 * value:.1f}'} %"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _provenance_card(report: Report, title: str = "Where this comes from") -> Markup:
    provenance = dict(report.provenance)
    command = provenance.pop("command", None)
    # Said elsewhere, or no words: layers of the front, and how errors of predictions go together, a matrix.
    hidden = {"layers", JOINT}
    latency = {
        name: value
        for name, value in section(provenance, "latency").items()
        if name not in ("title", "counts", "calibration", "card", "warning")
    }
    entries = {name: value for name, value in provenance.items() if name not in hidden}
    if latency:
        entries["latency"] = latency
    found = {"study": report.name, "trials": f"{len(report.candidates):,} complete, {report.failed:,} failed"}
    found |= {f"{count:,} failed": reason for reason, count in report.failures}
    if report.foreign:
        found["left out"] = f"{report.foreign:,} trials that this program did not make"
    lines: list[str] = [definitions(found | dict(_flat(entries)))]
    if command:
        lines.append(element("p", element("code", str(command))))
    return card(title, *lines)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in mapping.items():
        title = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{title} ")
        elif value is not None and value != "":
            yield title, plain(value)


def _sources_card(reports: Sequence[Report]) -> Markup:
    names = {
        source
        for report in reports
        for attribute in ("accuracy_source", "latency_source")
        for source in report.source_counts(attribute)
    } | {layer.source for report in reports for layer in report.layers.values()}
    return card("Words", definitions({name: text for name, text in _SOURCES.items() if name in names}))
