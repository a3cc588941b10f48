"""The errors of a latency table on fresh networks, measured end to end.

The answer is kept beside the table as its *validation card* (``card.json``, ``card.md``,
``validation.csv``, ``validation.png``); a search shows its headline and warns where there is none.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.cost import cost
from nas.latency.calibration import ERROR_ROWS, ErrorSummary, error_text
from nas.latency.end_to_end import time_networks
from nas.latency.sessions import Bench, NetworkRecord
from nas.latency.table import LatencyTable, TableError
from nas.measuring.rounds import MeasurementError
from nas.quantities import latency_text
from nas.saving import markdown_text, spreadsheet_cell, write_together
from search_spaces.architecture import Architecture
from search_spaces.errors import printable
from search_spaces.gate import Gate
from search_spaces.layers import layer_keys
from search_spaces.references import published_top1
from search_spaces.space import SearchSpace

CARD_SCHEMA = 2
# What a search is content with; anything worse is called poor.
_GOOD_WITHIN_10_PERCENT = 0.95
_GOOD_KENDALL_TAU = 0.90
# A machine that runs otherwise than when the table was made has other latencies, however alike their ranks.
_GOOD_DRIFT = 0.10
# Networks to judge a table by.
_FEWEST = 4


@dataclass(frozen=True, slots=True)
class Card:
    """A table's validation card.

    Attributes:
        title: device, runtime, precision, threads and date of the table.
        created: date of the validation, ISO 8601.
        drift: how much slower (positive) or faster the machine was than when the table was measured, judged
            by what was measured both times; errors are stated after taking it out.
        calibrated: error of the calibrated prediction.
        uncorrected: error of the plain sum of layers.
        predicted_layers: share of the networks' layers that are predicted, not measured.
        conditions: record of the measuring session.
        state: of the table that was validated, see :meth:`nas.latency.table.LatencyTable.state`.
    """

    title: str
    created: str
    drift: float
    calibrated: ErrorSummary
    uncorrected: ErrorSummary
    predicted_layers: float
    conditions: Mapping[str, object]
    state: Mapping[str, object]

    @property
    def is_good(self) -> bool:
        """True if a search need not warn."""
        return not self.faults

    @property
    def faults(self) -> list[str]:
        """Why a search should warn, in words."""
        calibrated = self.calibrated
        found = []
        if calibrated.within_10_percent < _GOOD_WITHIN_10_PERCENT:
            found.append(f"only {calibrated.within_10_percent:.0%} of the networks are within 10 %")
        if calibrated.kendall_tau < _GOOD_KENDALL_TAU:
            found.append(f"Kendall tau is only {calibrated.kendall_tau:.2f}")
        if abs(self.drift) > _GOOD_DRIFT:
            found.append(f"the machine ran {abs(self.drift):.0%} {'slower' if self.drift > 0 else 'faster'}")
        return found

    def to_dict(self) -> dict[str, object]:
        """Plain types."""
        return asdict(self)

    @property
    def headline(self) -> str:
        """One line for consoles and reports."""
        return f"validated on {self.calibrated.networks} fresh networks: {self.calibrated}"


@dataclass(frozen=True, slots=True)
class Validation:
    """A card with the networks behind it.

    Attributes:
        card: the summary.
        journal: the rounds as measured; :func:`save` removes it.
        names: names of references, ids of other networks.
        records: the networks as measured, at the table's level.
        predicted_ms: calibrated prediction for each.
        raw_ms: plain sum of layers for each.
    """

    card: Card
    journal: Path
    names: tuple[str, ...]
    records: tuple[NetworkRecord, ...]
    predicted_ms: NDArray[np.float64]
    raw_ms: NDArray[np.float64]


def fresh_networks(
    space: SearchSpace,
    count: int,
    seed: int,
    used: Sequence[Architecture],
    table: LatencyTable | None = None,
) -> list[Architecture]:
    """Random members that played no part in the calibration, and none with a layer known to be refused.

    Args:
        space: the space.
        count: networks wanted.
        seed: of the choice.
        used: networks of the calibration.
        table: knows which layers are refused.
    """
    generator = random.Random(f"validation {seed}")
    known = set(used)
    found: list[Architecture] = []
    for _ in range(count * 100):
        if len(found) == count:
            break
        member = space.sample(generator)
        if member not in known and not (table and table.refused(layer_keys(member))):
            known.add(member)
            found.append(member)
    return found


def validate(
    table: LatencyTable,
    networks: Mapping[str, Architecture],
    shown: Mapping[str, Architecture],
    bench: Bench,
    known: Sequence[NetworkRecord] = (),
) -> Validation:
    """Measure networks end to end and compare them with a table; without those that the runtime refuses.

    Args:
        table: must hold all their layers.
        networks: what the table is judged by: by name, at least four, none used in its calibration.
        shown: networks measured along with them, but not judged.
        bench: the device the table was measured on; its folder keeps the rounds while measuring.
        known: networks measured for the table; some are measured again, to tell how fast the machine is now.

    Raises:
        MissingKeysError: if the table lacks a layer.
        MeasurementError: if the machine did not hold still, or there are too few networks.
    """
    networks, shown = table.runnable(networks), table.runnable(shown)
    _check_enough(networks)
    wanted = [*networks.values(), *shown.values()]
    timed = time_networks(wanted, table, bench, known)
    networks, shown = (
        {name: each for name, each in group.items() if each.id not in timed.refused}
        for group in (networks, shown)
    )
    _check_enough(networks)
    names = (*networks, *shown)
    architectures = (*networks.values(), *shown.values())
    judged = slice(len(networks))
    raw_ms = np.array([table.raw_ms(each) for each in architectures])
    predicted_ms = np.array([table.latency(each).latency_ms for each in architectures])
    records = tuple(each.record for each in timed.networks)
    actual_ms = np.array([each.latency_ms for each in records])
    sources = [entry.source for each in networks.values() for _, entry in table.layer_latencies(each)]
    card = Card(
        title=table.header.title,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        drift=timed.drift,
        calibrated=ErrorSummary.of(predicted_ms[judged], actual_ms[judged]),
        uncorrected=ErrorSummary.of(raw_ms[judged], actual_ms[judged]),
        predicted_layers=sum(source != "measured" for source in sources) / len(sources),
        conditions=timed.conditions,
        state=table.state(),
    )
    return Validation(card, timed.journal, names, records, predicted_ms, raw_ms)


def _check_enough(networks: Mapping[str, Architecture]) -> None:
    if len(networks) < _FEWEST:
        raise MeasurementError(
            f"a validation needs at least {_FEWEST} networks that the runtime takes, not {len(networks)}"
        )


def save(validation: Validation, folder: Path) -> None:
    """Write the card, its networks and the plot of predicted against measured latency."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("name", "id", "resolution", "predicted_ms", "sum_ms", "measured_ms", "p50_ms", "p90_ms", "p99_ms")
    )
    for name, record, predicted_ms, raw_ms in zip(
        validation.names, validation.records, validation.predicted_ms, validation.raw_ms, strict=True
    ):
        numbers = (predicted_ms, raw_ms, *record.latencies_ms)
        architecture = record.architecture
        writer.writerow(
            (
                spreadsheet_cell(name),
                architecture.id,
                architecture.resolution,
                *(f"{number:.7g}" for number in numbers),
            )
        )
    content = {"schema_version": CARD_SCHEMA, **validation.card.to_dict()}
    write_together(
        folder,
        {
            "validation.csv": text.getvalue(),
            "validation.png": _plot(validation),
            "card.md": _markdown(validation),
            "card.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
        },
        removed=[validation.journal.name],
    )


