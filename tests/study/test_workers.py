import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas.accuracy.imagenet import shipped_predictor
from nas.accuracy.source import Accuracy, AccuracyError
from nas.study.workers import Workers
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.references import reference

NETWORKS = [reference("mobilenet_v2", resolution) for resolution in (32, 64, 96, 128)]


class Resolution:
    """The resolution as accuracy, and which process told it as deviation, once all processes are there."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes

    def accuracy(self, architecture: Architecture) -> Accuracy:
        if architecture.resolution == 128:
            raise AccuracyError("too large")
        (self.folder / str(os.getpid())).touch()
        until = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < self.processes and time.monotonic() < until:
            time.sleep(0.05)
        return Accuracy(float(architecture.resolution), "measured", float(os.getpid()))


class KillsItself:
    """Kills its process as long as ``limit`` times."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def accuracy(self, architecture: Architecture) -> Accuracy:
        died = len(list(self.folder.iterdir()))
        if died < self.limit:
            (self.folder / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Accuracy(50.0, "measured")


def answers(workers: Workers[int], networks: list[Architecture]) -> dict[int, Accuracy | AccuracyError]:
    found: dict[int, Accuracy | AccuracyError] = {}
    for number, network in enumerate(networks):
        workers.submit(number, network)
    while workers.in_flight:
        found |= workers.wait()
    return found


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_answers_come_back_with_their_keys(count: int, tmp_path: Path) -> None:
    with Workers[int](Resolution(tmp_path, count), count) as workers:
        found = answers(workers, NETWORKS)
    assert [found[number].top1 for number in range(3)] == [32, 64, 96]  # type: ignore[union-attr]
    assert isinstance(found[3], AccuracyError)
    processes = {answer.deviation for answer in found.values() if isinstance(answer, Accuracy)}
    assert len(processes) == count
    assert (os.getpid() in processes) == (count == 1)


@pytest.mark.slow
def test_the_work_of_a_killed_worker_is_done_again(tmp_path: Path) -> None:
    with Workers[int](KillsItself(tmp_path, limit=1), 2) as workers:
        found = answers(workers, NETWORKS[:1])
    assert found == {0: Accuracy(50.0, "measured")}


class Sleeps:
    """Says that it is there, and takes for ever."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def accuracy(self, architecture: Architecture) -> Accuracy:
        (self.folder / str(os.getpid())).touch()
        time.sleep(1000)
        raise AssertionError


def _search_of_sleepers(folder: Path) -> None:
    with Workers[int](Sleeps(folder), 2) as workers:
        answers(workers, NETWORKS[:2])


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(by: signal.Signals, tmp_path: Path) -> None:
    code = "import sys, pathlib; from tests.study.test_workers import _search_of_sleepers as search; "
    started = subprocess.Popen(
        [sys.executable, "-c", code + "search(pathlib.Path(sys.argv[1]))", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while len(sleepers := list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(sleepers) == 2
    started.send_signal(by)
    said = started.communicate(timeout=60)[1]
    assert said.count("Traceback") == (by == signal.SIGINT), said  # of this function, not of the workers
    while any(Path(f"/proc/{each.name}").exists() for each in sleepers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [each.name for each in sleepers if Path(f"/proc/{each.name}").exists()]


@pytest.mark.slow
def test_a_network_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    with Workers[int](KillsItself(tmp_path, limit=99), 2) as workers:
        found = answers(workers, NETWORKS[:1])
    assert "killed the worker process" in str(found[0])


def test_no_worker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"search\.workers must be at least 1, not 0"):
        Workers[int](Resolution(tmp_path, 1), 0)


@pytest.mark.slow
def test_the_predictor_tells_the_same_in_workers_as_here() -> None:
    predictor = shipped_predictor()
    networks = [reference("mobilenet_v3_large"), reference("mobilenet_v2", 192)]
    with Workers[int](predictor, 2) as workers:
        found = answers(workers, networks)
    assert [found[number] for number in range(2)] == [predictor.accuracies([each])[0] for each in networks]


class Unpicklable:
    def __init__(self) -> None:
        self.tell = lambda architecture: Accuracy(50.0, "measured")

    def accuracy(self, architecture: Architecture) -> Accuracy:
        return self.tell(architecture)


def test_a_source_that_cannot_be_copied_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"use search\.workers=1"), Workers[int](Unpicklable(), 2) as workers:
        answers(workers, NETWORKS[:1])
