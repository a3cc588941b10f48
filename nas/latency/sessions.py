"""Measurements become a latency table: sessions tied together, gaps filled, sums of layers calibrated.

Layers and whole networks are measured together (see nas.latency.plan); the networks calibrate the
sums of layers.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.devices.device import Measurement, Target, deal_out, subject_name
from nas.latency.calibration import Calibration, network_features
from nas.latency.layer_predictor import LayerPredictor
from nas.latency.plan import Plan
from nas.latency.table import (
    MAX_MS,
    REFUSED_ENTRY,
    LatencyTable,
    TableError,
    TableHeader,
    entry,
    session_number,
)
from nas.measuring.progress import ProfileProgress
from nas.measuring.rounds import fastest_two_thirds
from nas.runtimes.runtime import ENGINES, Runtime
from nas.runtimes.subject import Subject
from nas.saving import finish, hold, write_atomically, write_together
from nas.spread import evenly_spread
from search_spaces.architecture import Architecture
from search_spaces.gate import Gate
from search_spaces.layers import LayerKey, LayerKeyError
from search_spaces.tasks import Task, TaskNetwork

# Layers measured again in every further session.
_LINKS = 60
_FEWEST_LINKS = 10
# Networks a calibration needs.
FEWEST_NETWORKS = 4
MAX_NETWORKS = 2_000
TABLE = "the latency table"
NETWORKS = "networks.json"
PENDING = "pending.json"
_TIMES = ("latency_ms", "p50_ms", "p90_ms", "p99_ms")


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network measured end to end.

    Attributes:
        architecture: the network.
        latency_ms: the table's statistic over the rounds.
        p50_ms: median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
    """

    architecture: Architecture
    latency_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @property
    def latencies_ms(self) -> tuple[float, float, float, float]:
        """Statistic, p50, p90, p99."""
        return (self.latency_ms, self.p50_ms, self.p90_ms, self.p99_ms)


@dataclass(frozen=True, slots=True)
class Bench:
    """A device, with all else that measuring on it takes.

    Attributes:
        target: the device.
        runtime: what runs the layers on it.
        hardware: name of the hardware config.
        folder: where rounds are kept; of a table, with its networks.
        rounds: steady rounds wanted.
        progress: callbacks for progress bars.
        say: told in a line what is measured, gone on with or waited for.
    """

    target: Target
    runtime: Runtime
    hardware: str
    folder: Path
    rounds: int
    progress: ProfileProgress = field(default_factory=ProfileProgress)
    say: Callable[[str], None] = lambda line: None


def profile(bench: Bench, plan: Plan, table: LatencyTable | None = None) -> LatencyTable:
    """Measure what the plan says, extend or make the table, calibrate it and write it.

    Args:
        bench: where and how to measure.
        plan: what to measure.
        table: the table to extend.

    Raises:
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
        HeldError: if another process is measuring for this table.
        SaveError: if the table cannot be written.
    """
    folder = bench.folder
    with hold(folder, TABLE):
        known = {each.architecture for each in load_networks(folder)} if table is not None else set()
        subjects: list[Subject] = [*plan.keys, *(each for each in plan.networks if each not in known)]
        for part in deal_out(subjects, bench.target.session_subjects):
            # Another day, another clock speed: layers measured before tie the sessions together.
            links = link_keys(table) if table is not None else []
            group = [*part, *(key for key in links if key not in part)]
            # What an interrupted session was measuring, so that the next command goes on with just that.
            write_atomically(folder / PENDING, _pending(group, bench.rounds))
            table = measure_session(bench, group, table)
        if table is None:
            raise TableError("there is nothing to measure and no table to extend")
        completed = complete(table, plan.predicted, load_networks(folder))
        if completed is not table:
            completed.save(folder)
        return completed


