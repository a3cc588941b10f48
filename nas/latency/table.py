"""Latency of an architecture: a table of layers, and the correction from layers to networks.

No number here is invented. Every entry says where it comes from: ``measured`` on the device,
``predicted`` (a gap filled from measurements of the same device) or ``estimated`` (a shipped preset),
and an architecture is only as good as its worst layer.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from nas.latency.calibration import Calibration
from nas.latency.heads import HeadCost
from nas.measuring.models import PROTOCOL
from nas.saving import finish, write_together
from nas.shell import DEFAULT_RUNTIME, board_lines, measuring_line
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import MEGABYTE, Gate, is_plain_name
from search_spaces.layers import LayerKey, LayerKeyError, layer_keys
from search_spaces.tasks import strided_keys

SCHEMA_VERSION = 1
# A layer that the runtime refuses takes for ever: no network within any budget has it.
EntrySource = Literal["measured", "predicted", "estimated", "refused"]
# From best to worst.
SOURCES: tuple[EntrySource, ...] = get_args(EntrySource)
_SOURCES_BY_NAME: dict[str, EntrySource] = {each: each for each in SOURCES}
# Of a whole network: only what was timed end to end is called measured. What a calibrated sum of measured
# layers says is of the table.
NetworkLatencySource = Literal["measured", "table", "predicted", "estimated"]
FILES = ("table.csv", "table.json")
# A day for one run of one layer, more rounds than anybody waits for.
MAX_MS = 86_400_000.0
MAX_SAMPLES = 10_000_000
# A hundred thousand layers.
MAX_BYTES = 8 * MEGABYTE
_READINGS = 4
# Of what its layers take alone, that a network takes at least: a correction fitted on few noisy networks can
# leave small ones nothing, or less.
_LEAST_SHARE = 0.05
_REREAD_S = 0.05
_COLUMNS = ("key", "latency_ms", "spread_ms", "samples", "source")
# The two statistics of a table's header, see :func:`nas.measuring.rounds.fastest_two_thirds`.
_MEASURED, ESTIMATE = "fastest_two_thirds", "estimate"


class TableError(InputError):
    """A latency table that cannot be used. The message names the file and what to do."""


class MissingKeysError(InputError):
    """Layers that a table does not hold. The message names the command that measures them."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one network, batch 1.

    Attributes:
        latency_ms: milliseconds; infinite where the runtime refuses a layer.
        source: where it comes from.
        refused: those layers.
    """

    latency_ms: float
    source: NetworkLatencySource
    refused: tuple[LayerKey, ...] = ()


class LatencyModel(Protocol):
    """Anything that knows how long an architecture takes."""

    def latency(self, architecture: Architecture) -> Latency:
        """Latency of a network.

        Raises:
            MissingKeysError: if it contains a layer the model knows nothing of.
        """


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table.

    Attributes:
        latency_ms: the table's statistic over the rounds.
        spread_ms: distance between the quartiles; for predictions one standard deviation.
        samples: rounds it rests on, 0 for predictions and for what is refused.
        source: where it comes from.
    """

    latency_ms: float
    spread_ms: float
    samples: int
    source: EntrySource


def entry(latency_ms: float, spread_ms: float, samples: int, source: EntrySource) -> Entry:
    """A line with as many digits as the file keeps: a table is the same before and after it was saved.

    Args:
        latency_ms: see :class:`Entry`, as all that follows.
        spread_ms: distance between the quartiles.
        samples: rounds it rests on.
        source: where it comes from.
    """
    return Entry(float(f"{latency_ms:.8g}"), float(f"{spread_ms:.4g}"), samples, source)


# Of a layer that the runtime, or its converter, does not take.
REFUSED_ENTRY = Entry(math.inf, 0.0, 0, "refused")
_LIKE_OTHERS = "as all layers of its kind that were tried"
_REFUSED_CELLS = ["inf", "0", "0", "refused"]


