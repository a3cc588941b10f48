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

from scipy.stats import kendalltau

from nas.cost import layer_cost
from nas.layers import LayerKey, layer_keys
from nas.reporting.data import (
    MIXED_KINDS,
    Answer,
    LayerLatency,
    NetworkResult,
    Report,
    equal_budgets,
    section,
    signed,
)
from search_spaces.block import PAPER_COLUMNS, Architecture

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
_PERCENTAGES = ("mape", "bias", "within_5_percent", "within_10_percent", "worst")
_CONDITIONS = ("device", "runtime", "runtime_version", "precision", "threads")
_SOURCES = {
    "measured": "Latency: timed on this hardware, layer by layer or end to end. "
    "Accuracy: trained and validated here.",
    "predicted": "Latency: at least one layer was not timed, but predicted from timed layers of the same "
    "hardware. Accuracy: a model fitted to trained networks says so; nothing was trained here.",
    "estimated": "Latency: from a shipped preset, not from this hardware.",
    "published": "Accuracy: as its authors report it, with their training.",
}


class _Markup(str):
    """Text that is HTML already; everything else is escaped."""

    __slots__ = ()


def report_page(report: Report) -> str:
    """The page of one study."""
    body = [
        _element("header", _element("h1", report.name), _element("p", report.title, class_="quiet")),
        _warning(report),
        _answers(report),
        _plot_card([report]),
        _selected_card(),
        _front_card(report),
        _element("div", _hypervolume_card(), _importance_card(report), class_="columns"),
        _element("div", _validation_card(report), _provenance_card(report), class_="columns"),
        _sources_card([report]),
    ]
    return _page(f"{report.name}: report", body, [report])


