"""Plans over HTTP: the same as the command says, in the window that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from starlette.testclient import TestClient

from spendmeter.config import Settings
from spendmeter.ledger import Ledger, planning
from spendmeter.ledger.query import Where
from spendmeter.ledger.store import dump
from spendmeter.plans.model import Estimate, Figures, Plan
from spendmeter.server import answers
from spendmeter.server.book import Book
from tests.made import NOON, Made
from tests.served import serve

MARCH = {"attrs": dump({"plan": "book", "workflow": "draft"}), "plan": "book", "workflow": "draft"}


@pytest.fixture
def asked(settings: Settings) -> Iterator[tuple[TestClient, Ledger]]:
    """A daemon's application, and its ledger with a plan, a run of it, and a run of a plan that nobody recorded."""
    with closing(Book(settings)) as book, serve(book) as client:
        planning.record(book.ledger(), Plan("book", (Estimate(("draft", None, None), Figures(calls=5)),)), NOON)
        made = Made(book.ledger())
        made.run({"tokens_in": 7, "calls": 2}, **MARCH)
        made.run({"tokens_in": 1}, plan="other")
        yield client, book.ledger()


def plans(client: TestClient, **query: str) -> Any:
    answer = client.get("/api/v1/plans", params=query)
    assert answer.status_code == 200, answer.text
    answers.Plans.model_validate(answer.json())
    return answer.json()["plans"]


def test_plans_are_told_as_the_command_tells_them(asked: tuple[TestClient, Ledger]) -> None:
    """By name, those too that no file of estimates is recorded of; unknown is null."""
    client, ledger = asked
    found = plans(client)
    assert found == [v.as_dict() for v in planning.variances(ledger)]
    assert [(p["plan"], p["snapshot_resolved"], p["calls"]["estimated"], p["calls"]["actual"]) for p in found] == [
        ("book", True, 5, 2), ("other", False, None, None),
    ]  # fmt: skip


def test_a_window_cuts_what_was_used(asked: tuple[TestClient, Ledger]) -> None:
    """Its start belongs to it, its end does not; days begin where the zone says."""
    client, ledger = asked
    assert plans(client, until="2026-11-02T12:00") == [v.as_dict() for v in planning.variances(ledger, Where(None, NOON))]
    assert plans(client, since="2026-11-02T12:00")[0]["calls"]["actual"] == 2
    assert plans(client, until="2026-11-02T12:00")[0]["calls"]["actual"] == 0
    assert plans(client, since="2026-11-02T17:30", timezone="Asia/Kolkata")[0]["calls"]["actual"] == 2


@pytest.mark.parametrize(("query", "field"), [({"since": "soon"}, "since"), ({"timezone": "Mars"}, "timezone"), ({"plan": "x"}, "plan")])
def test_what_is_not_understood_is_named(asked: tuple[TestClient, Ledger], query: dict[str, str], field: str) -> None:
    """422 with the parameter."""
    answer = asked[0].get("/api/v1/plans", params=query)
    assert (answer.status_code, [e["field"] for e in answer.json()["errors"]]) == (422, [field])
