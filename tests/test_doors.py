"""Who may ask the daemon for what: requests with their answers; secrets stay where they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from spendmeter.ingest import ingest_paths
from spendmeter.ledger import tokens
from spendmeter.ledger.query import report
from spendmeter.records import Tags
from spendmeter.runner import wire
from spendmeter.runner.admission import PATH as ADMISSIONS
from spendmeter.server import app, limits
from spendmeter.server.auth import Keeper
from spendmeter.server.book import Book
from spendmeter.server.guard import COOKIE
from spendmeter.server.workers import Workers
from tests.doors import EVENT, EVENTS, HOME, bearer, log_in, problem
from tests.runs import ROOT
from tests.served import serve

CASE = ROOT / "claude" / "json-tool"


PATHS = ("/metrics", "/api/v1/report", "/api/v1/runs", "/api/v1/openapi.json", "/api/v1/none", "/token-events", "/nothing", "/mcp",
         wire.PATH, ADMISSIONS, f"{ADMISSIONS}/{'a' * 32}")  # fmt: skip


@pytest.mark.parametrize("name", ["expired", "revoked", "unknown", "malformed"])
def test_what_is_no_good_token_is_refused_alike(client: TestClient, known: dict[str, str], name: str) -> None:
    """401 with the same words whether a token never was, is no more, or is no token at all: nobody learns which there are."""
    for path in PATHS:
        answer = client.get(path, headers=bearer(known[name]))
        assert answer.headers["www-authenticate"] == 'Bearer realm="spendmeter", error="invalid_token"', path
        assert problem(answer, 401)["detail"] == "this token is not good here, or no longer"
    assert "ledger_id" not in client.get("/api/v1/ledger", headers=bearer(known[name])).text


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic c21pdGg6c210Xw==", "bearer x y", "Bearer\tx", "Digest smt_", "Bearer " + "x" * 9000]
)
def test_without_a_bearer_token_nothing_is_told(client: TestClient, known: dict[str, str], header: str | None) -> None:
    """401 and a challenge on every path but those that are open, whatever stands in the header."""
    headers = {} if header is None else {"authorization": header}
    for path in PATHS:
        assert client.get(path, headers=headers).headers["www-authenticate"].startswith('Bearer realm="spendmeter"')
        problem(client.get(path, headers=headers), 401)
        problem(client.post(path, headers=headers, json={}), 401)


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/metrics", {"metrics"}),
        ("HEAD", "/metrics", {"metrics"}),
        ("GET", "/api/v1/report", {"read"}),
        ("GET", "/", {"read"}),
        ("GET", "/runs", {"read"}),
        ("GET", EVENTS, {"read"}),
        ("GET", "/token-events", {"read"}),
        ("POST", EVENTS, {"write"}),
        ("POST", "/token-events", {"write"}),
        ("POST", wire.PATH, {"write"}),
        ("POST", ADMISSIONS, {"write"}),
        ("PUT", f"{ADMISSIONS}/{'a' * 32}", {"write"}),
        ("DELETE", f"{ADMISSIONS}/{'a' * 32}", {"write"}),
        ("POST", "/mcp", {"read", "write"}),
        ("DELETE", "/api/v1/runs/x", {"write"}),
        ("PATCH", "/", {"write"}),
    ],
)
def test_each_request_needs_its_scope(client: TestClient, known: dict[str, str], method: str, path: str, scopes: set[str]) -> None:
    """A token with another scope is told which is missing, and comes no further; admin may everything."""
    for scope in tokens.SCOPES:
        answer = client.request(method, path, headers=bearer(known[scope]))
        if scope in scopes or scope == "admin":
            assert answer.status_code not in (401, 403), scope
            continue
        assert answer.status_code == 403
        assert f'error="insufficient_scope", scope="{" ".join(sorted(scopes))}"' in answer.headers["www-authenticate"]
        if method != "HEAD":
            assert f"the scope {' or '.join(sorted(scopes))}" in answer.text


def test_a_tool_that_writes_needs_the_scope_too(client: TestClient, known: dict[str, str], book: Book) -> None:
    """Over MCP one path serves both kinds: a token that may only read records nothing."""
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "record_token_event", "arguments": EVENT}}
    for scope, taken in (("read", False), ("write", True)):
        headers = bearer(known[scope]) | {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18"}
        answer = client.post("/mcp", json=asked, headers=headers)
        assert answer.status_code == 200
        assert ("this needs a token with the scope write" in answer.text) is not taken
        assert bool(report(book.ledger(), []).total.tokens_out) is taken


def call(client: TestClient, secret: str, tool: str, value: str) -> Any:
    """Calls a tool over HTTP whose every argument is *value*."""
    arguments = {"key": value, "id": value, "scope": value, "agent": value, "ref_type": value, "occurred_at": value}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    return client.post("/mcp", json=asked, headers=bearer(secret) | {"accept": "application/json, text/event-stream"})


TAKES = [("POST", EVENTS), ("POST", "/token-events"), ("POST", wire.PATH), ("POST", ADMISSIONS), ("PUT", f"{ADMISSIONS}/{'a' * 32}"),
         ("POST", "/mcp")]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), TAKES)
def test_every_door_that_takes_a_body_refuses_the_same(client: TestClient, known: dict[str, str], method: str, path: str) -> None:
    """Nobody without a token, no scope but write, nothing that is too large, is no JSON, or comes from another site's page."""

    def status(secret: str | None, body: bytes, **more: str) -> int:
        headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"} | more
        return client.request(method, path, content=body, headers=headers | (bearer(secret) if secret else {})).status_code

    assert status(None, b"{}") == 401
    assert status(known["revoked"], b"{}") == 401
    assert status(known["metrics"], b"{}") == 403
    assert status(known["write"], b" " * (limits.BODY_MAX + 1)) == 413
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"\\ud800"', b"null", b"1" * 5000):
        assert status(known["write"], body) in (400, 422), body[:9]
    assert status(None, b"{}", cookie=f"{COOKIE}={known['write']}", origin="https://evil.example") == 403


