"""The application over a real ledger, request by request."""

from __future__ import annotations

import gzip
import json
import logging
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sqlalchemy import select
from starlette.testclient import TestClient

from spendmeter.config import Settings
from spendmeter.demo import RUNS, SAMPLE, load
from spendmeter.ingest import ingest_paths
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report, runs
from spendmeter.projections import chart
from spendmeter.records import Tags
from spendmeter.server import api, app, pages, problems, web
from spendmeter.server.asked import Asked
from spendmeter.server.book import Book
from spendmeter.server.guard import HEADERS, host_of, is_loopback
from spendmeter.server.scrape import takes_gzip
from spendmeter.server.workers import Workers
from tests.runs import FIELDS, ROOT, Chain

HOME = "http://127.0.0.1:9464"
EVIL = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>{{7*7}}"""


@pytest.fixture
def book(settings: Settings) -> Iterator[Book]:
    made = Book(settings)
    yield made
    made.close()


@pytest.fixture
def served(book: Book) -> Iterator[TestClient]:
    with TestClient(app.create_app(book, Workers(book)), base_url=HOME) as client:
        yield client


@pytest.fixture
def full(book: Book, served: TestClient) -> TestClient:
    load(book.ledger())
    return served


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The problem document of *answer*."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    told: dict[str, Any] = answer.json()
    assert told["status"] == status
    assert told["title"]
    problems.Problem.model_validate(told)
    return told


# -- the sample --------------------------------------------------------------------------------------------------------


def test_the_sample_is_what_was_captured() -> None:
    """Its files are the fixtures', byte for byte."""
    for name in RUNS:
        case = ROOT / "claude" / name
        theirs = {"stdout": case / "stdout"} | {
            str(p.relative_to(next(case.glob("home/.claude/projects/*")))): p for p in case.rglob("home/**/*.jsonl")
        }
        mine = {str(p.relative_to(SAMPLE / name)): p for p in (SAMPLE / name).rglob("*") if p.is_file()}
        assert {k: p.read_bytes() for k, p in theirs.items()} == {k: p.read_bytes() for k, p in mine.items()}


def test_the_sample_says_what_the_server_billed(ledger: Ledger) -> None:
    """Totals equal the truth beside the fixtures; taking it in twice changes nothing."""
    load(ledger)
    truth = Chain("claude", tuple(ROOT / "claude" / name for name in RUNS)).truth(least=False)
    first = report(ledger, ["agent", "task"])
    assert {name: getattr(first.total, name) for name in FIELDS} == truth
    again = load(ledger)
    assert (again.sources, again.changed, again.unchanged) == (0, 0, 15)
    assert report(ledger, ["agent", "task"]) == first
    assert {(r.agent, r.task) for r in runs(ledger)} == {(x.agent, x.task) for x in RUNS.values()}


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


# -- the API -----------------------------------------------------------------------------------------------------------


def test_report_is_the_commands_own(full: TestClient, book: Book) -> None:
    """Whatever it is cut by, the body equals the report's JSON and its declared shape."""
    for by in ("agent,task,model", "day", "outcome", "session,cli"):
        body = full.get("/api/v1/report", params={"by": by, "agent": "developer"}).json()
        assert body == report(book.ledger(), by.split(","), agent="developer").as_dict()
        api.Report.model_validate(body)
    assert full.get("/api/v1/report").json() == report(book.ledger(), ["agent", "task", "model"]).as_dict()
    assert full.get("/api/v1/report?by=agent&by=task").json() == report(book.ledger(), ["agent", "task"]).as_dict()
    assert full.get("/api/v1/report?until=2020-01-01").json()["rows"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("report?since=soon", "since"), ("report?until=x", "until"), ("report?timezone=Mars/Base", "timezone"), ("report?by=agnet", "by"),
        ("report?agnet=x", "agnet"), ("runs?limit=0", "limit"), ("runs?limit=many", "limit"),
        ("runs?cursor=abc", "cursor"), ("runs?cursor=W10", "cursor"),
    ],
)  # fmt: skip
def test_a_refused_request_names_its_field(full: TestClient, query: str, field: str) -> None:
    """422 as a problem document; what was misspelt is not passed over."""
    told = problem(full.get(f"/api/v1/{query}"), 422)
    assert [e["field"] for e in told["errors"]] == [field]
    assert field in told["detail"]


