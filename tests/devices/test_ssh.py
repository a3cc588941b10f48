"""Boards over SSH, against a real server on loopback with throw-away keys."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nas.devices import ssh
from nas.devices.kit import KitSettings, write_kit
from nas.devices.ssh import Board, RemoteError, SshTarget
from nas.latency.sessions import network_records
from nas.measuring.progress import ProfileProgress
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import Subject
from search_spaces.layers import layer_keys
from search_spaces.references import reference
from search_spaces.tasks import Task, TaskNetwork
from tests.devices.ssh_server import SSHD, Server, ssh_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None, reason="needs an SSH server (apt install openssh-server)"),
    pytest.mark.usefixtures("unsteady_machine"),
]

NETWORK = reference("mobilenet_v3_small", 64, 10)
SUBJECTS: list[Subject] = [*dict.fromkeys(layer_keys(NETWORK)[:6]), NETWORK]
SETTINGS = KitSettings("rpi4", Runtime(), rounds=3)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ssh_server(tmp_path_factory.mktemp("sshd")) as opened:
        yield opened


@pytest.fixture
def server(session: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, with the user's ssh reading the test's configuration instead of ``~/.ssh``."""
    program = shutil.which("ssh")
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {program} -F {session.config} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(ssh, "RECONNECT_WAITS_S", (0.1, 0.2, 0.5))
    # All boards are homes on this machine: each counts as a machine of its own.
    monkeypatch.setattr(ssh, "_PROBE", "import os\n" + ssh._PROBE.replace("boot_id()", 'os.environ["HOME"]'))
    shutil.rmtree(session.folder / "homes", ignore_errors=True)
    return session


def test_a_board_is_measured_and_left_as_it_was(server: Server, tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    target = SshTarget((server.board("board-a"),), replace(SETTINGS, affinity=(core,)))
    rounds: list[tuple[int, int]] = []
    journal = tmp_path / "journal.jsonl"
    progress = ProfileProgress(measured=lambda *done: rounds.append(done))
    measured = target.measure(SUBJECTS, 3, journal, progress)
    assert measured.subjects == tuple(SUBJECTS)
    assert measured.samples_ms.shape == (3, len(SUBJECTS))
    assert rounds == [(1, 3), (2, 3), (3, 3)]
    assert measured.record["cpu"] == target.identity()[0]
    assert measured.record["affinity"] == [core]
    assert journal.read_text().count("samples_ms") == 3
    assert server.left_over("board-a") == []


@pytest.mark.parametrize("name", ["segmentation", "detection"])
def test_a_board_times_whole_models(server: Server, tmp_path: Path, name: str) -> None:
    target = SshTarget((server.board("board-a"),), SETTINGS)
    subjects = [*SUBJECTS, TaskNetwork(NETWORK, Task(name, 5))]
    measured = target.measure(subjects, 3, tmp_path / "journal.jsonl")
    assert measured.subjects == tuple(subjects)
    (whole,) = network_records(measured, Task(name, 5))
    (alone,) = network_records(measured)
    assert whole.architecture == alone.architecture == NETWORK
    assert whole.latency_ms != alone.latency_ms


def test_a_dropped_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    lines: list[str] = []

    def on_round(done: int, wanted: int) -> None:
        if done == 5 and not any("lost" in line for line in lines):
            server.drop_connections()

    target = SshTarget((server.board("board-a"),), SETTINGS, on_line=lambda host, line: lines.append(line))
    measured = target.measure(SUBJECTS, 15, tmp_path / "journal.jsonl", ProfileProgress(measured=on_round))
    assert len(measured.samples_ms) == 15
    assert measured.record["discarded_rounds"] == 0
    assert any("connection lost" in line for line in lines)
    assert any("going on after" in line for line in lines)


def test_a_board_that_stays_away_keeps_what_it_measured(server: Server, tmp_path: Path) -> None:
    kit = tmp_path / "kit.zip"
    write_kit(kit, replace(SETTINGS, rounds=15), [SUBJECTS])
    board = server.board("board-a")

    def drop(line: str) -> None:
        if " of 15 rounds" in line:
            server.drop_connections()

    with pytest.raises(RemoteError, match=r"board-a: the connection was lost.*kept on the board"):
        board.measure(kit, drop, waits_s=())
    (folder,) = server.left_over("board-a")
    kept = (folder / "kit-rounds" / "group-0000.jsonl").read_text().count("samples_ms")
    assert kept >= 1
    time.sleep(2.1)  # zip files date their entries to two seconds: the same kit, made again later
    before = kit.read_bytes()
    write_kit(kit, replace(SETTINGS, rounds=15), [SUBJECTS])
    assert kit.read_bytes() != before
    lines: list[str] = []
    assert board.measure(kit, lines.append).count("samples_ms") == 15
    assert any("going on after" in line for line in lines)
    board.clean_up(kit)
    assert server.left_over("board-a") == []


def test_an_interrupted_measurement_ends_at_once_and_is_kept(server: Server, tmp_path: Path) -> None:
    lines: list[str] = []

    def interrupt(host: str, line: str) -> None:
        lines.append(line)
        if "going on" not in line:
            os.kill(os.getpid(), signal.SIGINT)

    target = SshTarget((server.board("board-a"),), SETTINGS, on_line=interrupt)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        target.measure(SUBJECTS, 100_000, tmp_path / "journal.jsonl")
    assert time.monotonic() - begun < 60
    assert not any("trying again" in line for line in lines)


def test_two_boards_share_the_layers(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "COMMON_SUBJECTS", 3)
    target = SshTarget((server.board("board-a"), server.board("board-b")), SETTINGS, tolerance=1e9)
    measured = target.measure(SUBJECTS, 3, tmp_path / "journal.jsonl")
    assert measured.subjects == tuple(SUBJECTS)
    assert measured.samples_ms.shape == (3, len(SUBJECTS))
    assert (measured.samples_ms > 0).all()
    boards = measured.record["boards"]
    assert isinstance(boards, list)
    counts = [record["subjects"] for record in boards]
    assert sum(counts) == len(SUBJECTS) + 3
    assert abs(counts[0] - counts[1]) <= 1
    assert server.left_over("board-a") == server.left_over("board-b") == []


def test_one_machine_under_two_names_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_PROBE", ssh._PROBE.replace('os.environ["HOME"]', "boot_id()"))
    target = SshTarget((server.board("board-a"), server.board("board-b")), SETTINGS)
    with pytest.raises(RemoteError, match="board-a and board-b are one machine"):
        target.identity()


@pytest.mark.parametrize(
    ("name", "advice"), [("ILL", "does not suit its processor"), ("KILL", "out of memory")]
)
def test_a_killed_python_is_no_lost_connection(
    server: Server, tmp_path: Path, name: str, advice: str
) -> None:
    python = tmp_path / "python"
    # It answers the probe, and dies as soon as it measures.
    python.write_text(f'#!/bin/sh\n[ "$1" = - ] && exec {sys.executable} -\nkill -{name} $$\n')
    python.chmod(0o755)
    target = SshTarget((Board("board-a", str(python)),), SETTINGS)
    with pytest.raises(RemoteError, match=f"killed by SIG{name}: .*{advice}"):
        target.measure(SUBJECTS, 3, tmp_path / "journal.jsonl")


def test_boards_that_disagree_are_refused(server: Server, tmp_path: Path) -> None:
    target = SshTarget((server.board("board-a"), server.board("board-b")), SETTINGS, tolerance=0.0)
    with pytest.raises(RemoteError, match=r"board-b is [+-]\d+\.\d% off board-a on the \d+ layers"):
        target.measure(SUBJECTS, 3, tmp_path / "journal.jsonl")


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("nowhere", "nowhere: there is no host of this name"),
        ("switched-off", "switched-off: it cannot be reached: is it switched on"),
        ("unknown-key", "unknown-key: it does not accept your key: run `ssh-copy-id unknown-key`"),
        ("changed-host", "changed-host: its host key is unknown or has changed: run `ssh changed-host`"),
        ("-oProxyCommand=true", "names no host"),
        ("pi@-oProxyCommand=true", "names no host"),
    ],
)
def test_a_board_that_cannot_be_used_is_one_clear_line(
    server: Server, tmp_path: Path, host: str, message: str
) -> None:
    target = SshTarget((Board(host, sys.executable),), SETTINGS)
    with pytest.raises(RemoteError, match=message) as caught:
        target.measure(SUBJECTS, 3, tmp_path / "journal.jsonl")
    assert "\n" not in str(caught.value)


