"""Where budgets stand, always by the ledger as it is now; their gauges."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from spendmeter import metrics as m
from spendmeter.budgets import Period, Subject, Threshold, Window
from spendmeter.ledger import Ledger, reservations
from spendmeter.ledger.budgeting import State, gauges, state
from spendmeter.ledger.reservations import Reservation
from spendmeter.ledger.store import dump
from tests.feed import make_ledger, use
from tests.made import NOON, Made
from tests.standings import ALL, DAY, HALF, HOUR, MINUTE, MONTH, MOST, TODAY, TOTAL, budget, ms, standing

# -- one state ---------------------------------------------------------------------------------------------------------

WINDOW = Window(ms("2026-11-01"), ms("2026-12-01"))


@pytest.mark.parametrize(
    ("spent", "limit", "share", "crossed", "over", "remaining"),
    [
        (0, 100, "0.0000", (), False, 100),
        (49, 100, "0.4900", (), False, 51),
        (50, 100, "0.5000", (HALF,), False, 50),
        (99_999_999, 100_000_000, "0.9999", (HALF, MOST), False, 1),  # never shown as all of it before it is
        (100, 100, "1.0000", (HALF, MOST, ALL), True, 0),
        (130, 100, "1.3000", (HALF, MOST, ALL), True, -30),
        (0, 0, None, (), True, 0),  # nothing may be spent, and nothing is
        (1, 0, None, (HALF, MOST, ALL), True, -1),
    ],
)
def test_a_limit_is_used_up_when_all_of_it_is_spent(
    spent: int, limit: int, share: str | None, crossed: tuple[Threshold, ...], over: bool, remaining: int
) -> None:
    """A threshold is reached at its share exactly; a limit of 0 has no share and is used up from the start."""
    found = State(budget(limit=limit), None, WINDOW, spent)
    assert (found.as_dict()["share"], found.crossed, found.over, found.remaining) == (share, crossed, over, remaining)


def test_a_state_as_json() -> None:
    """Money as decimal strings, times in UTC, the amounts under the budget's unit."""
    one = budget("ops", MONTH, "usd", 2_500_000_000, per="team", action="block", owner="ops", description="d", thresholds=(MOST,))
    assert State(one, "blue", WINDOW, 3_000_000_001, 7, 5, None).as_dict() == {
        "name": "ops", "value": "blue", "per": "team", "action": "block", "owner": "ops", "description": "d", "unit": "usd",
        "period": {"kind": "month", "timezone": "UTC", "start": "2026-11-01T00:00:00.000+00:00", "end": "2026-12-01T00:00:00.000+00:00",
                   "seconds": 30 * 86_400},
        "limit_usd": "2.500000", "spent_usd": "3.000000001", "remaining_usd": "-0.500000001", "reserved_usd": "0.000000005",
        "forecast_usd": None, "unpriced_tokens": 7, "share": "1.2000", "over": True,
        "thresholds": [{"at": "0.8", "severity": "warning", "crossed": True}],
    }  # fmt: skip
    told = State(budget(), None, TOTAL.window(NOON), 3).as_dict()
    assert told["period"] == {"kind": "total", "timezone": "UTC", "start": None, "end": None, "seconds": None}
    assert (told["limit_tokens"], told["spent_tokens"], told["value"], told["per"]) == (100, 3, None, None)


# -- all states --------------------------------------------------------------------------------------------------------


def test_each_value_has_a_limit_of_its_own(made: Made) -> None:
    """The one that has spent most comes first; runs without a value share one; other budgets keep the file's order."""
    for team, tokens in (("red", 3), ("blue", 70), (None, 5), ("red", 8)):
        made.run({"tokens_in": tokens}, attrs=dump({"team": team} if team else {}))
    found = standing(made.ledger, budget("z"), budget("a", per="team"))
    assert [(s.budget.name, s.value, s.spent) for s in found] == [
        ("z", None, 86), ("a", "blue", 70), ("a", "red", 11), ("a", None, 5),
    ]  # fmt: skip


def test_a_subject_sees_the_budgets_that_cover_it(made: Made) -> None:
    """Of one with per its own value, at nothing where it has spent nothing."""
    made.run({"tokens_in": 4}, agent="dev", task="T-1")
    all_ = (budget("dev", match={"agent": ("d*",)}), budget("ops", match={"agent": ("ops",)}), budget("task", per="task"))
    seen = {name: standing(made.ledger, *all_, subject=Subject("dev", name)) for name in ("T-1", "T-2")}
    assert [(s.budget.name, s.value, s.spent) for s in seen["T-1"]] == [("dev", None, 4), ("task", "T-1", 4)]
    assert [(s.budget.name, s.value, s.spent) for s in seen["T-2"]] == [("dev", None, 4), ("task", "T-2", 0)]