def comparison_page(first: Report, second: Report) -> str:
    """The page that shows two studies beside each other."""
    reports = [first, second]
    body = [
        _element(
            "header",
            _element("h1", f"{first.name} and {second.name}"),
            *(
                _element("p", f"{each.name}: {each.title or 'device unknown'}", class_="quiet")
                for each in reports
            ),
        ),
        *(_warning(each) for each in reports),
        _comparison_card(first, second),
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
    body += [_element("div", *pair, class_="columns") for pair in pairs]
    body.append(_sources_card(reports))
    return _page(f"{first.name} and {second.name}: comparison", body, reports)


# -- the frame -------------------------------------------------------------------------------------


def _page(title: str, body: Iterable[str], reports: Sequence[Report]) -> str:
    assets = resources.files("nas.reporting") / "assets"
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


def _element(name: str, *children: str, class_: str = "", **attributes: str) -> _Markup:
    if class_:
        attributes["class"] = class_
    written = "".join(f' {key.replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    inside = "".join(child if isinstance(child, _Markup) else html.escape(child) for child in children)
    return _Markup(f"<{name}{written}>{inside}</{name}>")


def _card(title: str, *children: str, **attributes: str) -> _Markup:
    return _element("section", _element("h2", title), *children, **({"class_": "card"} | attributes))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> _Markup:
    def cells(name: str, row: Sequence[str]) -> _Markup:
        return _element(
            "tr", *(_element(name, cell, class_="number" * (i >= numbers_from)) for i, cell in enumerate(row))
        )

    head = _element("thead", cells("th", heads))
    table = _element("table", head, _element("tbody", *(cells("td", row) for row in rows)))
    return _element("div", table, class_="scroll")


# -- the data of the plots -------------------------------------------------------------------------


def _payload(report: Report) -> dict[str, Any]:
    networks = report.networks
    sources = sorted({source for n in networks for source in (n.accuracy_source, n.latency_source)})
    front = [report.positions[network.trial] for network in report.front]
    found = [position for position in front if networks[position].kind != "reference"]
    layers = _Layers(report.layers)
    return {
        "name": report.name,
        "columns": PAPER_COLUMNS,
        "budget_ms": report.budget_ms,
        "sources": sources,
        "names": {position: n.name for position, n in enumerate(networks) if n.name},
        "references": [report.positions[network.trial] for network in report.references],
        "front": front,
        "best": found[-1] if found else None,
        "networks": {
            "id": [n.id for n in networks],
            "trial": [n.trial for n in networks],
            "top1": [round(n.top1, 3) for n in networks],
            "deviation": [None if n.deviation is None else round(n.deviation, 3) for n in networks],
            "latency_ms": [round(n.latency_ms, 4) for n in networks],
            "accuracy_source": [sources.index(n.accuracy_source) for n in networks],
            "latency_source": [sources.index(n.latency_source) for n in networks],
            "macs": [n.macs for n in networks],
            "parameters": [n.parameters for n in networks],
            "resolution": [n.resolution for n in networks],
            "layers": [layers.indices(n.architecture) if n.architecture else None for n in networks],
        },
        "layers": layers.rows,
        "hypervolume": [(trial, round(share, 6)) for trial, share in report.hypervolume],
        "importances": [(i.parameter, round(i.accuracy, 4), round(i.latency, 4)) for i in report.importances],
    }


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


def _warning(report: Report) -> _Markup:
    text = section(report.provenance, "latency").get("warning")
    return _element("p", str(text), class_="warning") if text else _Markup()


def _answers(report: Report) -> _Markup:
    cards = []
    for answer in report.answers:
        reference = answer.reference
        lines = [_element("h3", reference.label), _element("small", *_facts(reference))]
        for what, result, found, better in (
            ("latency", answer.gain, answer.as_fast, (answer.points or 0) > 0),
            ("accuracy", answer.saving, answer.as_accurate, (answer.latency_change or 0) < 0),
        ):
            line = [f"At {reference.label}'s {what}: ", _element("b", result, class_="better" * better)]
            if found is not None:
                line.append(_element("small", _chooser(report, 0, found), ": ", *_against(answer, found)))
            lines.append(_element("p", *line, data_answer=what))
        cards.append(_element("article", *lines, class_="answer"))
    section_ = _element("section", *cards, class_="answers", aria_label="What was found")
    if any(answer.mixes_kinds for answer in report.answers):
        section_ = _Markup(section_ + _element("p", MIXED_KINDS, class_="quiet"))
    return section_


def _against(answer: Answer, found: NetworkResult) -> Iterator[str]:
    """The numbers behind an answer, each with its kind."""
    yield _element("span", answer.evidence(found), class_="evidence")
    yield "; "
    yield _milliseconds(found)
    yield " against "
    yield _milliseconds(answer.reference)


def _facts(network: NetworkResult) -> Iterator[_Markup]:
    yield _element("span", f"{network.accuracy} ", _source(network.accuracy_source), class_="fact")
    yield _Markup(", ")
    yield _milliseconds(network)


def _milliseconds(network: NetworkResult) -> _Markup:
    return _element("span", f"{network.latency_ms:.2f} ms ", _source(network.latency_source), class_="fact")


def _chooser(report: Report, study: int, network: NetworkResult) -> _Markup:
    """A button that selects a network."""
    place = {"data_study": str(study), "data_index": str(report.positions[network.trial])}
    return _element("button", network.label, type="button", class_="link", **place)


def _source(source: str) -> _Markup:
    return _element("span", source, class_="source")


def _plot_card(reports: Sequence[Report]) -> _Markup:
    views = [
        _element("button", text, type="button", data_view=view, aria_pressed=pressed)
        for view, text, pressed in (("all", "All trials", "true"), ("front", "Around the front", "false"))
    ]
    legend = []
    for number, report in enumerate(reports):
        of = f" of {report.name}" if len(reports) > 1 else ""
        tone = ("one", "two")[number]
        legend += [
            _element(
                "li",
                _mark("circle", f"candidate {tone}", r="3"),
                f"{len(report.candidates):,} candidates{of}",
            ),
            _element("li", _mark("circle", f"front {tone}", r="4.5"), f"front{of} ({len(report.front)})"),
            _element("li", _mark("path", f"reference {tone}", d="M11 0l6 6l-6 6l-6 -6z"), f"references{of}"),
        ]
    return _card(
        "Accuracy against latency",
        _element("div", *views, class_="controls"),
        _element("div", id="pareto", class_="plot", tabindex="0"),
        _element("ul", *legend, class_="legend"),
        _element(
            "p",
            *(
                f"{report.name}: accuracy {_counts(report, 'accuracy_source')}; "
                f"latency {_counts(report, 'latency_source')}. "
                for report in reports
            ),
            *(_caution(report) for report in reports),
            "Error bars: one standard deviation, on the front and references. "
            "Click a point, or walk along the front with the arrow keys.",
            class_="quiet",
        ),
    )


def _caution(report: Report) -> str:
    if not report.caution:
        return ""
    return (
        f"The front of {report.name} goes by accuracy less {report.caution:.2g} standard deviations, as its "
        "search did, so the most accurate points need not be on it. "
    )


def _mark(name: str, class_: str, **attributes: str) -> _Markup:
    place = {"cx": "11", "cy": "6"} if name == "circle" else {}
    return _element("svg", _element(name, class_=class_, **place, **attributes), viewBox="0 0 22 12")


def _counts(report: Report, attribute: str) -> str:
    counts = report.source_counts(attribute)
    return ", ".join(f"{source} ({count:,})" for source, count in sorted(counts.items()))


def _selected_card() -> _Markup:
    chooser = _element("label", "Beside it: ", _element("select", id="against"))
    return _card(
        "Selected network",
        _element("div", chooser, class_="controls"),
        _element("div", id="pair", class_="pair"),
        _element("p", id="pair-note", class_="quiet"),
        class_="card long",
        id="selected",
    )


def _front_card(report: Report, study: int = 0, title: str = "Front and references") -> _Markup:
    rows = {network.trial: network for network in (*report.front, *report.references)}
    on_front = {network.trial for network in report.front}
    lines = []
    for network in sorted(rows.values(), key=lambda each: each.latency_ms):
        note = ""
        if network.kind == "reference":
            note = " reference, on the front" if network.trial in on_front else " reference"
        lines.append(
            (
                _element("span", _chooser(report, study, network), _element("small", note)),
                _element("span", f"{network.top1:.2f} ", _source(network.accuracy_source)),
                _element("span", f"{network.latency_ms:.2f} ", _source(network.latency_source)),
                f"{network.macs / 1e6:,.0f}",
                f"{network.parameters / 1e6:.2f}",
                str(network.resolution or "–"),
            )
        )
    heads = ("network", "top-1 in %", "latency in ms", "M MACs", "M parameters", "px")
    return _card(title, _element("div", _table(heads, lines), class_="tall"), class_="card long")


def _hypervolume_card() -> _Markup:
    return _card(
        "Hypervolume over trials",
        _element("div", id="hypervolume", class_="plot"),
        _element(
            "p",
            "Share of the box between 0 and 100 % accuracy and between 0 ms and the budget (or the slowest "
            "network) that the networks so far dominate. Where the line is flat, trials found nothing new.",
            class_="quiet",
        ),
    )


def _importance_card(report: Report, study: int = 0, title: str = "What matters") -> _Markup:
    if not report.importances:
        return _card(title, _element("p", "Too few trials to tell parameter importances.", class_="quiet"))
    return _card(
        title,
        _element("div", data_importances=str(study)),
        _element(
            "p",
            "Share of the variation between the trials that each parameter explains, by itself or with "
            "others (functional ANOVA): of accuracy thick, with its number, of latency thin. "
            "It is about the networks that the sampler chose to try.",
            class_="quiet",
        ),
    )


def _validation_card(report: Report, title: str = "Can the latencies be trusted?") -> _Markup:
    latency = section(report.provenance, "latency")
    calibration, card = section(latency, "calibration"), section(latency, "card")
    columns = {
        "sums": section(calibration, "uncorrected"),
        "calibrated": section(calibration, "left_out"),
    }
    columns |= {f"fresh, {name}": section(card, name) for name in ("uncorrected", "calibrated")}
    columns = {name: column for name, column in columns.items() if column}
    rows = [
        (text, *(_error(field, column.get(field)) for column in columns.values()))
        for field, text in _ERROR_ROWS.items()
    ]
    children: list[str] = []
    if columns:
        children.append(
            _element(
                "p",
                "Latency of whole networks from the table against the same networks measured end to end: "
                "plain sums of layers; calibrated sums, each network left out of its own calibration; "
                "and networks measured afresh for validation, where this was done.",
                class_="quiet",
            )
        )
        children.append(_table(("", *columns), rows))
    else:
        children.append(
            _element(
                "p", "The study keeps no comparison of this table with measured networks.", class_="quiet"
            )
        )
    counts = section(latency, "counts")
    entries = {
        "layers of the table": ", ".join(f"{count:,} {source}" for source, count in counts.items() if count),
        "validated": str(card.get("created", ""))[:10],
        "drift since the table": _error("bias", card["drift"]) if "drift" in card else "",
        "predicted layers in them": _error("worst", card["predicted_layers"])
        if "predicted_layers" in card
        else "",
    }
    children.append(_definitions(entries))
    return _card(title, *children)


def _error(field: str, value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    if field in _PERCENTAGES:
        return f"{signed(100 * value, 1) if field == 'bias' else f'{100 * value:.1f}'} %"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _provenance_card(report: Report, title: str = "Where this comes from") -> _Markup:
    provenance = dict(report.provenance)
    command = provenance.pop("command", None)
    hidden = {"layers"}
    latency = {
        name: value
        for name, value in section(provenance, "latency").items()
        if name not in ("title", "counts", "calibration", "card", "warning")
    }
    entries = {name: value for name, value in provenance.items() if name not in hidden}
    if latency:
        entries["latency"] = latency
    found = {"study": report.name, "trials": f"{len(report.candidates):,} complete, {report.failed:,} failed"}
    lines: list[str] = [_definitions(found | dict(_flat(entries)))]
    if command:
        lines.append(_element("p", _element("code", str(command))))
    return _card(title, *lines)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in mapping.items():
        title = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{title} ")
        elif value is not None and value != "":
            yield title, _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, str | int) else json.dumps(value)


def _definitions(entries: Mapping[str, str]) -> _Markup:
    pairs = [_element("dt", name) + _element("dd", value) for name, value in entries.items() if value]
    return _element("dl", _Markup("".join(pairs)))


def _sources_card(reports: Sequence[Report]) -> _Markup:
    names = {
        source
        for report in reports
        for attribute in ("accuracy_source", "latency_source")
        for source in report.source_counts(attribute)
    } | {layer.source for report in reports for layer in report.layers.values()}
    return _card("Words", _definitions({name: text for name, text in _SOURCES.items() if name in names}))


# -- two studies -----------------------------------------------------------------------------------


def _comparison_card(first: Report, second: Report) -> _Markup:
    children: list[str] = []
    if _conditions(first) != _conditions(second):
        children.append(
            _element(
                "p",
                "Their latencies hold for different devices or settings: compare the answers, "
                "not milliseconds with milliseconds.",
                class_="warning",
            )
        )
    answers = [{answer.reference.label: answer for answer in report.answers} for report in (first, second)]
    rows = []
    for name in answers[0] | answers[1]:
        pair = [answer.get(name) for answer in answers]
        rows.append((f"at {name}'s latency", *(answer.gain if answer else "–" for answer in pair)))
        rows.append((f"at {name}'s accuracy", *(answer.saving if answer else "–" for answer in pair)))
    children.append(_table(("", first.name, second.name), rows))
    children.append(_element("h3", "What differs"))
    children.append(_table(("", first.name, second.name), _differences(first, second), numbers_from=9))
    rows = [
        (
            f"within {row.budget_ms:g} ms",
            *(
                _element("span", _chooser(report, number, best), " ", *_facts(best)) if best else "–"
                for number, (report, best) in enumerate(zip((first, second), row.best, strict=True))
            ),
            "–" if row.points is None else f"{signed(row.points, 1)} points",
        )
        for row in equal_budgets(first, second)
    ]
    if rows:
        children.append(_element("h3", "The best within equal latency budgets"))
        children.append(_table(("", first.name, second.name, "second over first"), rows))
    rows = []
    mine, other = ({network.id: network for network in report.networks} for report in (first, second))
    shared = [(mine[id_], other[id_]) for id_ in mine if id_ in other]
    for one, two in shared:
        if one.kind == "reference":
            rows.append(
                (
                    one.label,
                    *(_milliseconds(n) for n in (one, two)),
                    f"{two.latency_ms / one.latency_ms:.2f}×",
                )
            )
    if rows:
        children.append(_table(("latency of the same network", first.name, second.name, "ratio"), rows))
    if len(shared) >= 5:
        tau = kendalltau(
            [one.latency_ms for one, _ in shared], [two.latency_ms for _, two in shared]
        ).statistic
        children.append(
            _element(
                "p",
                f"{len(shared):,} networks are in both studies; their latencies agree in rank to "
                f"Kendall tau {tau:.3f}.",
                class_="quiet",
            )
        )
    return _card("Side by side", *children)


def _differences(first: Report, second: Report) -> Iterator[tuple[str, str, str]]:
    """Everything in which two studies differ, in words."""
    one, other = _circumstances(first), _circumstances(second)
    for name in one:
        if one[name] != other[name]:
            yield name, _plain(one[name] or "–"), _plain(other[name] or "–")


def _circumstances(report: Report) -> dict[str, Any]:
    provenance = report.provenance
    latency = section(provenance, "latency")
    return {
        "hardware": provenance.get("hardware"),
        **{name.replace("_", " "): latency.get(name) for name in _CONDITIONS},
        "accuracy from": section(provenance, "accuracy").get("name"),
        "dataset": provenance.get("dataset"),
        "sampler": provenance.get("sampler"),
        "seed": provenance.get("seed"),
        "budget in ms": report.budget_ms,
        "candidates": f"{len(report.candidates):,}",
        "on the front": len(report.front),
    }


def _conditions(report: Report) -> tuple[object, ...]:
    latency = section(report.provenance, "latency")
    return (report.provenance.get("hardware"), *(latency.get(name) for name in _CONDITIONS))
