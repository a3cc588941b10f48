"""Records of a study file, looked at before Optuna replays them: a file may come from anywhere.

Optuna trusts its journal: an unknown operation, a missing field or a distribution of another kind ends
in an error of its own, deep inside. Here every record has its operation, its fields and bounded plain
values, or the file is refused with the number of the line.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from optuna.distributions import json_to_distribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, _storage

from search_spaces.errors import InputError
from search_spaces.gate import MEGABYTE, Gate

MAX_LINE = 16 * MEGABYTE
_MOST_TRIALS = 10_000_000
# Where the distributions of a trial begin and end in a line, as this project and Optuna write it.
_BEGIN, _END = b'"distributions":{', b'"},"params":'
_MOST_KEPT_BYTES = 64 * MEGABYTE
# Every trial of a study has the same few dozen distributions. Optuna reads their texts anew for each, which
# takes most of the time that a long study takes to open; nobody changes a distribution.
_storage.json_to_distribution = functools.lru_cache(maxsize=10_000)(json_to_distribution)  # type: ignore[attr-defined]
# Fields of each operation of Optuna's journal, with what they must be.
_Kinds = dict[str, type | tuple[type, ...]]
_STUDY: _Kinds = {"study_id": int}
_TRIAL: _Kinds = {"trial_id": int}
_FIELDS: dict[int, _Kinds] = {
    0: {"study_name": str, "directions": list},
    1: _STUDY,
    2: {**_STUDY, "user_attr": dict},
    3: {**_STUDY, "system_attr": dict},
    4: {**_STUDY, "datetime_start": (str, type(None))},
    5: {**_TRIAL, "param_name": str, "param_value_internal": (int, float), "distribution": str},
    6: {**_TRIAL, "state": int, "values": (list, type(None))},
    7: {**_TRIAL, "step": int, "intermediate_value": (int, float)},
    8: {**_TRIAL, "user_attr": dict},
    9: {**_TRIAL, "system_attr": dict},
    10: {},
}
# What a trial may be created with.
_OPTIONAL: _Kinds = {
    "distributions": dict,
    "params": dict,
    "datetime_complete": str,
    "state": int,
    "value": (int, float, type(None)),
    "values": (list, type(None)),
    "user_attrs": dict,
    "system_attrs": dict,
    "intermediate_values": dict,
}
_ATTRIBUTES = ("user_attrs", "system_attrs", "intermediate_values", "value")


class JournalReader(BaseJournalBackend):
    """A study file to be read only; a search may be writing to it.

    Args:
        path: the file.
        error: what is raised.
    """

    def __init__(self, path: Path, error: type[InputError]) -> None:
        self._path, self._error = path, error
        self._count, self._offset = 0, 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, object]]:
        """The records from the given number on; a last line that was cut off does not count.

        Raises:
            InputError: if the file cannot be read or a record is none.
        """
        gate = Gate(f"the study file {self._path}", self._error)
        if log_number_from < self._count:
            self._count, self._offset = 0, 0
        with gate.opened(self._path) as file:
            file.seek(self._offset)
            for record in records(gate, self._complete(file), self._count + 1):
                self._count += 1
                if self._count > log_number_from:
                    yield record

    def _complete(self, file: BinaryIO) -> Iterator[bytes]:
        for line in file:
            if line.endswith(b"\n"):
                self._offset += len(line)
                yield line

    def append_logs(self, logs: list[dict[str, object]]) -> None:
        """Refuse to write.

        Raises:
            InputError: always.
        """
        raise self._error(f"the study file {self._path} was opened to be read")


def storage_of(backend: BaseJournalBackend, gate: Gate) -> JournalStorage:
    """An Optuna storage of a study file.

    Raises:
        InputError: if its records contradict each other.
    """
    try:
        with without_collecting():
            return JournalStorage(backend)
    except InputError:
        raise
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        LookupError,
    ) as error:
        gate.fail(f"is damaged: {type(error).__name__}: {error}")


@contextmanager
def without_collecting() -> Iterator[None]:
    """Without looking for cyclic garbage: all that a long study makes are millions of objects that stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def records(
    gate: Gate, lines: Iterable[bytes], first: int = 1, known: Distributions | None = None
) -> Iterator[dict[str, object]]:
    """Journal lines as records that Optuna can replay.

    Args:
        gate: names the file.
        lines: without or with their ends.
        first: number of the first line.
        known: distributions of earlier lines of the same file, which those of these lines are added to.

    Raises:
        InputError: naming the line.
    """
    parameters = known or Distributions()
    for number, line in enumerate(lines, start=first):
        where = Gate(f"{gate.name} is damaged in line {number}: it", gate.error, gate.remedy)
        if len(line) > MAX_LINE:
            where.fail("is too long")
        try:
            values = parameters.read(line, where)
        except RecursionError:
            where.fail("is nested too deep")
        except ValueError as error:
            if isinstance(error, gate.error):
                raise
            where.fail("is no JSON")
        record = _check(where, values, parameters)
        # Of a new trial what is checked by then is most of it: parameters and their distributions.
        rest = [record.get(name) for name in _ATTRIBUTES] if record["op_code"] == 4 else record
        where.plain(rest, longest_text=MAX_LINE)
        yield record