@pytest.mark.parametrize("unit", ["usd", "tokens", "runs"])
@pytest.mark.parametrize("per", [None, "task", "agent", "repo", "team"])
@pytest.mark.parametrize("period", [TOTAL, MONTH, Period("rolling", length_ms=DAY)])
def test_one_state_is_as_in_all(made: Made, unit: str, per: str | None, period: Period) -> None:
    """What the guard reads for one run is what a list shows for it, but for forecast and windows."""
    made.run({"tokens_in": 4, "reported_nusd": 9, "unpriced_tokens": 2}, task="T-1", repo="shop", attrs=dump({"team": "x"}))
    made.run({"tokens_in": 5, "reported_nusd": 1, "minute_ms": NOON - 2 * DAY}, task="T-2", ended_ms=NOON - 40 * DAY)
    who = Subject("developer", "T-1", "claude", None, "shop", {"team": "x"})
    one = budget(unit=unit, per=per, period=period, match={"agent": ("dev*",)})
    with made.ledger.write() as conn:
        reservations.put(conn, Reservation("a" * 32, who, NOON, 30, 40), NOON)
        reservations.put(conn, Reservation("b" * 32, Subject("developer", "T-2"), NOON), NOON)
        found = state(conn, one, who, NOON)
        other = state(conn, one, Subject("developer", "T-9"), NOON)
    assert found == replace(standing(made.ledger, one, subject=who)[0], forecast=None, windows=())
    assert other == replace(standing(made.ledger, one, subject=Subject("developer", "T-9"))[0], forecast=None, windows=())
    assert found.spent > 0
    assert found.reserved > 0


def test_reservations_count_where_their_run_does(made: Made) -> None:
    """By budget and value; a value that has only reserved has a state too."""
    with made.ledger.write() as conn:
        for i, (agent, task) in enumerate((("dev", "T-1"), ("dev", "T-2"), ("ops", "T-1"))):
            reservations.put(conn, Reservation(f"{i}" * 32, Subject(agent, task), NOON, None, 10 + i), NOON)
    found = standing(made.ledger, budget("dev", match={"agent": ("dev",)}), budget("task", per="task"))
    assert [(s.budget.name, s.value, s.spent, s.reserved) for s in found] == [
        ("dev", None, 0, 21), ("task", "T-1", 0, 22), ("task", "T-2", 0, 11),
    ]  # fmt: skip


def test_a_budget_that_nobody_used_is_there(both: Ledger) -> None:
    """Once, at nothing, with per or without."""
    assert [(s.budget.name, s.value, s.spent) for s in standing(both, budget("a"), budget("b", per="task"))] == [
        ("a", None, 0),
        ("b", None, 0),
    ]


# -- as the ledger is now ----------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger that runs are committed to, at 3 nano-USD a token."""
    made = make_ledger(f"sqlite:///{tmp_path / 'own.db'}")
    yield made
    made.close()


@pytest.fixture
def reads(own: Ledger) -> Iterator[list[str]]:
    """The statements that have read usage since the list was cleared."""
    seen: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM entries" in statement or "FROM runs" in statement:
            seen.append(statement)

    event.listen(own._engine, "before_cursor_execute", note)
    yield seen
    event.remove(own._engine, "before_cursor_execute", note)


def test_usage_counts_before_it_is_settled(tmp_path: Path) -> None:
    """The counters wait for a session's files, budgets do not."""
    ledger = make_ledger(f"sqlite:///{tmp_path / 'l.db'}", settle_s=3600)
    use(ledger, "s", 9, NOON)
    assert ledger.facts_about()["unsettled"] == 1
    assert standing(ledger, budget(), at=NOON)[0].spent == 10
    ledger.close()


def test_a_run_that_changes_moves_what_was_spent(own: Ledger) -> None:
    """A session that goes on, a task that is told later, and the same once more: spent follows, and nothing counts twice."""
    one, by_task = budget(), budget("t", per="task")
    use(own, "s", 9, NOON, task="unknown", agent="unknown")
    assert [(s.value, s.spent) for s in standing(own, one, by_task)] == [(None, 10), ("unknown", 10)]
    use(own, "s", 29, NOON)
    use(own, "s", 29, NOON)
    assert [(s.value, s.spent) for s in standing(own, one, by_task)] == [(None, 30), ("T-1", 30)]


