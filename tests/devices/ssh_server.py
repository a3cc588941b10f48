"""A real SSH server on loopback with throw-away keys, whose boards are homes in a folder."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from nas.devices.ssh import Board

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@dataclass
class Server:
    """An SSH server of this test session.

    Attributes:
        pid: the listening process.
        folder: its keys, and homes/NAME for each board, an alias of the SSH configuration.
        config: that configuration; lines may be appended.
    """

    pid: int
    folder: Path
    config: Path

    def board(self, name: str) -> Board:
        return Board(name, sys.executable)

    def home(self, name: str) -> Path:
        return self.folder / "homes" / name

    def left_over(self, name: str) -> list[Path]:
        return list((self.home(name) / ".cache" / "mobilenet-nas").glob("*"))

    def drop_connections(self) -> None:
        for process in psutil.Process(self.pid).children(recursive=True):
            if process.name().startswith("sshd"):
                process.send_signal(signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@contextmanager
def ssh_server(folder: Path) -> Iterator[Server]:
    """An SSH server with two boards, ``board-a`` and ``board-b``, and aliases that cannot be reached."""
    host_key, user_key = _key(folder / "host_key"), _key(folder / "user_key")
    authorized = folder / "authorized_keys"
    authorized.write_text((folder / "user_key.pub").read_text())
    # Two aliases are two boards: each sends the home folder that its commands see. Their python3 is this one.
    shell = folder / "shell"
    shell.write_text(
        "#!/bin/sh\n"
        'export HOME="$BOARD_HOME"; mkdir -p "$HOME"; cd "$HOME"\n'
        f'export PATH="{Path(sys.executable).parent}:$PATH"\n'
        'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    shell.chmod(0o755)
    port = _free_port()
    server_config = folder / "sshd_config"
    server_config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nAuthorizedKeysFile {authorized}\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nAcceptEnv BOARD_HOME\nForceCommand {shell}\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    assert SSHD
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", server_config], stderr=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    config = folder / "ssh_config"
    config.write_text(
        "".join(
            f"Host {name}\n  SetEnv BOARD_HOME={folder}/homes/{name}\n  IdentityFile {user_key}\n"
            for name in ("board-a", "board-b")
        )
        + f"Host unknown-key\n  IdentityFile {_key(folder / 'other_key')}\n"
        f"Host changed-host\n  UserKnownHostsFile {folder}/changed_hosts\n"
        f"Host switched-off\n  Port {_free_port()}\n"
        f"Host nowhere\n  HostName no-such-host.invalid\n"
        f"Host *\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {known}\n  GlobalKnownHostsFile /dev/null\n"
    )
    (folder / "changed_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'other_key.pub').read_text()}")
    try:
        yield Server(process.pid, folder, config)
    finally:
        process.terminate()
        process.wait()
