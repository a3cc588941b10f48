"""Recovery after a process died: interrupted sessions are gone on with, half-saved tables completed.

    table = recovered(folder, "host", runtime, networks=lambda: calibration_networks(space, 80, 0))
    table = resumed(Bench(target, runtime, "host", folder, rounds=40), table, networks)

Since tables are saved in one step there is little left to repair: a session that was being measured, which
``pending.json`` describes. Older versions wrote file after file; what such a table lacks is taken from the
samples, which hold everything that was measured.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from nas.devices.device import ANCHOR, REFUSED, Measurement, measurement, subject_name
from nas.latency.sessions import (
    FEWEST_NETWORKS,
    NETWORKS,
    PENDING,
    TABLE,
    Bench,
    NetworkRecord,
    add_session,
    calibrate,
    is_measured,
    journal_name,
    load_networks,
    measure_session,
    network_records,
    networks_text,
    session_header,
)
from nas.latency.table import LatencyTable, TableError, TableHeader, read_header, session_number
from nas.measuring.rounds import JournalError, Round, read_round, steady
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import Subject
from nas.saving import finish, hold, saving, write_together
from nas.shell import measuring_line
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import MEGABYTE, Gate
from search_spaces.layers import LayerKey

# Makes the networks that a table may have been calibrated on: samples name them by id.
Networks = Callable[[], Iterable[Architecture]]

_MOST_BYTES = 256 * MEGABYTE
_MOST_SUBJECTS = 20_000


@dataclass(frozen=True, slots=True)
class _Samples:
    """Rounds of one session, as they lie on the disk.

    Attributes:
        path: the file.
        names: of the subjects.
        identity: device, runtime and version, as far as the file says.
        rounds: all of them.
        refused: why further subjects were refused, by name.
    """

    path: Path
    names: tuple[str, ...]
    identity: Mapping[str, object]
    rounds: tuple[Round, ...]
    refused: Mapping[str, object] = field(default_factory=dict)


def recovered(
    folder: Path,
    hardware: str,
    runtime: Runtime,
    networks: Networks = tuple,
    say: Callable[[str], None] = lambda line: None,
) -> LatencyTable | None:
    """The table in a folder as it should be, None if there is none; what it lacks is written.

    Args:
        folder: where table, networks and samples are kept.
        hardware: name of the hardware config.
        runtime: what ran the layers.
        networks: networks that may have been measured for it.
        say: told what was repaired.

    Raises:
        TableError: if the table is damaged and its samples do not bring it back.
    """
    finish(folder)
    samples = _sample_paths(folder)
    if not (folder / "table.json").exists() and not samples:
        return None
    try:
        table = LatencyTable.load(folder)
    except TableError as error:
        with hold(folder, TABLE):
            rebuilt = _rebuilt(folder, hardware, runtime, networks)
        if rebuilt is None:
            anew = measuring_line("profile", hardware, runtime.name, runtime.precision, runtime.threads)
            raise TableError(f"{error}; move the folder away and measure anew: {anew}") from None
        say(f"the latency table in {folder} was half-saved: made again from its samples")
        return rebuilt
    if len(table.header.sessions) == len(samples) + 1:
        with hold(folder, TABLE):
            table = _with_last_session(folder, table, networks)
    known = load_networks(folder) if table.header.calibration is None else []
    if len(known) >= FEWEST_NETWORKS:
        calibrated = calibrate(table, known)
        if calibrated is not table:
            with hold(folder, TABLE):
                calibrated.save(folder)
            say(f"the latency table in {folder} lacked its calibration: fitted on {len(known)} networks")
            table = calibrated
    return table


def resumed(bench: Bench, table: LatencyTable | None, networks: Networks = tuple) -> LatencyTable | None:
    """The table with the session that was being measured when a process died, if there was one.

    Args:
        bench: where and how to measure; its folder is held by this process.
        table: the table so far.
        networks: networks that may be part of it.

    Raises:
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    folder = bench.folder
    for group, wanted in _interrupted(folder, networks):
        fresh = [
            each
            for each in group
            if not isinstance(each, LayerKey) or table is None or not is_measured(table, each)
        ]
        if not any(isinstance(each, LayerKey) for each in fresh):
            if wanted is not None:  # all of it was measured by another session meanwhile
                with saving(folder):
                    (folder / journal_name(group)).unlink(missing_ok=True)
                    (folder / PENDING).unlink()
            continue
        bench.say(f"going on with an interrupted session: {len(group):,} layers and networks")
        with suppress(JournalError):  # of another device or version: left as it is
            table = measure_session(replace(bench, rounds=wanted or bench.rounds), group, table)
    return table


def _interrupted(folder: Path, networks: Networks) -> list[tuple[list[Subject], int | None]]:
    """(subjects, rounds wanted) of sessions that were begun and not saved."""
    path = folder / PENDING
    if path.exists():
        gate = Gate(str(path), TableError, "delete it to go on without the interrupted session")
        data = gate.fields("it", gate.json(gate.text(path)), ("subjects", "networks", "rounds"))
        names = gate.sequence(data["subjects"], "subjects", _MOST_SUBJECTS)
        described = gate.mapping(data["networks"], "networks")
        with gate.reading():
            found = {name: Architecture.from_dict(each) for name, each in described.items()}
            subjects = [_subject(gate.string("a subject", name), found) for name in names]
        return [(subjects, gate.integer("rounds", data["rounds"], 1, 1_000_000))]
    sessions: list[tuple[list[Subject], int | None]] = []
    paths = sorted(folder.glob("partial-*.jsonl"))
    candidates = _by_name(folder, networks) if paths else {}
    for path in paths:
        # Of an older version. What cannot be told apart from rubbish is left as it is.
        with suppress(InputError):
            sessions.append(([_subject(name, candidates) for name in _samples(path).names], None))
    return sessions


