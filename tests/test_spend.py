"""What was spent: the database's sums are those that Python adds up by Budget.covers; on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import literal, text

from spendmeter.budgets import Budget, Period, Subject
from spendmeter.budgets.model import TAGS, UNITS
from spendmeter.config import Settings
from spendmeter.ingest import ingest_paths, sync
from spendmeter.ledger import Ledger, query, spend
from spendmeter.ledger.amounts import SUMS
from spendmeter.ledger.query import Where
from spendmeter.ledger.spend import Sum, by_minute, spent, spent_one
from spendmeter.ledger.store import dump
from spendmeter.records import Tags
from tests.made import NOON, Made, empty

MINUTE, DAY = 60_000, 86_400_000
CLAUDE = Path(__file__).parent / "fixtures" / "runs" / "claude"
FIXED = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def budget(unit: str = "usd", per: str | None = None, **match: str) -> Budget:
    return Budget("b", Period("total"), unit, 100, {k: (v,) for k, v in match.items()}, per)  # type: ignore[arg-type]


def totals(ledger: Ledger, one: Budget, since: int | None = None, until: int | None = None) -> dict[str | None, Sum]:
    with ledger.read() as conn:
        return spent(conn, one, since, until)


# -- any tags, any globs -----------------------------------------------------------------------------------------------

NASTY = st.text("abAB*?[]^-!%_\\'\"$.{}:\n é😀", max_size=4)
ATTRS = ("team", 'a.b"c', "$", "", "é'\\")  # keys that a JSON path would trip over
PATTERN = st.one_of(st.just("*"), NASTY, st.text("ab*?", max_size=4))
COUNT = st.integers(0, 9)
ENTRY = st.fixed_dictionaries(
    {"model": NASTY, "minute_ms": st.integers(0, 5).map(lambda n: NOON + n * MINUTE), "unpriced_tokens": COUNT},
    optional={name: COUNT for name in SUMS if name != "unpriced_tokens"} | {"reported_nusd": st.integers(0, 10**12)},
)
RUN = st.fixed_dictionaries(
    {
        "agent": NASTY, "task": NASTY, "cli": NASTY, "repo": st.none() | NASTY,
        "attrs": st.dictionaries(st.sampled_from(ATTRS), NASTY, max_size=3),
        "ended_ms": st.integers(0, 6 * MINUTE).map(lambda n: NOON + n),
        "entries": st.lists(ENTRY, max_size=3, unique_by=lambda e: (e["model"], e["minute_ms"])),
    }
)  # fmt: skip
KEY = st.sampled_from([*TAGS, *ATTRS])
BUDGET = st.builds(
    Budget, st.just("b"), st.just(Period("total")), st.sampled_from(UNITS), st.just(100),
    match=st.dictionaries(KEY, st.lists(PATTERN, min_size=1, max_size=3).map(tuple), max_size=2), per=st.none() | KEY,
)  # fmt: skip
EDGE = st.none() | st.integers(0, 6).map(lambda n: NOON + n * MINUTE)


def added_up(runs: list[dict[str, Any]], one: Budget, since: int | None, until: int | None) -> dict[str | None, Sum]:
    """The same in Python, run by run."""
    out: dict[str | None, Sum] = {} if one.per is not None else {None: Sum()}
    for run in runs:
        counted = set()
        for e in run["entries"] or [{}]:
            who = Subject(run["agent"], run["task"], run["cli"], e.get("model"), run["repo"], run["attrs"])
            at = run["ended_ms"] if one.unit == "runs" else e.get("minute_ms")
            if at is None or not (since or 0) <= at < (until or 1 << 60) or not one.covers(who):
                continue
            key = (who.get(one.per) or None) if one.per is not None else None
            if one.unit != "runs" or key not in counted:
                old, used = out.get(key, Sum()), amount(one, e)
                out[key] = Sum(old.amount + used.amount, old.unpriced_tokens + used.unpriced_tokens)
            counted.add(key)
    return out


def amount(one: Budget, e: dict[str, Any]) -> Sum:
    if one.unit == "runs":
        return Sum(1)
    if one.unit == "usd":
        return Sum(e.get("reported_nusd", 0) + e.get("estimated_nusd", 0), e["unpriced_tokens"])
    return Sum(sum(e.get(k, 0) for k in ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out")))


@FIXED
@given(runs=st.lists(RUN, max_size=4), one=BUDGET, since=EDGE, until=EDGE)
def test_sql_counts_what_the_budget_covers(
    both: Ledger, runs: list[dict[str, Any]], one: Budget, since: int | None, until: int | None
) -> None:
    """Any tags, attributes, globs, units and windows: sums by value, of each value alone and by minute are those of Python."""
    empty(both)
    made = Made(both)
    for run in runs:
        made.run(*run["entries"], **{k: v for k, v in run.items() if k not in ("entries", "attrs")}, attrs=dump(run["attrs"]))
    expected = added_up(runs, one, since, until)
    with both.read() as conn:
        assert spent(conn, one, since, until) == expected
        for value in [*expected, "no such value"] if one.per is not None else [None]:
            assert spent_one(conn, one, since, until, value) == expected.get(value, Sum())
        whole = Budget("b", one.period, one.unit, 100, one.match)
        minutes = {at: added_up(runs, whole, at, at + MINUTE)[None].amount for at in range(NOON, NOON + 7 * MINUTE, MINUTE)}
        told = by_minute(conn, whole, NOON + MINUTE)
        assert {k: v for k, v in told if v} == {k: v for k, v in minutes.items() if v and k > NOON}
        assert [k for k, _ in told] == sorted({k for k, _ in told})


def test_a_pattern_tells_great_from_small_and_knows_no_classes(made: Made) -> None:
    """Matching is by the letter on both databases; brackets, percent, underscore and backslash are themselves."""
    for name in ("dev", "DEV", "d_v", "d%v", "[d]ev", "d\\v", "d\nv"):
        made.run({"reported_nusd": 1}, agent=name)
    found = {p: totals(made.ledger, budget(agent=p))[None].amount for p in ("dev", "D*", "d_v", "d_*", "d%*", "[d]*", "d\\*", "d?v", "*")}
    assert found == {"dev": 1, "D*": 1, "d_v": 1, "d_*": 1, "d%*": 1, "[d]*": 1, "d\\*": 1, "d?v": 5, "*": 7}


def test_an_attribute_that_postgresql_cannot_hold_spoils_no_sum(made: Made) -> None:
    """A NUL in one run's attribute, which JSON may hold, keeps no other run from being counted."""
    made.run({"reported_nusd": 1}, attrs=dump({"team": "a\0"}))
    made.run({"reported_nusd": 2}, attrs=dump({"team": "b"}))
    assert totals(made.ledger, budget(team="b")) == {None: Sum(2)}


