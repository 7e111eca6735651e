"""Reports, runs and tasks: whatever the cut, the rows add up to the ledger; on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, insert, select, text

from spendmeter.cli import main
from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.ingest import ingest_paths, sync
from spendmeter.ledger import Ledger, query
from spendmeter.ledger import schema as t
from spendmeter.ledger.periods import when_ms
from spendmeter.ledger.query import Amounts, Where
from spendmeter.records import Tags
from tests.made import NOON, Made

RUNS = Path(__file__).parent / "fixtures" / "runs" / "claude"
AGENTS = ("developer", "reviewer", "heartbeat-3")
DAY = 86_400_000


# -- real runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Every captured run of Claude Code, spread over three agents and five tasks."""
    ledger = Ledger(Settings(f"sqlite:///{tmp_path_factory.mktemp('real') / 'ledger.db'}", settle_s=0))
    folders = sorted(RUNS.iterdir())
    assert folders
    for i, folder in enumerate(folders):
        tags = Tags(AGENTS[i % 3], f"SHOP-{i % 5}", {"plan": ("book", "shop")[i % 2]})
        ingest_paths(ledger, [str(folder / "stdout")], tags=tags)
        sync(ledger, home=folder / "home")
    yield ledger
    ledger.close()


def ledger_sums(ledger: Ledger) -> list[int | None]:
    with ledger.read() as conn:
        return list(conn.execute(select(*[func.sum(t.entries.c[name]) for name in query.Amounts._fields[:-1]])).one())


KEYS = st.lists(st.sampled_from([*query.DIMENSIONS, "attr:plan", "attr:none"]), max_size=5, unique=True)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia"])
FIXED = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FIXED
@given(by=KEYS, zone=ZONES)
def test_every_grouping_adds_up_to_the_ledger(real: Ledger, by: list[str], zone: str) -> None:
    """Tokens, cost and calls of the rows sum to the ledger's own sums; runs count once in the total; keys are unique."""
    found = query.report(real, by, timezone=zone)
    assert list(found.total[:-1]) == ledger_sums(real)
    with real.read() as conn:
        assert found.total.runs == conn.execute(select(func.count()).select_from(t.runs)).scalar_one()
    assert len({r.keys for r in found.rows}) == len(found.rows)
    if not set(by) & {"model", "day", "month"}:
        assert sum(r.amounts.runs for r in found.rows) == found.total.runs


@FIXED
@given(by=KEYS, cuts=st.lists(st.integers(0, 2 * DAY), max_size=3))
def test_neighbouring_windows_add_up(real: Ledger, by: list[str], cuts: list[int]) -> None:
    """Half-open windows that touch hold every entry once."""
    with real.read() as conn:
        first = conn.execute(select(func.min(t.entries.c.minute_ms))).scalar_one()
    edges = [None, *sorted(first + c for c in cuts), None]
    total = Amounts()
    for since, until in pairwise(edges):
        total = total.plus(query.report(real, by, since, until).total)
    assert list(total[:-1]) == ledger_sums(real)


@FIXED
@given(by=KEYS, name=st.sampled_from(["agent", "task", "model", "outcome", "session"]))
def test_filters_cut_as_grouping_does(real: Ledger, by: list[str], name: str) -> None:
    """A report filtered by one value of a dimension is that value's row of the report by it."""
    for row in query.report(real, [name]).rows:
        if row.keys[0] is not None:
            assert query.report(real, by, where=Where(**{name: row.keys[0]})).total == row.amounts


def test_a_filter_on_a_tag_cuts_as_grouping_by_it(real: Ledger) -> None:
    """attr:plan=book alone is the row of book."""
    rows = {r.keys[0]: r.amounts for r in query.report(real, ["attr:plan"]).rows}
    assert set(rows) >= {"book", "shop"}
    assert query.report(real, ["model"], where=Where(attrs={"plan": "book"})).total == rows["book"]


