"""A real PostgreSQL of the tests' own: started, restarted, killed, with places for any number of ledgers."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine

_NUMBERS = count(1)


def programs() -> Path:
    """The folder of PostgreSQL's programs; missing, it fails in CI and skips elsewhere."""
    found = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is missing: apt-get install postgresql")
        pytest.skip("PostgreSQL is not installed")
    return found


class Server:
    """A server on a socket in a folder of its own. ``durable``: what is committed survives ``kill``."""

    def __init__(self, *, durable: bool = False, room: int = 200) -> None:
        """*room*: how many connections it takes at once."""
        self._programs = programs()
        self._folder = Path(tempfile.mkdtemp(prefix="spendmeter-pg-", dir="/tmp"))
        self._user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if self._user:
            shutil.chown(self._folder, "postgres", "postgres")
        self._flags = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync={'on' if durable else 'off'}"
        self._flags += f" -c max_connections={room} -c superuser_reserved_connections=0 -c max_wal_senders=0"
        self._call("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        """Of the database that is there from the start."""
        return f"postgresql://postgres@/postgres?host={self._folder}"

    def database(self) -> str:
        """URL of another empty place for a ledger: a schema, which is cheaper than a database."""
        name = f"t{next(_NUMBERS)}"
        engine = create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as conn:
            conn.exec_driver_sql(f"create schema {name}")
        engine.dispose()
        return f"{self.url}&options=-csearch_path%3D{name}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._call("pg_ctl", "-w", "-o", self._flags, "start")

    def stop(self, mode: str) -> None:
        """Ends it: ``fast`` drops every connection, ``immediate`` is a crash."""
        self._call("pg_ctl", "-w", "-m", mode, "stop")

    def remove(self) -> None:
        """Ends it, if it runs, and deletes its folder."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self._folder)

    def _call(self, name: str, *args: str) -> None:
        words = [*self._user, str(self._programs / name), "-D", str(self._folder / "data"), *args]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder)
