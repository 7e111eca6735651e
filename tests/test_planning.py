"""Plans in the ledger: snapshots, what the runs of a plan used, history; on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger, planning, query
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import Where
from spendmeter.plans.model import Estimate, Figures, Plan
from spendmeter.plans.variance import Variance
from spendmeter.records import Tags, to_nusd
from tests.made import NOON, Made, earlier
from tests.planned import RUNS, plan, take
from tests.runs import FIELDS

DAY = 86_400_000

# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_an_unchanged_plan_only_has_its_time_refreshed(both: Ledger) -> None:
    """One snapshot, recorded when it first was; its description and order are those that were recorded last."""
    one = Plan("book", (*plan(a=1).estimates, *plan(b=2).estimates))
    again = Plan("book", one.estimates[::-1], "with a word")
    first, second = planning.record(both, one, NOON), planning.record(both, again, NOON + 5)
    assert (first.new, second.new, second.pruned) == (True, False, 0)
    kept, pruned = planning.snapshots(both)
    assert [(s.snapshot_id, s.recorded_ms, s.seen_ms, s.plan) for s in kept] == [(one.fingerprint, NOON, NOON + 5, again)]
    assert pruned == 0


def test_a_changed_estimate_is_a_new_snapshot_and_in_force(both: Ledger) -> None:
    """And so is an old one that is recorded again, whatever a host's clock says."""
    old, new = plan(a=1), plan(a=2)
    planning.record(both, old, NOON)
    assert planning.record(both, new, NOON - DAY).new
    assert planning.latest(planning.snapshots(both)[0])["book"].plan == new
    assert planning.variance(both, "book").snapshot_id == new.fingerprint
    back = planning.record(both, old, NOON - DAY)
    assert (back.new, back.snapshot.recorded_ms) == (False, NOON)
    assert planning.variance(both, "book").snapshot_id == old.fingerprint
    assert planning.variance(both, new.fingerprint).snapshot_id == new.fingerprint


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_the_snapshots_seen_longest_ago_are_pruned_and_counted(both: Ledger, keep: int) -> None:
    """Never the one just recorded; what was seen again lately stays; the number survives."""
    small = Ledger(Settings(both.settings.ledger, settle_s=0, plans_keep=keep))
    plans = [plan(f"p{i}", a=i) for i in range(5)]
    done = [planning.record(small, p, NOON + i).pruned for i, p in enumerate([*plans[:3], plans[0], *plans[3:]])]
    kept, pruned = planning.snapshots(small)
    small.close()
    assert [s.plan.name for s in kept] == ["p4", "p3", "p0", "p2", "p1"][: max(1, keep)]
    assert sum(done) == pruned == {0: 5, 1: 5, 3: 2}[keep]
    assert planning.snapshots(both)[1] == pruned


def test_a_run_outlives_its_plan(made: Made) -> None:
    """A pruned snapshot is not resolved, by name or by id; what its runs used is still told."""
    small = Ledger(Settings(made.ledger.settings.ledger, settle_s=0, plans_keep=1))
    gone = planning.record(small, plan(a=3), NOON).snapshot.snapshot_id
    made.run({"calls": 2}, plan="book", workflow="a")
    made.run({"calls": 7}, plan=gone, workflow="a")
    assert planning.record(small, plan("other", b=1), NOON + 1).pruned == 1
    small.close()
    for key, snapshot_id, calls in (("book", None, 2), (gone, gone, 7)):
        found = planning.variance(made.ledger, key).as_dict()
        assert (found["plan"], found["snapshot_id"], found["snapshot_resolved"]) == (key, snapshot_id, False)
        assert found["calls"] == {"estimated": None, "actual": calls, "delta": None, "ratio": None}


# -- real runs ---------------------------------------------------------------------------------------------------------

PLANNED = {
    "json-single": ("dev", "summarise", "draft"), "json-tool": ("dev", "summarise", "final"), "json-subagent": ("rev", "review", None),
    "json-opus": ("rev", None, None),
}  # fmt: skip


