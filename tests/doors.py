"""The daemon's application behind doors: a client for it, and tokens of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from spendmeter.ledger import now_ms, tokens
from spendmeter.server import app, problems
from spendmeter.server.auth import Keeper
from spendmeter.server.book import Book
from spendmeter.server.limits import Buckets
from spendmeter.server.workers import Workers

HOME = "http://meter.example:9464"
EVENT = {"agent": "a", "task": "T-1", "model": "claude-opus-4-5", "tokens_in": 1, "tokens_out": 2}
EVENTS = "/api/v1/token-events"


def made_tokens(book: Book) -> dict[str, str]:
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
def known(book: Book) -> dict[str, str]:
    return made_tokens(book)


@pytest.fixture
def client(book: Book) -> Iterator[TestClient]:
    """Of the daemon at *book*, which asks for tokens."""
    yield from serving(book)


def serving(book: Book, keeper: Keeper | None = None, writes: Buckets | None = None) -> Iterator[TestClient]:
    """A client of the daemon at *book*, which asks for tokens."""
    made = app.create_app(book, Workers(book), None, keeper or Keeper(book, Buckets(1000, 1000)), writes)
    with TestClient(made, base_url=HOME, follow_redirects=False) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def log_in(client: TestClient, secret: str) -> Any:
    return client.post("/login", data={"token": f" {secret}\n"}, headers={"origin": HOME})


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The problem document of *answer*."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    told: dict[str, Any] = problems.Problem.model_validate(answer.json()).model_dump()
    assert told["status"] == status
    assert told["title"]
    return told
