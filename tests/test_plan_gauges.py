"""Gauges of plans: the snapshot in force beside what its runs used; on SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from spendmeter import metrics as m
from spendmeter.config import Settings
from spendmeter.ingest import ingest_paths, sync
from spendmeter.ledger import Ledger, planning
from spendmeter.ledger.exposition import exposition
from spendmeter.ledger.query import Where
from spendmeter.plans.model import Estimate, Figures, Plan
from spendmeter.projections.prometheus import render
from spendmeter.records import Tags
from tests.made import NOON, Made
from tests.planned import RUNS, plan, take

# -- real runs ---------------------------------------------------------------------------------------------------------


def test_a_tag_that_comes_later_moves_a_run_into_its_plan(both: Ledger) -> None:
    """The run's plan follows its tags, and so do the gauges."""
    planning.record(both, plan(summarise=1), NOON)
    path = RUNS / "json-single"
    sync(both, home=path / "home")
    assert planning.variance(both, "book").whole.actual.calls == 0
    before = samples(both, m.PLAN_ACTUAL_CALLS)
    ingest_paths(both, [str(path / "stdout")], tags=Tags("dev", "T-1", {"plan": "book", "workflow": "summarise"}))
    assert planning.variance(both, "book").whole.actual.calls == 1
    assert (before, samples(both, m.PLAN_ACTUAL_CALLS)) == ({("book", "summarise"): 0}, {("book", "summarise"): 1})


# -- gauges ------------------------------------------------------------------------------------------------------------


def samples(ledger: Ledger, metric: m.Metric) -> dict[tuple[str, ...], float]:
    """A gauge as /metrics shows it."""
    page = render(exposition(ledger, "scrape"))[1].decode()
    found = [s for f in text_string_to_metric_families(page) for s in f.samples if s.name == metric.sample]
    out = {tuple(s.labels[x] for x in metric.labels): s.value for s in found}
    assert len(out) == len(found)
    return out


def test_the_gauges_show_the_snapshot_in_force_beside_the_actual(made: Made) -> None:
    """By workflow; what is not known has no sample; what was not planned is added up; unrecorded plans have none."""
    planning.record(made.ledger, plan(a=9), NOON)
    planning.record(made.ledger, Plan("book", (*plan(a=2, b=None).estimates, *plan(c=3).estimates)), NOON + 1)
    planning.record(made.ledger, Plan("spare", (Estimate((None, None, None), Figures(calls=5)),)), NOON + 2)
    made.run({"calls": 4, "tokens_in": 7, "cache_read": 20, "tokens_out": 3, "reported_nusd": 1_500_000_000}, plan="book", workflow="a")
    made.run({"calls": 1, "estimated_nusd": 250_000_000}, plan="book", workflow="a", stage="x", agent="other")
    made.run(plan="book", workflow="b")
    for workflow in ("x", "y", None):
        made.run({"calls": 100}, plan="book", workflow=workflow)
    made.run({"calls": 3}, plan="spare")
    made.run({"calls": 3}, plan="never recorded", workflow="a")
    found = {metric: samples(made.ledger, metric) for pair in planning._GAUGES for metric in pair[:2]}
    assert found[m.PLAN_ESTIMATED_CALLS] == {("book", "a"): 2, ("book", "c"): 3, ("spare", "unknown"): 5}
    assert found[m.PLAN_ESTIMATED_TOKENS] == {("book", "a"): 24, ("book", "c"): 36}
    assert found[m.PLAN_ESTIMATED_COST_USD] == {("book", "a"): 0.02, ("book", "c"): 0.03}
    assert found[m.PLAN_ACTUAL_CALLS] == {("book", "a"): 5, ("book", "c"): 0, ("book", "__other__"): 300, ("spare", "unknown"): 3}
    assert found[m.PLAN_ACTUAL_TOKENS] == {("book", "a"): 30, ("book", "c"): 0}
    assert found[m.PLAN_ACTUAL_COST_USD] == {("book", "a"): 1.75, ("book", "c"): 0}
    assert samples(made.ledger, m.PLANS_PRUNED) == {(): 0}


def test_names_that_one_label_stands_for_are_added_up(made: Made) -> None:
    """Control characters and length never make one series twice."""
    long = "w" * 200
    planning.record(made.ledger, plan("a\x01b", **{long + "1": 2, long + "2": 3}), NOON)
    made.run({"calls": 10}, plan="a\x01b", workflow=long + "1")
    made.run({"calls": 20}, plan="a\x01b", workflow=long + "2")
    assert samples(made.ledger, m.PLAN_ESTIMATED_CALLS) == {("a\ufffdb", "w" * 128): 5}
    assert samples(made.ledger, m.PLAN_ACTUAL_CALLS) == {("a\ufffdb", "w" * 128): 30}


def test_the_gauges_follow_usage_and_plans_and_cost_nothing_else(both: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are summed again after a commit or a recording, and only then."""
    planning.record(both, plan(draft=1), NOON)
    counted = []
    monkeypatch.setattr(planning, "_used", lambda *args, real=planning._used: counted.append(1) or real(*args))
    assert samples(both, m.PLAN_ACTUAL_CALLS) == samples(both, m.PLAN_ACTUAL_CALLS) == {("book", "draft"): 0}
    take(both, "json-single", Tags("dev", "T-1", {"plan": "book", "workflow": "draft"}))
    assert samples(both, m.PLAN_ACTUAL_CALLS) == {("book", "draft"): 1}
    planning.record(both, plan(draft=7), NOON)
    assert samples(both, m.PLAN_ESTIMATED_CALLS) == {("book", "draft"): 7}
    assert len(counted) == 3


def test_a_ledger_without_plans_has_no_plan_series(made: Made) -> None:
    """Only the number of pruned ones, which is 0."""
    made.run({"calls": 3}, plan="book", workflow="a")
    with made.ledger.read() as conn:
        found = planning.gauges(made.ledger, conn)
    assert {metric: rows for metric, rows in found.items() if rows} == {m.PLANS_PRUNED: [((), 0)]}


def test_a_plans_runs_are_found_by_their_index(tmp_path: Path) -> None:
    """SQLite reads the plan's runs and their entries by key, not the whole history."""
    ledger = Ledger(Settings(f"sqlite:///{tmp_path / 'l.db'}"))
    asked: list[str] = []
    with ledger.read() as conn:
        real = conn.execute

        def spy(statement: Any) -> Any:
            asked.append(str(statement.compile(conn, compile_kwargs={"literal_binds": True})))
            return real(statement)

        conn.execute = spy  # type: ignore[method-assign,assignment]
        planning._used(conn, {"book", "0" * 16}, Where())
        plans = [" | ".join(r[3] for r in real(text(f"explain query plan {sql}"))) for sql in asked]
    ledger.close()
    assert len(plans) == 2
    for told in plans:
        assert "SEARCH runs USING INDEX ix_runs_plan (plan=?)" in told
        assert "SEARCH entries USING" in told
        assert "SCAN" not in told
