import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nas.latency.table import Entry, LatencyTable, TableHeader
from nas.study.database import StorageError
from nas.study.objective import budget, pareto
from nas.study.provenance import Provenance
from nas.study.storage import (
    StudyMismatchError,
    StudySetting,
    close_storage,
    open_storage,
    open_study,
    refresh_study,
    table_of,
)
from search_spaces.layers import layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tests.cases import SMALL, small_space


def trial(number: int) -> optuna.trial.FrozenTrial:
    return optuna.create_trial(values=[float(number), 1.0], user_attrs={"number": number})


def test_a_study_survives_closing_and_plain_optuna_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "study.journal"
    storage = open_storage(str(path))
    study = open_study(
        storage, "s", StudySetting(pareto(), small_space(), {"seed": 1}), Provenance(created="today")
    )
    study.add_trial(trial(0))
    plain = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    assert plain.trials == study.trials
    assert plain.metric_names == ["top1", "latency_ms"]
    assert SearchSpace.from_dict(plain.user_attrs["space"]) == small_space()
    plain.set_user_attr("note", "written by another program while the study is open")
    study.add_trial(trial(1))
    close_storage(storage)

    again = open_study(open_storage(str(path)), "s", StudySetting(pareto(), small_space(), {"seed": 1}))
    assert [each.user_attrs["number"] for each in again.trials] == [0, 1]
    assert again.user_attrs["note"].startswith("written")
    assert again.user_attrs["provenance"]["created"] == "today"


