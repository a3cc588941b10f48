"""Boards reached over SSH: send the kit, run it with live progress, fetch the result, clean up.

The system's own ``ssh`` does it, with the user's configuration, keys and known hosts. Files travel
through its standard streams, so a board needs no SFTP. When the connection drops, the rounds measured
so far are on the board; it is called again and goes on there.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO

import numpy as np

from nas.devices.device import REFUSED, Measurement, subject_name
from nas.devices.kit import (
    GROUP_SUBJECTS,
    KitSettings,
    Result,
    ResultError,
    parse_result,
    slowness,
    write_kit,
)
from nas.measuring import conditions
from nas.measuring.board import MANIFEST
from nas.measuring.progress import ProfileProgress
from nas.measuring.rounds import MeasurementError, Samples
from nas.runtimes.subject import Subject
from nas.saving import write_atomically
from search_spaces.errors import shorten
from search_spaces.gate import MAX_FILE_BYTES, MEGABYTE, Gate, is_host

# A board may vanish for a while (a reboot, a flaky network) before the run is given up.
RECONNECT_WAITS_S = (1, 2, 5, 10, 30, 60, 120, 300)
COMMON_SUBJECTS = 24
_FOLDER = ".cache/mobilenet-nas"
_KILLED = "mobilenet-nas: killed by signal"
_SSH_FAILED = 255  # ssh's own exit status; others come from the remote command
_OPTIONS = {
    "BatchMode": "yes",  # no questions in the middle of a measurement
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
}
_REFUSALS = (
    (
        r"Host key verification failed|HOST IDENTIFICATION HAS CHANGED|host key is known",
        "its host key is unknown or has changed: run `ssh {host}` once, check the key and accept it",
    ),
    (
        r"Permission denied",
        "it does not accept your key: run `ssh-copy-id {host}`, or load the key with ssh-add",
    ),
    (r"Could not resolve hostname", "there is no host of this name: check hardware.host"),
    (
        r"Connection refused|timed out|No route to host|Network is unreachable",
        "it cannot be reached: is it switched on, in the network, and running an SSH server?",
    ),
)
# Of what a board says besides its answer: a line, and how much is kept of its errors.
_LONGEST_LINE = 10_000
_PIECE, _PIECES = 10_000, 10
_PROGRESS = re.compile(r"\b(\d{1,9}) of (\d{1,9}) rounds")


class RemoteError(MeasurementError):
    """A failure of a board. The message names the board and says what to do."""


class ConnectionLostError(RemoteError):
    """The connection was there and dropped, or came to nothing for a passing reason."""


@dataclass(frozen=True)
class Board:
    """One board.

    Attributes:
        host: what one would type after ``ssh``: a name, ``user@name``, or an alias of the SSH configuration.
        python: the interpreter that has numpy and the runtime; ``~/`` is the home folder there.
        runtime: what the board measures with.
    """

    host: str
    python: str = "python3"
    runtime: str = "onnxruntime"

    def run(self, command: str, stdin: bytes = b"") -> bytes:
        """Output of a command on the board.

        Raises:
            RemoteError: if the board cannot be reached or the command fails.
        """
        with self._running(command, stdin) as (said, end):
            found = said.read(MAX_FILE_BYTES + 1)
            if len(found) > MAX_FILE_BYTES:
                raise RemoteError(f"{self.host} answers with more than {MAX_FILE_BYTES / MEGABYTE:g} MB")
            end()
        return found

    def stream(self, command: str, on_line: Callable[[str], None]) -> None:
        """Run a command on the board and hand over its lines as they come.

        Raises:
            RemoteError: as :meth:`run`.
        """
        with self._running(command) as (said, end):
            while line := said.readline(_LONGEST_LINE):
                on_line(shorten(line.decode(errors="replace")))
            end()

    @contextmanager
    def _running(self, command: str, stdin: bytes = b"") -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
        """Output of a command on the board, and a function that waits for its end.

        Raises:
            RemoteError: as :meth:`run`, when its end is waited for.
        """
        with tempfile.TemporaryFile() as given, ThreadPoolExecutor(1) as pool:
            given.write(stdin)
            given.seek(0)
            pipe = subprocess.PIPE
            with subprocess.Popen(self._ssh(command), stdin=given, stdout=pipe, stderr=pipe) as process:  # noqa: S603
                assert process.stdout
                assert process.stderr
                # A board may say anything, without end: the last of it tells why a command failed.
                pieces = iter(partial(process.stderr.read, _PIECE), b"")
                errors = pool.submit(lambda: deque(pieces, _PIECES))

                def end() -> None:
                    last = b"".join(errors.result()).decode(errors="replace")
                    self._check(process.wait(), last)

                try:
                    yield process.stdout, end
                finally:
                    process.kill()

    def describe(self) -> Mapping[str, object]:
        """The board as it describes itself; checks that it can measure.

        Raises:
            RemoteError: if it cannot be reached, or lacks Python, numpy or the runtime.
        """
        needed = ["numpy", conditions.PACKAGES[self.runtime]]
        assert conditions.__file__
        script = Path(conditions.__file__).read_text(encoding="utf-8") + _PROBE.format(needed=needed)
        try:
            gate = Gate(self.host)
            found = gate.mapping(gate.json(self.run(f"{self._python} -", script.encode()).decode()))
            python = tuple(map(int, gate.string("python", found.get("python"), 20).split(".")[:2]))
            for name in ("cpu", *needed):
                if found.get(name) is not None:
                    gate.string(name, found[name], 200)
        except ValueError:
            raise RemoteError(
                f"{self.host}: its shell prints text of its own; make it silent without a terminal"
            ) from None
        if python < (3, 9):
            raise RemoteError(
                f"{self.host} has Python {found['python']}, but 3.9 is needed: install a newer one and "
                "name it with hardware.python=PATH"
            )
        missing = [name for name in needed if found.get(name) is None]
        if missing:
            raise RemoteError(
                f"{self.host} has no {' and no '.join(missing)}; install there with: "
                f"{self.python} -m pip install {' '.join(missing)} (if pip refuses: python3 -m venv ~/nas && "
                f"~/nas/bin/pip install {' '.join(needed)}, then hardware.python=~/nas/bin/python)"
            )
        return found

    def measure(
        self,
        kit: Path,
        on_line: Callable[[str], None],
        waits_s: Sequence[float] = RECONNECT_WAITS_S,
        pause: Callable[[float], object] = time.sleep,
    ) -> str:
        """Send a kit, run it, fetch its result.

        Args:
            kit: the zip file.
            on_line: takes the runner's lines; what it raises ends the connection.
            waits_s: seconds to wait before each new attempt after the connection dropped.
            pause: waits for some seconds.

        Returns:
            The text of the result file. The board still has its copy until :meth:`clean_up`.

        Raises:
            RemoteError: naming the board and what to do; what was measured stays on the board.
        """
        folder = shlex.quote(self._folder(kit))
        start = f"cd {folder} && {self._python} -u {shlex.quote(kit.name)}"
        waits = list(waits_s)
        while True:
            try:
                self._send(kit)
                self.stream(start, on_line)
                return self.run(f"cat {folder}/{shlex.quote(kit.stem)}-result.jsonl").decode(errors="replace")
            except ConnectionLostError as error:
                if not waits:
                    raise RemoteError(
                        f"{error}; what was measured is kept on the board: the same command goes on there"
                    ) from None
                wait_s = waits.pop(0)
                on_line(f"connection lost; trying again in {wait_s:.0f} s")
                pause(wait_s)

    def clean_up(self, kit: Path) -> None:
        """Remove what :meth:`measure` left on the board."""
        self.run(f"rm -rf {shlex.quote(self._folder(kit))}; rmdir {_FOLDER} 2>/dev/null || true")

    def _send(self, kit: Path) -> None:
        folder, name = shlex.quote(self._folder(kit)), shlex.quote(kit.name)
        content = kit.read_bytes()
        there = self.run(f"wc -c < {folder}/{name} 2>/dev/null || echo 0").strip()
        if there != str(len(content)).encode():
            # Under its own name only when it is whole.
            self.run(
                f"mkdir -p {folder} && cat > {folder}/{name}.part && mv {folder}/{name}.part {folder}/{name}",
                content,
            )

    @staticmethod
    def _folder(kit: Path) -> str:
        # By the kit's identity, not its bytes: the same command makes the same kit with other dates in it.
        with zipfile.ZipFile(kit) as opened:
            return f"{_FOLDER}/{json.loads(opened.read(MANIFEST))['kit']}"

    @property
    def _python(self) -> str:
        if self.python.startswith("~/"):
            return f'"$HOME"/{shlex.quote(self.python[2:])}'
        return shlex.quote(self.python)

    def _ssh(self, command: str) -> list[str]:
        ssh = shutil.which("ssh")
        if ssh is None:
            raise RemoteError("there is no ssh on this machine: install an OpenSSH client")
        if not is_host(self.host):
            raise RemoteError(f"hardware.host={self.host!r} names no host")
        options = [f"-o{name}={value}" for name, value in _OPTIONS.items()]
        # ssh says 255 of a command that a signal killed as of a connection that dropped.
        killed = f"echo {_KILLED} $((s-128)) >&2; exit 70"
        watched = f"{{ {command}\n}}; s=$?; [ $s -le 128 ] || {{ {killed}; }}; exit $s"
        return [ssh, *options, "--", self.host, f"exec sh -c {shlex.quote(watched)}"]

    def _check(self, status: int, errors: str) -> None:
        if status == 0:
            return
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit status {status}"
        if killed := re.search(rf"^{_KILLED} (\d+)$", errors, re.MULTILINE):
            raise RemoteError(f"{self.host}: {self._killed(int(killed[1]))}")
        if status == _SSH_FAILED or status < 0:
            for pattern, advice in _REFUSALS:
                if re.search(pattern, errors, re.IGNORECASE):
                    lasting = pattern.startswith(("Host key", "Permission"))
                    kind = RemoteError if lasting else ConnectionLostError
                    raise kind(f"{self.host}: {advice.format(host=self.host)}")
            raise ConnectionLostError(f"{self.host}: the connection was lost ({last})")
        if "No space left on device" in errors:
            raise RemoteError(
                f"{self.host}: its disk is full; free some space there and run the command again"
            )
        if status == 127:  # the shell's "command not found"
            raise RemoteError(
                f"{self.host} has no {self.python}: install Python there (sudo apt install python3), or name "
                "one with hardware.python=PATH"
            )
        raise RemoteError(f"{self.host}: {last}")

    def _killed(self, number: int) -> str:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        advice = {
            "SIGILL": f"the {conditions.PACKAGES[self.runtime]} installed there does not suit its processor; "
            "install another version",
            "SIGKILL": "most likely it ran out of memory: close what else runs there, or measure less "
            "(profile.max_keys)",
        }.get(name, f"the {conditions.PACKAGES[self.runtime]} there crashes; install another version")
        return f"its Python was killed by {name}: {advice}"


# Appended to nas/measuring/conditions.py and piped into the board's Python.
_PROBE = """
import json