def test_every_run_of_the_listing_adds_up(real: Ledger) -> None:
    """The listed runs hold all usage, the latest first; "last" is the first of them."""
    found = query.runs(real)
    total = Amounts()
    for line in found:
        total = total.plus(line.amounts)
    assert list(total[:-1]) == ledger_sums(real)
    assert [x.ended_ms for x in found] == sorted((x.ended_ms for x in found), reverse=True)
    assert query.run_totals(real) == found[0] == query.runs(real, limit=1)[0]
    assert query.runs(real, Where(attrs={"plan": "book"}), limit=3) == [x for x in found if x.attrs.get("plan") == "book"][:3]


def test_a_run_is_found_by_any_of_its_names(real: Ledger) -> None:
    """Run key, session and the start of a run key lead to one run."""
    line = next(x for x in query.runs(real) if not x.implied)
    assert query.run_totals(real, line.run_key) == line
    assert query.run_totals(real, line.session).session == line.session
    assert query.run_totals(real, line.run_key[:20]) == line
    with pytest.raises(LedgerError, match='run "nope" is not in the ledger'):
        query.run_totals(real, "nope")
    with pytest.raises(LedgerError, match="is the name of"):
        query.run_totals(real, "")


def test_a_task_is_its_row(real: Ledger) -> None:
    """A task's total is its row of the report; its agents and outcomes add up to it."""
    rows = {r.keys[0]: r.amounts for r in query.report(real, ["task"]).rows}
    found = query.task_totals(real, "SHOP-1")
    assert found.total == rows["SHOP-1"]
    assert sum(a.runs for _, a in found.agents) == sum(found.outcomes.values()) == found.total.runs


@pytest.mark.parametrize(
    ("asked", "hint"), [("SHOP-11", "did you mean SHOP-1"), ("shop-3", "did you mean SHOP-3"), ("xyzzy", "the latest are SHOP")]
)
def test_an_unknown_task_names_near_ones(real: Ledger, asked: str, hint: str) -> None:
    """A misspelt task is told with what may be meant."""
    with pytest.raises(LedgerError, match=hint):
        query.task_totals(real, asked)


# -- unknown is not 0 --------------------------------------------------------------------------------------------------


def test_unknown_stays_null(made: Made) -> None:
    """A field that no entry tells is null in row and total; a known one is its sum; cost is reported plus estimated."""
    made.run({"tokens_in": 5, "reported_nusd": 1_000_000}, {"model": "n", "tokens_in": 7, "estimated_nusd": 2_000_000, "calls": 2})
    found = query.report(made.ledger, ["model"]).as_dict()
    cells = [(r["model"], r["tokens_in"], r["tokens_out"], r["cost_usd"], r["calls"]) for r in found["rows"]]
    assert cells == [("n", 7, None, "0.002000", 2), ("m", 5, None, "0.001000", None)]
    assert (found["total"]["cost_usd"], found["total"]["calls"], found["total"]["cache_write"]) == ("0.003000", 2, None)


def test_a_run_without_usage_counts(made: Made) -> None:
    """It is a run of its agent, on its day, with unknown usage and no model; a filter by model leaves it out."""
    made.run(ended_ms=NOON + DAY)
    made.run({"tokens_in": 1})
    rows = {r.keys: (r.amounts.runs, r.amounts.tokens_in) for r in query.report(made.ledger, ["day", "model"]).rows}
    assert rows == {("2026-11-02", "m"): (1, 1), ("2026-11-03", None): (1, None)}
    assert query.report(made.ledger, [], model="m").total.runs == 1
    assert query.report(made.ledger, [], NOON + DAY).total.runs == 1


def test_a_run_on_two_days_counts_once_in_the_total(made: Made) -> None:
    """Rows by day and model each hold it, the total once."""
    made.run({"tokens_in": 1}, {"tokens_in": 2, "minute_ms": NOON + DAY}, {"tokens_in": 4, "model": "n"})
    by_day, by_model = query.report(made.ledger, ["day"]), query.report(made.ledger, ["model"])
    assert [(r.keys[0], r.amounts.tokens_in, r.amounts.runs) for r in by_day.rows] == [("2026-11-02", 5, 1), ("2026-11-03", 2, 1)]
    assert (by_day.total.runs, by_model.total.runs, by_day.total.tokens_in) == (1, 1, 7)