def test_what_is_not_there_is_a_problem_too(full: TestClient) -> None:
    """404 for an unknown run and an unknown path; 405 for a method that nothing has."""
    assert "nowhere" in problem(full.get("/api/v1/runs/nowhere"), 404)["detail"]
    problem(full.get("/api/v1/nothing"), 404)
    problem(full.post("/api/v1/report"), 405)


def test_runs_come_a_page_at_a_time(full: TestClient, book: Book) -> None:
    """Following the cursor gives every run once, also those that ended in the same moment, whatever lands meanwhile."""
    ledger = book.ledger()
    with ledger.write() as conn:
        conn.execute(t.runs.update().where(t.runs.c.agent == "developer").values(ended_ms=1_795_300_000_000))
    want = [r.run_key for r in runs(ledger)]
    for size in (1, 2, 3, 50):
        seen, cursor = [], None
        while True:
            body = full.get("/api/v1/runs", params={"limit": size} | ({"cursor": cursor} if cursor else {})).json()
            api.Runs.model_validate(body)
            seen += [r["run_key"] for r in body["runs"]]
            if len(seen) == size == 1:
                ingest_paths(ledger, [str(ROOT / "claude" / "json-tool")], tags=Tags("late", "T-9"))
                ingest_paths(ledger, [str(ROOT / "claude" / "json-tool" / "stdout")], tags=Tags("late", "T-9"))
            cursor = body["next_cursor"]
            if cursor is None:
                break
        late = [r.run_key for r in runs(ledger) if r.agent == "late"]
        assert [k for k in seen if k not in late] == want
        assert len(seen) == len(set(seen))
    assert {r["agent"] for r in full.get("/api/v1/runs?agent=reviewer").json()["runs"]} == {"reviewer"}


def test_a_run_comes_with_its_models_and_calls(full: TestClient, book: Book) -> None:
    """Each run of a resumed session has its own calls, and they add up to it."""
    for line in runs(book.ledger()):
        body = full.get(f"/api/v1/runs/{line.run_key}").json()
        api.RunDetails.model_validate(body)
        assert {k: body[k] for k in line.as_dict()} == json.loads(json.dumps(line.as_dict()))
        assert [m["tokens_out"] for m in body["by_model"]] == ([line.amounts.tokens_out] if line.models else [])
        for name in FIELDS:
            known = [c[name] for c in body["call_list"] if c[name] is not None]
            assert sum(known) == (getattr(line.amounts, name) or 0), (line.run_key, name)
    assert full.get("/api/v1/runs/last").json()["run_key"] == runs(book.ledger(), limit=1)[0].run_key


@pytest.mark.alone
def test_reading_a_run_writes_nothing(full: TestClient, book: Book) -> None:
    """So that it neither waits for a writer nor fails on a ledger that cannot be written."""
    with sqlite3.connect(book.settings.ledger.removeprefix("sqlite:///"), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        for path in ("/", "/runs", "/runs/last", "/api/v1/runs/last", "/api/v1/report", "/readyz"):
            assert full.get(path).status_code == 200
        assert time.monotonic() - began < 5
        other.execute("ROLLBACK")
    other.close()


def test_ledger_tells_its_facts(full: TestClient, book: Book) -> None:
    """As the ledger itself does."""
    body = full.get("/api/v1/ledger").json()
    assert body == book.ledger().facts_about()
    api.Facts.model_validate(body)


def test_the_description_is_openapi_3_1(full: TestClient) -> None:
    """All that it refers to is in it, and errors are described as problems."""
    body = full.get("/api/v1/openapi.json").json()
    assert body["openapi"].startswith("3.1")
    events = {"token-events", "token-events/summary", "token-events/{id}"}
    hosts = {"observations", "admissions", "admissions/{run_id}"}
    assert set(body["paths"]) == {f"/api/v1/{x}" for x in {"report", "runs", "runs/{key}", "budgets", "plans", "ledger"} | events | hosts}
    for ref in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(body)):
        assert ref in body["components"]["schemas"]
    assert "application/problem+json" in body["paths"]["/api/v1/report"]["get"]["responses"]["422"]["content"]