def feed(ledger: Ledger) -> None:
    """Four captured runs that name the plan, one that names another, one that names none."""
    for name, (agent, workflow, stage) in PLANNED.items():
        attrs = {"plan": "book"} | ({"workflow": workflow} if workflow else {}) | ({"stage": stage} if stage else {})
        take(ledger, name, Tags(agent, "T-1", attrs))
    take(ledger, "max-turns-1", Tags("dev", "T-2", {"plan": "shop", "workflow": "summarise"}))
    take(ledger, "stream-json-tool", Tags("dev", "T-2", {"workflow": "summarise"}))


def truth(*names: str) -> tuple[int, int, int, int | None]:
    """Calls, prompt tokens, all tokens that the server billed, and the cost that the CLI printed."""
    billed = [c["usage"] for n in names for c in json.loads((RUNS / n / "truth.json").read_text())["calls"] if c["usage"]]
    tokens = sum(u[f] for u in billed for f in FIELDS)
    cost = sum(to_nusd(json.loads((RUNS / n / "stdout").read_text())["total_cost_usd"]) or 0 for n in names)
    return len(billed), tokens - sum(u["tokens_out"] for u in billed), tokens, cost


def test_a_planned_set_of_real_runs_is_exact(both: Ledger) -> None:
    """Calls, tokens and cost of the plan and of each workflow and stage are what was billed; taking it all in again changes nothing."""
    draft = Estimate(("summarise", "draft", None), Figures(1, 20_000, 20_000, 10_000_000))
    planning.record(both, Plan("book", (draft, *plan(review=4, unused=1).estimates)), NOON)
    feed(both)
    found = planning.variance(both, "book")
    assert tuple(found.whole.actual.figures) == truth(*PLANNED)
    assert found.whole.actual.runs == 4
    expected = {"summarise": ("json-single", "json-tool"), "review": ("json-subagent",), "unused": (), None: ("json-opus",)}
    assert {w.workflow: tuple(w.whole.actual.figures) for w in found.workflows} == {w: truth(*names) for w, names in expected.items()}
    stages = {stage: tuple(c.actual.figures) for stage, c in found.workflows[0].stages}
    assert stages == {"draft": truth("json-single"), "final": truth("json-tool")}
    with both.read() as conn:
        total_ms = conn.execute(select(func.sum(t.runs.c.duration_ms)).where(t.runs.c.plan == "book")).scalar_one()
    assert found.as_dict()["duration_seconds"] == int(total_ms) / 1000 > 0
    feed(both)
    assert planning.variance(both, "book") == found


def test_variance_and_report_agree_in_every_window(both: Ledger) -> None:
    """The plan's usage is the report's row of it; neighbouring windows add up."""
    feed(both)
    with both.read() as conn:
        first = conn.execute(select(func.min(t.entries.c.minute_ms))).scalar_one()
    whole = planning.variance(both, "book").whole.actual
    sums = [0, 0]
    for since, until in pairwise([None, first + 60_000, first + 3_600_000, first + 20 * 3_600_000, None]):
        where = Where(since, until)
        actual = planning.variance(both, "book", where).whole.actual
        rows = {r.keys[0]: r.amounts for r in query.report(both, ["attr:plan"], where=where).rows}
        told = rows.get("book", query.Amounts())
        assert actual.figures[1:] == (told.prompt_tokens or 0, told.total_tokens or 0, told.cost_nusd or 0)
        sums = [sums[0] + actual.total_tokens, sums[1] + actual.runs]
    assert sums == [whole.total_tokens, whole.runs]


# -- which runs --------------------------------------------------------------------------------------------------------


def calls(found: Variance) -> tuple[int | None, int | None]:
    return found.whole.planned.calls, found.whole.actual.calls


