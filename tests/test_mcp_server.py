"""The MCP server around its tools: in trouble, over HTTP, without the SDK, and whom it takes for the caller."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from spendmeter.budgets import Subject
from spendmeter.config import Settings
from spendmeter.demo import load
from spendmeter.errors import LedgerError
from spendmeter.ledger import now_ms
from spendmeter.ledger import tokens as access
from spendmeter.server.auth import Keeper
from spendmeter.server.book import Book
from spendmeter.server.mcp_server import door
from spendmeter.server.mcp_server.caller import Caller, of_process
from spendmeter.server.mcp_server.protocol import server
from spendmeter.server.mcp_server.source import Opening, Source
from spendmeter.server.mcp_server.tools import TOOLS
from tests.agents import ask, refused, told
from tests.commands import call
from tests.served import serve

# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_defect_says_where_and_not_what(book: Book, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the agent nor the log is told its text; the next question is answered."""
    secret = "hush-5"

    def broken() -> Book:
        raise KeyError(secret)

    with caplog.at_level(logging.DEBUG):
        first, second = ask(server(Source(book.settings, broken)), ("get_run", {}), ("estimate_cost", {"model": "claude-sonnet-4-5"}))
    assert refused(first) == "spendmeter met a defect of its own; its log names the place"
    assert "get_run: KeyError at " in caplog.text
    assert secret not in caplog.text
    assert told(second)["cost_usd"] == "0.000000"


def test_a_ledger_that_cannot_be_had_is_an_error_until_it_can(settings: Settings, tmp_path: Path) -> None:
    """It is opened when it is first asked for, and tried again; prices need none."""
    blocker = tmp_path / "folder"
    blocker.write_text("in the way")
    opening = Opening(replace(settings, ledger=f"sqlite:///{blocker / 'ledger.db'}"), list)
    with closing(opening):
        made = server(Source(settings, opening))
        first, priced = ask(made, ("get_run", {}), ("estimate_cost", {"model": "claude-sonnet-4-5", "tokens_in": 1}))
        assert str(blocker) in refused(first)
        assert told(priced)["cost_usd"] == "0.000003"
        blocker.unlink()
        assert "no run in the ledger yet" in refused(ask(made, ("get_run", {}))[0])


def test_a_locked_ledger_is_an_error_until_it_is_free(book: Book) -> None:
    """Within seconds; what only reads goes on meanwhile."""
    load(book.ledger())
    path = str(book.settings.ledger).removeprefix("sqlite:///")
    event = ("record_token_event", {"tokens_in": 1, "task": "T-9"})
    made = server(Source(book.settings, lambda: book))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        locked, read = ask(made, event, ("get_run", {}))
        assert "locked" in refused(locked)
        assert told(read)["run_key"]
        other.execute("rollback")
    assert told(ask(made, event)[0])["tokens_in"] == 1


def test_runs_of_dead_wrappers_come_first(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """They are taken in before each answer; where that fails it is logged, and the ledger answers as it is."""
    done: list[int] = []

    def recover() -> None:
        done.append(1)
        if len(done) > 1:
            raise LedgerError("no space;\nfree some")

    with closing(Opening(settings, recover)) as opening:
        made = server(Source(settings, opening))
        first, second = ask(made, ("get_run", {}), ("get_token_summary", {"id": "T-1"}))
    assert (refused(first)[:6], told(second)["event_count"], len(done)) == ("no run", 0, 2)
    assert "unfinished runs could not be recorded: no space; free some" in caplog.text


# -- who asks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "agent", "task", "run_id"),
    [
        ({}, None, None, None),
        ({"SPENDMETER_AGENT": "a", "SPENDMETER_TASK": "t"}, "a", "t", None),
        ({"OTEL_RESOURCE_ATTRIBUTES": "spendmeter.agent=x,spendmeter.task=y"}, None, None, None),
        (
            {"SPENDMETER_RUN_ID": "r", "OTEL_RESOURCE_ATTRIBUTES": "agent=z, spendmeter.agent=a%2Cb%20c,spendmeter.task=unknown,junk"},
            "a,b c", None, "r",
        ),
        (
            {"SPENDMETER_RUN_ID": "r", "SPENDMETER_AGENT": "a", "SPENDMETER_TASK": "t",
             "OTEL_RESOURCE_ATTRIBUTES": "spendmeter.agent=x,spendmeter.task=unknown"},
            "x", "t", "r",
        ),
        ({"SPENDMETER_AGENT": "", "SPENDMETER_RUN_ID": ""}, None, None, None),
    ],
)  # fmt: skip
def test_the_environment_says_who_asks(env: dict[str, str], agent: str | None, task: str | None, run_id: str | None) -> None:
    """A run under way by the tags it was started with, else the two variables."""
    assert of_process(env, "shop") == Caller(Subject(agent, task, repo="shop"), run_id)