def measure_session(bench: Bench, group: Sequence[Subject], table: LatencyTable | None) -> LatencyTable:
    """Measure in one session and save it: table, calibration, networks and samples at once.

    Args:
        bench: where and how to measure; its folder is held by this process.
        group: layers and networks that take turns with each other.
        table: the table to extend.

    Raises:
        nas.measuring.rounds.JournalError: if rounds kept there belong to another device or runtime.
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    target, folder = bench.target, bench.folder
    journal = folder / journal_name(group)
    measured = target.measure(group, bench.rounds, journal, bench.progress)
    networks = load_networks(folder) if table is not None else []
    header = session_header(bench.hardware, bench.runtime, *target.identity())
    table, networks = add_session(table, networks, measured, header)
    number = len(table.header.sessions)
    write_together(
        folder,
        table.files() | {NETWORKS: networks_text(networks)},
        moved={journal.name: f"samples-{number}.jsonl"},
        removed=[PENDING],
    )
    return table


def journal_name(group: Sequence[Subject], what: str = "partial") -> str:
    """The file that keeps the rounds of a session until it is saved."""
    identity = hashlib.sha256("\n".join(subject_name(each) for each in group).encode()).hexdigest()[:10]
    return f"{what}-{identity}.jsonl"


def _pending(group: Sequence[Subject], rounds: int) -> str:
    networks = {subject_name(each): each.to_dict() for each in group if isinstance(each, Architecture)}
    content = {"subjects": [subject_name(each) for each in group], "networks": networks, "rounds": rounds}
    return json.dumps(content) + "\n"


def complete(
    table: LatencyTable, predicted: Sequence[LayerKey], networks: Sequence[NetworkRecord]
) -> LatencyTable:
    """A table with its gaps filled, calibrated on all networks that it can tell then.

    Args:
        table: with what was measured.
        predicted: layers to predict.
        networks: timed in the table's sessions.

    Raises:
        GapFillingError: see :func:`fill_gaps`.
    """
    filled = fill_gaps(table, predicted)
    if filled is table and table.header.calibration is not None:
        return table
    return calibrate(filled, networks)


def fill_gaps(table: LatencyTable, keys: Sequence[LayerKey]) -> LatencyTable:
    """Predict layers from the measured ones; predictions of other layers stay as they are.

    Raises:
        GapFillingError: if too few layers were measured.
    """
    measured = {key: each.latency_ms for key, each in table.entries.items() if each.source == "measured"}
    refused = set(table.refused(table.entries))
    wanted = [key for key in keys if key not in measured and key not in refused]
    if not wanted:
        return table
    # Where all that were tried of a kind were refused, so are the others.
    hopeless = {traits(key) for key in refused}.difference(map(traits, measured) if refused else ())
    like_them = {key: REFUSED_ENTRY for key in wanted if traits(key) in hopeless} if hopeless else {}
    predictor = LayerPredictor(measured)
    predicted = {
        key: entry(each.latency_ms, each.deviation_ms, 0, "predicted")
        for key, each in predictor.predict([key for key in wanted if key not in like_them]).items()
    }
    summary = {"measured": predictor.rows, "predicted": len(predicted), "mean_error": predictor.error}
    return table.with_entries(predicted | like_them, gap_filling=summary)


def traits(key: LayerKey) -> str:
    """A layer's name without its sizes: what all layers of a kind have in common.

    Args:
        key: the layer.
    """
    return re.sub(
        r"(?<=_)([ioxchnq]?)(\d+)", lambda found: found[1] + ("0" if found[2] == "0" else "N"), str(key)
    )


def calibrate(table: LatencyTable, networks: Sequence[NetworkRecord]) -> LatencyTable:
    """Fit the correction from summed layers on networks whose layers the table holds."""
    usable = [each for each in networks if table.can_tell(each.architecture)]
    if len(usable) < FEWEST_NETWORKS:
        return table
    return table.with_entries({}, calibration=fitted_calibration(table, usable))


def fitted_calibration(table: LatencyTable, networks: Sequence[NetworkRecord]) -> Calibration:
    """The correction from summed layers to these networks, all of whose layers the table holds."""
    features = features_of(table, [each.architecture for each in networks])
    measured_ms = np.array([each.latency_ms for each in networks])
    engine = ENGINES.get(table.header.runtime)
    return Calibration.fit(
        features, measured_ms, borders=engine is None or table.header.precision in engine.pays_at_borders
    )


def features_of(table: LatencyTable, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
    """Calibration features of networks: (networks, features)."""
    rows = []
    for architecture in architectures:
        layers = table.layer_latencies(architecture)
        rows.append(network_features([key for key, _ in layers], [entry.latency_ms for _, entry in layers]))
    return np.array(rows)


def load_networks(folder: Path) -> list[NetworkRecord]:
    """The networks measured end to end for a table, each once; none if there is no file.

    Raises:
        TableError: if the file is damaged.
    """
    finish(folder)
    path = folder / NETWORKS
    if not path.exists():
        return []
    gate = Gate(str(path), TableError, "move it away to go on without the networks")
    return read_network_records(gate, gate.text(path))


def read_network_records(gate: Gate, text: str) -> list[NetworkRecord]:
    """The inverse of :func:`networks_text`; what older versions wrote twice counts once.

    Raises:
        InputError: if it is damaged.
    """
    records: dict[Architecture, NetworkRecord] = {}
    for each in gate.sequence(gate.json(text), "networks", MAX_NETWORKS):
        row = gate.fields("a network", each, ("architecture", *_TIMES))
        times = [gate.number(name, row[name], 1e-9, MAX_MS) for name in _TIMES]
        with gate.reading():
            record = NetworkRecord(Architecture.from_dict(row["architecture"]), *times)
        records.setdefault(record.architecture, record)
    return list(records.values())


def network_records(measured: Measurement, task: Task | None = None) -> list[NetworkRecord]:
    """The networks among a measurement's subjects with their latencies and percentiles.

    Args:
        measured: a measurement.
        task: whole models for it instead, None for networks that classify.
    """
    reduced = fastest_two_thirds(measured.steadied())
    records = []
    for column, subject in enumerate(measured.subjects):
        network = _network(subject, task)
        if network is not None:
            # Percentiles are of what really happened, drift included.
            p50, p90, p99 = np.percentile(measured.samples_ms[:, column], [50, 90, 99])
            records.append(NetworkRecord(network, float(reduced[column]), float(p50), float(p90), float(p99)))
    return records


def _network(subject: Subject, task: Task | None) -> Architecture | None:
    if task is None:
        return subject if isinstance(subject, Architecture) else None
    return subject.architecture if isinstance(subject, TaskNetwork) and subject.task == task else None


def link_keys(table: LatencyTable) -> list[LayerKey]:
    """Measured layers to measure again with others, spread evenly from the fastest to the slowest."""
    measured = sorted(
        (key for key in table.entries if is_measured(table, key)),
        key=lambda key: (table.entries[key].latency_ms, str(key)),
    )
    return evenly_spread(measured, _LINKS)


def table_level(table: LatencyTable, measured: Measurement) -> float:
    """The factor that brings a session's latencies to the table's level.

    The median over the layers both hold; with too few of them, the ratio of the anchor networks.
    """
    reduced = fastest_two_thirds(measured.steadied())
    ratios = [
        table.entries[subject].latency_ms / reduced[column]
        for column, subject in enumerate(measured.subjects)
        if isinstance(subject, LayerKey) and is_measured(table, subject)
    ]
    if len(ratios) >= _FEWEST_LINKS:
        return float(np.median(ratios))
    if not table.header.sessions:
        return 1.0
    return session_number(table.header.sessions[0], "anchor_ms") / session_number(
        measured.record, "anchor_ms"
    )


def is_measured(table: LatencyTable, key: LayerKey) -> bool:
    """True if the table holds a measurement of a layer."""
    found = table.entries.get(key)
    return found is not None and found.source == "measured"


def session_header(
    hardware: str, runtime: Runtime, device: str, version: str, ended: datetime.datetime | None = None
) -> TableHeader:
    """The header of a table begun with a session: the hardware, runtime and date it holds for.

    Args:
        hardware: name of the hardware config.
        runtime: what ran the layers.
        device: processor or board.
        version: of the runtime there.
        ended: when; None for now.
    """
    created = (ended or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds")
    return TableHeader(hardware, device, runtime.name, version, runtime.precision, runtime.threads, created)


def add_session(
    table: LatencyTable | None,
    networks: Sequence[NetworkRecord],
    measured: Measurement,
    header: TableHeader,
) -> tuple[LatencyTable, list[NetworkRecord]]:
    """A table and its networks with what one more session measured; nothing is measured twice.

    Args:
        table: the table so far, None to begin one.
        networks: its networks so far.
        measured: the samples of the session.
        header: what the session holds for; of it a table that is extended takes the date alone.
    """
    samples = measured.steadied()
    level = 1.0 if table is None else table_level(table, measured)
    record = {**measured.record, "scaled_by": level}
    reduced = fastest_two_thirds(samples) * level
    quartiles = np.percentile(samples, [25, 75], axis=0) * level
    entries = {
        subject: entry(
            float(reduced[column]),
            float(quartiles[1, column] - quartiles[0, column]),
            len(samples),
            "measured",
        )
        for column, subject in enumerate(measured.subjects)
        if isinstance(subject, LayerKey) and not (table and is_measured(table, subject))
    }
    for key in map(_layer_named, measured.refused):
        if key is not None and not (table and is_measured(table, key)):
            entries[key] = REFUSED_ENTRY
    known = {each.architecture for each in networks}
    found = [
        replace(each, latency_ms=each.latency_ms * level)
        for each in network_records(measured)
        if each.architecture not in known
    ]
    if table is None:
        table = LatencyTable(replace(header, sessions=(record,)), entries)
    else:
        sessions = (*table.header.sessions, record)
        table = table.with_entries(entries, created=header.created, sessions=sessions)
    together = [*networks, *found]
    if found or table.header.calibration is None:
        table = calibrate(table, together)
    return table, together


def _layer_named(name: str) -> LayerKey | None:
    with suppress(LayerKeyError):
        return LayerKey.parse(name)
    return None


def networks_text(networks: Sequence[NetworkRecord]) -> str:
    """The text of :data:`NETWORKS`; the inverse of :func:`load_networks`."""
    rows: list[dict[str, object]] = [
        {
            "architecture": each.architecture.to_dict(),
            **dict(zip(_TIMES, each.latencies_ms, strict=True)),
        }
        for each in networks
    ]
    return json.dumps(rows, allow_nan=False) + "\n"
