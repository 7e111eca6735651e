"""Who may ask the daemon for what: requests with their answers, tokens, limits, labels."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner
from sqlalchemy import select
from starlette.testclient import TestClient

from spendmeter.cli import main
from spendmeter.config import Settings, load
from spendmeter.errors import ConfigError, LedgerError
from spendmeter.ingest import ingest_paths
from spendmeter.ledger import Ledger, now_ms, periods, tokens
from spendmeter.ledger import schema as t
from spendmeter.ledger.exposition import exposition
from spendmeter.ledger.privacy import cleaned
from spendmeter.ledger.query import report
from spendmeter.ledger.verify import verify
from spendmeter.projections.prometheus import render
from spendmeter.records import Tags
from spendmeter.server import app, auth, limits, problems, tls
from spendmeter.server.auth import Access, Keeper
from spendmeter.server.book import Book
from spendmeter.server.guard import COOKIE, HEADERS, HSTS
from spendmeter.server.limits import Buckets
from spendmeter.server.workers import Workers
from tests.runs import ROOT

HOME = "http://meter.example:9464"
CASE = ROOT / "claude" / "json-tool"
EVENT = {"agent": "a", "task": "T-1", "model": "claude-opus-4-5", "tokens_in": 1, "tokens_out": 2}
EVENTS = "/api/v1/token-events"
NOT_BEFORE = 1_000_000


@pytest.fixture
def book(settings: Settings) -> Iterator[Book]:
    with closing(Book(settings)) as made:
        yield made


@pytest.fixture
def known(book: Book) -> dict[str, str]:
    """A token of every kind by its name; one was revoked, one has expired."""
    ledger, at = book.ledger(), now_ms()
    made = {s: tokens.create(ledger, s, {s}, at)[0] for s in tokens.SCOPES}
    made["expired"] = tokens.create(ledger, "expired", {"admin"}, at - 2, at - 1)[0]
    made["revoked"] = tokens.create(ledger, "revoked", {"admin"}, at)[0]
    tokens.revoke(ledger, "revoked")
    made["unknown"] = tokens.PREFIX + "A" * 43
    made["malformed"] = "hunter2"
    return made


@pytest.fixture
def client(book: Book) -> Iterator[TestClient]:
    yield from serving(book)


def serving(book: Book, keeper: Keeper | None = None, writes: Buckets | None = None) -> Iterator[TestClient]:
    made = app.create_app(book, Workers(book), None, keeper or Keeper(book, Buckets(1000, 1000)), writes)
    with TestClient(made, base_url=HOME, follow_redirects=False) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The problem document of *answer*."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    told: dict[str, Any] = problems.Problem.model_validate(answer.json()).model_dump()
    assert told["status"] == status
    return told


# -- the table ---------------------------------------------------------------------------------------------------------

PATHS = ("/metrics", "/api/v1/report", "/api/v1/runs", "/api/v1/openapi.json", "/api/v1/none", "/token-events", "/nothing", "/mcp")


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
        ("POST", "/api/v1/observations", {"write"}),
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


def test_the_description_names_the_door(client: TestClient, known: dict[str, str], book: Book) -> None:
    """A bearer token where there are doors, none where there are not."""
    told = client.get("/api/v1/openapi.json", headers=bearer(known["read"])).json()
    assert told["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert told["security"] == [{"token": []}]
    with TestClient(app.create_app(book, Workers(book)), base_url="http://localhost") as open_:
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
    answers += [client.post("/login", data={"token": value})]
    assert [a.status_code for a in answers if a.status_code >= 500] == []
    assert not any("root:x:" in a.text or a.headers.get("set-cookie", "").startswith("x") for a in answers)
    assert not any("<script>alert" in a.text for a in answers if "json" not in a.headers["content-type"])
    assert report(book.ledger(), ["agent", "task"]) == before


# -- browsers ----------------------------------------------------------------------------------------------------------


def log_in(client: TestClient, secret: str) -> Any:
    return client.post("/login", data={"token": f" {secret}\n"}, headers={"origin": HOME})


def test_a_page_asks_for_a_token_and_takes_it_once(client: TestClient, known: dict[str, str]) -> None:
    """The form, a cookie out of the reach of scripts and other sites, the page, and out again."""
    asked = client.get("/")
    assert (asked.status_code, "<form" in asked.text) == (401, True)
    answer = log_in(client, known["read"])
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Domain" not in cookie
    page = client.get("/")
    assert page.status_code == 200
    assert "spendmeter sync" in page.text
    assert known["read"] not in page.text
    assert client.get("/metrics").status_code == 403
    out = client.post("/logout", headers={"origin": HOME})
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert client.get("/").status_code == 401


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [("unknown", 401, "not good here"), ("expired", 401, "not good here"), ("revoked", 401, "not good here"),
     ("malformed", 401, "not good here"), ("metrics", 403, "scope read")],
)  # fmt: skip
def test_the_form_says_what_is_wrong(client: TestClient, known: dict[str, str], name: str, status: int, why: str) -> None:
    """And sets no cookie; the token is not on the page."""
    answer = log_in(client, known[name])
    assert answer.status_code == status
    assert why in answer.text
    assert "set-cookie" not in answer.headers
    assert known[name] not in answer.text


def test_a_cookie_that_is_of_no_use_goes(client: TestClient, known: dict[str, str]) -> None:
    """So that a page left open after a revocation does not use up the failures of its address."""
    answer = client.get("/", headers={"cookie": f"{COOKIE}={known['revoked']}"})
    assert answer.status_code == 401
    assert re.search(rf'{COOKIE}=""; .*Max-Age=0', answer.headers["set-cookie"])


def test_behind_https_the_cookie_is_secure(book: Book, known: dict[str, str]) -> None:
    """And browsers are told to come by https alone; by http they are not."""
    made = app.create_app(book, Workers(book), None, Keeper(book))
    with TestClient(made, base_url="https://meter.example", follow_redirects=False) as client:
        answer = client.post("/login", data={"token": known["read"]})
        assert "Secure" in answer.headers["set-cookie"]
        assert answer.headers["strict-transport-security"] == HSTS
    with TestClient(made, base_url=HOME, follow_redirects=False) as client:
        answer = client.post("/login", data={"token": known["read"]})
        assert "Secure" not in answer.headers["set-cookie"]
        assert "strict-transport-security" not in answer.headers


OURS = [{"origin": HOME}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": HOME, "sec-fetch-site": "same-origin"}]
FOREIGN = [
    {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://meter.example:9465"}, {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"}, {"origin": HOME, "sec-fetch-site": "cross-site"}, {"origin": "http://meter.example:9464.evil.example"},
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_sites_page_sends_nothing(client: TestClient, known: dict[str, str], book: Book, headers: dict[str, str]) -> None:
    """With the cookie or without doors at all, a browser that a foreign page sends is turned away; a bearer token passes."""
    cookie = {"cookie": f"{COOKIE}={known['admin']}"}
    assert "another origin" in problem(client.post(EVENTS, json=EVENT, headers=headers | cookie), 403)["detail"]
    assert client.post("/login", data={"token": known["read"]}, headers=headers).status_code == 403
    assert client.post(EVENTS, json=EVENT, headers=headers | bearer(known["write"])).status_code == 201
    with TestClient(app.create_app(book, Workers(book), ["meter.example"]), base_url=HOME) as open_:
        problem(open_.post(EVENTS, json=EVENT, headers=headers), 403)
        assert open_.get("/api/v1/ledger", headers=headers).status_code == 200
        assert open_.post(EVENTS, json=EVENT).status_code == 201


@pytest.mark.parametrize("headers", OURS)
def test_our_own_page_may(client: TestClient, known: dict[str, str], headers: dict[str, str]) -> None:
    """With its cookie; a cookie without a word on where it comes from is not enough."""
    cookie = {"cookie": f"{COOKIE}={known['write']}"}
    assert client.post(EVENTS, json=EVENT, headers=headers | cookie).status_code == 201
    problem(client.post(EVENTS, json=EVENT, headers=cookie), 403)


def test_every_answer_is_armoured_and_none_allows_another_origin(client: TestClient, known: dict[str, str]) -> None:
    """Also refusals, also for a preflight."""
    ask = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for answer in (client.get("/metrics"), client.get("/"), client.get("/login"), client.options(EVENTS, headers=ask),
                   client.post(EVENTS, headers=ask), client.get("/metrics", headers=ask | bearer(known["metrics"]))):  # fmt: skip
        assert {k: answer.headers.get(k) for k in HEADERS} == HEADERS
        assert not any(h.startswith("access-control-") for h in answer.headers)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_not_read(client: TestClient, known: dict[str, str]) -> None:
    """413 by its length alone, and as it comes where no length is told; what is refused at the door is not read at all."""
    told = problem(client.post(EVENTS, content=b" " * (limits.BODY_MAX + 1), headers=bearer(known["write"])), 413)
    assert "larger than 4194304 bytes" in told["detail"]
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        for _ in range(64):
            read += 1
            yield b" " * 256 * 1024

    headers = bearer(known["write"]) | {"content-type": "application/json"}
    assert "larger" in problem(client.post(EVENTS, content=chunks(), headers=headers), 413)["detail"]
    assert client.post("/mcp", content=chunks(), headers=headers).status_code == 413
    assert client.post("/mcp", content=b" " * (limits.BODY_MAX + 1), headers=headers).status_code == 413
    assert client.post(EVENTS, content=b" " * (limits.BODY_MAX + 1)).status_code == 401


def test_wrong_tokens_are_few_and_shut_no_one_else_out(book: Book, known: dict[str, str]) -> None:
    """After ten 429 with the time to wait, also for a good token that is new here; one that has been good passes."""
    clock = [0.0]
    for client in serving(book, Keeper(book, Buckets(0.1, 10, lambda: clock[0]))):
        assert client.get("/metrics", headers=bearer(known["metrics"])).status_code == 200
        for _ in range(10):
            assert client.get("/metrics", headers=bearer(known["unknown"])).status_code == 401
        for secret in (known["unknown"], known["malformed"], known["read"]):
            answer = client.get("/api/v1/report", headers=bearer(secret))
            assert (problem(answer, 429)["title"], answer.headers["retry-after"]) == ("Too Many Requests", "10")
        assert log_in(client, known["read"]).status_code == 429
        assert client.get("/metrics", headers=bearer(known["metrics"])).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/livez").status_code == 200
        clock[0] += 10
        assert client.get("/api/v1/report", headers=bearer(known["read"])).status_code == 200


def test_writes_are_limited_and_reads_are_not(book: Book, known: dict[str, str]) -> None:
    """429 with the time to wait."""
    clock = [0.0]
    for client in serving(book, writes=Buckets(0.5, 3, lambda: clock[0])):
        codes = [client.post(EVENTS, json=EVENT, headers=bearer(known["write"])).status_code for _ in range(4)]
        assert codes == [201, 201, 201, 429]
        answer = client.post(EVENTS, json=EVENT, headers=bearer(known["write"]))
        assert (problem(answer, 429)["detail"], answer.headers["retry-after"]) == ("too many requests from this address; wait 2 s", "2")
        assert client.get("/api/v1/report", headers=bearer(known["read"])).status_code == 200
        clock[0] += 2
        assert client.post(EVENTS, json=EVENT, headers=bearer(known["write"])).status_code == 201


def test_a_bucket_fills_by_time_for_each_client() -> None:
    """At its rate, up to its size; the clients that came last are remembered."""
    clock = [100.0]
    made = Buckets(2, 3, lambda: clock[0])
    assert [made.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert made.take("b") == 0
    clock[0] += 0.5
    assert (made.wait_s("a"), made.take("a"), made.take("a")) == (0, 0, 0.5)
    clock[0] += 1000
    assert [made.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    for n in range(limits._ADDRESSES):
        made.take(f"n{n}")
    assert len(made._kept) == limits._ADDRESSES
    assert made.take("a") == 0


@pytest.mark.parametrize(
    ("told", "counts_as"),
    [(("192.0.2.7", 1), "192.0.2.7"), (("2001:db8::1:2:3", 1), "2001:db8::/64"), (("2001:db8:0:0:9::", 1), "2001:db8::/64"),
     (("2001:db8:0:1::", 1), "2001:db8:0:1::/64"), (None, ""), (("testclient", 1), "testclient")],
)  # fmt: skip
def test_a_client_is_an_address_or_what_one_host_has_of_ipv6(told: tuple[str, int] | None, counts_as: str) -> None:
    """A host has a /64 of its own to take addresses from."""
    assert limits.address({"client": told}) == counts_as


POST = b"POST /api/v1/token-events HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def daemon(book: Book, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The daemon's own server in a thread, impatient; its port."""
    from spendmeter.server import daemon as d

    monkeypatch.setattr(limits, "HEAD_S", 0.6)
    monkeypatch.setattr(limits, "BODY_S", 0.6)
    sockets = d._listen("127.0.0.1", 0)
    server = uvicorn.Server(d._uvicorn(app.create_app(book, Workers(book))))
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
    thread.start()
    yield int(sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("sent", "drip", "answer"),
    [
        (b"", b"", b""),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ", b"x", b""),
        (POST + b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{", b" ", b"HTTP/1.1 408"),
        (POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", b"HTTP/1.1 408"),
        (POST + b"Content-Length: 99\r\n\r\n{", b" ", b"HTTP/1.1 415"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", b"G", b"HTTP/1.1 200"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", b"", b"HTTP/1.1 4"),
        (b"GET /livez?" + b"x" * 2_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", b"HTTP/1.1 4"),
    ],
    ids=["silent", "slow headers", "slow body", "slow chunks", "body after the answer", "slow second", "large headers", "endless address"],
)
def test_who_dawdles_is_hung_up_on(daemon: int, sent: bytes, drip: bytes, answer: bytes) -> None:
    """Headers and bodies that come by the byte, or do not come, hold a connection no longer than they may."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", daemon), timeout=10) as sock:
        got = b""
        try:
            sock.sendall(sent)
            sock.settimeout(0.1)
            while time.monotonic() - began < 8:
                try:
                    part = sock.recv(4096)
                except TimeoutError:
                    sock.sendall(drip)
                    continue
                got += part
                if not part:
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert time.monotonic() - began < 6
    assert got.startswith(answer)
    assert bool(got) == bool(answer)


def test_a_patient_connection_is_kept(daemon: int) -> None:
    """What is idle between complete requests is not in a hurry."""
    with closing(http.client.HTTPConnection("127.0.0.1", daemon, timeout=5)) as connection:
        connection.connect()
        kept = connection.sock
        for _ in range(2):
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b"ok\n"
            time.sleep(1)
        assert connection.sock is kept


def test_an_answer_does_not_wait_for_an_acknowledgement(daemon: int) -> None:
    """Its head and its body go out at once: on a connection that is kept, Nagle's algorithm would hold the body back for 40 ms."""
    took = []
    with closing(http.client.HTTPConnection("127.0.0.1", daemon, timeout=5)) as connection:
        for _ in range(30):
            began = time.monotonic()
            connection.request("GET", "/livez")
            connection.getresponse().read()
            took.append(time.monotonic() - began)
    assert min(took[5:]) < 0.03


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_a_token_is_kept_as_its_digest(both: Ledger) -> None:
    """256 bits that are not in the database; found by the digest until it is revoked or over; its use noted once a minute."""
    at = now_ms()
    secret, made = tokens.create(both, "ci", ["write", "read"], at, at + 5000)
    assert re.fullmatch(r"smt_[\w-]{43}", secret)
    assert secret != tokens.create(both, "other", ["read"], at)[0]
    digest = tokens.digest(secret)
    assert digest
    assert made == tokens.find(both, digest, at) == tokens.Token("ci", ("read", "write"), at, at + 5000)
    with both.read() as conn:
        assert secret.removeprefix("smt_") not in str(conn.execute(select(t.access_tokens)).all())
    assert tokens.find(both, digest, at + 5000) is None
    for later, noted in ((10, at + 10), (11, at + 10), (60_009, at + 10), (60_010, at + 60_010)):
        tokens.note_use(both, "ci", at + later, 1000)
        assert [x.used_ms for x in tokens.listed(both)] == [noted, None]
    with pytest.raises(LedgerError, match="there already"):
        tokens.create(both, "ci", ["read"], at)
    tokens.revoke(both, "ci")
    assert tokens.find(both, digest, at) is None
    with pytest.raises(LedgerError, match='no token "ci"'):
        tokens.revoke(both, "ci")


@pytest.mark.parametrize(
    ("name", "scopes", "why"),
    [("", ["read"], "token name"), ("a b", ["read"], "token name"), ("x" * 65, ["read"], "token name"), ("a\n", ["read"], "token name"),
     ("-a", ["read"], "token name"), ("a", [], "scope"), ("a", ["read", "root"], 'scope "root"')],
)  # fmt: skip
def test_a_token_that_makes_no_sense_is_refused(ledger: Ledger, name: str, scopes: list[str], why: str) -> None:
    """In words, and nothing is kept."""
    with pytest.raises(LedgerError, match=why):
        tokens.create(ledger, name, scopes, 0)
    assert tokens.listed(ledger) == []


def test_a_revoked_token_is_good_for_two_seconds_at_most(book: Book, known: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a daemon that has just seen it; an expired one is over at once."""
    clock = [now_ms()]
    monkeypatch.setattr(auth, "now_ms", lambda: clock[0])
    short = tokens.create(book.ledger(), "short", ["read"], clock[0], clock[0] + 1000)[0]
    for client in serving(book):
        assert [client.get("/api/v1/ledger", headers=bearer(x)).status_code for x in (known["read"], short)] == [200, 200]
        tokens.revoke(book.ledger(), "read")
        clock[0] += 1000
        assert client.get("/api/v1/ledger", headers=bearer(short)).status_code == 401
        clock[0] += 1000
        assert client.get("/api/v1/ledger", headers=bearer(known["read"])).status_code == 401


def test_use_is_noted_and_waits_for_no_one(book: Book, known: dict[str, str]) -> None:
    """A writer that holds the ledger delays no request."""
    for client in serving(book):
        with book.ledger().write():
            began = time.monotonic()
            assert client.get("/metrics", headers=bearer(known["metrics"])).status_code == 200
            assert time.monotonic() - began < 1.5
        assert {x.name for x in tokens.listed(book.ledger()) if x.used_ms} == set()
        assert client.get("/api/v1/ledger", headers=bearer(known["read"])).status_code == 200
        assert {x.name for x in tokens.listed(book.ledger()) if x.used_ms} == {"read"}


def spendmeter(url: str, *args: str) -> Any:
    return CliRunner().invoke(main, ["--ledger", url, *args])


def test_the_commands_make_list_and_revoke(settings: Settings) -> None:
    """The secret is printed once and alone; listing never shows one."""
    made = spendmeter(settings.ledger, "token", "create", "prometheus", "--scope", "metrics, read", "--expires", "90d")
    assert (made.exit_code, re.fullmatch(r"smt_\S{43}\n", made.stdout) is not None) == (0, True)
    assert "the only time" in made.stderr
    told = json.loads(spendmeter(settings.ledger, "token", "create", "ci", "--scope", "write", "--json").stdout)
    assert (told["name"], told["scopes"], told["expires_ms"], told["token"][:4]) == ("ci", ["write"], None, "smt_")
    listed = spendmeter(settings.ledger, "token", "list")
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert [r[:2] for r in rows] == [["name", "scopes"], ["ci", "write"], ["prometheus", "read,metrics"]]
    document = json.loads(spendmeter(settings.ledger, "token", "list", "--json").stdout)["tokens"]
    assert document[1]["expires_ms"] - document[1]["created_ms"] == 90 * 86_400_000
    assert "smt_" not in listed.stdout + json.dumps(document)
    assert spendmeter(settings.ledger, "token", "revoke", "ci").exit_code == 0
    assert spendmeter(settings.ledger, "token", "revoke", "ci").exit_code == 1
    assert spendmeter(settings.ledger, "token", "create", "x", "--scope", "read", "--expires", "2001-01-01").exit_code == 2


@pytest.mark.parametrize(("text", "ms"), [("90d", 7_776_000_000), ("1970-01-02", 86_400_000 - NOT_BEFORE), ("12h", 43_200_000)])
def test_a_time_to_come_is_a_length_or_a_date(text: str, ms: int) -> None:
    """From now on."""
    assert periods.until_ms(text, NOT_BEFORE) == NOT_BEFORE + ms


@pytest.mark.parametrize("text", ["0d", "1970-01-01", "soon", "999999w", "today"])
def test_a_time_that_has_been_or_never_comes_is_refused(text: str) -> None:
    """In words."""
    with pytest.raises(LedgerError, match=r"not between now|not understood"):
        periods.until_ms(text, NOT_BEFORE)


# -- the start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "access", "needs", "beyond"),
    [
        ("127.0.0.1", Access(), False, False), ("::1", Access(), False, False), ("localhost", Access(insecure=True), False, False),
        ("127.0.0.1", Access(require_token=True), True, True), ("0.0.0.0", Access(), True, True), ("::", Access(), True, True),
        ("10.0.0.1", Access(insecure=True), False, True), ("meter.lan", Access(), True, True),
        ("127.0.0.1", Access(proxies=("127.0.0.1",)), True, True),
        ("127.0.0.1", Access(proxies=("127.0.0.1",), insecure=True), False, True),
    ],
)  # fmt: skip
def test_beyond_this_machine_a_token_is_needed(host: str, access: Access, needs: bool, beyond: bool) -> None:
    """Behind a proxy too; unless it was opened on purpose."""
    assert (access.needs_token(host), access.beyond(host)) == (needs, beyond)


def test_without_a_token_it_does_not_start(book: Book) -> None:
    """An expired one does not count; the message says what to do."""
    tokens.create(book.ledger(), "old", ["admin"], 0, 1)
    with pytest.raises(ConfigError, match=r"spendmeter token create .* --insecure-no-token"):
        Keeper(book).check()
    tokens.create(book.ledger(), "new", ["metrics"], 0)
    Keeper(book).check()


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        (["--host", "0.0.0.0"], 1, "spendmeter token create"),
        (["--require-token"], 1, "spendmeter token create"),
        (["--require-token", "--insecure-no-token"], 2, "contradict"),
        (["--tls-cert", "x.pem"], 2, "belong together"),
        (["--proxy", "proxy.lan"], 2, "is not an address or a network"),
        (["--tls-cert", "x.pem", "--tls-key", "y.pem"], 1, "--tls-cert x.pem: cannot be read (No such file or directory)"),
    ],
)
def test_what_makes_no_sense_at_the_start_is_refused(settings: Settings, args: list[str], code: int, why: str) -> None:
    """Before anything is listened on."""
    done = subprocess.run(
        [sys.executable, "-m", "spendmeter", "--ledger", settings.ledger, "serve", "--port", "0", *args],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr


def openssl(folder: Path, name: str, *more: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and localhost that signs itself, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", str(key), "-out", str(cert), "-days", "2",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]  # fmt: skip
    subprocess.run([*command, *(more or ["-nodes"])], check=True, capture_output=True)
    return cert, key


def test_tls_files_are_checked_at_the_start(tmp_path: Path) -> None:
    """TLS 1.2 at least; what is of no use is told with its flag and a remedy, and no passphrase is asked for on the terminal."""
    cert, key = openssl(tmp_path, "a")
    other = openssl(tmp_path, "b")[1]
    locked = openssl(tmp_path, "c", "-passout", "pass:hunter2")
    made = tls.context(cert, key)
    assert made.minimum_version == ssl.TLSVersion.TLSv1_2
    text = tmp_path / "text"
    text.write_text("hello")
    wrong: list[tuple[tuple[Path, Path], str]] = [
        ((cert, tmp_path / "none"), "--tls-key .*cannot be read .No such file"), ((tmp_path, key), "--tls-cert .*cannot be read .Is a dir"),
        ((cert, other), "not that of the certificate"), ((text, key), "in PEM"), ((cert, text), "in PEM"), ((key, cert), "in PEM"),
        (locked, "the key is encrypted"),
    ]  # fmt: skip
    for files, why in wrong:
        with pytest.raises(ConfigError, match=why):
            tls.context(*files)


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("feat/ABC-1", "feat/ABC-1"), ("/review", "/review"), ("/api/v1", "/api/v1"), ("a/b/c.py", "a/b/c.py"),
        ("owner/repo#12", "owner/repo#12"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4@20250514"), ("@team", "@team"), ("pkg@1.2.3", "pkg@1.2.3"), ("C:", "C:"),
        ("https://example.com/home/x", "https://example.com/home/x"), ("12:30", "12:30"), ("Ошибка/42", "Ошибка/42"),
        ("/home/bob/work/shop", "shop"), ("/Users/bob/shop/", "shop"), (r"C:\Users\bob\shop", "shop"), ("c:/work/shop", "shop"),
        (r"\\server\share\shop", "shop"), ("~/src/shop", "shop"), ("/tmp/x", "x"), ("fix /home/bob/a.py now", "fix a.py now"),
        ("/home/bob", "path"), (r"C:\Users\bob", "path"), ("/Users/bob/", "path"),
        ("bob@example.com", "email-5ff860bf1190"), ("Bob@Example.com", "email-5ff860bf1190"),
        ("ask bob@example.com!", "ask email-5ff860bf1190!"),
        ("/home/bob/bob@example.com", "email-5ff860bf1190"),
    ],
)  # fmt: skip
def test_addresses_and_paths_are_no_labels(text: str, shown: str) -> None:
    """By default a path leaves its last part and an address a pseudonym; what only looks a little like one stays."""
    assert cleaned(text, "hash", "basename") == shown
    assert cleaned(text, "keep", "keep") == text
    assert not re.search(r"bob|Users|home/", cleaned(text, "drop", "drop").replace("example.com/home", ""))


def test_labels_are_cleaned_and_totals_are_not_split(tmp_path: Path, settings: Settings) -> None:
    """On /metrics only, summed where two names become one label; report and budgets go by the names as they were given."""
    for emails, shown in (("hash", "email-5ff860bf1190"), ("drop", "email"), ("keep", "bob@example.com")):
        told = replace(settings, ledger=f"sqlite:///{tmp_path / emails}.db", privacy_emails=emails)
        with closing(Ledger(told)) as ledger:
            for n, agent in enumerate(("bob@example.com", "Bob@Example.com")):
                ingest_paths(ledger, [str(ROOT / "claude" / ("json-tool", "json-opus")[n])], tags=Tags(agent, "/home/bob/shop"))
            body = render(exposition(ledger, "scrape"), "")[1].decode()
            rows = {r.keys[0]: r.amounts for r in report(ledger, ["agent"]).rows}
            assert set(rows) == {"bob@example.com", "Bob@Example.com"}
            assert {r.keys[0] for r in report(ledger, ["task"]).rows} == {"/home/bob/shop"}
            values = [int(float(v)) for v in re.findall(rf'task_tokens_out_total{{agent="{re.escape(shown)}",task="shop"}} (\S+)', body)]
            want = [rows["bob@example.com"].tokens_out] if emails == "keep" else [sum(a.tokens_out or 0 for a in rows.values())]
            assert values == want
            assert f'spendmeter_last_run_timestamp_seconds{{agent="{shown}"}}' in body
            assert "/home/" not in body
            assert ("@" in body) is (emails == "keep")
            assert verify(ledger) == []


def test_what_is_done_with_them_is_a_setting(tmp_path: Path) -> None:
    """Of spendmeter.toml and the environment; another word is refused."""
    file = tmp_path / "spendmeter.toml"
    file.write_text('[privacy]\nemails = "drop"\npaths = "keep"\n')
    told = load(str(file), env={"HOME": str(tmp_path)})
    assert (told.privacy_emails, told.privacy_paths) == ("drop", "keep")
    assert load(env={"HOME": str(tmp_path), "SPENDMETER_PRIVACY_PATHS": "drop"}).privacy_paths == "drop"
    with pytest.raises(ConfigError, match="is not one of hash, keep, drop"):
        load(env={"HOME": str(tmp_path), "SPENDMETER_PRIVACY_EMAILS": "no"})


# -- secrets -----------------------------------------------------------------------------------------------------------


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