def test_a_run_may_name_a_snapshot(made: Made) -> None:
    """The plan has all of its runs; a snapshot has those that name it or only the plan; every run is in one plan of the list."""
    old = planning.record(made.ledger, plan(a=1), NOON).snapshot.snapshot_id
    new = planning.record(made.ledger, plan(a=2), NOON + 1).snapshot.snapshot_id
    for n, named in ((10, "book"), (200, old), (3000, new), (40_000, "unheard"), (500_000, "")):
        made.run({"calls": n}, plan=named, workflow="a")
    made.run({"calls": 6_000_000}, workflow="a")
    assert calls(planning.variance(made.ledger, "book")) == (2, 3210)
    assert calls(planning.variance(made.ledger, old)) == (1, 210)
    assert calls(planning.variance(made.ledger, new)) == (2, 3010)
    assert [(v.plan, *calls(v)) for v in planning.variances(made.ledger)] == [("book", 2, 3210), ("unheard", None, 40_000)]


def test_an_empty_tag_names_nothing(made: Made) -> None:
    """A workflow or stage that is an empty text is one with the missing one."""
    made.run({"calls": 1}, plan="p", workflow="", stage="")
    made.run({"calls": 2}, plan="p", workflow=None, stage=None)
    found = planning.variance(made.ledger, "p")
    assert [(w.workflow, w.whole.actual.calls, w.stages) for w in found.workflows] == [(None, 3, ())]


def test_unknown_usage_is_unknown_and_told(made: Made) -> None:
    """A run without usage is counted beside; unpriced tokens are; a cost nobody knows is null."""
    planning.record(made.ledger, plan(a=1, b=1, c=1), NOON)
    made.run(plan="book", workflow="a")
    made.run({"tokens_in": 5, "unpriced_tokens": 5}, plan="book", workflow="b")
    a, b, c = (w.as_dict() for w in planning.variance(made.ledger, "book").workflows)
    assert (a["calls"]["actual"], a["total_tokens"]["actual"], a["cost_usd"]["actual_total"], a["runs_without_usage"]) == (
        None,
        None,
        None,
        1,
    )
    assert (b["calls"]["actual"], b["total_tokens"]["actual"], b["cost_usd"]["actual_total"], b["unpriced_tokens"]) == (None, 5, None, 5)
    assert (c["calls"]["actual"], c["total_tokens"]["actual"], c["cost_usd"]["actual_total"], c["runs"]) == (0, 0, "0.000000", 0)


def test_a_name_that_nobody_knows_is_refused_with_near_ones(made: Made) -> None:
    """A window without runs is no such case; an id that was pruned may have no runs either."""
    planning.record(made.ledger, plan("Book", a=1), NOON)
    made.run({"calls": 1}, plan="shop", workflow="a")
    with pytest.raises(LedgerError, match='plan "bok" is not recorded and no run names it; did you mean Book'):
        planning.variance(made.ledger, "bok")
    with pytest.raises(LedgerError, match=r'plan "zebra" .* record it \(spendmeter plan record FILE\)'):
        planning.variance(made.ledger, "zebra")
    assert calls(planning.variance(made.ledger, "shop", Where(NOON + DAY))) == (None, 0)
    assert planning.variance(made.ledger, "0" * 16).as_dict()["snapshot_resolved"] is False


def test_a_tasks_plans_are_those_that_its_runs_name(made: Made) -> None:
    """Against all of the plan's runs, whatever their task."""
    planning.record(made.ledger, plan(a=1), NOON)
    for n, task, named in ((1, "T-1", "book"), (2, "T-2", "book"), (4, "T-1", "alpha"), (8, "T-3", None)):
        made.run({"calls": n}, task=task, plan=named)
    assert [(v.plan, *calls(v)) for v in planning.of_task(made.ledger, "T-1")] == [("alpha", None, 4), ("book", 1, 3)]
    assert planning.of_task(made.ledger, "T-3") == []


# -- history -----------------------------------------------------------------------------------------------------------


