"""The application over a real ledger: /metrics, and what it does in trouble."""

from __future__ import annotations

import gzip
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sqlalchemy import select
from starlette.testclient import TestClient

from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report
from spendmeter.server import api, app, web
from spendmeter.server.book import Book
from spendmeter.server.scrape import takes_gzip
from spendmeter.server.workers import Workers
from tests.doors import EVENTS, problem
from tests.served import HOME

# -- /metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_say_what_the_ledger_says(full: TestClient, book: Book) -> None:
    """Every counter of the ledger stands on the page at its value."""
    body = full.get("/metrics").text
    total = report(book.ledger(), ["agent", "cli", "model"])
    for row in total.rows:
        agent, cli, model = row.keys
        if model and row.amounts.tokens_out:
            assert f'spendmeter_tokens_out_total{{agent="{agent}",cli="{cli}",model="{model}"}} {row.amounts.tokens_out}\n' in body


def test_metrics_come_as_asked_for(full: TestClient) -> None:
    """Classic text for anyone, OpenMetrics and gzip for those who ask; the same body packed or not."""
    plain = full.get("/metrics", headers={"accept-encoding": "identity"})
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "content-encoding" not in plain.headers
    with full.stream("GET", "/metrics", headers={"accept-encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())
    assert packed.headers["content-encoding"] == "gzip"
    assert {"accept", "accept-encoding"} <= {x.strip().lower() for x in packed.headers["vary"].split(",")}
    assert without_clock(gzip.decompress(raw).decode()) == without_clock(plain.text)
    accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    modern = full.get("/metrics", headers={"accept": accept})
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert len(list(text_string_to_metric_families(modern.text))) > 20


def without_clock(page: str) -> list[str]:
    """*page* without what changes from one scrape to the next: how long it took, and what noting that it was shown takes in the file."""
    return [x for x in page.splitlines() if not x.startswith(("spendmeter_scrape_duration_seconds ", "spendmeter_ledger_size_bytes "))]


@pytest.mark.parametrize(
    ("header", "taken"), [("gzip", True), ("br, gzip;q=0.5", True), ("*", True), ("gzip;q=0", False), ("br", False), ("", False)]
)
def test_gzip_is_sent_only_where_it_is_taken(header: str, taken: bool) -> None:
    """By the Accept-Encoding header, a quality of 0 included."""
    assert takes_gzip(header) is taken


def shown(ledger: Ledger) -> set[bool]:
    """Whether series count as shown."""
    with ledger.read() as conn:
        return {r.shown_ms is not None for r in conn.execute(select(t.series.c.shown_ms))}


def test_a_series_counts_as_shown_only_once_the_page_went_out(full: TestClient, book: Book) -> None:
    """Neither HEAD nor a scraper that hung up has seen anything."""
    ledger = book.ledger()
    head = full.head("/metrics")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 1000
    assert shown(ledger) == {False}
    anyio.run(hung_up, full.app)
    assert shown(ledger) == {False}
    full.get("/metrics")
    assert shown(ledger) == {True}


async def hung_up(application: Any) -> None:
    """A scrape whose client has gone before the page was made."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": "GET", "path": "/metrics",
        "raw_path": b"/metrics", "query_string": b"", "root_path": "", "headers": [(b"host", b"127.0.0.1")], "client": None, "server": None,
    }  # fmt: skip

    async def receive() -> Mapping[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_message: Mapping[str, Any]) -> None:
        pass

    await application(scope, receive, send)


# -- trouble -----------------------------------------------------------------------------------------------------------


def test_a_ledger_that_has_gone_is_told_and_taken_up_again(full: TestClient, book: Book, tmp_path: Path) -> None:
    """503 with what to do on every path; put back, or another in its place, all is well again."""
    file = Path(book.settings.ledger.removeprefix("sqlite:///"))
    book.close()
    away = tmp_path / "away"
    away.mkdir()
    for x in file.parent.glob("ledger.db*"):
        shutil.move(x, away / x.name)
    for path in ("/", "/runs", "/metrics", "/healthz", "/readyz"):
        answer = full.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "put it back" in answer.text
    assert "put it back" in problem(full.get("/api/v1/report"), 503)["detail"]
    assert full.get("/livez").status_code == 200
    for x in away.glob("ledger.db*"):
        shutil.move(x, file.parent / x.name)
    assert full.get("/healthz").text == "ok\n"
    assert full.get("/api/v1/ledger").json()["sessions"] == 5
    file.rename(away / "old.db")
    Ledger(book.settings).close()
    assert full.get("/api/v1/ledger").json()["sessions"] == 0


@pytest.mark.alone
def test_a_locked_ledger_is_told_soon_and_recovers(full: TestClient, book: Book) -> None:
    """A lock that shuts readers out costs a request 2 s, not 30, and nothing lasting."""
    other = sqlite3.connect(book.settings.ledger.removeprefix("sqlite:///"), isolation_level=None)
    book.close()
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    answer = full.get("/metrics")
    assert answer.status_code == 503
    assert "locked" in answer.text
    assert time.monotonic() - began < 8
    other.execute("ROLLBACK")
    other.close()
    assert full.get("/metrics").status_code == 200


def test_a_defect_is_told_without_content(book: Book, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The log names class and place, never the error's text; the answer names nothing."""

    def broken(*_: object) -> None:
        raise RuntimeError("SECRET prompt")

    monkeypatch.setattr(web, "page", broken)
    monkeypatch.setattr(api, "page", broken)
    with (
        TestClient(app.create_app(book, Workers(book)), base_url=HOME, raise_server_exceptions=False) as client,
        caplog.at_level(logging.DEBUG),
    ):
        answer = client.get("/runs")
        assert (answer.status_code, "SECRET" in answer.text) == (500, False)
        problem(client.get("/api/v1/runs"), 500)
    said = "\n".join(r.getMessage() + str(r.exc_info or "") for r in caplog.records if r.name.startswith(("spendmeter", "uvicorn")))
    assert "RuntimeError at " in said
    assert "SECRET" not in said


def test_a_dead_thread_is_unhealthy(book: Book) -> None:
    """So that an orchestrator restarts it."""
    workers = Workers(book)
    dead = threading.Thread(target=lambda: None)
    dead.start()
    dead.join()
    workers._threads.append(dead)
    with TestClient(app.create_app(book, workers), base_url=HOME) as client:
        assert [client.get(p).status_code for p in ("/livez", "/healthz", "/readyz")] == [503, 503, 503]


def test_workers_tell_a_failure_once(book: Book, caplog: pytest.LogCaptureFixture) -> None:
    """And that it is over; an error that no one foresaw by its class alone."""
    workers = Workers(book)

    def broken() -> None:
        raise ValueError("SECRET")

    with caplog.at_level(logging.WARNING, "spendmeter.server"):
        for step in (broken, broken, lambda: None, lambda: None):
            workers._try("settle", step)
    assert [r.getMessage() for r in caplog.records] == ["settle: ValueError; this is a defect of spendmeter", "settle: works again"]
    assert workers.trouble == {}


def test_a_client_that_hangs_up_is_no_defect(book: Book, caplog: pytest.LogCaptureFixture) -> None:
    """One that goes away midway in its body gets no answer, and the log no line."""
    said: list[Any] = []
    head = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"99")]
    scope = {"type": "http", "method": "POST", "path": EVENTS, "headers": head, "query_string": b"", "client": ("127.0.0.1", 1)}
    told = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(told)

    async def send(message: Any) -> None:
        said.append(message)

    with caplog.at_level(logging.DEBUG, "spendmeter"):
        anyio.run(app.create_app(book, Workers(book)), scope, receive, send)
    assert (said, caplog.messages) == ([], [])
