"""Records of a study file are what JSON says, however their text is looked at."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nas.page.reading import read_study
from nas.study.journal import records
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from tools.reader_cases import whole_study

_TEXT = '{"name": "CategoricalDistribution", "attributes": {"choices": [1, 2]}}'
_TRIAL = {
    "op_code": 4,
    "worker_id": "w",
    "study_id": 0,
    "datetime_start": None,
    "distributions": {"a": _TEXT, "b": _TEXT},
    "params": {"a": 1, "b": 0},
    "user_attrs": {"x": [1, 2.5, None, True]},
}


def _line(record: object) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _read(*lines: bytes) -> list[object]:
    return [_as_written(record) for record in records(Gate("f"), lines)]


def _as_written(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the numbers of choices, which those that share their distributions have exchanged."""
    made = getattr(record.get("distributions"), "made", None)
    if made is None:
        return record
    return record | {"params": {name: made[name].to_internal_repr(v) for name, v in record["params"].items()}}


_INSIDE = {**_TRIAL, "user_attrs": {"distributions": {"a": '"}'}, "params": {"distributions": {}}}}
_WHOLE = _line(_TRIAL)
# Of two fields of one name the last counts.
_AGAIN = b'"distributions":{"a":' + json.dumps(_TEXT).encode() + b"}," + b'"user_attrs"'
_TWICE = _WHOLE.replace(b'"user_attrs"', _AGAIN).replace(b',"b":0', b"")
_OTHER = {"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": _INSIDE["user_attrs"], "params": {}}


@pytest.mark.parametrize(
    "line",
    [
        _WHOLE,
        _line({**_TRIAL, "distributions": {}, "params": {}}),
        _line({name: _TRIAL[name] for name in reversed(_TRIAL)}),
        _line(_INSIDE),
        _line({name: _INSIDE[name] for name in reversed(_INSIDE)}),
        json.dumps(_TRIAL).encode(),
        _TWICE,
        _line(_OTHER),
    ],
)
def test_a_record_is_what_json_says(line: bytes) -> None:
    assert hasattr(next(records(Gate("f"), [_WHOLE]))["distributions"], "made")
    assert _read(line, line, _WHOLE, line) == [json.loads(each) for each in (line, line, _WHOLE, line)]


@pytest.mark.parametrize(
    "damaged",
    [
        _WHOLE.replace(b'"params":{"a":1', b'"params":{"a":NaN'),
        _WHOLE.replace(b'"params":{"a":1', b'"params":{"c":1'),
        _WHOLE.replace(b'"params":{"a":1', b'"params":{"a":1e999'),
        _WHOLE.replace(b'"params":{"a":1', b'"params":{"a":true'),
        _WHOLE.replace(b"Categorical", b"Other"),
        _WHOLE.replace(b'"distributions":{', b'"distributions":{"c":7,'),
        _WHOLE.replace(b'"},"params"', b'"},,"params"'),
        _WHOLE.replace(b'"distributions":{', b'"distributions":{"c":NaN,'),
        _WHOLE[:-3],
    ],
)
def test_a_damaged_record_is_refused_with_its_line(damaged: bytes) -> None:
    assert damaged != _WHOLE
    with pytest.raises(InputError, match="is damaged in line 3"):
        _read(_WHOLE, _WHOLE, damaged)


def test_trials_are_those_that_plain_optuna_reads(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(whole_study(tmp_path))
    ours = read_study(tmp_path)
    plain = optuna.load_study(
        study_name=ours.study_name, storage=JournalStorage(JournalFileBackend(str(path)))
    )
    assert len(ours.trials) == 5
    assert ours.trials == plain.trials
    assert ours.user_attrs == plain.user_attrs
    # Trials with the same distributions share them, and names.
    first, second = ours.get_trials(deepcopy=False)[:2]
    assert first.distributions is second.distributions
    assert all(one is other for one, other in zip(first.params, second.params, strict=True))
