"""Many workers on one study, on a PostgreSQL server of our own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import psycopg
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import nas.study.storage
from nas.latency.table import Entry, LatencyTable, TableHeader
from nas.study.leases import SharedLedger
from nas.study.loop import Execution, Sampling, Stop, run_search
from nas.study.objective import pareto
from nas.study.problem import Problem
from nas.study.storage import StudyMismatchError, StudySetting, open_storage, open_study, table_of
from search_spaces.layers import layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tests.cases import MadeUpAccuracy, MadeUpLatency, small_space
from tools.postgres import PostgresServer, PostgresUnavailableError

WORKER = """
import os, sys, time
from pathlib import Path
import optuna
from nas.study.objective import pareto
from nas.study.storage import StudySetting, open_storage, open_study
from nas.study.loop import Execution, Sampling, Stop, run_search
from nas.study.problem import Problem
from search_spaces.references import reference
from tests.cases import MadeUpAccuracy, MadeUpLatency, small_space

optuna.logging.disable_default_handler()
url, log, trials, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])

class Logged(MadeUpAccuracy):
    def accuracy(self, architecture):
        with log.open("a") as file:
            file.write(architecture.id + "\\n")
        time.sleep(seconds)
        return super().accuracy(architecture)

storage = open_storage(url)
study = open_study(storage, "s", StudySetting(pareto(), small_space()))
references = {"mobilenet_v1": reference("mobilenet_v1", 32, 10)}
problem = Problem(small_space(), pareto(), Logged(), MadeUpLatency(), references)
run_search(study, problem, Sampling(), Stop(trials), Execution(shared=storage, lease_s=2.0))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that runs as long as the tests of this file."""
    try:
        stopped = PostgresServer()
    except PostgresUnavailableError as error:
        pytest.skip(str(error))
    with stopped as running:
        yield running


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    yield server.url
    storage = open_storage(server.url)
    for study in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=study, storage=storage)


def start(
    url: str, log: Path, trials: int, seconds: float = 0.0, said: int | None = None
) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", WORKER, url, str(log), str(trials), str(seconds)]
    return subprocess.Popen(arguments, stderr=said)


def asked_of(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check(url: str, log: Path, trials: int) -> Counter[str]:
    """The study has exactly so many complete candidates, each network once, and the reference."""
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    complete = study.get_trials(states=[TrialState.COMPLETE])
    kinds = Counter(trial.user_attrs["kind"] for trial in complete)
    assert kinds == {"candidate": trials, "reference": 1}
    assert len({trial.user_attrs["architecture"] for trial in complete}) == trials + 1
    assert all(set(trial.user_attrs) >= {"top1", "latency_ms", "accuracy_source"} for trial in complete)
    asked = Counter(log.read_text().split())
    assert {trial.user_attrs["architecture"] for trial in complete} <= set(asked)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize(("count", "trials"), [(3, 60), pytest.param(8, 100, marks=pytest.mark.minute)])
def test_many_workers_lose_no_trial_and_repeat_none(
    url: str, tmp_path: Path, count: int, trials: int
) -> None:
    log = tmp_path / "asked"
    workers = [start(url, log, trials) for _ in range(count)]
    assert [worker.wait(timeout=250) for worker in workers] == [0] * count
    asked = check(url, log, trials)
    assert set(asked.values()) == {1}
    assert len(asked) == trials + 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param("fast", marks=pytest.mark.minute), "immediate"])
def test_a_server_that_is_stopped_and_started_twice_is_waited_for(
    server: PostgresServer, url: str, tmp_path: Path, mode: str
) -> None:
    trials = 120
    logs = [tmp_path / f"asked {number}" for number in range(4)]
    said = [tmp_path / f"said {number}" for number in range(4)]
    workers = []
    for log, words in zip(logs, said, strict=True):
        with words.open("w") as file:
            workers.append(start(url, log, trials, 0.4, said=file.fileno()))
    for times in (1, 2):
        for log in logs:
            wait_for(lambda log=log, least=2 * times: asked_of(log) >= least)
        server.stop(mode)
        for words in said:
            wait_for(lambda words=words, least=2 * times - 1: len(words.read_text().splitlines()) >= least)
        time.sleep(3.0)  # the lease is 2 s
        server.start()
    assert [worker.wait(timeout=200) for worker in workers] == [0] * 4
    together = tmp_path / "asked"
    together.write_text("".join(log.read_text() for log in logs))
    asked = check(url, together, trials)
    assert set(asked.values()) == {1}
    assert len(asked) == trials + 1
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    assert not [trial for trial in study.get_trials() if "abandoned" in trial.user_attrs]
    assert not study.get_trials(states=[TrialState.RUNNING])
    for each in said:
        lines = each.read_text().splitlines()
        assert len(lines) == 4, lines
        assert all("does not answer" in line and "waiting for it" in line for line in lines[::2])
        assert all("answers again after" in line for line in lines[1::2])


@pytest.mark.slow
def test_a_server_that_is_away_at_the_beginning_is_waited_for(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    server.stop()
    try:
        worker = start(url, tmp_path / "asked", 3)
        time.sleep(6)
        assert worker.poll() is None
    finally:
        server.start()
    assert worker.wait(timeout=100) == 0
    check(url, tmp_path / "asked", 3)


@pytest.mark.slow
@pytest.mark.minute
def test_commands_on_two_machines_share_a_study_and_its_latencies(url: str, tmp_path: Path) -> None:
    def command(name: str, folder: str, *settings: str) -> subprocess.Popen[bytes]:
        (tmp_path / folder).mkdir(exist_ok=True)
        arguments = [sys.executable, "-m", name, *settings]
        return subprocess.Popen(arguments, cwd=tmp_path / folder)

    settings = ["hardware=rpi4", f"study.storage={url}", "study.name=s", "search.screen=500"]
    assert command("nas.search", "first", *settings, "search.trials=20").wait(timeout=200) == 0
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    begun = {name: study.user_attrs[name] for name in ("fingerprint", "space", "latency_table")}
    both = [command("nas.search", each, *settings, "search.trials=60") for each in ("first", "second")]
    assert [each.wait(timeout=200) for each in both] == [0, 0]
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    assert {name: study.user_attrs[name] for name in begun} == begun
    complete = study.get_trials(states=[TrialState.COMPLETE])
    assert Counter(each.user_attrs["kind"] for each in complete)["candidate"] == 60
    assert len({each.user_attrs["architecture"] for each in complete}) == len(complete)
    assert command("nas.report", "third", "results/s", f"storage={url}").wait(timeout=100) == 0
    assert (tmp_path / "third" / "results" / "s" / "report.html").exists()


def test_what_was_done_before_the_connection_broke_is_not_done_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: the database has committed, and the answer is lost."""
    said: list[str] = []
    storage = open_storage(url, say=said.append)
    study = open_study(storage, "s", StudySetting(pareto(), small_space()))
    ledger = SharedLedger(study, storage)
    commit = Session.commit
    lost: list[None] = []

    def cut_off(self: Session) -> None:
        commit(self)
        if not lost:
            lost.append(None)
            raise OperationalError("COMMIT", {}, psycopg.errors.AdminShutdown("terminating connection"))

    monkeypatch.setattr(Session, "commit", cut_off)
    attributes = {"architecture": "a", "kind": "candidate", "name": None}
    claim = ledger.claim(optuna.create_trial(state=TrialState.RUNNING, user_attrs=attributes), total=1)
    assert claim is not None
    lost.clear()
    storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.COMPLETE, [1.0, 2.0])
    assert len(lost) == 1
    assert [(each.state, each.values) for each in study.trials] == [(TrialState.COMPLETE, [1.0, 2.0])]
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.FAIL)
    ledger.close()


