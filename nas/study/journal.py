"""Records of a study file, looked at before Optuna replays them: a file may come from anywhere.

Optuna trusts its journal: an unknown operation, a missing field or a distribution of another kind ends
in an error of its own, deep inside. Here every record has its operation, its fields and bounded plain
values, or the file is refused with the number of the line.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from optuna.distributions import CategoricalChoiceType, json_to_distribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, _storage

from search_spaces.errors import InputError
from search_spaces.gate import MAX_TEXT, MEGABYTE, Gate

MAX_LINE = 16 * MEGABYTE
_MOST_TRIALS = 10_000_000
# Where the distributions of a trial begin and end in a line, as this project and Optuna write it.
_DISTRIBUTIONS, _PARAMS = b'"distributions":', b'"params":'
_BEGIN, _END = _DISTRIBUTIONS + b"{", b'"},' + _PARAMS
# The number of a choice, as JSON has it.
_CHOICE = re.compile(rb":(0|[1-9]\d{0,5})")
_MOST_KEPT_BYTES = 64 * MEGABYTE
# Whatever Python and Optuna say of records that are none.
_DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
)
# Every trial of a study has the same few dozen distributions, and nobody changes one.
_distribution = functools.lru_cache(maxsize=10_000)(json_to_distribution)
_storage.json_to_distribution = _distribution  # type: ignore[attr-defined]
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
    except _DAMAGED as error:
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
        record = _check(where, values)
        # Of a new trial what is checked by then is most of it: parameters and their distributions.
        rest = [record.get(name) for name in _ATTRIBUTES] if record["op_code"] == 4 else [record]
        if not all(map(_is_flat, rest)):
            where.plain(rest, longest_text=MAX_LINE)
        yield record


def _is_flat(data: object) -> bool:
    """True if a value is nothing, or a mapping of plain ones: of most trials, and seen at once."""
    if not isinstance(data, dict):
        return data is None
    for name, value in data.items():
        kind = type(value)
        if kind is float:
            plain = math.isfinite(value)
        elif kind is int:
            plain = -(2**63) <= value < 2**63
        else:
            plain = kind is str or kind is bool or value is None
        if not plain or len(name) > MAX_TEXT:
            return False
    return True


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
        text = line.decode()
        found: object
        found, end = _DECODER.raw_decode(text)
        if end < len(text) and not text[end:].isspace():
            raise ValueError("more than one value")
        # Of what is written \ud800, half a character may be all there is.
        if b"\\ud" in line or b"\\uD" in line:
            gate.plain(found, longest_text=MAX_LINE)
    except _NoNumberError as error:
        gate.no_number(str(error))
    return found


@functools.lru_cache(maxsize=10_000)
def _numbered(text: str) -> dict[bytes, CategoricalChoiceType]:
    """The choices of a distribution by their numbers; none of one that is not categorical."""
    choices = getattr(_distribution(text), "choices", ())
    return {b"%d" % number: choice for number, choice in enumerate(choices)}


class _Shared(dict[str, str]):
    """The distributions of a trial as texts by name, made and checked once for all trials that have them.

    Attributes:
        made: the distributions.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        super().__init__(texts)
        self.made = {name: _distribution(text) for name, text in texts.items()}
        names = (json.dumps(name).encode().replace(b"%", b"%%") for name in texts)
        self._params = b"{%b}" % b",".join(name + b":%b" for name in names)
        # Names of a line are objects of their own: those of all trials are kept once.
        self._choices = {name: _numbered(text) for name, text in texts.items()}

    def chosen(self, text: bytes) -> dict[str, CategoricalChoiceType] | None:
        """The parameters of a trial, of the text that a journal has of them; None of another text.

        Half of what reading a trial as JSON takes.
        """
        numbers = _CHOICE.findall(text)
        if len(numbers) != len(self) or self._params % tuple(numbers) != text:
            return None
        pairs = zip(self._choices.items(), numbers, strict=True)
        try:
            return {name: choices[number] for (name, choices), number in pairs}
        except KeyError:
            return None


class _Replay(_storage.JournalStorageReplayResult):
    """Optuna's memory of a journal, in which trials share their distributions.

    It makes forty-five distributions and values for each trial, most of the time that a long study takes to
    open.
    """

    def _apply_create_trial(self, log: dict[str, object]) -> None:
        distributions, params = log.get("distributions"), log.get("params")
        if not (isinstance(distributions, _Shared) and isinstance(params, dict)):
            super()._apply_create_trial(log)
            return
        count = len(self._trials)
        super()._apply_create_trial({**log, "distributions": {}, "params": {}})
        if len(self._trials) > count:
            trial = self._trials[count]
            trial.distributions, trial.params = distributions.made, params


_storage.JournalStorageReplayResult = _Replay  # type: ignore[misc]


class Distributions:
    """The distributions of a file's trials: nine tenths of its text, and the same few over and over.

    Each text of all distributions of a trial is parsed and checked once.
    """

    def __init__(self) -> None:
        self._by_text: dict[bytes, _Shared | None] = {}
        self._kept_bytes = 0

    def read(self, line: bytes, gate: Gate) -> object:
        """The values of a line.

        Raises:
            ValueError: if it is no JSON.
            InputError: of the gate's kind, if it holds NaN or infinity.
        """
        start, end = line.find(_BEGIN) + len(_DISTRIBUTIONS), line.rfind(_END) + 2
        first = end + 1 + len(_PARAMS)
        stop = line.find(b"}", first) + 1
        if len(_DISTRIBUTIONS) <= start < end < stop and (shared := self._shared(line[start:end], gate)):
            # What is cut out is a JSON value by itself, so whatever stands around it keeps its meaning.
            rest = b"".join((line[:start], b"null", line[end:first], b"null", line[stop:]))
            chosen = shared.chosen(line[first:stop])
            if chosen is not None and rest.count(_DISTRIBUTIONS) == rest.count(_PARAMS) == 1:
                record = _plain_json(rest, gate)
                if isinstance(record, dict) and record.get("distributions", False) is None:
                    record["distributions"], record["params"] = shared, chosen
                    return record
        return _plain_json(line, gate)

    def _shared(self, text: bytes, gate: Gate) -> _Shared | None:
        if text in self._by_text:
            return self._by_text[text]
        if self._kept_bytes + len(text) > _MOST_KEPT_BYTES:
            return None
        self._kept_bytes += len(text)
        try:
            texts = _plain_json(text, gate)
            found = _Shared(texts) if isinstance(texts, dict) else None
        except _DAMAGED:
            found = None  # the whole line may still be something, or says what is wrong
        self._by_text[text] = found
        return found


def _check_distributions(gate: Gate, texts: Iterable[object]) -> None:
    for text in texts:
        if type(text) is not str or len(text) > MEGABYTE:
            gate.fail("has a distribution that is no text")
        with gate.reading():
            _distribution(text)


def _check(gate: Gate, record: object) -> dict[str, object]:
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
        if not isinstance(distributions, _Shared):  # all but always it is
            if not params.keys() <= distributions.keys():
                gate.fail("has a parameter without distribution")
            for value in params.values():
                gate.number("a parameter", value)
            _check_distributions(gate, distributions.values())
    if record["op_code"] in (4, 6):
        for value in record.get("values") or []:
            gate.number("a value", value)
    if record["op_code"] == 5:
        _check_distributions(gate, [record["distribution"]])
    return record


def _is(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
