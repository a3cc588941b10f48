"""A PostgreSQL server of our own, to be stopped and started."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

BINARIES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


class PostgresServer:
    """Runs within ``with``; skips the test where it cannot.

    Attributes:
        url: of its database.
    """

    def __init__(self) -> None:
        pytest.importorskip("psycopg", reason="needs the extra `postgres`")
        binaries = next((each for each in BINARIES if (each / "initdb").exists()), None)
        found = shutil.which("initdb")
        if binaries is None and found is None:
            pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
        binaries = binaries or Path(str(found)).parent
        self._user: str | None = None
        # Not below pytest's own folders, which only their owner may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="postgres"))
        if os.geteuid() == 0:
            # The server refuses to run as root.
            try:
                self._user = pwd.getpwnam("postgres").pw_name
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            shutil.chown(self._folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        data = self._folder / "data"
        self._run(str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "nas", "--no-sync")
        self._control = [
            str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(self._folder / "log")
        ]  # fmt: skip
        self.url = f"postgresql://nas@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop("immediate")
        shutil.rmtree(self._folder)

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run(*self._control, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """``fast`` ends all connections, ``immediate`` is a crash."""
        self._run(*self._control, "-m", mode, "stop")

    def _run(self, *command: str) -> None:
        subprocess.run(
            command, check=True, user=self._user, cwd=self._folder, stdout=subprocess.DEVNULL, timeout=60
        )
