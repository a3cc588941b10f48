"""A PostgreSQL server of our own, to be stopped and started."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

BINARIES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


class PostgresUnavailableError(Exception):
    """No server can be started here. The message says why."""


class PostgresServer:
    """Runs within ``with``.

    Attributes:
        url: of its database.

    Raises:
        PostgresUnavailableError: if it cannot be started.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("psycopg") is None:
            raise PostgresUnavailableError("needs the extra `postgres`")
        binaries = next((each for each in BINARIES if (each / "initdb").exists()), None)
        found = shutil.which("initdb")
        if binaries is None and found is None:
            raise PostgresUnavailableError("PostgreSQL is not installed (Debian: apt install postgresql)")
        binaries = binaries or Path(str(found)).parent
        self._user: str | None = None
        # Not below pytest's own folders, which only their owner may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="postgres"))
        if os.geteuid() == 0:
            # The server refuses to run as root.
            try:
                self._user = pwd.getpwnam("postgres").pw_name
            except KeyError:
                raise PostgresUnavailableError(
                    "PostgreSQL does not run as root, and there is no user postgres"
                ) from None
            shutil.chown(self._folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        data = self._folder / "data"
        self._run(str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "nas", "--no-sync")
        self._create = str(binaries / "createdb")
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
        """Start it, and wait until it answers."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run(*self._control, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """``fast`` ends all connections, ``immediate`` is a crash."""
        self._run(*self._control, "-m", mode, "stop")

    def database(self, name: str) -> str:
        """The URL of a new database."""
        self._run(self._create, "-h", "127.0.0.1", "-p", str(self._port), "-U", "nas", name)
        return f"postgresql://nas@127.0.0.1:{self._port}/{name}"

    def _run(self, *command: str) -> None:
        subprocess.run(  # noqa: S603 - words of our own
            command, check=True, user=self._user, cwd=self._folder, stdout=subprocess.DEVNULL, timeout=60
        )