def test_nothing_is_read_again_while_nothing_changes(own: Ledger, reads: list[str]) -> None:
    """Not on the next page, nor in the next minute, where windows move by what is known; a rolling period moves, and is read."""
    fixed = (budget("m", MONTH), budget("d", TODAY, "usd"), budget("t"), budget("p", MONTH, per="task"), budget("r", MONTH, "runs"))
    use(own, "s", 9, NOON)
    first = standing(own, *fixed)
    assert reads
    reads.clear()
    assert standing(own, *fixed) == first
    later = standing(own, *fixed, at=NOON + 10 * MINUTE)
    assert not reads
    assert (dict(first[0].windows)[300], dict(later[0].windows)[300], dict(later[0].windows)[1800]) == (10, 0, 10)
    rolling = budget(period=Period("rolling", length_ms=HOUR))
    spent = [standing(own, rolling, at=NOON + minutes * MINUTE)[0].spent for minutes in (0, 58, 59, 60, 0)]
    assert spent == [10, 10, 0, 0, 10]


def test_any_change_is_read(own: Ledger) -> None:
    """Usage, another period, other definitions, a clock that was set back."""
    one = budget(period=TODAY)
    use(own, "s", 9, NOON)
    assert standing(own, one)[0].spent == 10
    use(own, "s2", 4, NOON)
    assert standing(own, one)[0].spent == 15
    assert standing(own, replace(one, match={"agent": ("x",)}))[0].spent == 0
    assert [standing(own, one, at=NOON + days * DAY)[0].spent for days in (1, 0, -1, 0)] == [0, 15, 0, 15]
    use(own, "s3", 6, NOON - DAY)
    assert [dict(standing(own, one, at=NOON - days * DAY)[0].windows)[900] for days in (0, 1, 0)] == [15, 7, 15]


def test_many_threads_read_one_truth(own: Ledger) -> None:
    """Pages that are made while runs are committed show sums that only rise, and the last one is exact."""
    shared = (budget("m", MONTH), budget("p", MONTH, per="task"))
    stop = threading.Event()

    def look() -> list[int]:
        return [standing(own, *shared)[0].spent for _ in iter(stop.is_set, True)]

    with ThreadPoolExecutor(4) as pool:
        looking = [pool.submit(look) for _ in range(4)]
        for i in range(30):
            use(own, f"s{i}", 9, NOON)
        stop.set()
    assert all((seen := one.result()) == sorted(seen) and seen for one in looking)
    assert [s.spent for s in standing(own, *shared)] == [300, 300]


# -- gauges ------------------------------------------------------------------------------------------------------------

FILE = """
budgets:
  - {name: month, period: month, timezone: Europe/Berlin, limit_usd: 0.1, match: {agent: "dev*"}}
  - {name: tasks, period: day, per: task, limit_tokens: 100}
  - {name: starts, period: 5h, limit_runs: 1}
  - {name: ever, period: total, limit_usd: 5}
"""


@pytest.fixture
def defined(tmp_path: Path) -> Iterator[tuple[Ledger, Path]]:
    """A ledger whose settings name a budgets file, and that file."""
    file = tmp_path / "budgets.yaml"
    file.write_text(FILE)
    made = make_ledger(f"sqlite:///{tmp_path / 'own.db'}", budgets_file=file)  # type: ignore[arg-type]
    yield made, file
    made.close()


def shown(ledger: Ledger, at: int = NOON) -> dict[tuple[str, ...], float]:
    """(metric without its prefix, label values...) -> value."""
    with ledger.read() as conn:
        found = gauges(ledger, conn, at)
    assert all(metric in m.GAUGES and len(labels) == len(metric.labels) for metric, rows in found.items() for labels, _ in rows)
    return {(metric.name.removeprefix("spendmeter.budget."), *labels): value for metric, rows in found.items() for labels, value in rows}