@dataclass(frozen=True, slots=True)
class TableHeader:
    """The hardware, runtime and conditions that a table holds for, with its calibration.

    Attributes:
        hardware: name of the hardware config.
        device: processor or board.
        runtime: name of the runtime.
        runtime_version: its version.
        precision: ``fp32`` or ``int8``.
        threads: threads within an operator.
        created: date of the last measurement, ISO 8601.
        statistic: how samples became one number; :data:`ESTIMATE` where there are none.
        sessions: one record per measuring session: rounds, conditions, anchor.
        calibration: the correction from summed layers to networks, None before it is fitted.
        gap_filling: how well predicted entries were predicted, in cross-validation.
        head: of a task other than classification: latencies are then of whole models, None otherwise.
        protocol: how layers were timed, see :data:`nas.measuring.models.PROTOCOL`.
        schema_version: version of this format.
    """

    hardware: str
    device: str
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    created: str
    statistic: str = _MEASURED
    sessions: tuple[Mapping[str, object], ...] = ()
    calibration: Calibration | None = None
    gap_filling: Mapping[str, float] = field(default_factory=dict)
    head: HeadCost | None = None
    protocol: int = PROTOCOL
    schema_version: int = SCHEMA_VERSION

    @property
    def title(self) -> str:
        """One line for consoles and reports."""
        return (
            f"{self.device}, {self.runtime} {self.runtime_version}, {self.precision}, "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.created[:10]}"
        )