def load_card(folder: Path) -> Card | None:
    """The validation card beside a table, None if there is none.

    Raises:
        TableError: if the card is damaged.
    """
    path = folder / "card.json"
    if not path.exists():
        return None
    gate = Gate(str(path), TableError, "validate again with: python -m nas.validate")
    content = gate.mapping(gate.json(gate.text(path)))
    if content.pop("schema_version", None) != CARD_SCHEMA:
        gate.fail("is damaged, or of another version of this program")
    return gate.record("the card", Card, content)


def card_problem(card: Card | None, table: LatencyTable) -> str:
    """Why a card does not vouch for a table, in words; empty where it does."""
    if card is None:
        return "has no validation card"
    if changed := table.changed_since(card.state):
        return f"has a validation card of {card.created[:10]} that is stale: {changed} since"
    if card.faults:
        return f"has a poor validation card ({'; '.join(card.faults)})"
    return ""


def family_rows(validation: Validation) -> list[tuple[str, str, str, str, str, str, str]]:
    """The MobileNets on this device, by name: see :data:`FAMILY_COLUMNS`."""
    rows = []
    for name, record, predicted_ms in zip(
        validation.names, validation.records, validation.predicted_ms, strict=True
    ):
        if name.startswith("mobilenet_"):
            counted = cost(record.architecture)
            published = published_top1(name, record.architecture.resolution)
            rows.append(
                (
                    name,
                    "–" if published is None else f"{published:.1f}",
                    f"{counted.parameters / 1e6:.2f}",
                    f"{counted.macs / 1e6:.0f}",
                    latency_text(record.p50_ms, unit=""),
                    latency_text(record.p90_ms, unit=""),
                    latency_text(predicted_ms, unit=""),
                )
            )
    return sorted(rows)


FAMILY_COLUMNS = ("network", "top-1 % (published)", "params M", "MACs M", "p50 ms", "p90 ms", "predicted ms")


def _markdown(validation: Validation) -> str:
    card = validation.card
    lines = [
        f"# Validation of the latency table: {markdown_text(card.title)}",
        "",
        f"{card.calibrated.networks} networks that played no part in the calibration, measured end to end on "
        f"{card.created[:10]}, {card.conditions['rounds']} interleaved rounds. "
        f"{card.predicted_layers:.0%} of their layers are predicted, the others measured. Since the table "
        f"was measured the machine drifted by {card.drift:+.1%}, which is taken out.",
        "",
        "| | calibrated | plain sum of layers |",
        "|---|---|---|",
    ]
    for name, label in ERROR_ROWS.items():
        errors = (error_text(name, getattr(each, name)) for each in (card.calibrated, card.uncorrected))
        lines.append(f"| {label} | {' | '.join(errors)} |")
    rows = family_rows(validation)
    if rows:
        lines += ["", f"| {' | '.join(FAMILY_COLUMNS)} |", "|---" * len(FAMILY_COLUMNS) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _plot(validation: Validation) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    actual = np.array([record.latency_ms for record in validation.records])
    matplotlib.rcParams["text.parse_math"] = False  # a board's name is shown as it is
    figure, axes = pyplot.subplots(figsize=(5.5, 5.5))
    limits = np.array([actual.min() * 0.9, actual.max() * 1.1])
    axes.fill_between(limits, limits * 0.95, limits * 1.05, color="0.85", label="± 5 %", linewidth=0)
    axes.plot(limits, limits, color="0.4", linewidth=0.8)
    axes.scatter(actual, validation.raw_ms, s=12, color="#d55e00", marker="x", label="sum of layers")
    axes.scatter(actual, validation.predicted_ms, s=12, color="#0072b2", label="calibrated")
    axes.set(xscale="log", yscale="log", xlim=limits, xlabel="measured ms", ylabel="predicted ms")
    axes.set_title(printable(validation.card.title), fontsize=8)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    return picture.getvalue()
