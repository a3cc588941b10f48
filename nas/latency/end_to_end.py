"""Whole networks timed end to end, stated at the level of a latency table.

A machine is never as fast as it was when the table was made: a few networks of the table's calibration
run along, and what they say of the level is taken out. So a network's end-to-end time compares with what
the table says of it, and with the reference that ran in the same rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.devices.device import subject_name
from nas.latency.sessions import Bench, NetworkRecord, journal_name, link_keys, network_records, table_level
from nas.latency.table import LatencyTable
from nas.runtimes.subject import Subject
from nas.spread import evenly_spread
from search_spaces.architecture import Architecture
from search_spaces.tasks import Task, TaskNetwork

# Networks of the calibration that are measured again.
_LINKS = 24
_FEWEST_LINKS = 8


@dataclass(frozen=True, slots=True)
class Timed:
    """A network measured end to end, at the table's level.

    Attributes:
        record: the network, the table's statistic and percentiles.
        error_ms: standard error of its latency: what the loadings of its model disagree by, over the
            square root of their number.
        energy_mj: millijoules an inference; None where they cannot be read.
    """

    record: NetworkRecord
    error_ms: float
    energy_mj: float | None = None


@dataclass(frozen=True, slots=True)
class TimedNetworks:
    """Networks measured in the same rounds.

    Attributes:
        networks: in the order asked for, without those that the runtime refuses.
        refused: why it refuses these, by the network's id.
        drift: how much slower (positive) or faster the machine was than when the table was made; taken out.
        conditions: record of the measuring session.
        journal: the rounds as measured; to be deleted by whoever has saved what follows from them.
    """

    networks: tuple[Timed, ...]
    refused: Mapping[str, str]
    drift: float
    conditions: Mapping[str, object]
    journal: Path


def time_networks(
    architectures: Sequence[Architecture],
    table: LatencyTable,
    bench: Bench,
    known: Sequence[NetworkRecord] = (),
    task: Task | None = None,
) -> TimedNetworks:
    """Time networks end to end in interleaved rounds.

    Args:
        architectures: what to time.
        table: gives the level.
        bench: the device the table was measured on; its folder keeps the rounds while measuring, and an
            interrupted measurement goes on from there.
        known: networks measured for the table; some are measured again, to tell how fast the machine is now.
        task: whose head they have instead of their classifiers; None for these.

    Raises:
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    links = level_links(known)
    whole = [TaskNetwork(each, task) if task else each for each in architectures]
    subjects = timing_subjects(whole, table, known)
    journal = bench.folder / journal_name(subjects, "timing")
    measured = bench.target.measure(subjects, bench.rounds, journal, bench.progress, whole)
    now = {each.architecture: each for each in network_records(measured)}
    found = {each.architecture: each for each in network_records(measured, task)}
    ratios = [now[each.architecture].latency_ms / each.latency_ms for each in links]
    level = float(np.median(ratios)) if ratios else 1 / table_level(table, measured)
    errors = measured.standard_errors()
    reasons = {
        each.id: reason
        for each, subject in zip(architectures, whole, strict=True)
        if (reason := measured.refused.get(subject_name(subject))) is not None
    }
    return TimedNetworks(
        tuple(
            Timed(
                NetworkRecord(each, *(value / level for value in found[each].latencies_ms)),
                found[each].latency_ms * errors[subject] / level,
                measured.energies_mj.get(subject_name(subject)),
            )
            for each, subject in zip(architectures, whole, strict=True)
            if each.id not in reasons
        ),
        reasons,
        level - 1,
        measured.record,
        journal,
    )


def timing_subjects(
    networks: Sequence[Subject], table: LatencyTable, known: Sequence[NetworkRecord]
) -> list[Subject]:
    """The subjects of :func:`time_networks`: the networks, beside what tells the level and the drift."""
    # Networks tell the level: among so many of them lone layers find colder caches than among a table's
    # layers, and ran 15 % slower where networks ran 7 % slower. Layers run along to tell drift within rounds.
    again = [each.architecture for each in level_links(known)]
    return list(dict.fromkeys([*networks, *again, *link_keys(table)]))


def level_links(known: Sequence[NetworkRecord]) -> list[NetworkRecord]:
    """Some networks from the fastest to the slowest; none if there are too few to tell a level."""
    if len(known) < _FEWEST_LINKS:
        return []
    ordered = sorted(known, key=lambda each: (each.latency_ms, each.architecture.id))
    return evenly_spread(ordered, _LINKS)
