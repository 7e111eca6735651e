"""What is asked of token events: workstreams, sums, lists, also in ledgers from before."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import text

from spendmeter.config import Settings
from spendmeter.demo import SAMPLE
from spendmeter.ingest import ingest_paths
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import report, runs
from spendmeter.records import Tags, iso, usd_text
from spendmeter.token_events import SCOPES, Asked, find, page, summary
from tests.made import earlier
from tests.posted import AT, AT_MS, FULL, post, ways

# -- workstreams -------------------------------------------------------------------------------------------------------


def test_a_workstream_is_filled_in_from_its_task(both: Ledger) -> None:
    """By the latest that names one; an event's own word stands, and a task that nobody knows has none."""
    post(both, {"task": "T-1", "workstream": "new", "occurred_at": AT})
    post(both, {"task": "T-1", "workstream": "old", "occurred_at": "2026-10-01T00:00:00Z"})
    post(both, {"workstream": "mine"})
    rows = post(both, {"task": "T-1"}, {"task": "T-1", "workstream": "own"}, {"task": "T-1"}, {"task": "T-2"}, {})
    assert [r["workstream"] for r in rows] == ["new", "own", "own", None, None]
    assert summary(both, "workstream", "new").events == 2


def test_a_metered_run_names_the_workstream_too(ledger: Ledger) -> None:
    """By its attribute, as ``spendmeter run --attr workstream=...`` gives it."""
    ingest_paths(ledger, [str(SAMPLE / "json-opus")], tags=Tags("dev", "T-1", {"workstream": "shop", "release": "1.2"}))
    (row,) = post(ledger, {"task": "T-1"})
    assert row["workstream"] == "shop"
    assert {s: summary(ledger, s, i).events for s, i in (("workstream", "shop"), ("release", "1.2"))} == {"workstream": 2, "release": 1}


# -- sums --------------------------------------------------------------------------------------------------------------


def test_a_summary_is_events_and_runs_each_once(both: Ledger) -> None:
    """Of a task that both a metered run and posted events name: what the report says, by model and by agent."""
    ingest_paths(both, [str(SAMPLE / "json-opus")], tags=Tags("reviewer", "T-1"))
    post(both, FULL, {"task": "T-1", "tokens_out": 3, "agent": "reviewer"}, {"task": "T-2"})
    got = summary(both, "task", "T-1").as_dict()
    total = report(both, [], task="T-1").total
    assert (got["tokens_in"], got["tokens_out"], got["cost_usd"]) == (total.tokens_in, total.tokens_out, usd_text(total.cost_nusd))
    assert (got["event_count"], got["tokens_total"]) == (3, (total.tokens_in or 0) + (total.tokens_out or 0))
    for by, dimension in (("by_model", "model"), ("by_agent", "agent")):
        found = {r.keys[0]: (r.amounts.tokens_in or 0) + (r.amounts.tokens_out or 0) for r in report(both, [dimension], task="T-1").rows}
        assert got[by] == found
        assert sum(got[by].values()) == got["tokens_total"]
        assert list(got[by].values()) == sorted(got[by].values(), reverse=True)


def test_every_scope_finds_its_own(both: Ledger) -> None:
    """And nothing where nothing is named so: no events, and no number that anyone knows."""
    refs = [{"ref_type": x, "ref_id": "here"} for x in ("commit", "release", "session")]
    post(both, *[{name: "here", "tokens_in": 10} for name in ("task", "workstream", "repo")], *[r | {"tokens_in": 10} for r in refs])
    for scope in SCOPES:
        assert (summary(both, scope, "here").events, summary(both, scope, "here").amounts.tokens_in) == (1, 10)
        assert summary(both, scope, "there").as_dict() == {
            "scope": scope, "scope_id": "there", "tokens_in": None, "tokens_out": None, "tokens_total": None, "cost_usd": None,
            "event_count": 0, "by_model": {}, "by_agent": {},
        }  # fmt: skip