# -- who may ask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:9464", 200), ("localhost", 200), ("LOCALHOST.:80", 200), ("[::1]:9464", 200), ("127.8.8.8", 200), ("evil.example", 400),
     ("127.0.0.1.evil.example:9464", 400), ("localhost.evil.example", 400), ("10.0.0.1", 400), ("", 400)],
)  # fmt: skip
def test_only_this_machine_is_answered_for(full: TestClient, host: str, status: int) -> None:
    """A name that a foreign page has pointed here (DNS rebinding) gets nothing."""
    answer = full.get("/api/v1/ledger", headers={"host": host})
    assert answer.status_code == status
    assert ("ledger_id" in answer.text) is (status == 200)


def test_further_names_can_be_allowed(book: Book) -> None:
    """By name; where no name is asked for, any will do."""
    for hosts, host, status in ((["meter.lan"], "meter.lan:80", 200), (["meter.lan"], "other.lan", 400), (None, "other.lan", 200)):
        with TestClient(app.create_app(book, Workers(book), hosts), base_url=HOME) as client:
            assert client.get("/healthz", headers={"host": host}).status_code == status


def test_host_headers_are_read_as_they_are_written() -> None:
    """With port, brackets and trailing dot."""
    assert [host_of(h) for h in ("a.b:1", "[::1]:2", "[::1]", "A.", "")] == ["a.b", "::1", "::1", "a", ""]
    assert [is_loopback(h) for h in ("localhost", "127.1.2.3", "::1", "0.0.0.0", "::", "example.org")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_browser_is_told_what_it_may_do(full: TestClient) -> None:
    """On every answer: no inline script, no foreign frame, no sniffing, no other origin."""
    for path in (
        "/",
        "/runs",
        "/runs/last",
        "/runs/none",
        "/metrics",
        "/healthz",
        "/static/app.js",
        "/static/none",
        "/api/v1/report",
        "/api/v1/none",
    ):
        answer = full.get(path, headers={"origin": "https://evil.example"})
        assert {k: answer.headers.get(k) for k in HEADERS} == HEADERS, path
        assert not any(h.startswith("access-control-") for h in answer.headers)
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


# -- pages -------------------------------------------------------------------------------------------------------------


def test_names_that_users_give_are_only_text(served: TestClient, book: Book) -> None:
    """In every page and place, also in errors."""
    ingest_paths(book.ledger(), [str(SAMPLE / "json-opus")], tags=Tags(EVIL, EVIL, {EVIL: EVIL}))
    key = runs(book.ledger())[0].run_key
    for path, params in (
        ("/", {}),
        ("/", {"agent": EVIL}),
        ("/runs", {"task": EVIL}),
        (f"/runs/{key}", {}),
        ("/runs/<script>x", {}),
        ("/", {"period": EVIL}),
    ):
        text = served.get(path, params=params).text
        assert "<script>" not in text
        assert "<img" not in text
        assert "onerror=alert(2)&gt;" in text or path.startswith("/runs/<") or "period" in params
        assert set(re.findall(r"<script[^>]*>", text)) <= {'<script src="/static/app.js" defer>'}
        assert not re.search(r"\s(style|on\w+)=\"", text)


def test_the_page_shows_the_ledgers_numbers(full: TestClient, book: Book) -> None:
    """Exactly: tokens in full, money as its decimal string too."""
    text = full.get("/?period=all").text
    total = report(book.ledger(), ["agent"]).total
    for n in (total.tokens_in, total.tokens_out, total.cache_read, total.cache_write):
        assert f'<dd class="big">{n:,}</dd>' in text
    assert f'<data value="{total.as_dict()["cost_usd"]}">' in text
    for row in report(book.ledger(), ["task"]).rows:
        assert f'<data value="{row.amounts.as_dict()["cost_usd"]}">' in text
    for line in runs(book.ledger()):
        assert f'href="/runs/{line.run_key}"' in text


def test_unknown_is_a_dash(served: TestClient, book: Book) -> None:
    """A run of which nothing is known costs "–", not 0."""
    ingest_paths(book.ledger(), [str(ROOT / "claude" / "err-529" / "stdout")], tags=Tags("a", "b"))
    text = served.get("/").text
    assert "$0.00" not in text
    assert "$0.0000" not in text
    assert text.count('<abbr class="na" title="unknown">–</abbr>') > 8
    assert "No cost is known" in text


def test_an_empty_ledger_says_what_to_type(served: TestClient) -> None:
    """The first command stands on the page."""
    text = served.get("/").text
    assert "spendmeter sync" in text
    assert "spendmeter run --agent" in text
    assert served.get("/runs").status_code == 200
    assert served.get("/runs/last").status_code == 404


def test_filters_and_periods_narrow_the_page(full: TestClient, book: Book) -> None:
    """By the address alone; one that makes no sense is refused in words."""
    text = full.get("/?agent=reviewer&period=all").text
    total = report(book.ledger(), [], agent="reviewer").total
    assert f'<dd class="big">{total.tokens_in:,}</dd>' in text
    assert "heartbeat" not in text
    assert "Nothing in this time" in full.get("/?agent=nobody").text
    assert full.get("/?period=year").status_code == 422
    assert full.get("/?tz=Mars/Base").status_code == 422
    assert full.get("/?tz=Europe/Berlin").status_code == 200


def test_links_keep_what_was_asked() -> None:
    """But for what they change."""
    asked = Asked(period="month", agent="a&b")
    assert asked.link(task="x y") == "/?period=month&agent=a%26b&task=x+y"
    assert asked.link("/runs", period=None, agent=None) == "/runs"


def test_pages_are_accessible_by_structure(full: TestClient) -> None:
    """One h1, a caption on every table, a scope on every heading cell, ids once, regions named and reachable by keyboard."""
    for path in ("/", "/runs", "/runs/last"):
        text = full.get(path).text
        assert len(re.findall(r"<h1", text)) == 1
        assert text.count("<table") == text.count("<caption")
        assert all("scope=" in th for th in re.findall(r"<th\b[^>]*>", text))
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids)), path
        assert set(re.findall(r'aria-labelledby="([^"]+)"', text)) <= set(ids)
        assert '<html lang="en">' in text
        assert all('tabindex="0"' in x for x in re.findall(r'<div class="scroll"[^>]*>', text))