print(json.dumps({{**describe(), **snapshot(), **versions({needed}), "boot": boot_id()}}))
"""


@dataclass(frozen=True)
class SshTarget:
    """One board, or several identical ones that share the work; a :class:`nas.devices.device.Target`.

    Attributes:
        boards: where to measure.
        settings: how; the rounds are those asked of :meth:`measure`.
        tolerance: how much boards may differ on the layers that all of them measure.
        on_line: takes (host, line) for the user.
        session_subjects: see :class:`nas.devices.device.Target`; what a board with little memory holds.
    """

    boards: tuple[Board, ...]
    settings: KitSettings
    tolerance: float = 0.05
    on_line: Callable[[str, str], None] = lambda host, line: None

    session_subjects: int = GROUP_SUBJECTS

    def identity(self) -> tuple[str, str]:
        """See :class:`nas.devices.device.Target`; the boards are asked once.

        Raises:
            RemoteError: if a board cannot be reached, lacks what it needs, or the boards differ.
        """
        return self._identity

    @cached_property
    def _identity(self) -> tuple[str, str]:
        with ThreadPoolExecutor(len(self.boards)) as pool:
            found = list(pool.map(Board.describe, self.boards))
        names: dict[str, str] = {}
        for board, each in zip(self.boards, found, strict=True):
            boot = each.get("boot")
            if boot and names.setdefault(str(boot), board.host) != board.host:
                raise RemoteError(
                    f"{names[str(boot)]} and {board.host} are one machine: it would measure at both ends at "
                    "once; name it once in hardware.hosts"
                )
        package = conditions.PACKAGES[self.settings.runtime.name]
        for name in ("cpu", package):
            values = {str(each[name]) for each in found}
            if len(values) > 1:
                raise RemoteError(
                    f"the boards differ ({' / '.join(sorted(values))}): they cannot share the work"
                )
        return str(found[0]["cpu"]), str(found[0][package])

    def measure(
        self,
        subjects: Sequence[Subject],
        rounds: int,
        journal: Path,
        progress: ProfileProgress = ProfileProgress(),
        precise: Sequence[Subject] = (),
    ) -> Measurement:
        """See :class:`nas.devices.device.Target`; the boards keep the rounds until they are fetched.

        Raises:
            RemoteError: naming the board and what to do.
        """
        self.identity()  # refuses boards that cannot measure
        settings = replace(self.settings, rounds=rounds, precise=tuple(precise))
        if len(self.boards) == 1:
            (text,) = self._measure_on([(self.boards[0], list(subjects))], settings, progress)
            write_atomically(journal, text)
            return self._read(text, self.boards[0]).groups[0].measurement
        common = list(subjects[:: max(1, len(subjects) // COMMON_SUBJECTS)])[:COMMON_SUBJECTS]
        others = [subject for subject in subjects if subject not in set(common)]
        # The common layers first: boards that differ are noticed before hours are spent on the rest.
        trial = self._measure_on([(board, common) for board in self.boards], settings, progress)
        self._check_agreement(trial, common)
        shares = [
            (board, [*common, *others[number :: len(self.boards)]])
            for number, board in enumerate(self.boards)
        ]
        texts = self._measure_on(shares, settings, progress)
        self._check_agreement(texts, common)
        write_atomically(journal, "".join(texts))
        return joined(subjects, self._measurements(texts))

    def _measure_on(
        self,
        shares: Sequence[tuple[Board, Sequence[Subject]]],
        settings: KitSettings,
        progress: ProfileProgress,
    ) -> list[str]:
        """Result texts of boards measuring at the same time; progress is that of the slowest."""
        done = dict.fromkeys((board.host for board, _ in shares), 0)
        lock, interrupted = threading.Lock(), threading.Event()

        def on_line(host: str, line: str) -> None:
            if interrupted.is_set():  # nor is there any other attempt
                raise RemoteError(f"{host}: interrupted; what was measured is kept on the board")
            found = _PROGRESS.search(line)
            if found is None:
                self.on_line(host, line)
                return
            with lock:
                done[host] = int(found[1])
                progress.measured(min(done.values()), int(found[2]))

        def measure(board: Board, kit: Path) -> str:
            text = board.measure(kit, lambda line: on_line(board.host, line), pause=interrupted.wait)
            self._read(text, board)  # nothing is removed from the board before it is known to be whole
            board.clean_up(kit)
            return text

        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(shares)) as pool:
            kits = []
            for number, (_, subjects) in enumerate(shares):
                kit = Path(folder) / f"kit-{number}.zip"
                write_kit(kit, settings, [subjects], progress.prepared)
                kits.append(kit)
            running = [pool.submit(measure, board, kit) for (board, _), kit in zip(shares, kits, strict=True)]
            try:
                return [each.result() for each in running]
            except KeyboardInterrupt:
                interrupted.set()  # the pool waits for its threads
                raise

    def _read(self, text: str, board: Board) -> Result:
        result = parse_result(
            text, f"the result of {board.host}", self.settings.hardware, self.settings.runtime
        )
        if result.problems:
            raise ResultError(f"{board.host}: {'; '.join(result.problems)}")
        return result

    def _measurements(self, texts: Sequence[str]) -> list[Measurement]:
        return [
            self._read(text, board).groups[0].measurement
            for text, board in zip(texts, self.boards, strict=True)
        ]

    def _check_agreement(self, texts: Sequence[str], common: Sequence[Subject]) -> None:
        parts = self._measurements(texts)
        refused = {name for part in parts for name in part.refused}
        names = [name for subject in common if (name := subject_name(subject)) not in refused]
        differences = slowness(parts, names)
        worst = max(range(len(differences)), key=lambda index: abs(differences[index]))
        if abs(differences[worst]) > self.tolerance:
            raise RemoteError(
                f"{self.boards[worst].host} is {differences[worst]:+.1%} off {self.boards[0].host} on the "
                f"{len(common)} layers both measured (tolerance {self.tolerance:.0%}): measure on one, "
                "or make clock, cooling and system the same"
            )


def joined(subjects: Sequence[Subject], parts: Sequence[Measurement]) -> Measurement:
    """One measurement from boards that shared the subjects; drift is removed board by board.

    Subjects that several boards measured are averaged. The rounds kept are those that all boards have.
    """
    rounds = min(len(part.samples_ms) for part in parts)
    found: dict[str, list[Samples]] = {}
    refused: dict[str, str] = {}
    for part in parts:
        refused |= part.refused
        samples = part.steadied()[:rounds]
        for column, subject in enumerate(part.subjects):
            found.setdefault(subject_name(subject), []).append(samples[:, column])
    taken = [subject for subject in subjects if subject_name(subject) not in refused]
    samples = np.stack([np.mean(found[subject_name(subject)], axis=0) for subject in taken], axis=1)
    record = {**parts[0].record, "rounds": rounds, "boards": [part.record for part in parts]}
    return Measurement(
        subjects=tuple(taken),
        samples_ms=samples,
        anchor_ms=np.mean([part.anchor_ms[:rounds] for part in parts], axis=0),
        record={**record, REFUSED: refused} if refused else record,
    )