def _rebuilt(folder: Path, hardware: str, runtime: Runtime, networks: Networks) -> LatencyTable | None:
    """The table made again from all samples there are, and saved; None where they do not suffice."""
    paths = _sample_paths(folder)
    header = _header(folder)
    candidates = _by_name(folder, networks)
    table: LatencyTable | None = None
    records: list[NetworkRecord] = []
    moved = {}
    for path in [*paths, *sorted(folder.glob("partial-*.jsonl"))]:
        samples = _samples(path)
        measured = _measurement(samples, candidates)
        if measured is None:
            continue
        identity = samples.identity
        device = identity.get("device") or (header.device if header else None)
        version = identity.get("version") or (header.runtime_version if header else None)
        if device is None or version is None:
            return None
        ended = datetime.datetime.fromtimestamp(min(path.stat().st_mtime, time.time()), datetime.UTC)
        begun = session_header(hardware, runtime, str(device), str(version), ended)
        table, records = add_session(table, records, measured, begun)
        if path.name.startswith("partial-"):
            moved[path.name] = f"samples-{len(table.header.sessions)}.jsonl"
    if table is not None:
        write_together(folder, table.files() | {NETWORKS: networks_text(records)}, moved, [PENDING])
    return table


def _with_last_session(folder: Path, table: LatencyTable, networks: Networks) -> LatencyTable:
    """The table whose last session an older version saved without its networks, or without its samples."""
    candidates = _by_name(folder, networks)
    for path in sorted(folder.glob("partial-*.jsonl")):
        samples = _samples(path)
        measured = _measurement(samples, candidates)
        layers = [each for each in measured.subjects if isinstance(each, LayerKey)] if measured else []
        if measured is None or not layers or not all(is_measured(table, each) for each in layers):
            continue
        level = session_number(table.header.sessions[-1], "scaled_by", 1.0)
        records = load_networks(folder)
        known = {each.architecture for each in records}
        for each in network_records(measured):
            if each.architecture not in known:
                records.append(
                    NetworkRecord(each.architecture, each.latency_ms * level, *each.latencies_ms[1:])
                )
        table = calibrate(table, records)
        number = len(table.header.sessions)
        write_together(
            folder,
            table.files() | {NETWORKS: networks_text(records)},
            {path.name: f"samples-{number}.jsonl"},
            [PENDING],
        )
        return table
    return table


def _measurement(samples: _Samples, candidates: dict[str, Architecture]) -> Measurement | None:
    """Latencies of the subjects that can be named, from samples; None without enough steady rounds."""
    known: dict[int, Subject] = {}
    for column, name in enumerate(samples.names):
        with suppress(InputError):
            known[column] = _subject(name, candidates)
    kept = steady(samples.rounds)
    if not known or 2 * len(kept) < len(samples.rounds) or not kept:
        return None
    group: dict[str, object] = {
        name: samples.identity[name] for name in ("kit", "group") if name in samples.identity
    }
    if samples.refused:
        group[REFUSED] = samples.refused
    # A stand-in for networks that nobody knows any longer: they were part of the rounds.
    everything = [known.get(column, ANCHOR) for column in range(len(samples.names))]
    found = measurement(everything, kept, samples.rounds, {"rebuilt_from": samples.path.name, **group})
    return Measurement(
        tuple(known.values()),
        found.steadied()[:, list(known)],
        found.anchor_ms,
        {**found.record, "subjects": len(known)},
    )


def _samples(path: Path) -> _Samples:
    gate = Gate(str(path), TableError, "delete it to go on without that session")
    lines = gate.text(path, _MOST_BYTES).splitlines()
    names: list[str] | None = None
    identity: Mapping[str, object] = {}
    refused: Mapping[str, object] = {}
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            data = gate.mapping(gate.json(line))
        except TableError:
            if number == len(lines):
                break  # the power went while it was being written
            raise
        if "names" in data and names is None:
            names = [
                gate.string("a name", name) for name in gate.sequence(data["names"], "names", _MOST_SUBJECTS)
            ]
            identity = gate.mapping(data.get("identity"), "identity")
            refused = gate.mapping(data.get(REFUSED, {}), REFUSED)
        elif "samples_ms" in data and names is not None:
            with gate.reading():
                rounds.append(read_round(data, len(names)))
        elif "board" in data:  # the header of a kit's result
            board = gate.mapping(data["board"], "board")
            identity = {"device": board.get("cpu"), "version": board.get("runtime_version")}
    return _Samples(path, tuple(names or ()), identity, tuple(rounds), refused)


def _header(folder: Path) -> TableHeader | None:
    """The header of a table that does not load, as far as it can be read."""
    with suppress(InputError):
        gate = Gate("table.json", TableError)
        return read_header(gate, gate.mapping(gate.json(gate.text(folder / "table.json"))))
    return None


def _by_name(folder: Path, networks: Networks) -> dict[str, Architecture]:
    """Networks that samples may name, by that name."""
    found = list(networks())
    with suppress(InputError):
        found += [each.architecture for each in load_networks(folder)]
    return {subject_name(each): each for each in found}


def _subject(name: str, networks: dict[str, Architecture]) -> Subject:
    return networks[name] if name in networks else LayerKey.parse(name)


def _sample_paths(folder: Path) -> list[Path]:
    found: dict[int, Path] = {}
    for path in folder.glob("samples-*.jsonl"):
        with suppress(ValueError):
            found[int(path.stem.removeprefix("samples-"))] = path
    return [found[number] for number in sorted(found)]