# -- HTTP --------------------------------------------------------------------------------------------------------------

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPT = {"accept": "application/json, text/event-stream"}


def test_http_answers_one_document_to_one_request(served: TestClient) -> None:
    """JSON, no session, no event stream, no header of another origin; there is nothing to GET or to DELETE."""
    answer = served.post("/mcp", json=LIST, headers=ACCEPT)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert len(answer.json()["result"]["tools"]) == len(TOOLS)
    assert "mcp-session-id" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    assert [served.request(m, "/mcp", headers=ACCEPT).status_code for m in ("GET", "DELETE", "PUT", "OPTIONS")] == [405] * 4


def test_http_has_no_answer_before_the_start_or_after_the_end(book: Book) -> None:
    """Nor a defect."""
    client = serve(book)
    assert client.post("/mcp", json=LIST, headers=ACCEPT).status_code == 503
    with client:
        assert client.post("/mcp", json=LIST, headers=ACCEPT).status_code == 200
    assert client.post("/mcp", json=LIST, headers=ACCEPT).status_code == 503


def test_http_takes_nothing_from_elsewhere(served: TestClient) -> None:
    """Neither under a foreign name, nor from a foreign page, nor as what a page may send without being asked."""
    assert served.post("/mcp", json=LIST, headers=ACCEPT | {"host": "evil.example"}).status_code == 400
    assert served.post("/mcp", json=LIST, headers=ACCEPT | {"origin": "https://evil.example"}).status_code == 403
    assert served.post("/mcp", json=LIST, headers=ACCEPT | {"origin": "http://127.0.0.1:9464"}).status_code == 200
    assert served.post("/mcp", content=json.dumps(LIST), headers=ACCEPT | {"content-type": "text/plain"}).status_code == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"jsonrpc":"2.0"}', b"[" * 5000, b'{"a":"\xff"}', b"x" * (5 << 20)])
def test_http_refuses_what_is_no_message(served: TestClient, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """With a status of the client's fault, and not a word of it in the log."""
    answer = served.post("/mcp", content=body, headers=ACCEPT | {"content-type": "application/json"})
    assert answer.status_code in (400, 413)
    assert "Traceback" not in answer.text
    assert not caplog.text


def test_a_token_is_good_for_the_tools_of_its_scope(book: Book) -> None:
    """One that may read reads, one that may write records, one for metrics does not come in."""
    secrets = {scope: access.create(book.ledger(), scope, [scope], now_ms())[0] for scope in ("read", "write", "metrics")}
    event = LIST | {"method": "tools/call", "params": {"name": "record_token_event", "arguments": {"tokens_in": 1}}}
    price = LIST | {"method": "tools/call", "params": {"name": "estimate_cost", "arguments": {"model": "claude-sonnet-4-5"}}}
    with serve(book, keeper=Keeper(book)) as client:

        def sent(body: dict[str, Any], scope: str) -> Any:
            return client.post("/mcp", json=body, headers=ACCEPT | {"authorization": f"Bearer {secrets[scope]}"})

        assert client.post("/mcp", json=LIST, headers=ACCEPT).status_code == 401
        assert sent(LIST, "metrics").status_code == 403
        results = {(n, s): sent(b, s).json()["result"] for n, b in (("event", event), ("price", price)) for s in ("read", "write")}
    assert {k: r.get("isError", False) for k, r in results.items()} == {
        ("event", "read"): True, ("event", "write"): False, ("price", "read"): False, ("price", "write"): True,
    }  # fmt: skip
    assert results["event", "read"]["content"][0]["text"] == "this needs a token with the scope write; spendmeter token create makes one"


# -- without the SDK ---------------------------------------------------------------------------------------------------


@pytest.fixture
def without_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were not installed."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("mcp", "mcp_types") or n.startswith("spendmeter.server.mcp_server.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setitem(sys.modules, "mcp_types", None)


def test_the_command_names_its_extra(without_sdk: None) -> None:
    """In one line."""
    result = call("mcp")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "spendmeter: mcp needs the package mcp; install spendmeter[mcp]\n"


def test_stdio_needs_no_web_framework(settings: Settings) -> None:
    """The extra brings the SDK and nothing of what only the daemon needs."""
    program = "import sys; sys.modules |= {'fastapi': None, 'jinja2': None}; import spendmeter.server.mcp_server.stdio"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_daemon_does_without(without_sdk: None, book: Book) -> None:
    """There is just nothing at /mcp."""
    assert door(book) is None
    with serve(book) as client:
        assert client.post("/mcp", json=LIST, headers=ACCEPT).status_code == 404
        assert client.get("/healthz").text == "ok\n"