def test_run_pages_explain_what_no_call_shows(full: TestClient, book: Book) -> None:
    """A run's page names its calls; a run without usage says so."""
    ingest_paths(book.ledger(), [str(ROOT / "claude" / "err-529" / "stdout")])
    by_outcome = {r.outcome: r for r in runs(book.ledger())}
    assert "Calls, oldest first" in full.get(f"/runs/{by_outcome['ok'].run_key}").text
    assert "No source tells what this run used" in full.get(f"/runs/{by_outcome['error'].run_key}").text


def test_numbers_are_written_as_people_do() -> None:
    """Unknown is a dash, small money is not hidden."""
    assert [pages.number(n) for n in (None, 0, 1234567)] == ["–", "0", "1,234,567"]
    assert [pages.money(n, 2) for n in (None, 0, 1, 4_999_999, 5_000_000, 1_234_565_000_000)] == [
        "–",
        "$0.00",
        "<$0.01",
        "<$0.01",
        "$0.01",
        "$1,234.57",
    ]
    assert pages.money(155_623_750, 4) == "$0.1556"
    assert [pages.duration(n) for n in (None, 579, 9_949, 9_951, 61_000, 3_600_000)] == [
        "–",
        "0.6 s",
        "9.9 s",
        "10 s",
        "1 min 1 s",
        "1 h 0 min",
    ]


