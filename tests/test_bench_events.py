"""Facts about the history that benchmarks/events.py measures on: it is what posted events would have left."""

from __future__ import annotations

from pathlib import Path

import pytest

from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report
from spendmeter.token_events import Asked, page, read, record, summary

COUNT = 120
TABLES = (t.calls, t.claims, t.processes, t.runs, t.entries, t.posted, t.spool)


@pytest.fixture
def history(both: Ledger, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from events_history import fill  # type: ignore[import-not-found]

    fill(both, COUNT)
    return both


def test_the_history_is_listed_and_summed_up(history: Ledger) -> None:
    """Each event once, by its task, its commit, its repository; folded hours say the same."""
    before = report(history, ["agent"])
    history.fold()
    assert report(history, ["agent"]) == before
    assert before.total.runs == COUNT
    assert before.total.tokens_in == sum(100 + i % 900 for i in range(COUNT))
    events = {
        s: summary(history, s, i).events
        for s, i in (("task", "SHOP-1"), ("commit", "c3"), ("repo", "org/repo-3"), ("workstream", "team-3"))
    }
    assert events == {"task": 40, "commit": 10, "repo": 4, "workstream": 17}
    assert len(page(history, Asked(agent="agent-7"), 50)[0]) == 6


def test_its_rows_are_as_those_of_a_posted_event(history: Ledger) -> None:
    """In every table as many, and each column that one of them knows the other knows too."""
    told = {"agent": "agent-1", "task": "T-1", "workstream": "w", "repo": "org/x", "ref_type": "commit", "ref_id": "c", "model": "gpt-5"}
    record(history, [read(told | {"tokens_in": 5, "tokens_out": 6})])
    with history.read() as conn:
        of = {table.name: [r._mapping for r in conn.execute(table.select())] for table in TABLES if "session_id" in table.c}
        first, last = (sorted({r["session_id"] for r in of["runs"]})[i] for i in (0, -1))
        shapes = [
            {name: [{c for c, x in r.items() if x is not None} for r in rows if r["session_id"] == sid] for name, rows in of.items()}
            for sid in (first, last)
        ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]["posted"]) == 7
    assert summary(history, "task", "T-1").events == 1