class _NoNumberError(Exception):
    """NaN or infinity."""


def _no_number(text: str) -> NoReturn:
    raise _NoNumberError(text)


# One for all lines: making one takes as long as reading a short line.
_DECODER = json.JSONDecoder(parse_constant=_no_number)


def _plain_json(line: bytes, gate: Gate) -> object:
    """The values of a JSON text.

    Raises:
        ValueError: if it is none.
        InputError: of the gate's kind, if it holds NaN or infinity.
    """
    try:
        found: object = _DECODER.decode(line.decode())
    except _NoNumberError as error:
        gate.no_number(str(error))
    return found


class Distributions:
    """The distributions of a file's trials: nine tenths of its text, and the same few over and over.

    Each text of all distributions of a trial is parsed and checked once.
    """

    def __init__(self) -> None:
        self._by_text: dict[bytes, dict[str, str]] = {}
        self._kept_bytes = 0
        # Of those that are kept, which no other object takes the place of.
        self._unchecked: set[int] = set()
        self._whole: set[int] = set()
        self._checked: set[str] = set()

    def read(self, line: bytes, gate: Gate) -> object:
        """The values of a line.

        Raises:
            ValueError: if it is no JSON.
            InputError: of the gate's kind, if it holds NaN or infinity.
        """
        start, end = line.find(_BEGIN), line.find(_END)
        if 0 <= start < end and line.count(_BEGIN[:-1]) == 1:
            text = line[start + len(_BEGIN) - 1 : end + 2]
            found = self._by_text.get(text)
            if found is None:
                found = self._new(text, gate)
            if found is not None:
                # What was cut out is a JSON value by itself, so whatever stands around it keeps its meaning.
                rest = b"".join((line[: start + len(_BEGIN) - 1], b"null", line[end + 2 :]))
                record = _plain_json(rest, gate)
                if isinstance(record, dict) and record.get("distributions", False) is None:
                    record["distributions"] = found
                    params = record.get("params")
                    if isinstance(params, dict):  # the trials of a study share the names
                        record["params"] = {sys.intern(name): value for name, value in params.items()}
                    return record
        return _plain_json(line, gate)

    def _new(self, text: bytes, gate: Gate) -> dict[str, str] | None:
        try:
            found = _plain_json(text, gate)
        except ValueError:
            return None  # the whole line may still be something
        if not isinstance(found, dict) or self._kept_bytes + len(text) > _MOST_KEPT_BYTES:
            return None
        self._kept_bytes += len(text)
        self._by_text[text] = found
        self._unchecked.add(id(found))
        return found

    def check_all(self, gate: Gate, found: dict[str, str]) -> None:
        """Check the distributions of a trial, unless all of them were checked together before."""
        if id(found) in self._whole:
            return
        self.check(gate, found.values())
        if id(found) in self._unchecked:
            self._unchecked.remove(id(found))
            self._whole.add(id(found))

    def check(self, gate: Gate, texts: Iterable[object]) -> None:
        """Check single distributions.

        Raises:
            InputError: of the gate's kind, if one is none.
        """
        for text in texts:
            if type(text) is not str or len(text) > MEGABYTE:
                gate.fail("has a distribution that is no text")
            if text not in self._checked:
                with gate.reading():
                    json_to_distribution(text)
                self._checked.add(text)


def _check(gate: Gate, record: object, parameters: Distributions) -> dict[str, object]:
    if not isinstance(record, dict) or type(record.get("op_code")) is not int:
        gate.fail("has no operation")
    wanted = _FIELDS.get(record["op_code"])
    if wanted is None or not isinstance(record.get("worker_id"), str):
        gate.fail(f"has an unknown operation {record['op_code']}")
    for name, kind in wanted.items():
        if name not in record or not _is(record[name], kind):
            gate.fail(f"has no usable {name}")
    if "trial_id" in record:
        gate.integer("trial_id", record["trial_id"], 0, _MOST_TRIALS)
    if record["op_code"] == 0:
        gate.string("study_name", record["study_name"], 300)
    if record["op_code"] == 4:
        for name, kind in _OPTIONAL.items():
            if name in record and not _is(record[name], kind):
                gate.fail(f"has no usable {name}")
        distributions = record.get("distributions", {})
        params = record.get("params", {})
        if not params.keys() <= distributions.keys():
            gate.fail("has a parameter without distribution")
        # Indices of choices, all but always.
        small = set(map(type, params.values())) <= {int} and (
            not params or (min(params.values()) >= 0 and max(params.values()) < MEGABYTE)
        )
        if not small:
            for value in params.values():
                gate.number("a parameter", value)
        parameters.check_all(gate, distributions)
    if record["op_code"] in (4, 6):
        for value in record.get("values") or []:
            gate.number("a value", value)
    if record["op_code"] == 5:
        parameters.check(gate, [record["distribution"]])
    return record


def _is(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
