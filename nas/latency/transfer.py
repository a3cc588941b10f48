"""A latency table on a machine that did not measure it: it came with a study that several machines share.

Such a table is left as it is. The machine is compared with the one that made it, on layers and networks of
the table; what it measures besides is stated at the table's level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.latency.end_to_end import level_links
from nas.latency.sessions import (
    Bench,
    NetworkRecord,
    add_session,
    is_measured,
    journal_name,
    link_keys,
    network_records,
)
from nas.latency.table import Entry, LatencyTable, entry, session_number
from nas.measuring.rounds import fastest_two_thirds
from nas.runtimes.subject import Subject
from search_spaces.layers import LayerKey

_FEWEST_LINKS = 10


@dataclass(frozen=True, slots=True)
class Agreement:
    """The comparison of a machine with the one that a table was measured on.

    Attributes:
        slower: how much slower (positive) or faster it is, as a fraction; taken out of everything else.
        error: mean absolute difference once that is taken out, as a fraction.
        networks: networks compared; with fewer than eight in the table the layers are compared.
        layers: layers compared.
    """

    slower: float
    error: float
    networks: int
    layers: int

    def __str__(self) -> str:
        what = f"{self.networks} networks" if self.networks else f"{self.layers} layers"
        return (
            f"{what} of the study's latency table timed here: {self.error:.1%} off on average, after taking "
            f"out that this machine is {abs(self.slower):.1%} {'slower' if self.slower > 0 else 'faster'}"
        )


def is_from(table: LatencyTable, local: LatencyTable | None) -> bool:
    """True if a table was measured where the local one was: they begin with the same session."""
    mine, its = (() if each is None else each.header.sessions[:1] for each in (local, table))
    return not its or (bool(mine) and _plain(mine[0]) == _plain(its[0]))


def _plain(session: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(
        f"{name}={session.get(name)}" for name in ("anchor_ms", "anchor_spread", "rounds", "subjects")
    )


def agreement(
    table: LatencyTable,
    networks: Sequence[NetworkRecord],
    bench: Bench,
) -> Agreement:
    """Time layers and networks of a table on another machine.

    Args:
        table: measured elsewhere.
        networks: measured for it, end to end.
        bench: the machine here; its folder keeps the rounds while measuring.

    Raises:
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    known = {each.architecture: each.latency_ms for each in level_links(networks)}
    subjects: list[Subject] = [*known, *link_keys(table)]
    journal = bench.folder / journal_name(subjects, "agreement")
    measured = bench.target.measure(subjects, bench.rounds, journal, bench.progress)
    whole = [each.latency_ms / known[each.architecture] for each in network_records(measured)]
    reduced = fastest_two_thirds(measured.steadied())
    layers = [
        float(reduced[column]) / table.entries[subject].latency_ms
        for column, subject in enumerate(measured.subjects)
        if isinstance(subject, LayerKey)
    ]
    ratios = np.array(whole or layers)
    level = float(np.median(ratios))
    journal.unlink(missing_ok=True)
    return Agreement(level - 1, float(np.abs(ratios / level - 1).mean()), len(whole), len(layers))


def measured_elsewhere(table: LatencyTable, keys: Sequence[LayerKey], bench: Bench) -> LatencyTable:
    """A table with these layers measured here, at its own level; written nowhere.

    Args:
        table: of another machine.
        keys: the layers.
        bench: this machine; its folder is for the rounds meanwhile.

    Raises:
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    links = [key for key in link_keys(table) if key not in keys]
    group: list[Subject] = [*keys, *links]
    journal = bench.folder / journal_name(group, "elsewhere")
    measured = bench.target.measure(group, bench.rounds, journal, bench.progress)
    extended, _ = add_session(table, [], measured, table.header)
    journal.unlink(missing_ok=True)
    return extended


def at_level_of(table: LatencyTable, local: LatencyTable) -> dict[LayerKey, Entry]:
    """The entries of a local table at the level of another one.

    The levels are told by the layers both measured; with too few of them, by the anchor networks.
    """
    common = [key for key in local.entries if is_measured(local, key) and is_measured(table, key)]
    ratios = [table.entries[key].latency_ms / local.entries[key].latency_ms for key in common]
    if len(ratios) < _FEWEST_LINKS:
        ratios = [
            session_number(table.header.sessions[0], "anchor_ms")
            / session_number(local.header.sessions[0], "anchor_ms")
        ]
    level = float(np.median(ratios))
    return {
        key: entry(each.latency_ms * level, each.spread_ms * level, each.samples, each.source)
        for key, each in local.entries.items()
    }