class LatencyTable:
    """Latency per layer, summed and calibrated to networks.

    Args:
        header: what the table holds for.
        entries: latency of each layer.
    """

    def __init__(self, header: TableHeader, entries: Mapping[LayerKey, Entry]) -> None:
        self.header = header
        self.entries = dict(entries)

    @property
    def profile_command(self) -> str:
        """The command that measures what is missing, for error messages."""
        header = self.header
        if self.is_estimate:
            # Of a board, and not of the runtime to measure with: what was typed of that is repeated.
            return board_lines(header.hardware, DEFAULT_RUNTIME, header.precision, header.threads)
        return measuring_line("profile", header.hardware, header.runtime, header.precision, header.threads)

    @property
    def is_estimate(self) -> bool:
        """True if nothing was measured: its latencies are of a shipped preset."""
        return self.header.statistic == ESTIMATE

    @property
    def estimate_error(self) -> float | None:
        """Error of estimated latencies of whole networks as a share, None where layers were measured."""
        if not self.is_estimate or not self.entries:
            return None
        return statistics.median(each.spread_ms / each.latency_ms for each in self.entries.values())

    def missing(self, keys: Iterable[LayerKey]) -> list[LayerKey]:
        """Those of ``keys`` the table does not hold."""
        return [key for key in keys if key not in self.entries]

    def refused(self, keys: Iterable[LayerKey]) -> list[LayerKey]:
        """Those of some layers that the runtime refuses, each once; those that were tried come first.

        Args:
            keys: the layers.
        """
        found = [key for key in dict.fromkeys(keys) if self.entries.get(key) == REFUSED_ENTRY]
        return sorted(found, key=lambda key: (self.refusal(key) == _LIKE_OTHERS, str(key)))

    def can_tell(self, architecture: Architecture) -> bool:
        """True if the table holds all layers of a network, and the runtime takes them."""
        keys = layer_keys(architecture)
        return not self.missing(keys) and not self.refused(keys)

    def refusal(self, key: LayerKey) -> str:
        """Why the runtime refuses a layer.

        Args:
            key: the layer.
        """
        return self._reasons.get(str(key), _LIKE_OTHERS)

    @cached_property
    def _reasons(self) -> dict[str, str]:
        gate = Gate("the latency table", TableError)
        return {
            name: gate.string("a reason", reason, 1_000)
            for session in self.header.sessions
            for name, reason in gate.mapping(session.get("refused", {}), "refused").items()
        }

    def raw_ms(self, architecture: Architecture) -> float:
        """Sum of the layers, uncorrected.

        Raises:
            MissingKeysError: if a layer is missing.
        """
        return sum(entry.latency_ms for _, entry in self.layer_latencies(architecture))

    def latency(self, architecture: Architecture) -> Latency:
        """Latency of a network, calibrated where the table has a calibration; with its head where it has one.

        Raises:
            MissingKeysError: if a layer is missing.
        """
        layers, head = self.layer_latencies(architecture), self.header.head
        worst = worst_source(entry.source for _, entry in layers)
        if worst == "refused":
            return Latency(math.inf, "predicted", tuple(self.refused(key for key, _ in layers)))
        least_ms = _LEAST_SHARE * sum(entry.latency_ms for _, entry in layers)
        if head is None:
            total = sum(self.share_ms(key) for key, _ in layers)
        else:
            whole = strided_keys(architecture)
            total = sum(head.layer_ms(key, stride, self.share_ms(key)) for key, stride in whole)
        return Latency(max(total, least_ms), "table" if worst == "measured" else worst)

    def runnable(
        self, networks: Mapping[str, Architecture], say: Callable[[str], None] = lambda line: None
    ) -> dict[str, Architecture]:
        """Those of some networks that have no layer which the runtime refuses.

        Args:
            networks: by name.
            say: told in a line of each that is left out.

        Raises:
            MissingKeysError: if a layer is missing.
        """
        found: dict[str, Architecture] = {}
        for name, architecture in networks.items():
            if refused := self.latency(architecture).refused:
                reason = f"{refused[0]}: {self.refusal(refused[0])}"
                say(f"{name} is left out: the runtime refuses its layer {reason}")
            else:
                found[name] = architecture
        return found

    def share_ms(self, key: LayerKey) -> float:
        """The latency a layer adds to a network that classifies, calibrated where the table is."""
        alone_ms, calibration = self.entries[key].latency_ms, self.header.calibration
        if calibration is None or math.isinf(alone_ms):
            return alone_ms
        return calibration.layer_ms(key, alone_ms)

    def layer_latencies(self, architecture: Architecture) -> list[tuple[LayerKey, Entry]]:
        """The layers of a network with their entries, in order.

        Raises:
            MissingKeysError: if a layer is missing.
        """
        keys = layer_keys(architecture)
        try:
            # A single look-up each: a search asks for thousands of networks.
            return [(key, self.entries[key]) for key in keys]
        except KeyError:
            missing = self.missing(keys)
            raise MissingKeysError(
                f"the latency table for {self.header.hardware} lacks {len(missing)} layer(s) of this "
                f"network, e.g. {missing[0]}; measure them with: {self.profile_command}"
            ) from None

    def with_entries(self, entries: Mapping[LayerKey, Entry], **header: Any) -> LatencyTable:
        """The table with further (or better) entries and changed header fields."""
        return LatencyTable(replace(self.header, **header), {**self.entries, **entries})

    def restricted(self, keys: Iterable[LayerKey]) -> LatencyTable:
        """The table with these layers only, as far as it holds them."""
        entries = {key: self.entries[key] for key in keys if key in self.entries}
        return LatencyTable(self.header, entries)

    def digest(self, keys: Iterable[LayerKey]) -> str:
        """A fingerprint of everything that decides the latency of networks made of ``keys``."""
        lines = sorted(f"{key} {self.entries[key].latency_ms:.6g}" for key in keys if key in self.entries)
        calibration = self.header.calibration
        lines.append(repr(calibration.coefficients) if calibration else "uncalibrated")
        if head := self.header.head:
            lines.append(repr((head.task, head.coefficients)))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def state(self) -> dict[str, object]:
        """The calibration and the sessions of this table, for which a statement about it holds."""
        calibration = self.header.calibration
        coefficients = repr(calibration.coefficients) if calibration else "uncalibrated"
        sessions = [json.dumps(each, sort_keys=True) for each in self.header.sessions]
        return {
            "statistic": self.header.statistic,
            "calibration": _digest(coefficients)[:16],
            "sessions": len(sessions),
            "measured": _digest("\n".join(sessions))[:16],
        }

    def changed_since(self, state: Mapping[str, object]) -> str | None:
        """In what this table differs from the one that had a :meth:`state`, in words; None if in nothing.

        A table that only grew, by layers measured later, is still the same.
        """
        count = state.get("sessions")
        if not isinstance(count, int) or not 0 <= count <= len(self.header.sessions):
            return "it was measured anew"
        then = LatencyTable(replace(self.header, sessions=self.header.sessions[:count]), {}).state()
        if then["measured"] != state.get("measured") or then["statistic"] != state.get("statistic"):
            return "it was measured anew"
        if then["calibration"] != state.get("calibration"):
            return "it was calibrated anew"
        return None

    # -- files ---------------------------------------------------------------------------------

    def files(self) -> dict[str, str]:
        """The table as the texts of its two files, by name.

        Raises:
            TableError: if it holds something that is no latency; such a table is never written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for key, entry in sorted(self.entries.items(), key=lambda pair: str(pair[0])):
            if entry != REFUSED_ENTRY and not _is_latency(entry.latency_ms, entry.spread_ms):
                raise TableError(f"{key}: {entry.latency_ms} ms (spread {entry.spread_ms}) is no latency")
            numbers = (f"{entry.latency_ms:.8g}", f"{entry.spread_ms:.4g}", entry.samples)
            writer.writerow((str(key), *numbers, entry.source))
        content = text.getvalue()
        header = asdict(self.header)
        header["calibration"] = self.header.calibration.to_dict() if self.header.calibration else None
        header.pop("head")
        if self.header.head:
            header["head"] = self.header.head.to_dict()
        header["entries"] = len(self.entries)
        header["sha256"] = hashlib.sha256(content.encode()).hexdigest()
        return {"table.csv": content, "table.json": json.dumps(header, indent=1, allow_nan=False) + "\n"}

    def save(self, folder: Path) -> None:
        """Write ``table.csv`` and ``table.json``, both or none.

        Raises:
            SaveError: if they cannot be written; an older table is still there.
            TableError: see :meth:`files`.
        """
        write_together(folder, self.files())

    @classmethod
    def load(cls, folder: Path) -> LatencyTable:
        """Read a table.

        Raises:
            TableError: if a file is missing, damaged, edited by hand, of a newer version, or holds
                impossible values.
        """
        finish(folder)
        for _ in range(_READINGS):
            files = {
                name: Gate(str(folder / name), TableError).text(folder / name, MAX_BYTES) for name in FILES
            }
            if _digest(files["table.csv"]) in files["table.json"] or not (folder / ".lock").exists():
                break
            # Another process may have moved new files into place between the two.
            time.sleep(_REREAD_S)
        return cls.from_files(files, str(folder))

    @classmethod
    def from_files(cls, files: Mapping[str, str], where: str) -> LatencyTable:
        """Read what :meth:`files` gave.

        Args:
            files: the texts of both, by name.
            where: they come from, for messages.

        Raises:
            TableError: see :meth:`load`.
        """
        gate = Gate(f"{where}/table.json", TableError)
        header = gate.mapping(gate.json(files["table.json"]))
        version = header.get("schema_version")
        if type(version) is not int:
            gate.fail("has no schema_version; it is no latency table")
        if version > SCHEMA_VERSION:
            gate.fail(
                f"is of schema version {version}, this program reads up to {SCHEMA_VERSION}; "
                "update mobilenet-nas"
            )
        content = files["table.csv"]
        entries = _read_entries(f"{where}/table.csv", content)
        if header.get("sha256") != _digest(content):
            reason = "cut short" if len(entries) != header.get("entries") else "edited by hand"
            raise TableError(f"{where}/table.csv was {reason}: it does not match table.json")
        return cls(read_header(gate, header), entries)


def read_header(gate: Gate, data: Mapping[str, object]) -> TableHeader:
    """A table's header from plain values.

    Raises:
        TableError: if a field is missing, unknown or of a wrong kind.
    """
    names = [each.name for each in fields(TableHeader)]
    optional = ("statistic", "calibration", "gap_filling", "head", "protocol", "entries", "sha256")
    gate.fields("the header", data, [name for name in names if name not in optional], optional)
    texts = ("hardware", "device", "runtime", "runtime_version", "precision", "created", "statistic")
    strings = {name: gate.string(name, data[name], 300) for name in texts if name in data}
    if (statistic := strings.get("statistic", _MEASURED)) not in (_MEASURED, ESTIMATE):
        gate.fail(f"is of {statistic} over the rounds, not of {_MEASURED}: move it away and measure anew")
    if not is_plain_name(data["hardware"]):
        gate.fail(f"hardware {data['hardware']!r} is no plain name")
    sessions = [
        gate.mapping(each, "a session") for each in gate.sequence(data["sessions"], "sessions", 10_000)
    ]
    for session in sessions:
        gate.number("anchor_ms", session.get("anchor_ms", 1.0), 1e-9, 1e9)
    calibration = data.get("calibration")
    with gate.reading():
        read = Calibration.from_dict(calibration, gate) if calibration else None
    head = data.get("head")
    with gate.reading():
        head_cost = HeadCost.from_dict(head, gate) if head else None
    gap_filling = gate.mapping(data.get("gap_filling", {}), "gap_filling")
    return TableHeader(
        **strings,
        threads=gate.integer("threads", data["threads"], 1, 1024),
        sessions=tuple(sessions),
        calibration=read,
        gap_filling={name: gate.number(f"gap_filling: {name}", each) for name, each in gap_filling.items()},
        head=head_cost,
        protocol=gate.integer("protocol", data.get("protocol", 1), 1, 1000),
        schema_version=gate.integer("schema_version", data["schema_version"]),
    )


def session_number(session: Mapping[str, object], name: str, default: float | None = None) -> float:
    """A number in a session's record.

    Args:
        session: the record, one of :attr:`TableHeader.sessions`.
        name: of the number.
        default: where the record does not hold it.

    Raises:
        TableError: if it holds none and there is no default, or something else.
    """
    return Gate("the record of a session", TableError).number(name, session.get(name, default))


def worst_source(sources: Iterable[EntrySource]) -> EntrySource:
    """The least trustworthy of some sources."""
    return max(sources, key=SOURCES.index)


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _is_latency(latency_ms: float, spread_ms: float) -> bool:
    return 0 < latency_ms <= MAX_MS and 0 <= spread_ms <= MAX_MS  # NaN fails, too


def _read_entries(path: str, content: str) -> dict[LayerKey, Entry]:
    rows = csv.reader(io.StringIO(content))
    entries: dict[LayerKey, Entry] = {}
    try:
        if tuple(next(rows, ())) != _COLUMNS:
            raise TableError(f"{path}: the first line must be {','.join(_COLUMNS)}")
        for row in rows:
            key, read = _read_row(f"{path}, line {rows.line_num}", row)
            if key in entries:
                raise TableError(f"{path}, line {rows.line_num}: {key} is listed twice")
            entries[key] = read
    except csv.Error as error:
        raise TableError(f"{path}, line {rows.line_num}: {error}") from None
    if not entries:
        raise TableError(f"{path} holds no layers")
    return entries


def _read_row(where: str, row: list[str]) -> tuple[LayerKey, Entry]:
    if len(row) != len(_COLUMNS):
        raise TableError(f"{where}: {len(row)} values instead of {len(_COLUMNS)}; the file is cut short")
    try:
        key = LayerKey.parse(row[0])
        latency_ms, spread_ms, samples = float(row[1]), float(row[2]), int(row[3][:12])
    except (LayerKeyError, ValueError) as error:
        raise TableError(f"{where}: {error}") from None
    if row[1:] == _REFUSED_CELLS:
        return key, REFUSED_ENTRY
    if not _is_latency(latency_ms, spread_ms):
        raise TableError(f"{where}: {row[1]} ms (spread {row[2]}) is no latency")
    if not 0 <= samples <= MAX_SAMPLES:
        raise TableError(f"{where}: {row[3]} is no number of samples")
    source = _SOURCES_BY_NAME.get(row[4])
    if source is None or source == "refused":
        raise TableError(f"{where}: source {row[4]!r} is not one of {', '.join(SOURCES)}")
    return key, Entry(latency_ms, spread_ms, samples, source)