@pytest.mark.parametrize("torn", [b"{", b'{"op_code":4,"worker_id":"x"'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "study.journal"
    for number in range(2):
        storage = open_storage(str(path))
        open_study(storage, "s", StudySetting(pareto(), small_space())).add_trial(trial(number))
        close_storage(storage)
        with path.open("ab") as file:
            file.write(torn)
    study = open_study(open_storage(str(path)), "s", StudySetting(pareto(), small_space()))
    assert [each.user_attrs["number"] for each in study.trials] == [0, 1]


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    code = f"""
import itertools, optuna
from nas.study.storage import *
from nas.study.objective import pareto
from tests.cases import small_space
optuna.logging.disable_default_handler()
study = open_study(open_storage({str(path)!r}), "s", StudySetting(pareto(), small_space()))
for number in itertools.count():
    study.add_trial(optuna.create_trial(values=[number, 1.0], user_attrs={{"number": number}}))
    print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(30):
        reported = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    study = open_study(open_storage(str(path)), "s", StudySetting(pareto(), small_space()))
    numbers = [each.user_attrs["number"] for each in study.trials]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > reported


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "study.journal")
    storage = open_storage(path)
    with pytest.raises(StorageError, match="in use by this process"):
        open_storage(path)
    close_storage(storage)
    open_storage(path)


def test_files_that_are_no_studies_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a study")
    with pytest.raises(StorageError, match="is not a study file"):
        open_storage(str(path))
    assert path.read_text() == "not a study"
    with pytest.raises(StorageError, match=r"notes\.txt.*(Not a directory|File exists)"):
        open_storage(str(path / "study.journal"))
    damaged = tmp_path / "damaged.journal"
    damaged.write_text('{"op_code":99\n{}\n')
    with pytest.raises(StorageError, match="damaged in line 1"):
        open_storage(str(damaged))
    os.truncate(damaged, 100_000_000)
    with pytest.raises(StorageError, match="it is too large, or its last line is"):
        open_storage(str(damaged))
    assert damaged.stat().st_size == 100_000_000
    # Of a folder from elsewhere: neither is its torn last line cut off, nor anything made.
    path.write_text('{"mine": 1}\n{"torn')
    for name, target in (("link", path), ("link_to_nothing", tmp_path / "new")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(StorageError, match=rf"{name} is a link, through which nothing is written"):
            open_storage(str(tmp_path / name))
    assert path.read_text() == '{"mine": 1}\n{"torn'
    assert not (tmp_path / "new").exists()


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(StorageError) as caught:
        open_storage("postgresql://me:secret@localhost:1/studies", wait_s=0)
    assert "postgresql://me:***@localhost:1/studies" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changed_settings_are_refused_by_name(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "study.journal"))
    fingerprint = {"accuracy": {"epochs": 3}, "table": "abc"}
    study = open_study(storage, "s", StudySetting(pareto(), small_space(), fingerprint))
    study.add_trial(optuna.create_trial(values=[50.0, 1.0]))
    open_study(storage, "s", StudySetting(pareto(), small_space(), fingerprint))
    with pytest.raises(StudyMismatchError, match=r"accuracy\.epochs = 3, now it is 4"):
        open_study(
            storage, "s", StudySetting(pareto(), small_space(), {"accuracy": {"epochs": 4}, "table": "abc"})
        )
    with pytest.raises(StudyMismatchError, match='table = "abc", now it is nothing'):
        open_study(storage, "s", StudySetting(pareto(), small_space(), {"accuracy": {"epochs": 3}}))
    with pytest.raises(StudyMismatchError, match="directions maximize, minimize, not maximize"):
        open_study(storage, "s", StudySetting(budget(), small_space(), fingerprint))
    changed = SearchSpace.from_dict(SMALL | {"resolutions": [32, 96]})
    with pytest.raises(StudyMismatchError, match="search space: resolutions 2 = 64, now it is 96"):
        open_study(storage, "s", StudySetting(pareto(), changed, fingerprint))
    # A file holds one study: under another name its folder was renamed.
    with pytest.raises(
        StudyMismatchError, match="holds the study 's', not 'another': was its folder renamed"
    ):
        open_study(storage, "another", StudySetting(budget(), small_space(), fingerprint))


@pytest.mark.parametrize(
    ("begun", "now", "said"),
    [
        ({"latency table": {"content": "1c73"}}, {"latency table": {"content": "10ff"}}, "latencies of its"),
        (
            {"accuracy": {"content": {"path": "1c73"}}},
            {"accuracy": {"content": {"path": "a"}}},
            "accuracy.path",
        ),
        ({"dataset": {"content": "1c73"}}, {"dataset": {"content": "10ff"}}, "the files in dataset.root"),
        (
            {"latency table": {"content": "1c73"}, "search.caution": 1.0},
            {"latency table": {"content": "10ff"}, "search.caution": 2.0},
            "search.caution = 1.0, now it is 2.0",
        ),
    ],
)
def test_a_change_is_said_in_words_not_in_digests(
    tmp_path: Path, begun: dict[str, object], now: dict[str, object], said: str
) -> None:
    storage = open_storage(str(tmp_path / "study.journal"))
    open_study(storage, "s", StudySetting(pareto(), small_space(), begun)).add_trial(
        optuna.create_trial(values=[50.0, 1.0])
    )
    with pytest.raises(StudyMismatchError, match=said) as refused:
        open_study(storage, "s", StudySetting(pareto(), small_space(), now))
    assert "1c73" not in str(refused.value)
    # What follows from another space is not what somebody changed.
    with pytest.raises(StudyMismatchError, match=r"search space: "):
        open_study(storage, "s", StudySetting(pareto(), replace(small_space(), resolutions=(64,)), now))
    close_storage(storage)


def test_a_study_without_a_complete_trial_binds_nobody(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "study.journal"))
    mistyped = open_study(storage, "s", StudySetting(pareto(), small_space(), {"epochs": 0}))
    mistyped.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    study = open_study(storage, "s", StudySetting(pareto(), small_space(), {"epochs": 3}))
    assert study.user_attrs["fingerprint"]["epochs"] == 3
    assert not study.trials
    study.add_trial(optuna.create_trial(values=[50.0, 1.0]))
    with pytest.raises(StudyMismatchError, match="epochs = 3, now it is 4"):
        open_study(storage, "s", StudySetting(pareto(), small_space(), {"epochs": 4}))


def test_a_study_carries_its_layers(tmp_path: Path) -> None:
    key = layer_keys(reference("mobilenet_v2"))[0]
    header = TableHeader("host", "cpu", "onnxruntime", "1", "fp32", 1, "2026-01-01T00:00:00+00:00")
    table = LatencyTable(header, {key: Entry(1.5, 0.1, 40, "measured")})
    storage = open_storage(str(tmp_path / "study.journal"))
    assert table_of(storage, "s") is None
    begun = {"latency table": {"device": "cpu", "content": "abc"}}
    study = open_study(storage, "s", StudySetting(pareto(), small_space(), begun, table=table))
    study.add_trial(optuna.create_trial(values=[50.0, 1.0]))
    grown = table.with_entries({key: Entry(2.5, 0.1, 40, "measured")})
    now = {"latency table": {"device": "cpu", "content": "def"}}
    open_study(storage, "s", StudySetting(pareto(), small_space(), now, table=grown))
    carried = table_of(storage, "s")
    assert carried is not None
    assert carried.entries == table.entries
    assert carried.header == header
    other = {"latency table": {"device": "another cpu", "content": "abc"}}
    with pytest.raises(StudyMismatchError, match='device = "cpu", now it is "another cpu"'):
        open_study(storage, "s", StudySetting(pareto(), small_space(), other, table=table))
    refresh_study(study, StudySetting(pareto(), small_space(), now, grown), Provenance())
    assert table_of(storage, "s").entries == grown.entries  # type: ignore[union-attr]


def test_a_study_that_was_never_begun_leaves_no_file(tmp_path: Path) -> None:
    close_storage(open_storage(str(tmp_path / "study.journal")))
    assert not (tmp_path / "study.journal").exists()
    storage = open_storage(str(tmp_path / "study.journal"))
    open_study(storage, "s", StudySetting(pareto(), small_space()))
    close_storage(storage)
    assert (tmp_path / "study.journal").exists()


def test_a_full_disk_is_said_and_leaves_whole_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.journal"
    storage = open_storage(str(path))
    study = open_study(storage, "s", StudySetting(pareto(), small_space()))
    study.add_trial(optuna.create_trial(values=[50.0, 1.0]))
    before = path.read_bytes()
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 20:
            return write(descriptor, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nas.study.storage.os.write", full)
        with pytest.raises(StorageError, match="No space left on device"):
            study.add_trial(optuna.create_trial(values=[60.0, 1.0], user_attrs={"long": "x" * 100}))
    assert path.read_bytes() == before
    close_storage(storage)
    study = open_study(open_storage(str(path)), "s", StudySetting(pareto(), small_space()))
    study.add_trial(optuna.create_trial(values=[60.0, 1.0]))
    assert len(study.trials) == 2


def test_ctrl_c_while_a_study_is_opened_gives_its_lock_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "study.journal"
    for place in ("nas.study.storage.JournalFile._drop_torn_line", "nas.study.storage.storage_of"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                open_storage(str(path))
        assert not list(tmp_path.glob(".*lock"))
        close_storage(open_storage(str(path)))