@pytest.mark.parametrize(
    ("zone", "at", "day", "month"),
    [
        ("UTC", "2026-10-31T23:59", "2026-10-31", "2026-10"),
        ("Europe/Berlin", "2026-10-31T22:59", "2026-10-31", "2026-10"),  # winter time: +1
        ("Europe/Berlin", "2026-10-31T23:00", "2026-11-01", "2026-11"),
        ("Europe/Berlin", "2026-10-24T22:00", "2026-10-25", "2026-10"),  # the last day of summer time: +2
        ("Europe/Berlin", "2026-10-25T22:59", "2026-10-25", "2026-10"),  # 25 hours later
        ("Asia/Kathmandu", "2026-10-31T18:15", "2026-11-01", "2026-11"),
        ("America/St_Johns", "2026-11-01T02:29", "2026-10-31", "2026-10"),
    ],
)
def test_days_and_months_begin_where_the_zone_says(made: Made, zone: str, at: str, day: str, month: str) -> None:
    """Also on the days when the clocks change."""
    ms = when_ms(f"{at}+00:00")
    made.run({"tokens_in": 1, "minute_ms": ms}, {"tokens_in": 1, "minute_ms": ms - 200 * DAY, "model": "old"})
    rows = query.report(made.ledger, ["day", "month"], timezone=zone, model="m").rows
    assert [r.keys for r in rows] == [(day, month)]


def test_rows_come_dearest_first_and_days_oldest_first(made: Made) -> None:
    """Unknown cost comes last."""
    made.run({"reported_nusd": 5}, agent="a")
    made.run({"reported_nusd": 9, "minute_ms": NOON + DAY}, agent="b")
    made.run({"tokens_in": 9}, agent="c")
    assert [r.keys[0] for r in query.report(made.ledger, ["agent"]).rows] == ["b", "a", "c"]
    by_day = query.report(made.ledger, ["agent", "day"])
    assert [r.keys for r in by_day.rows] == [("a", "2026-11-02"), ("c", "2026-11-02"), ("b", "2026-11-03")]


def test_a_time_beyond_the_calendar_is_no_error(made: Made) -> None:
    """A CLI's absurd stamp has a day or none, and all of its tokens."""
    made.run({"tokens_in": 3, "minute_ms": (1 << 52) // 60_000 * 60_000})
    assert query.report(made.ledger, ["day"], timezone="Europe/Berlin").total.tokens_in == 3


def test_the_ledger_may_be_empty(both: Ledger) -> None:
    """No rows, a total of nothing, and no last run."""
    assert query.report(both, ["agent", "day"]).as_dict()["rows"] == []
    assert query.report(both, []).total == Amounts()
    with pytest.raises(LedgerError, match="no run in the ledger yet"):
        query.run_totals(both)
    with pytest.raises(LedgerError, match="no run has a task yet"):
        query.task_totals(both, "T-1")


def test_a_wrapped_run_is_found_by_its_run_id(made: Made) -> None:
    """The id that SPENDMETER_RUN_ID had, or the start of it."""
    made.run({"tokens_in": 1})
    with made.ledger.write() as conn:
        conn.execute(insert(t.processes).values(session_id=1, run_key="r1", run_id="cafe" * 8, notes="[]"))
    assert query.run_totals(made.ledger, "cafe" * 8).run_key == query.run_totals(made.ledger, "cafeca").run_key == "r1"


# -- what people write -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-11-01", "UTC", "2026-11-01T00:00:00+00:00"),
        ("2026-11-01", "Europe/Berlin", "2026-10-31T23:00:00+00:00"),
        ("2026-11", "UTC", "2026-11-01T00:00:00+00:00"),
        ("2026-11-01T15:30", "Europe/Berlin", "2026-11-01T14:30:00+00:00"),
        ("2026-11-01T15:30Z", "Europe/Berlin", "2026-11-01T15:30:00+00:00"),
        ("7d", "UTC", "2026-10-26T12:00:00+00:00"),
        ("24h", "Europe/Berlin", "2026-11-01T12:00:00+00:00"),
        ("today", "Asia/Kathmandu", "2026-11-01T18:15:00+00:00"),
        ("yesterday", "UTC", "2026-11-01T00:00:00+00:00"),
    ],
)
def test_times_are_read_as_people_write_them(text: str, zone: str, expected: str) -> None:
    """Dates begin where the zone says; a while ago is counted from now."""
    assert datetime.fromtimestamp(when_ms(text, zone, NOON) / 1000, UTC).isoformat() == expected


