"""Elements of the page: escaped text, cards, tables, and how a network is shown."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nas.page.network_result import NetworkResult
from nas.page.report import Report


class Markup(str):
    """Text that is HTML already; everything else is escaped."""

    __slots__ = ()


def element(name: str, *children: str, class_: str = "", **attributes: str) -> Markup:
    """An element; children and attributes that are not markup are escaped."""
    if class_:
        attributes["class"] = class_
    written = "".join(f' {key.replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    inside = "".join(child if isinstance(child, Markup) else html.escape(child) for child in children)
    return Markup(f"<{name}{written}>{inside}</{name}>")


def card(title: str, *children: str, **attributes: str) -> Markup:
    """A section of the page with its heading."""
    return element("section", element("h2", title), *children, **({"class_": "card"} | attributes))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> Markup:
    """A table that scrolls where it is too wide; columns from ``numbers_from`` on are set to the right."""

    def cells(name: str, row: Sequence[str]) -> Markup:
        return element(
            "tr", *(element(name, cell, class_="number" * (i >= numbers_from)) for i, cell in enumerate(row))
        )

    head = element("thead", cells("th", heads))
    table = element("table", head, element("tbody", *(cells("td", row) for row in rows)))
    return element("div", table, class_="scroll")


def facts(network: NetworkResult, before: str = "") -> Iterator[str]:
    """Accuracy and latency of a network with their sources, a comma or ``before`` between them."""
    yield before
    yield element("span", f"{network.accuracy} ", source(network.accuracy_source), class_="fact")
    yield before or ", "
    yield milliseconds(network)


def milliseconds(network: NetworkResult) -> Markup:
    """Latency of a network with its source."""
    return element("span", f"{network.latency} ", source(network.latency_source), class_="fact")


def chooser(report: Report, study: int, network: NetworkResult) -> Markup:
    """A button that selects a network."""
    place = {"data_study": str(study), "data_index": str(report.positions[network.trial])}
    return element("button", network.label, type="button", class_="link", **place)


def source(name: str) -> Markup:
    """The label beside a number: measured, predicted, estimated or published."""
    return element("span", name, class_="source")


def plain(value: object) -> str:
    """A value of the provenance in one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, str | int) else json.dumps(value)


def definitions(entries: Mapping[str, str]) -> Markup:
    """Names with their values; empty ones are left out."""
    pairs = [element("dt", name) + element("dd", value) for name, value in entries.items() if value]
    return element("dl", Markup("".join(pairs)))