def write(file: Path, text: str) -> None:
    """Another file in its place: seen at once, however coarse the file system's clock is."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


def test_every_gauge_of_a_budget(defined: tuple[Ledger, Path]) -> None:
    """In dollars, tokens or runs; of a budget per task the one that has spent most, and how many are over."""
    ledger, _ = defined
    use(ledger, "a", 99, NOON, task="T-1", model="unpriced")
    use(ledger, "b", 199, NOON, task="T-2", agent="dev-2")
    use(ledger, "c", 9, NOON, task="T-3")
    got = shown(ledger)
    # 630 nano-USD in the last week, 40 979 minutes left, so 630 * 40 979 / 10 080 are to come
    assert {k: v for k, v in got.items() if k[1] == "month" and k[0] != "window_spent_usd"} == {
        ("limit_usd", "month"): 0.1, ("spent_usd", "month"): 630e-9, ("remaining_usd", "month"): 0.09999937,
        ("reserved_usd", "month"): 0.0, ("forecast_usd", "month"): 3191e-9,
        ("over", "month"): 0, ("unpriced_tokens", "month"): 100,
        ("period_start_timestamp_seconds", "month"): ms("2026-10-31T23:00") / 1000, ("period_seconds", "month"): 30 * 86_400,
    }  # fmt: skip
    assert [k[2] for k in got if k[:2] == ("window_spent_usd", "month")] == ["5m", "30m", "1h", "2h", "6h", "1d", "3d"]
    assert {k: v for k, v in got.items() if k[1] == "tasks"} == {
        ("limit_tokens", "tasks"): 100, ("spent_tokens", "tasks"): 200, ("remaining_tokens", "tasks"): -100,
        ("reserved_tokens", "tasks"): 0,
        ("over", "tasks"): 2, ("period_start_timestamp_seconds", "tasks"): ms("2026-11-02") / 1000, ("period_seconds", "tasks"): 86_400,
    }  # fmt: skip
    assert {k: v for k, v in got.items() if k[1] == "starts" and k[0] != "window_spent_runs"} == {
        ("limit_runs", "starts"): 1, ("spent_runs", "starts"): 3, ("remaining_runs", "starts"): -2, ("reserved_runs", "starts"): 0,
        ("over", "starts"): 1, ("period_start_timestamp_seconds", "starts"): ms("2026-11-02T07:01") / 1000,
        ("period_seconds", "starts"): 18_000,
    }  # fmt: skip
    assert {k for k in got if k[1] == "ever"} == {
        (f"{name}_usd", "ever") for name in ("limit", "spent", "remaining", "reserved")
    } | {("over", "ever"), ("unpriced_tokens", "ever")}  # fmt: skip


def test_reservations_show_at_once(defined: tuple[Ledger, Path]) -> None:
    """They come and go without any usage, so each page reads them."""
    ledger, _ = defined
    assert shown(ledger)["reserved_usd", "month"] == 0
    with ledger.write() as conn:
        reservations.put(conn, Reservation("a" * 32, Subject("dev", "T-1"), NOON, 40_000_000, 7), NOON)
    got = shown(ledger)
    assert (got["reserved_usd", "month"], got["reserved_tokens", "tasks"], got["reserved_runs", "starts"]) == (0.04, 7, 1)
    with ledger.write() as conn:
        reservations.drop(conn, "a" * 32)
    assert shown(ledger)["reserved_usd", "month"] == 0


def test_no_budgets_no_gauges(own: Ledger, defined: tuple[Ledger, Path], reads: list[str]) -> None:
    """Without a file nothing is read; an empty list shows nothing."""
    assert shown(own) == {}
    assert not reads
    ledger, file = defined
    write(file, "budgets: []")
    assert shown(ledger) == {}


def test_a_broken_file_leaves_the_budgets_as_they_were(defined: tuple[Ledger, Path], caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once for each mistake, by file and line; a file that was corrected holds at once."""
    ledger, file = defined
    before = shown(ledger)
    with caplog.at_level(logging.WARNING):
        write(file, FILE.replace("limit_usd: 5", "limit_usd: five"))
        assert [shown(ledger), shown(ledger)] == [before, before]
        assert [r.getMessage() for r in caplog.records] == [
            f'{file}:6: limit_usd "five" is not a number; write it as 3 or 0.25; its budgets stay as they last were right'
        ]
        write(file, FILE.replace("period: 5h", "period: 5x"))
        assert shown(ledger) == before
        assert len(caplog.records) == 2
        write(file, FILE.replace("limit_usd: 5", "limit_usd: 6"))
        assert shown(ledger)["limit_usd", "ever"] == 6
        assert len(caplog.records) == 2


def test_a_file_that_never_was_right_shows_nothing(defined: tuple[Ledger, Path], caplog: pytest.LogCaptureFixture) -> None:
    """The page is there all the same, and the log says why it lacks them."""
    ledger, file = defined
    write(file, "budgets: 3")
    with caplog.at_level(logging.WARNING):
        assert [shown(ledger), shown(ledger)] == [{}, {}]
    assert [r.getMessage().endswith("; no budget is shown until it is right") for r in caplog.records] == [True]