def test_processes_that_begin_a_study_together_agree_on_its_latencies(url: str) -> None:
    key = layer_keys(reference("mobilenet_v2"))[0]
    header = TableHeader("host", "cpu", "onnxruntime", "1", "fp32", 1, "2026-01-01T00:00:00+00:00")
    ready = threading.Barrier(6)

    def begin(number: int) -> float:
        """What each has measured for itself differs."""
        table = LatencyTable(header, {key: Entry(1.0 + number, 0.1, 40, "measured")})
        storage = open_storage(url)
        ready.wait(timeout=60)
        fingerprint = {"latency table": {"device": "cpu", "content": str(number)}}
        study = open_study(
            storage, "s", StudySetting(pareto(), small_space(), fingerprint, table=table, networks="[]")
        )
        carried = table_of(storage, "s")
        assert carried is not None
        assert study.user_attrs["fingerprint"]["latency table"]["device"] == "cpu"
        return carried.entries[key].latency_ms

    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(begin, range(6)))
    assert len(found) == 1
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    assert float(study.user_attrs["fingerprint"]["latency table"]["content"]) + 1 == found.pop()


def test_a_study_whose_creator_died_is_begun_by_the_next(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nas.study.storage, "_BEGINNING_S", 1.0)
    storage = open_storage(url)
    directions = pareto().directions
    optuna.create_study(storage=storage, study_name="s", directions=directions).set_user_attr("space", {})
    study = open_study(storage, "s", StudySetting(pareto(), small_space(), {"seed": 1}))
    assert study.user_attrs["fingerprint"]["seed"] == 1
    assert SearchSpace.from_dict(study.user_attrs["space"]) == small_space()
    optuna.create_study(storage=storage, study_name="other", directions=directions).set_user_attr("mine", 1)
    with pytest.raises(StudyMismatchError, match="not made by this project"):
        open_study(storage, "other", StudySetting(pareto(), small_space()))


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_is_taken_over(url: str, tmp_path: Path) -> None:
    log = tmp_path / "asked"
    victim = start(url, log, trials=4, seconds=100.0)
    wait_for(lambda: asked_of(log) == 1)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    interrupted = log.read_text().split()
    assert len(interrupted) == 1
    assert start(url, log, trials=4).wait(timeout=120) == 0
    asked = check(url, log, trials=4)
    assert asked[interrupted[0]] == 2
    assert sum(asked.values()) == 6