def test_a_sessions_summary_has_its_runs_and_what_was_posted_of_it(both: Ledger) -> None:
    """Both know the session by the CLI's id."""
    ingest_paths(both, [str(SAMPLE / "json-opus")])
    (run,) = runs(both)
    post(both, {"ref_type": "session", "ref_id": run.session, "tokens_out": 7})
    got = summary(both, "session", run.session)
    assert (got.events, got.amounts.tokens_out) == (2, (run.amounts.tokens_out or 0) + 7)


def test_questions_go_by_an_index(ledger: Ledger) -> None:
    """Whatever is asked for: no list sorts, no summary looks at every run."""
    for scope in SCOPES:
        way = ways(ledger, lambda scope=scope: summary(ledger, scope, "x"))
        assert way.count("SEARCH runs USING") == 2, scope
        assert not re.search("SCAN (runs|entries|token_events|aliases)", way), scope
    for name in ("agent", "task", "workstream", "repo", "ref_id", "model"):
        way = ways(ledger, lambda name=name: page(ledger, Asked(**{name: "x"}), 50, (AT_MS, "x")))
        assert f"SEARCH token_events USING INDEX ix_token_events_{name.removesuffix('_id')}" in way
        assert "TEMP B-TREE" not in way, name
    assert "USING INDEX ix_token_events_occurred" in ways(ledger, lambda: page(ledger, Asked(), 50))
    fill = ways(ledger, lambda: post(ledger, {"task": "T-1"}))
    assert "SEARCH runs USING INDEX ix_runs_task_workstream (task=?)" in fill


# -- lists -------------------------------------------------------------------------------------------------------------


def test_pages_give_every_event_once(both: Ledger) -> None:
    """The latest first, also where many are of one moment and more land meanwhile."""
    ids = {r["id"] for r in post(both, *[{"occurred_at": AT, "tokens_in": i} for i in range(7)], {"occurred_at": "2026-10-01T00:00:00Z"})}
    found, place = page(both, Asked(), 3)
    post(both, {"note": "later"})
    while place is not None:
        more, place = page(both, Asked(), 3, place)
        found += more
    assert len(found) == len(ids)
    assert {r["id"] for r in found} == ids
    assert [r["occurred_at"] for r in found] == sorted((r["occurred_at"] for r in found), reverse=True)


def test_filters_narrow_the_list(both: Ledger) -> None:
    """Each of them, and the window: its start belongs to it, its end does not."""
    row = find(both, post(both, FULL, {"task": "T-2", "occurred_at": "2026-10-01T00:00:00Z"})[0]["id"])
    assert row is not None
    assert row == FULL | {
        "id": row["id"], "tokens_total": 1200, "created_at": row["created_at"], "occurred_at": iso(AT_MS), "cost_usd": "0.012345678",
    }  # fmt: skip
    for name in ("agent", "task", "workstream", "repo", "ref_type", "ref_id", "model"):
        assert page(both, Asked(**{name: FULL[name]}), 9) == ([row], None)
    assert page(both, Asked(since_ms=AT_MS), 9) == ([row], None)
    assert page(both, Asked(since_ms=AT_MS - 1, until_ms=AT_MS), 9) == ([], None)
    assert page(both, Asked(task="T-1", agent="other"), 9) == ([], None)


# -- ledgers from before -----------------------------------------------------------------------------------------------


def test_runs_from_before_learn_what_they_are_summed_up_by(tmp_path: Path) -> None:
    """A ledger of the schema before: its runs' attributes become columns."""
    url = f"sqlite:///{tmp_path / 'old.db'}"
    with earlier(url, "0003") as conn:
        conn.execute(text("insert into meta (key, value) values ('ledger_id', 'x'), ('created_ms', '0')"))
        names = "session_id, run_key, cli, session, agent, task, attrs, outcome, implied, trace_id, span_id, notes"
        attrs = '{"workstream":"shop","release":"1.2"}'
        conn.exec_driver_sql(f"insert into runs ({names}) values (1, 'r', 'claude', 's', 'dev', 'T', '{attrs}', 'ok', 0, '', '', '[]')")
    ledger = Ledger(Settings(url))
    assert [summary(ledger, s, i).events for s, i in (("workstream", "shop"), ("release", "1.2"), ("workstream", "x"))] == [1, 1, 0]
    ledger.close()
