"""The numbers that the page's script draws: by network in the order of the study, each layer once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nas.cost import layer_cost
from nas.page.report_data import Report
from nas.page.sentences import WORDS, accuracy_label
from nas.study.provenance import LayerLatency
from search_spaces.architecture import PAPER_COLUMNS, Architecture
from search_spaces.blocks import Head, Stem
from search_spaces.layers import LayerKey, layer_keys

if TYPE_CHECKING:
    import pandas

# More than is ever printed, few enough to keep pages small.
_DIGITS = 6
# Columns of the frame.
_NUMBERS = ("top1", "deviation", "latency_ms", "latency_error_ms", "macs", "parameters", "resolution")
_SOURCES = ("accuracy_source", "latency_source")
_PERCENTILES = ("p90_ms", "p99_ms")
_ENERGY = "energy_mj"
# Of more networks a page holds the block tables of the front, the references and the answers only.
_MOST_TABLES = 1_500


def payload(reports: Sequence[Report]) -> str:
    """Studies as JSON that may stand inside a script element."""
    data = json.dumps([_study(report) for report in reports], separators=(",", ":"), allow_nan=False)
    # Nothing in a JSON string may end the script element.
    return data.replace("<", "\\u003c")


def _study(report: Report) -> dict[str, object]:
    networks, frame = (
        report.networks,
        report.frame(columns=("id", *_NUMBERS, *_SOURCES, *_PERCENTILES, _ENERGY)),
    )
    sources = sorted({*frame.accuracy_source, *frame.latency_source})
    front = [report.positions[network.trial] for network in report.front]
    layers, tabled = _Layers(report.layers), _with_table(report)
    timed = frame.reset_index(drop=True)[list(_PERCENTILES)].dropna()
    percentiles = zip(_numbers(timed.p90_ms), _numbers(timed.p99_ms), strict=True)
    powered = frame.reset_index(drop=True)[_ENERGY].dropna()
    return {
        "name": report.name,
        "columns": PAPER_COLUMNS,
        "budget_ms": report.bound_ms,
        "third": report.third,
        "accuracy_label": accuracy_label(report),
        "sources": sources,
        "words": {name: WORDS[name] for name in sources if name in WORDS},
        "names": {position: n.name for position, n in enumerate(networks) if n.name},
        "references": [report.positions[network.trial] for network in report.references],
        "front": front,
        "best": _first_shown(report, front),
        "networks": {
            "id": frame.id.tolist(),
            "trial": frame.index.tolist(),
            **{name: _numbers(frame[name]) for name in _NUMBERS},
            **{name: frame[name].map(sources.index).tolist() for name in _SOURCES},
            "percentiles_ms": dict(zip(timed.index.tolist(), percentiles, strict=True)),
            "energies_mj": dict(zip(powered.index.tolist(), _numbers(powered), strict=True)),
            "layers": [
                layers.indices(n.architecture) if position in tabled and n.architecture else None
                for position, n in enumerate(networks)
            ],
        },
        "layers": layers.rows,
        "hypervolume": [(trial, round(share, 6)) for trial, share in report.hypervolume],
        "importances": [(i.parameter, round(i.accuracy, 4), round(i.latency, 4)) for i in report.importances],
    }


def _numbers(column: pandas.Series) -> list[float | int | None]:
    """A column of the frame, None where a number is missing."""
    found = column.astype(object).where(column.notna(), None)
    return [float(f"{each:.{_DIGITS}g}") if isinstance(each, float) else each for each in found]


def _with_table(report: Report) -> frozenset[int]:
    """Positions of the networks whose block tables the page holds: of a long study those that matter."""
    count = len(report.networks)
    if count <= _MOST_TABLES:
        return frozenset(range(count))
    answers = [each for answer in report.answers for each in (answer.as_fast, answer.as_accurate) if each]
    return frozenset(report.positions[each.trial] for each in (*report.front, *report.references, *answers))


def _first_shown(report: Report, front: Sequence[int]) -> int | None:
    """The network that the page opens with: the one at the budget, or at MobileNetV3-Large's latency."""
    answers = {answer.reference.name: answer.as_fast for answer in report.answers if answer.as_fast}
    # A budget in milliseconds is where the front ends.
    usual = "mobilenet_v3_large" if report.bound_ms is None else None
    for name in (report.provenance.budget_name, usual):
        if name is not None and (network := answers.get(name)):
            return report.positions[network.trial]
    found = [position for position in front if report.networks[position].kind != "reference"]
    return found[-1] if found else None


class _Layers:
    """The distinct layers of all networks: thousands of networks share few of them."""

    def __init__(self, latencies: Mapping[str, LayerLatency]) -> None:
        self.rows: list[dict[str, object]] = []
        self._latencies = latencies
        self._index: dict[object, int] = {}

    def indices(self, architecture: Architecture) -> list[int]:
        """Where each layer of a network is found in :attr:`rows`."""
        keys = iter(layer_keys(architecture))
        printed = architecture.paper_rows()
        sizes = (architecture.resolution, *architecture.sizes())
        # An identity is a row of the table, but no layer: it takes no time.
        identities = [False, *(block.is_identity for block in architecture.blocks), False]
        return [
            self._add(None if identity else next(keys), rows, size)
            for rows, identity, size in zip(printed, identities, sizes, strict=True)
        ]

    def _add(self, key: LayerKey | None, rows: tuple[tuple[str, ...], ...], size: int) -> int:
        identity = rows if key is None else key
        if identity not in self._index:
            self._index[identity] = len(self.rows)
            latency = LayerLatency("", 0.0, "measured") if key is None else self._latencies.get(str(key))
            macs = layer_cost(key).macs if key else 0
            self.rows.append(
                {"rows": rows, "size": size, "stride": _stride(key), "macs": macs}
                | ({"ms": round(latency.latency_ms, 5), "source": latency.source} if latency else {})
            )
        return self._index[identity]


def _stride(key: LayerKey | None) -> int:
    if key is None or isinstance(key.part, Head):
        return 1
    return 2 if isinstance(key.part, Stem) else key.part.stride