def test_a_claim_is_void_where_an_earlier_one_stands(url: str) -> None:
    storage = open_storage(url)
    study = open_study(storage, "s", StudySetting(pareto(), small_space()))
    first, second = SharedLedger(study, storage), SharedLedger(study, storage)
    attributes = {"architecture": "a", "kind": "candidate", "name": None}
    other = attributes | {"architecture": "b"}

    def running(attributes: dict[str, str | None]) -> optuna.trial.FrozenTrial:
        return optuna.create_trial(state=TrialState.RUNNING, user_attrs=attributes)

    claim = first.claim(running(attributes), total=1)
    assert claim is not None
    assert second.claim(running(attributes), total=2) is None  # the same network
    assert second.claim(running(other), total=1) is None  # enough
    assert second.claim(running(other), total=2) is not None
    done = optuna.create_trial(values=[1.0, 2.0], user_attrs=attributes | {"top1": 1.0})
    assert first.finish(claim, done)
    assert second.claim(running(attributes), total=3) is None
    trial = study.trials[claim]
    assert (trial.state, trial.values, trial.user_attrs["top1"]) == (TrialState.COMPLETE, [1, 2], 1)
    first.close()
    second.close()


@pytest.mark.slow
def test_workers_of_one_machine_share_a_database_too(url: str) -> None:
    storage = open_storage(url)
    study = open_study(storage, "s", StudySetting(pareto(), small_space()))
    problem = Problem(small_space(), pareto(), MadeUpAccuracy(), MadeUpLatency())
    result = run_search(study, problem, Sampling(), Stop(8), Execution(2, storage))
    assert result.evaluated == result.progress.done == 8