def test_a_run_with_two_models_counts_once(made: Made) -> None:
    """Of a budget of runs; per model it counts for each; a run without usage has no model."""
    made.run({"model": "opus-1"}, {"model": "opus-2"})
    made.run({"model": "haiku"})
    made.run()
    assert totals(made.ledger, budget("runs", model="opus*")) == {None: Sum(2 - 1)}
    assert totals(made.ledger, budget("runs", "model")) == {"opus-1": Sum(1), "opus-2": Sum(1), "haiku": Sum(1), None: Sum(1)}


def test_unpriced_usage_is_told_beside_the_money(made: Made) -> None:
    """Its cost is in no sum, its tokens are; a budget of tokens lacks nothing."""
    made.run({"reported_nusd": 5, "tokens_in": 3}, {"model": "new", "tokens_in": 7, "unpriced_tokens": 7})
    assert totals(made.ledger, budget()) == {None: Sum(5, 7)}
    assert totals(made.ledger, budget("tokens")) == {None: Sum(10, 0)}


def test_an_empty_ledger_has_spent_nothing(both: Ledger) -> None:
    """Zero where there is no per, no value where there is one."""
    assert [totals(both, budget(unit)) for unit in UNITS] == [{None: Sum()}] * 3
    assert [totals(both, budget(unit, "task")) for unit in UNITS] == [{}] * 3


# -- real runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Captured runs of Claude Code on each database, over three agents and five tasks."""
    folder = tmp_path_factory.mktemp("real")
    ledger = Ledger(Settings(f"sqlite:///{folder}/l.db" if request.param == "sqlite" else request.getfixturevalue("postgres"), settle_s=0))
    empty(ledger)
    fill(ledger)
    yield ledger
    empty(ledger)
    ledger.close()


