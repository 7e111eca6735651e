"""The daemon closes old sessions by itself where an age is set: one daemon at a time, in small transactions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
from sqlalchemy import select

from spendmeter.config import Settings
from spendmeter.ledger import Ledger, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report
from spendmeter.ledger.retention import retain
from spendmeter.ledger.verify import verify
from spendmeter.projections.spool import Lease
from spendmeter.server.book import Book
from spendmeter.server.workers import RETAIN_LEASE, RETAIN_LEASE_MS, Workers
from tests.fakecli.harness import until
from tests.feed import use

DAY_MS = 86_400_000
OLD = 45  # more than two transactions' worth


def filled(url: str) -> Settings:
    """Settings of a ledger with sessions of 40 days ago and one of now, to be closed after 30 days."""
    settings = Settings(url, settle_s=0, retention_calls_s=30 * 86_400.0)
    with closing(Ledger(settings)) as ledger:
        for i in range(OLD):
            use(ledger, f"old{i}", 100, now_ms() - 40 * DAY_MS)
        use(ledger, "new", 100, now_ms())
    return settings


def closed(ledger: Ledger) -> set[str]:
    with ledger.read() as conn:
        return set(conn.execute(select(t.sessions.c.session).where(t.sessions.c.closed_ms.is_not(None))).scalars())


def test_the_daemon_closes_what_is_older_than_was_set(new_url: Callable[[], str]) -> None:
    """All of it and nothing else; no total changes, and the lease is free afterwards."""
    settings = filled(new_url())
    with closing(Book(settings)) as book:
        before = report(book.ledger(), ["session", "model", "day"])
        workers = Workers(book)
        workers.start()
        try:
            until(lambda: len(closed(book.ledger())) == OLD)
            until(lambda: Lease(book.ledger(), RETAIN_LEASE).take(now_ms(), 0))
        finally:
            workers.stop()
        assert "new" not in closed(book.ledger())
        assert (report(book.ledger(), ["session", "model", "day"]), verify(book.ledger()), workers.trouble) == (before, [], {})


def test_without_an_age_nothing_is_closed(tmp_path: pytest.TempPathFactory) -> None:
    """There is not even a thread for it."""
    settings = replace(filled(f"sqlite:///{tmp_path}/ledger.db"), retention_calls_s=None)
    with closing(Book(settings)) as book:
        workers = Workers(book)
        workers.start()
        names = {thread.name for thread in workers._threads}
        workers.stop()
        assert ("spendmeter-settle" in names, "spendmeter-retain" in names, closed(book.ledger())) == (True, False, set())


def test_of_two_daemons_one_is_at_it(new_url: Callable[[], str]) -> None:
    """While another holds the lease nothing is closed; once it has gone the next pass does."""
    with closing(Book(filled(new_url()))) as book:
        other = Lease(book.ledger(), RETAIN_LEASE)
        assert other.take(now_ms(), RETAIN_LEASE_MS)
        Workers(book)._retain(book.ledger())
        assert closed(book.ledger()) == set()
        other.drop()
        Workers(book)._retain(book.ledger())
        assert len(closed(book.ledger())) == OLD


def test_it_ends_between_two_transactions(new_url: Callable[[], str]) -> None:
    """What was closed by then stays closed, and the rest is left to the next time."""
    with closing(Ledger(filled(new_url()))) as ledger:
        asked = iter([True, True, False])
        assert retain(ledger, 30 * DAY_MS, at_once=10, goes_on=lambda: next(asked)).sessions == len(closed(ledger)) == 20
        assert retain(ledger, 30 * DAY_MS).sessions == OLD - 20
        assert verify(ledger) == []


def test_an_age_below_a_day_is_refused_at_the_start(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would close sessions that are still in use."""
    monkeypatch.setenv("SPENDMETER_RETENTION_CALLS", "1h")
    command = [sys.executable, "-m", "spendmeter", "--ledger", settings.ledger, "serve", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = "spendmeter: [retention] calls: less than 1d would close sessions that are still in use; write e.g. 400d\n"
    assert (done.returncode, done.stderr) == (1, said)
