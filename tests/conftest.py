"""Shared fixtures: a ledger in a temporary folder, no user's home, no user's settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from tests.made import Made, empty


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's home, ledger or OTEL settings."""
    for name in list(os.environ):
        if name.startswith(("SPENDMETER_", "OTEL_", "CLAUDE_", "XDG_")) and name != "SPENDMETER_OTELCOL":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(f"sqlite:///{tmp_path / 'ledger.db'}", zero_first_s=0, settle_s=0)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL that lives as long as the tests; skipped where there is none."""
    found = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is missing: apt-get install postgresql")
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="spendmeter-pg-", dir="/tmp"))
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")

    def call(name: str, *args: str) -> None:
        words = [*user, str(found / name), "-D", str(folder / "data"), *args]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)

    call("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
    call("pg_ctl", "-w", "-o", f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off", "start")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger on each database."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'both.db'}" if sqlite else request.getfixturevalue("postgres")
    ledger = Ledger(Settings(url, settle_s=0))
    if not sqlite:
        empty(ledger)
    yield ledger
    ledger.close()


@pytest.fixture
def made(both: Ledger) -> Made:
    """Makes rows in an empty ledger on each database."""
    return Made(both)
