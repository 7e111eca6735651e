"""Shared fixtures: a ledger in a temporary folder, no user's home, no user's settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from copy import copy
from itertools import count
from pathlib import Path

import pytest

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from tests.made import Made, Shared, empty
from tests.pg import Server
from tests.turns import turn

pytest_plugins = ["tests.attributed", "tests.commands", "tests.doors", "tests.hooks", "tests.served"]  # fixtures beside their helpers

for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # a shell's background job, or nohup, would hand them on ignored
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests that hold a clock against what the product promises are not disturbed by other tests."""
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


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
def server() -> Iterator[Server]:
    """A PostgreSQL that lives as long as the tests; skipped where there is none."""
    made = Server()
    yield made
    made.remove()


@pytest.fixture(scope="session")
def postgres(server: Server) -> str:
    """URL of a database that tests share, one after the other."""
    return server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of another place without any table at each call, on each kind of database."""
    if request.param == "sqlite":
        numbers = count()
        return lambda: f"sqlite:///{tmp_path / f'{next(numbers)}.db'}"
    server: Server = request.getfixturevalue("server")
    return server.database


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Gives the emptied ledger at a URL, or one of SQLite: what its engine has compiled, which takes longest, serves every test."""
    opened: dict[str, Ledger] = {}
    own = f"sqlite:///{tmp_path_factory.mktemp('shared') / 'ledger.db'}"

    def give(url: str = own) -> Ledger:
        if url not in opened:
            opened[url] = Ledger(Settings(url, settle_s=0))
        empty(opened[url])
        return copy(opened[url])

    yield give
    for ledger in opened.values():
        ledger.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def both(request: pytest.FixtureRequest, shared: Shared) -> Ledger:
    """An empty ledger on each database."""
    return shared() if request.param == "sqlite" else shared(request.getfixturevalue("postgres"))


@pytest.fixture
def made(both: Ledger) -> Made:
    """Makes rows in an empty ledger on each database."""
    return Made(both)
