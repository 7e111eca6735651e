"""The API over a real ledger, and who may ask it: request by request."""

from __future__ import annotations

import json
import re
import sqlite3
import time

import pytest
from starlette.testclient import TestClient

from spendmeter.ingest import ingest_paths
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report, runs
from spendmeter.records import Tags
from spendmeter.server import api
from spendmeter.server.book import Book
from spendmeter.server.guard import HEADERS, host_of, is_loopback
from tests.doors import problem
from tests.runs import FIELDS, ROOT
from tests.served import serve

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
     ("127.0.0.1.evil.example:9464", 400), ("[::1].evil.example", 400),
     ("[::1", 400), ("localhost.evil.example", 400), ("10.0.0.1", 400), ("", 400)],
)  # fmt: skip
def test_only_this_machine_is_answered_for(full: TestClient, host: str, status: int) -> None:
    """A name that a foreign page has pointed here (DNS rebinding) gets nothing."""
    answer = full.get("/api/v1/ledger", headers={"host": host})
    assert answer.status_code == status
    assert ("ledger_id" in answer.text) is (status == 200)


def test_further_names_can_be_allowed(book: Book) -> None:
    """By name; where no name is asked for, any will do."""
    for hosts, host, status in ((["meter.lan"], "meter.lan:80", 200), (["meter.lan"], "other.lan", 400), (None, "other.lan", 200)):
        with serve(book, hosts) as client:
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