def test_columns_add_up(full: TestClient, book: Book) -> None:
    """The chart's segments are the day's cost, its columns the period's."""
    found = report(book.ledger(), ["day", "agent"])
    days = sorted({r.keys[0] for r in found.rows if r.keys[0]})
    first, last = (chart.date.fromisoformat(d) for d in (days[0], days[-1]))
    made = chart.chart(found, "day", first, last)
    assert len(made.columns) >= chart.DAYS_MIN
    assert sum(s.cost_nusd for c in made.columns for s in c.segments) == found.total.cost_nusd
    for c in made.columns:
        assert sum(s.cost_nusd for s in c.segments) == (c.amounts.cost_nusd or 0)
        assert not c.segments or abs(sum(s.height for s in c.segments) - 100) < 1e-9
        assert 0 <= c.height <= 100
    months = chart.chart(report(book.ledger(), ["month", "agent"]), "month", first.replace(year=first.year - 1), last)
    assert (len(months.columns), sum(s.cost_nusd for c in months.columns for s in c.segments)) == (13, found.total.cost_nusd)


def test_many_open_pages_cost_one(book: Book) -> None:
    """However many ask at once, an overview is made once, and again when it is old."""
    made = []

    def slow(ledger: Ledger, asked: Asked) -> Any:
        made.append(1)
        time.sleep(0.05)
        return object()

    memory = web.Memory(slow)
    threads = [threading.Thread(target=memory.get, args=(book.ledger(), Asked())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


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


def test_trouble_of_the_workers_stands_on_the_page(book: Book) -> None:
    """With its reason, escaped."""
    workers = Workers(book)
    workers.trouble["settle"] = "ledger <x>: disk is full"
    made: FastAPI = app.create_app(book, workers)
    with TestClient(made, base_url=HOME) as client:
        assert "ledger &lt;x&gt;: disk is full" in client.get("/").text


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_page_and_api_tell_where_budgets_stand(settings: Settings, tmp_path: Path) -> None:
    """The API as ``budget list --json``, the page the fullest first; a file that turns bad later leaves the last good ones."""
    file = tmp_path / "budgets.yaml"
    file.write_text("budgets:\n- {name: small, period: total, limit_usd: 0.1}\n- {name: big, period: total, limit_usd: 1000}\n")
    told = replace(settings, budgets_file=file)
    with closing(Book(told)) as book, TestClient(app.create_app(book, Workers(book)), base_url=HOME) as client:
        load(book.ledger())
        spent = report(book.ledger(), []).total.as_dict()["cost_usd"]
        body = client.get("/api/v1/budgets").json()
        api.Budgets.model_validate(body)
        assert [(b["name"], b["spent_usd"], b["over"]) for b in body["budgets"]] == [("small", spent, True), ("big", spent, False)]
        page = client.get("/?period=all").text
        assert page.index("<b>small</b>") < page.index("<b>big</b>")
        assert '$0.17 <span class="of">of $0.10' in page
        file.write_text("budgets: [")
        assert client.get("/api/v1/budgets").json() == body


def test_without_budgets_the_page_does_not_speak_of_them(full: TestClient) -> None:
    """No heading over nothing."""
    assert "h-budgets" not in full.get("/").text
    assert full.get("/api/v1/budgets").json() == {"budgets": []}
