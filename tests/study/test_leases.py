"""Many workers on one study, on a PostgreSQL server of our own."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from nas.study.leases import SharedLedger
from nas.study.loop import run_search
from nas.study.objective import Pareto
from nas.study.storage import open_storage, open_study
from tests.study.search_cases import MadeUpAccuracy, MadeUpLatency, small_space

BINARIES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
WORKER = """
import os, sys, time
from pathlib import Path
import optuna
from nas.study.objective import Pareto
from nas.study.storage import open_storage, open_study
from nas.study.loop import run_search
from search_spaces.references import reference
from tests.study.search_cases import MadeUpAccuracy, MadeUpLatency, small_space

optuna.logging.disable_default_handler()
url, log, trials, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])

class Logged(MadeUpAccuracy):
    def accuracy(self, architecture):
        with log.open("a") as file:
            file.write(architecture.id + "\\n")
        time.sleep(seconds)
        return super().accuracy(architecture)

storage = open_storage(url)
study = open_study(storage, "s", Pareto(), small_space(), {})
run_search(study, small_space(), Pareto(), Logged(), MadeUpLatency(),
           {"mobilenet_v1": reference("mobilenet_v1", 32, 10)}, trials=trials, shared=storage, lease_s=2.0)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a database on a server that runs as long as the tests of this file."""
    pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    binaries = next((each for each in BINARIES if (each / "initdb").exists()), None)
    found = shutil.which("initdb")
    if binaries is None and found is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    binaries = binaries or Path(str(found)).parent
    user: str | None = None
    # Not below pytest's own folders, which only their owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="postgres"))
    if os.geteuid() == 0:
        # The server refuses to run as root.
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, timeout=60)

    run(str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "nas", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    control = [str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    run(*control, "-o", options, "start")
    yield f"postgresql://nas@127.0.0.1:{port}/postgres"
    run(*control, "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture
def url(server: str) -> Iterator[str]:
    yield server
    storage = open_storage(server)
    for study in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=study, storage=storage)


def start(url: str, log: Path, trials: int, seconds: float = 0.0) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", WORKER, url, str(log), str(trials), str(seconds)]
    return subprocess.Popen(arguments)


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
@pytest.mark.parametrize(("count", "trials"), [(3, 60), (8, 100)])
def test_many_workers_lose_no_trial_and_repeat_none(
    url: str, tmp_path: Path, count: int, trials: int
) -> None:
    log = tmp_path / "asked"
    workers = [start(url, log, trials) for _ in range(count)]
    assert [worker.wait(timeout=250) for worker in workers] == [0] * count
    asked = check(url, log, trials)
    assert set(asked.values()) == {1}
    assert len(asked) == trials + 1


def test_the_trial_of_a_killed_worker_is_taken_over(url: str, tmp_path: Path) -> None:
    log = tmp_path / "asked"
    victim = start(url, log, trials=4, seconds=100.0)
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
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
    study = open_study(storage, "s", Pareto(), small_space(), {})
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


def test_workers_of_one_machine_share_a_database_too(url: str) -> None:
    storage = open_storage(url)
    study = open_study(storage, "s", Pareto(), small_space(), {})
    result = run_search(
        study,
        small_space(),
        Pareto(),
        MadeUpAccuracy(),
        MadeUpLatency(),
        {},
        trials=8,
        workers=2,
        shared=storage,
    )
    assert result.evaluated == result.progress.done == 8