@pytest.mark.parametrize("text", ["", "soon", "7", "7y", "2026-13-01", "9999999d", "-3d", "0000-00-00"])
def test_other_times_are_refused(text: str) -> None:
    """With what may be written."""
    with pytest.raises(LedgerError, match="is not understood; write 2026-11-01"):
        when_ms(text, now_ms=NOON)


@given(st.text(max_size=20))
def test_no_text_crashes_the_reading_of_times(text: str) -> None:
    """It is a time or a LedgerError."""
    with suppress(LedgerError):
        assert isinstance(when_ms(text, now_ms=NOON), int)


def test_unknown_words_are_refused(ledger: Ledger) -> None:
    """A dimension or a zone that does not exist."""
    with pytest.raises(LedgerError, match=r'by "agnt" is not one of .* did you mean "agent"'):
        query.report(ledger, ["agnt"])
    with pytest.raises(LedgerError, match='timezone "Mars" is not known'):
        query.report(ledger, ["day"], "2026-11-01", timezone="Mars")


def test_a_window_of_a_long_history_is_quick(ledger: Ledger) -> None:
    """SQLite's plan reads entries by their minute and runs by their key, not whole tables."""
    with ledger.read() as conn:
        stmt = query._grouped(conn, ("agent",), Where(since_ms=NOON), "UTC").compile(conn, compile_kwargs={"literal_binds": True})
        plan = " | ".join(r[3] for r in conn.execute(text(f"explain query plan {stmt}")))
    assert "ix_entries_minute (minute_ms>" in plan
    assert "ix_runs_ended (ended_ms>" in plan
    assert "SCAN entries" not in plan
    assert "SCAN runs" not in plan


def test_ten_thousand_runs_report_in_a_moment(ledger: Ledger) -> None:
    """50,000 entries by three dimensions in under two seconds, on one core."""
    runs, entries = [], []
    for i in range(10_000):
        key = {"session_id": i, "run_key": f"r{i}"}
        runs.append(
            key | {"cli": "claude", "session": f"s{i}", "agent": f"a{i % 9}", "task": f"T-{i % 500}", "attrs": "{}", "outcome": "ok",
                   "implied": False, "ended_ms": NOON + i * 60_000, "trace_id": "", "span_id": "", "notes": "[]"}
        )  # fmt: skip
        entries += [key | {"model": "m", "minute_ms": NOON + (i + k) * 60_000, "tokens_in": 1, "unpriced_tokens": 0} for k in range(5)]
    with ledger.write() as conn:
        conn.execute(insert(t.runs), runs)
        conn.execute(insert(t.entries), entries)
    begun = time.process_time()
    assert query.report(ledger, ["agent", "task", "model"]).total.tokens_in == 50_000
    assert time.process_time() - begun < 2


def test_the_commands_work_on_both_databases(both: Ledger) -> None:
    """Ingest, report, summary, verify and doctor as a shell calls them."""

    def call(*args: str) -> Any:
        result = CliRunner().invoke(main, ["--ledger", both.settings.ledger, *args, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    call("ingest", "--agent", "a", "--task", "T-1", "--attr", "plan=book", str(RUNS / "json-single" / "stdout"))
    call("sync", "--home", str(RUNS / "json-single" / "home"))
    total = call("report", "--by", "agent,day,month,attr:plan", "--timezone", "Europe/Berlin")["total"]
    assert (total["tokens_in"], total["runs"], total["calls"]) == (1007, 1, 1)
    assert call("summary", "--run", "last")["agent"] == call("summary", "--task", "T-1")["agents"][0]["agent"] == "a"
    assert call("ledger", "verify") == {"ok": True, "differences": []}
    assert {c["level"] for c in call("doctor")["checks"]} <= {"ok", "warning"}