def fill(ledger: Ledger) -> None:
    for i, folder in enumerate(sorted(CLAUDE.iterdir())):
        tags = Tags(("developer", "reviewer", "heartbeat-3")[i % 3], f"SHOP-{i % 5}", {"plan": ("book", "shop")[i % 2]})
        ingest_paths(ledger, [str(folder / "stdout")], tags=tags)
        sync(ledger, home=folder / "home")


def reported(ledger: Ledger, unit: str, where: Where) -> Sum:
    total = query.report(ledger, [], where=where).total
    if unit == "usd":
        return Sum(total.cost_nusd or 0, total.unpriced_tokens or 0)
    return Sum(total.tokens if unit == "tokens" else total.runs)


CASES: list[tuple[dict[str, str], dict[str, Any]]] = [
    ({}, {}),
    ({"agent": "heartbeat*"}, {"agent": "heartbeat-3"}),
    ({"task": "SHOP-1", "cli": "claude"}, {"task": "SHOP-1", "cli": "claude"}),
    ({"plan": "b??k"}, {"attrs": {"plan": "book"}}),
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("match", "filters"), CASES)
def test_what_was_spent_is_what_the_report_says(real: Ledger, unit: str, match: dict[str, str], filters: dict[str, Any]) -> None:
    """Of captured runs, in whole and in windows, which add up to the whole."""
    one = budget(unit, **match)
    with real.read() as conn:
        first = conn.execute(text("select min(minute_ms) from entries")).scalar_one() // DAY * DAY
        last = conn.execute(text("select max(ended_ms) from runs")).scalar_one()
    assert totals(real, one) == {None: reported(real, unit, Where(**filters))} != {None: Sum()}
    edges = [first, first + DAY // 3, *range(first + DAY, last + DAY, DAY)]
    parts = [totals(real, one, a, b)[None] for a, b in pairwise(edges)]
    if unit != "runs":  # a report counts a run in each window that holds usage of it
        assert parts == [reported(real, unit, Where(a, b, **filters)) for a, b in pairwise(edges)]
    assert sum(p.amount for p in parts) == totals(real, one)[None].amount


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("per", ["agent", "task", "cli", "plan"])
def test_sums_by_value_are_the_rows_of_the_report(real: Ledger, unit: str, per: str) -> None:
    """Each value of per has what a report by it says."""
    dimension = per if per in TAGS else f"attr:{per}"
    rows = {r.keys[0]: r.amounts for r in query.report(real, [dimension]).rows}
    pick = {"usd": lambda a: a.cost_nusd or 0, "tokens": lambda a: a.tokens, "runs": lambda a: a.runs}[unit]
    assert {k: s.amount for k, s in totals(real, budget(unit, per)).items()} == {
        k: pick(a) for k, a in rows.items() if a.calls or unit == "runs"
    }


def test_reading_it_all_again_spends_nothing(real: Ledger) -> None:
    """What was ingested twice is counted once."""
    before = [totals(real, budget(unit)) for unit in UNITS]
    fill(real)
    assert [totals(real, budget(unit)) for unit in UNITS] == before


# -- quick, whatever the history ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "index"),
    [
        (budget(), "ix_entries_minute"),
        (budget(agent="dev"), "ix_entries_minute"),
        (budget("tokens", "agent", team="a*"), "ix_entries_minute"),
        (budget("usd", "task"), "ix_entries_minute"),
        (budget(task="T-1"), "ix_runs_task"),
        (budget("runs", "task", agent="dev"), "ix_runs_ended"),
        (budget("runs", model="opus*"), "ix_runs_ended"),
    ],
)
def test_a_window_is_found_by_its_index(ledger: Ledger, one: Budget, index: str) -> None:
    """SQLite reads the window's rows, or the task's, and no whole table; a tag with few values does not lead it astray."""
    with ledger.read() as conn:
        key = spend._tag(conn, one.per, one.unit) if one.per is not None else literal("")
        stmt = spend._rows(conn, one, NOON, NOON + DAY, key).compile(conn, compile_kwargs={"literal_binds": True})
        plan = " | ".join(r[3] for r in conn.execute(text(f"explain query plan {stmt}")))
    assert f"USING INDEX {index} (" in plan
    assert "SCAN entries" not in plan
    assert "SCAN runs" not in plan