def test_the_description_names_the_door(client: TestClient, known: dict[str, str], book: Book) -> None:
    """A bearer token where there are doors, none where there are not."""
    told = client.get("/api/v1/openapi.json", headers=bearer(known["read"])).json()
    assert told["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert told["security"] == [{"token": []}]
    with serve(book) as open_:
        assert "security" not in open_.get("/api/v1/openapi.json").json()


def test_health_stays_open_and_says_no_more(client: TestClient, known: dict[str, str], book: Book) -> None:
    """Without a token, also when the ledger has gone; then the answer does not name it."""
    for path in ("/healthz", "/readyz", "/livez", "/static/app.css", "/login"):
        assert client.get(path).status_code == 200, path
    file = Path(book.settings.ledger.removeprefix("sqlite:///"))
    book.close()
    file.rename(file.with_name("away.db"))
    assert client.get("/livez").status_code == 200
    for answer in (client.get("/readyz"), client.get("/healthz"), client.get("/api/v1/report", headers=bearer(known["read"]))):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert file.name not in answer.text
        assert "the daemon's log says why" in answer.text


@pytest.mark.parametrize(
    "path",
    ["/static/../metrics", "/static/..%2fmetrics", "/static/%2e%2e/api/v1/report", "//metrics", "/./metrics", "/healthz/../metrics",
     "/healthz%2f..%2fmetrics", "/METRICS", "/metrics/", "/metrics%00", "/login/../runs", "/livez/x"],
)  # fmt: skip
def test_no_other_spelling_comes_past_the_doors(client: TestClient, known: dict[str, str], path: str) -> None:
    """What is decided upon is the path that is served: dots, slashes, case and escapes lead nowhere."""
    raw = client.build_request("GET", HOME)
    raw.url = raw.url.copy_with(raw_path=path.encode())
    answer = client.send(raw)
    assert answer.status_code in (401, 404), path
    assert "spendmeter_build_info" not in answer.text


EVIL = ("' OR 1=1 --", "'; DROP TABLE runs; --", "../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "<script>alert(1)</script>", "{{7*7}}",
        "%00", "a\x00b", "\ud7ff￿", "x" * 5000, "-1", "9" * 400, "NaN",
        "a\r\nSet-Cookie: x=1", "%n%s%x", "$(id)", "\\\\host\\share")  # fmt: skip


@pytest.mark.parametrize("value", EVIL)
def test_no_parameter_does_anything_but_ask(client: TestClient, known: dict[str, str], book: Book, value: str) -> None:
    """Injection and traversal in every parameter, header and field: an answer below 500 that repeats no markup, and the ledger is whole."""
    ingest_paths(book.ledger(), [str(CASE)], tags=Tags("a", "T-1"))
    before = report(book.ledger(), ["agent", "task"])
    names = ("since", "until", "timezone", "agent", "task", "cli", "model", "repo", "session", "outcome", "by", "limit", "cursor",
             "scope", "id", "ref_type", "ref_id", "workstream", value)  # fmt: skip
    of_pages = ("period", "tz", "agent", "cursor")
    answers = [
        client.get(path, params={name: value}, headers=bearer(known["admin"]))
        for paths, asked in ((("/api/v1/report", "/api/v1/runs", EVENTS, f"{EVENTS}/summary"), names), (("/", "/runs"), of_pages))
        for path in paths
        for name in asked
    ]
    answers += [
        client.post(EVENTS, json=EVENT | {name: value}, headers=bearer(known["write"])) for name in ("occurred_at", "cost_usd", "ref_type")
    ]
    answers += [client.get(f"/api/v1/runs/{value!r}", headers=bearer(known["read"]))]
    run = {"run_id": "a" * 32}
    for name in ("run_id", "agent", "attrs", "max_cost_usd", "max_tokens"):
        answers += [client.post(ADMISSIONS, json=run | {name: value}, headers=bearer(known["write"]))]
    answers += [client.put(f"{ADMISSIONS}/{quote(value)}", json={}, headers=bearer(known["write"]))]
    answers += [client.delete(f"{ADMISSIONS}/{quote(value)}", headers=bearer(known["write"]))]
    for doc in ({"version": 1, "observations": [[value, {}]]}, {"version": value, "observations": []}, {value: 1}):
        answers += [client.post(wire.PATH, json=doc, headers=bearer(known["write"]))]
    answers += [call(client, known["write"], name, value) for name in ("get_run", "get_token_summary", "record_token_event", value)]
    answers += [client.post("/login", data={"token": value})]
    assert [a.status_code for a in answers if a.status_code >= 500] == []
    assert not any("root:x:" in a.text or a.headers.get("set-cookie", "").startswith("x") for a in answers)
    assert not any("<script>alert" in a.text for a in answers if "json" not in a.headers["content-type"])
    assert report(book.ledger(), ["agent", "task"]) == before


def test_a_defect_tells_no_secret(
    book: Book, known: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the log nor in the answer, at the doors or behind them."""

    def broken(*_: object) -> None:
        raise RuntimeError(known["read"])

    for place in (lambda: monkeypatch.setattr(tokens, "find", broken), lambda: monkeypatch.setattr(Keeper, "admit", broken)):
        _with(place, book, known, caplog)


def _with(place: Callable[[], None], book: Book, known: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    place()
    made = app.create_app(book, Workers(book), None, Keeper(book))
    with TestClient(made, base_url=HOME, raise_server_exceptions=False) as client, caplog.at_level(logging.DEBUG):
        for answer in (client.get("/api/v1/report", headers=bearer(known["read"])), log_in(client, known["read"])):
            assert answer.status_code == 500
            assert known["read"] not in answer.text
    said = "\n".join(r.getMessage() + str(r.exc_info or "") for r in caplog.records if r.name.startswith(("spendmeter", "uvicorn")))
    assert "RuntimeError at " in said
    assert known["read"] not in said