def test_a_board_without_python_or_packages_is_told_what_to_install(server: Server, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="has no /nowhere/python: install Python there"):
        Board("board-a", "/nowhere/python").describe()
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    line = "has no numpy and no onnxruntime; install there with: .*python -m pip install numpy onnxruntime"
    with pytest.raises(RemoteError, match=line):
        Board("board-a", f"{bare}/bin/python").describe()


def test_a_python_in_the_home_folder_is_found_there(server: Server) -> None:
    python = server.home("board-a") / "my venv" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    with pytest.raises(RemoteError, match=r"has no .*onnxruntime") as caught:
        Board("board-a", "~/my venv/python").describe()  # the venv's own packages are not there
    assert "~/my venv/python -m pip install" in str(caught.value)


def test_a_full_disk_is_one_clear_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = tmp_path / "kit.zip"
    write_kit(kit, SETTINGS, [SUBJECTS])
    monkeypatch.setattr(Board, "run", _with_full_disk(Board.run))
    with pytest.raises(RemoteError, match="board-a: its disk is full; free some space"):
        server.board("board-a").measure(kit, print)


def _with_full_disk(run: Callable[..., bytes]) -> Callable[..., bytes]:
    def full(self: Board, command: str, stdin: bytes = b"") -> bytes:
        return run(self, command.replace(".part &&", ".part && cat /dev/zero > /dev/full &&"), stdin)

    return full


def test_different_boards_cannot_share(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    boards = (server.board("board-a"), server.board("board-b"))
    found = boards[0].describe()
    others = {"board-a": found, "board-b": {**found, "cpu": "Raspberry Pi 5", "boot": "b"}}
    monkeypatch.setattr(Board, "describe", lambda board: others[board.host])
    with pytest.raises(RemoteError, match=r"the boards differ .*Raspberry Pi 5"):
        SshTarget(boards, SETTINGS).identity()


def test_host_checking_is_never_switched_off() -> None:
    source = Path(ssh.__file__).read_text()
    assert "StrictHostKeyChecking" not in source
    assert "UserKnownHostsFile" not in source