def test_history_is_per_run_by_agent_and_workflow(made: Made) -> None:
    """Each run with all it used; a cost that is not whole is not known; what names no workflow comes last."""
    for i, n in enumerate((4, 1, 9)):
        run = {"attrs": '{"workflow":"w"}', "ended_ms": NOON + i * DAY}
        made.run({"calls": n, "tokens_in": n, "tokens_out": n, "reported_nusd": n}, {"model": "n", "cache_read": 5}, **run)
    made.run({"tokens_in": 2, "unpriced_tokens": 1, "reported_nusd": 7}, attrs='{"workflow":"w"}')
    made.run({"calls": 1, "tokens_out": 3}, agent="b", task="T-2")
    w, none = planning.history(made.ledger, Where())
    assert (w.agent, w.workflow, none.agent, none.workflow) == ("developer", "w", "b", None)
    assert sorted(w.runs, key=str) == sorted([Figures(4, 9, 13, 4), Figures(1, 6, 7, 1), Figures(9, 14, 23, 9), Figures()], key=str)
    assert none.runs == (Figures(1, None, None, None),)
    assert w.at(50) == Figures(4, 9, 13, 4)
    assert [len(h.runs) for h in planning.history(made.ledger, Where(NOON + DAY))] == [2]
    assert [h.agent for h in planning.history(made.ledger, Where(task="T-2"))] == ["b"]
    assert [h.workflow for h in planning.history(made.ledger, Where(attrs={"workflow": "w"}))] == ["w"]
    with pytest.raises(LedgerError, match="no run to draw estimates from; widen --since or leave out a filter"):
        planning.history(made.ledger, Where(agent="nobody"))


FIXED = hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FIXED
@given(used=st.lists(st.tuples(*[st.none() | st.integers(0, 10**12)] * 5), min_size=1, max_size=6), percent=st.sampled_from([50, 90]))
def test_what_history_draws_is_always_a_plan(used: list[tuple[int | None, ...]], percent: int) -> None:
    """Whatever is unknown in whichever run, the prompt is never more than the total."""
    names = ("tokens_in", "cache_read", "cache_write_5m", "tokens_out", "calls")
    runs = tuple(planning._figures(query.Amounts(**dict(zip(names, u, strict=True)))) for u in used)
    found = planning.History("a", None, runs).at(percent)
    assert (found.prompt_tokens is None) == (found.total_tokens is None)
    assert (found.prompt_tokens or 0) <= (found.total_tokens or 0)


# -- the migration -----------------------------------------------------------------------------------------------------


def test_an_older_ledgers_runs_learn_their_plan(new_url: Callable[[], str]) -> None:
    """Migration 0002 fills plan, workflow and stage from the attributes that a ledger of 0001 holds, and only from them."""
    url = new_url()
    attrs = [
        {"plan": "book", "workflow": "a", "stage": "s"}, {"workflow": "b"}, {"note": 'the "plan" is set'}, {}, {"plan": "Bücher \"x\""},
    ]  # fmt: skip
    with earlier(url, "0001") as conn:
        for i, told in enumerate(attrs):
            conn.execute(
                text(
                    "insert into runs (session_id, run_key, cli, session, agent, task, attrs, outcome, implied, ended_ms, trace_id, "
                    "span_id, notes) values (:i, 'r', 'claude', 's', 'dev', 'T-1', :attrs, 'ok', false, 0, '', '', '[]')"
                ),
                {"i": i, "attrs": json.dumps(told, ensure_ascii=False)},
            )
            conn.execute(
                text("insert into entries (session_id, run_key, model, minute_ms, unpriced_tokens, calls) values (:i, 'r', 'm', 0, 0, :n)"),
                {"i": i, "n": 10**i},
            )
    ledger = Ledger(Settings(url))
    with ledger.read() as conn:
        found = conn.execute(select(t.runs.c.plan, t.runs.c.workflow, t.runs.c.stage).order_by(t.runs.c.session_id)).all()
    plans = [(v.plan, v.whole.actual.calls) for v in planning.variances(ledger)]
    ledger.close()
    assert [tuple(r) for r in found] == [("book", "a", "s"), (None, "b", None), (None,) * 3, (None,) * 3, ('Bücher "x"', None, None)]
    assert plans == [('Bücher "x"', 10_000), ("book", 1)]
