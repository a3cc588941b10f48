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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from nas.latency.calibration import Calibration
from nas.measuring.models import PROTOCOL
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey, LayerKeyError, layer_keys

SCHEMA_VERSION = 1
LatencySource = Literal["measured", "predicted", "estimated"]
# From best to worst.
SOURCES: tuple[LatencySource, ...] = get_args(LatencySource)
_COLUMNS = ("key", "latency_ms", "spread_ms", "samples", "source")


class TableError(InputError):
    """A latency table that cannot be used. The message names the file and what to do."""


class MissingKeysError(InputError):
    """Layers that a table does not hold. The message names the command that measures them."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one network or layer, batch 1."""

    latency_ms: float
    source: LatencySource


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
        samples: rounds it rests on, 0 for predictions.
        source: where it comes from.
    """

    latency_ms: float
    spread_ms: float
    samples: int
    source: LatencySource


@dataclass(frozen=True, slots=True)
class TableHeader:
    """What a table holds for.

    Attributes:
        hardware: name of the hardware config.
        device: processor or board.
        runtime: name of the runtime.
        runtime_version: its version.
        precision: ``fp32`` or ``int8``.
        threads: threads within an operator.
        created: date of the last measurement, ISO 8601.
        statistic: how samples became one number.
        sessions: one record per measuring session: rounds, conditions, anchor.
        calibration: the correction from summed layers to networks, None before it is fitted.
        gap_filling: how well predicted entries were predicted, in cross-validation.
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
    statistic: str = "fastest_two_thirds"
    sessions: tuple[dict[str, Any], ...] = ()
    calibration: Calibration | None = None
    gap_filling: dict[str, Any] = field(default_factory=dict)
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
        profile_command: the command that measures what is missing, for error messages.
    """

    def __init__(
        self,
        header: TableHeader,
        entries: Mapping[LayerKey, Entry],
        profile_command: str = "python -m nas.profile",
    ) -> None:
        self.header = header
        self.entries = dict(entries)
        self.profile_command = profile_command

    def missing(self, keys: Iterable[LayerKey]) -> list[LayerKey]:
        """Those of ``keys`` the table does not hold."""
        return [key for key in keys if key not in self.entries]

    def raw_ms(self, architecture: Architecture) -> float:
        """Sum of the layers, uncorrected.

        Raises:
            MissingKeysError: if a layer is missing.
        """
        return sum(entry.latency_ms for _, entry in self.layer_latencies(architecture))

    def latency(self, architecture: Architecture) -> Latency:
        """Latency of a network, calibrated where the table has a calibration.

        Raises:
            MissingKeysError: if a layer is missing.
        """
        keys, entries = zip(*self.layer_latencies(architecture), strict=True)
        layers_ms = [entry.latency_ms for entry in entries]
        calibration = self.header.calibration
        total = sum(layers_ms) if calibration is None else calibration.network_ms(keys, layers_ms)
        return Latency(total, worst_source(entry.source for entry in entries))

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
        return LatencyTable(replace(self.header, **header), {**self.entries, **entries}, self.profile_command)

    def digest(self, keys: Iterable[LayerKey]) -> str:
        """A fingerprint of everything that decides the latency of networks made of ``keys``."""
        lines = sorted(f"{key} {self.entries[key].latency_ms:.6g}" for key in keys if key in self.entries)
        calibration = self.header.calibration
        lines.append(repr(calibration.coefficients) if calibration else "uncalibrated")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    # -- files ---------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write ``table.csv`` and ``table.json``; an older table is replaced only when both are written."""
        folder.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for key, entry in sorted(self.entries.items(), key=lambda pair: str(pair[0])):
            numbers = (f"{entry.latency_ms:.6g}", f"{entry.spread_ms:.4g}", entry.samples)
            writer.writerow((str(key), *numbers, entry.source))
        content = text.getvalue()
        header = asdict(self.header)
        header["calibration"] = self.header.calibration.to_dict() if self.header.calibration else None
        header["entries"] = len(self.entries)
        header["sha256"] = hashlib.sha256(content.encode()).hexdigest()
        # The digest in the header tells a table cut short by a crash between the two from a whole one.
        write_atomically(folder / "table.csv", content)
        write_atomically(folder / "table.json", json.dumps(header, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, profile_command: str = "python -m nas.profile") -> LatencyTable:
        """Read a table.

        Raises:
            TableError: if a file is missing, damaged, edited by hand, of a newer version, or holds
                impossible values.
        """
        header_path, table_path = folder / "table.json", folder / "table.csv"
        header = _read_json(header_path)
        version = header.get("schema_version")
        if not isinstance(version, int):
            raise TableError(f"{header_path} has no schema_version; it is no latency table")
        if version > SCHEMA_VERSION:
            raise TableError(
                f"{header_path} is of schema version {version}, this program reads up to {SCHEMA_VERSION}; "
                "update mobilenet-nas"
            )
        try:
            content = table_path.read_text(encoding="utf-8")
        except OSError as error:
            raise TableError(f"cannot read {table_path}: {error.strerror}") from None
        entries = _read_entries(table_path, content)
        digest = header.pop("sha256", None)
        count = header.pop("entries", None)
        if digest != hashlib.sha256(content.encode()).hexdigest():
            reason = "cut short" if len(entries) != count else "edited by hand"
            raise TableError(
                f"{table_path} was {reason}: it does not match {header_path.name}; "
                f"measure it again with: {profile_command}"
            )
        try:
            calibration = header.pop("calibration")
            header.setdefault("protocol", 1)
            read = TableHeader(
                **{**header, "sessions": tuple(header["sessions"])},
                calibration=Calibration.from_dict(calibration) if calibration else None,
            )
        except (TypeError, KeyError, ValueError) as error:
            raise TableError(f"{header_path} is no table header: {error}") from None
        return cls(read, entries, profile_command)


def worst_source(sources: Iterable[LatencySource]) -> LatencySource:
    """The least trustworthy of some sources."""
    return max(sources, key=SOURCES.index)


def write_atomically(path: Path, content: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise TableError(f"{path} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise TableError(f"{path} is no table header")
    return data


def _read_entries(path: Path, content: str) -> dict[LayerKey, Entry]:
    rows = csv.reader(io.StringIO(content))
    if tuple(next(rows, ())) != _COLUMNS:
        raise TableError(f"{path}: the first line must be {','.join(_COLUMNS)}")
    entries: dict[LayerKey, Entry] = {}
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if len(row) != len(_COLUMNS):
            raise TableError(f"{where}: {len(row)} values instead of {len(_COLUMNS)}; the file is cut short")
        try:
            key = LayerKey.parse(row[0])
            latency_ms, spread_ms, samples = float(row[1]), float(row[2]), int(row[3])
        except (LayerKeyError, ValueError) as error:
            raise TableError(f"{where}: {error}") from None
        if not (math.isfinite(latency_ms) and latency_ms > 0 and math.isfinite(spread_ms) and spread_ms >= 0):
            raise TableError(f"{where}: {row[1]} ms (spread {row[2]}) is no latency")
        if row[4] not in SOURCES:
            raise TableError(f"{where}: source {row[4]!r} is not one of {', '.join(SOURCES)}")
        if key in entries:
            raise TableError(f"{where}: {key} is listed twice")
        entries[key] = Entry(latency_ms, spread_ms, samples, row[4])
    return entries
