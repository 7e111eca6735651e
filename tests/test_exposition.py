"""The page: zero first, what leaves and comes back, what never falls, and its gauges."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from spendmeter import metrics as m
from spendmeter.ledger import Batch, Ledger, now_ms
from spendmeter.ledger import exposition as exposition_module
from spendmeter.ledger.exposition import Channel, Page, exposition
from spendmeter.records import Claim, Finish, Level, Skip, Tags, Usage
from tests.feed import make_ledger, use

DAY_MS = 86_400_000


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    return new_url()


@pytest.fixture
def own(url: str) -> Iterator[Ledger]:
    made = make_ledger(url)
    yield made
    made.close()


@pytest.fixture
def t0() -> int:
    """A moment after which everything in a test happens."""
    return now_ms() + 10_000


def values(page: Page) -> dict[tuple[str, ...], int]:
    """(family and suffix, label values...) -> value."""
    return {(s.metric.name + s.suffix, *(v for _, v in s.labels)): s.value for s in page.samples()}


def show(ledger: Ledger, at_ms: int, channel: Channel = "scrape") -> dict[tuple[str, ...], int]:
    """A page that is sent."""
    page = exposition(ledger, channel, at_ms)
    page.sent()
    return values(page)


TOKENS = ("spendmeter.tokens_in", "dev", "claude", "m")
TASK = ("spendmeter.task.tokens_in", "dev", "T-1")


def test_a_new_label_set_is_zero_for_zero_first_seconds_after_its_first_showing(own: Ledger, t0: int) -> None:
    """60 s count from the first page that went out with it, however late that was; later increases show at once."""
    use(own, "s1", 1000, t0)
    first = t0 + 500_000
    shown = [show(own, first + ms)[TOKENS] for ms in (0, 30_000, 59_999, 60_000)]
    assert shown == [0, 0, 0, 1000]
    use(own, "s2", 5, first + 61_000)
    assert show(own, first + 62_000)[TOKENS] == 1005


def test_increases_during_the_zero_phase_are_not_lost(own: Ledger, t0: int) -> None:
    """What comes in while a series is at 0 is in its first value."""
    use(own, "s1", 1000, t0)
    assert show(own, t0)[TOKENS] == 0
    use(own, "s2", 11, t0 + 30_000)
    assert show(own, t0 + 31_000)[TOKENS] == 0
    assert show(own, t0 + 60_000)[TOKENS] == 1011


def test_a_restart_keeps_the_zero_phase(own: Ledger, url: str, t0: int) -> None:
    """The moment of the first showing is in the ledger: a new process neither starts over nor skips."""
    use(own, "s1", 1000, t0)
    assert show(own, t0)[TOKENS] == 0
    own.close()
    again = make_ledger(url)
    assert show(again, t0 + 59_999)[TOKENS] == 0
    assert show(again, t0 + 60_000)[TOKENS] == 1000
    again.close()


def test_a_page_that_never_went_out_does_not_count(own: Ledger, t0: int) -> None:
    """Without sent() the zero phase does not begin."""
    use(own, "s1", 1000, t0)
    assert values(exposition(own, "scrape", t0))[TOKENS] == 0
    assert show(own, t0 + 100_000)[TOKENS] == 0
    assert show(own, t0 + 160_000)[TOKENS] == 1000


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from tests.feed import make_ledger
from spendmeter.ledger.exposition import exposition
page = exposition(make_ledger(sys.argv[1]), "scrape", int(sys.argv[2]))
assert any(rows for rows in page.counters.values())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_daemon_killed_between_rendering_and_sending_does_not_skip_the_zero_phase(own: Ledger, url: str, t0: int) -> None:
    """SIGKILL before sent(): the next daemon shows 0 first, for the whole time."""
    use(own, "s1", 1000, t0)
    done = subprocess.run([sys.executable, "-c", KILLED, url, str(t0), str(Path(__file__).parent.parent)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [show(own, t0 + ms)[TOKENS] for ms in (100_000, 159_999, 160_000)] == [0, 0, 1000]


def test_scrape_and_push_have_their_own_zero_phase(own: Ledger, t0: int) -> None:
    """What Prometheus has seen says nothing of what the OTLP endpoint has seen."""
    use(own, "s1", 1000, t0)
    show(own, t0)
    assert show(own, t0 + 60_000)[TOKENS] == 1000
    assert show(own, t0 + 60_000, "push")[TOKENS] == 0
    assert show(own, t0 + 120_000, "push")[TOKENS] == 1000


def test_zero_first_0_shows_the_value_at_once(url: str, t0: int) -> None:
    """And notes the showing, so that switching zero_first on later does not take a series back to 0."""
    ledger = make_ledger(url, zero_first_s=0)
    use(ledger, "s1", 1000, t0)
    assert show(ledger, t0)[TOKENS] == 1000
    ledger.close()
    careful = make_ledger(url)
    assert show(careful, t0 + 60_000)[TOKENS] == 1000
    careful.close()


def test_a_clock_that_is_set_back_hides_nothing(own: Ledger, t0: int) -> None:
    """A value that was shown stays shown."""
    use(own, "s1", 1000, t0)
    show(own, t0)
    assert show(own, t0 + 60_000)[TOKENS] == 1000
    assert show(own, t0 + 1_000)[TOKENS] == 1000


@pytest.mark.alone
def test_a_locked_ledger_neither_breaks_nor_stops_a_scrape(own: Ledger, url: str, t0: int) -> None:
    """Another writer holds the ledger: the page comes quickly, the showing is remembered and written down later."""
    use(own, "s1", 1000, t0)
    other = make_ledger(url)
    with other.write():
        start = time.monotonic()
        assert show(own, t0)[TOKENS] == 0
        assert show(own, t0 + 60_000)[TOKENS] == 1000
        assert time.monotonic() - start < 5
    other.close()
    show(own, t0 + 61_000)
    own.close()
    again = make_ledger(url)
    assert show(again, t0 + 62_000)[TOKENS] == 1000
    again.close()


def test_a_ledger_that_may_only_be_read_is_still_shown(own: Ledger, t0: int) -> None:
    """Showings are remembered by the process alone."""
    use(own, "s1", 1000, t0)
    own.close()

    def read_only(dbapi: Any, _: object) -> None:
        dbapi.execute("PRAGMA query_only=ON" if own._engine.dialect.name == "sqlite" else "set session default_transaction_read_only = on")
        dbapi.commit()

    event.listen(own._engine, "connect", read_only)
    assert show(own, t0)[TOKENS] == 0
    assert show(own, t0 + 60_000)[TOKENS] == 1000
    with own.read() as conn:
        assert conn.exec_driver_sql("select count(shown_ms) from series").scalar_one() == 0


def test_a_page_settles_what_is_due(own: Ledger, t0: int) -> None:
    """Usage that has waited long enough is on the page without anything else happening."""
    level = Level("claude", "s", "m", Usage(tokens_in=7, tokens_out=1), reading="r")
    own.commit(Batch([level, Finish("claude", "s", "r", "r", "ok", Usage(tokens_in=7))], [Claim("claude", "s", "run:r", Tags("dev"), "r")]))
    page = exposition(own, "scrape", now_ms() - 5_000)
    assert values(page) == {}
    assert page.gauge(m.LEDGER_UNSETTLED) == [((), 1)]
    assert show(own, t0)[TOKENS] == 0
    assert show(own, t0 + 60_000)[TOKENS] == 7


def test_a_tasks_series_leave_after_task_ttl_and_come_back_at_what_they_showed(own: Ledger, t0: int) -> None:
    """No jump when they leave, none lost when they return; the base families stay."""
    use(own, "s1", 1000, t0)
    show(own, t0)
    assert show(own, t0 + 60_000)[TASK] == 1000
    gone = show(own, t0 + 7 * DAY_MS + 60_001)
    assert TASK not in gone
    assert gone[TOKENS] == 1000
    back = t0 + 9 * DAY_MS
    use(own, "s2", 50, back)
    assert [show(own, back + ms)[TASK] for ms in (0, 59_999, 60_000)] == [1000, 1000, 1050]
    assert show(own, back)[TOKENS] == 1050


def test_a_task_that_nobody_saw_before_it_left_loses_nothing(own: Ledger, t0: int) -> None:
    """Usage that was never shown is part of the increase when the task comes back."""
    use(own, "s1", 1000, t0)
    back = t0 + 9 * DAY_MS
    assert TASK not in show(own, back - 1)
    use(own, "s2", 50, back)
    assert [show(own, back + ms)[TASK] for ms in (0, 60_000)] == [0, 1050]


def test_a_task_that_was_shown_late_stays_until_its_value_was_shown(own: Ledger, t0: int) -> None:
    """The daemon was away for most of the time: a first showing at 0 is followed by the value."""
    use(own, "s1", 1000, t0)
    late = t0 + 7 * DAY_MS - 1_000
    assert show(own, late)[TASK] == 0
    assert show(own, late + 60_000)[TASK] == 1000


def test_overflow_holds_all_further_tasks_and_never_falls(url: str, t0: int) -> None:
    """max_tasks are shown by name, the rest add up; the sum over all is the ledger's, whatever is used again."""
    ledger = make_ledger(url, max_tasks=3, zero_first_s=0)
    seen = []
    for i in range(6):
        use(ledger, f"s{i}", 100 + i, t0 + i, task=f"T-{i}")
        seen.append(show(ledger, t0 + i).get(("spendmeter.task.tokens_in", "dev", m.OVERFLOW), 0))
    assert seen == [0, 0, 0, 103, 207, 312]
    use(ledger, "again", 1000, t0 + 10, task="T-4")
    use(ledger, "named", 1, t0 + 10, task="T-0")
    page = exposition(ledger, "scrape", t0 + 11)
    shown = {k[2]: v for k, v in values(page).items() if k[0] == "spendmeter.task.tokens_in"}
    assert shown == {"T-0": 101, "T-1": 101, "T-2": 102, m.OVERFLOW: 1312}
    assert page.gauge(m.TASK_OVERFLOW) == [((), 3)]
    ledger.close()


def test_a_fall_of_the_total_is_a_pending_debit_and_the_counter_stands(url: str, t0: int) -> None:
    """The value never falls; the gauge says by how much it is ahead, and returns to 0 once usage has caught up."""
    ledger = make_ledger(url, zero_first_s=0)

    def fork(total: int, own: int, key: str) -> None:
        level = Level("claude", "s", "m", Usage(tokens_in=total, tokens_out=1), reading=key)
        finish = Finish("claude", "s", key, key, "ok", Usage(tokens_in=total, tokens_out=1), Usage(tokens_in=own, tokens_out=1))
        ledger.commit(Batch([level, finish], [Claim("claude", "s", f"run:{key}", Tags("dev", "T-1"), key)], settled=True))

    fork(100, 40, "r1")
    assert show(ledger, t0)[TOKENS] == 100
    sixty = Usage(tokens_in=60)
    parent = [Level("claude", "p", "m", sixty, reading="p1"), Finish("claude", "p", "p1", "p1", "ok", sixty, sixty)]
    ledger.commit(Batch(parent, [Claim("claude", "p", "run:p1", Tags("other", "T-1"), "p1")], settled=True))
    page = exposition(ledger, "scrape", t0 + 1)
    assert values(page)[TOKENS] == 100  # the ledger says 40 by now: the fork started from the parent's 60
    assert dict(page.gauge(m.PENDING_DEBIT))["spendmeter_tokens_in_total",] == 60
    fork(130, 30, "r2")
    page = exposition(ledger, "scrape", t0 + 2)
    assert (values(page)[TOKENS], dict(page.gauge(m.PENDING_DEBIT))["spendmeter_tokens_in_total",]) == (100, 30)
    fork(175, 45, "r3")
    page = exposition(ledger, "scrape", t0 + 3)
    assert (values(page)[TOKENS], dict(page.gauge(m.PENDING_DEBIT))["spendmeter_tokens_in_total",]) == (115, 0)
    ledger.close()


def test_missing_buckets_are_zero_and_buckets_are_cumulative(own: Ledger, t0: int) -> None:
    """A bucket that appears later was shown at 0 with its histogram, so it needs no zero phase of its own."""
    use(own, "s1", 1, t0, duration_ms=20_000)
    show(own, t0)
    page = exposition(own, "scrape", t0 + 60_000)
    (h,) = page.histograms
    assert (h.labels, h.buckets, h.sum_ms, h.count) == (("dev", "claude"), [0, 0, 0, 1, 1, 1, 1, 1, 1, 1], 20_000, 1)
    use(own, "s2", 1, t0 + 61_000, duration_ms=900)
    use(own, "s3", 1, t0 + 61_000, duration_ms=9_999_000)
    (h,) = exposition(own, "scrape", t0 + 62_000).histograms
    assert (h.buckets, h.sum_ms, h.count) == ([1, 1, 1, 2, 2, 2, 2, 2, 2, 2], 10_019_900, 3)


def test_gauges_tell_of_the_ledger(own: Ledger, t0: int) -> None:
    """Drift per CLI, the last run of each agent, sizes without counting rows, nothing of exports that are off."""
    use(own, "s1", 1000, t0, calls=3, cost_nusd=None)
    level = Level("claude", "s2", "m", Usage(100, 0, 0, 0, 0, None, None, 600), reading="r")
    done = Finish("claude", "s2", "r", "r", "ok", Usage(tokens_in=100), Usage(tokens_in=100), ended_ms=t0 + 5_000)
    own.commit(Batch([level, done], [Claim("claude", "s2", "run:r", Tags("reviewer"), "r")], settled=True))
    own.commit(Batch([Skip("a.jsonl", "not_json", 3, 10), Skip("a.jsonl", "not_json", 4, 10)]))
    page = exposition(own, "scrape", t0 + 10_000)
    assert page.gauge(m.COST_DRIFT) == [(("claude",), 2.0)]
    assert page.gauge(m.LAST_RUN) == [(("dev",), t0 / 1000), (("reviewer",), (t0 + 5_000) / 1000)]
    assert (page.gauge(m.LEDGER_SESSIONS), page.gauge(m.LEDGER_CALLS)) == ([((), 2)], [((), 3)])
    assert page.gauge(m.LEDGER_SIZE)[0][1] > 10_000
    assert page.gauge(m.LEDGER_CREATED) == [((), page.created_ms / 1000)]
    assert page.gauge(m.EXPORT_PENDING) == page.gauge(m.EXPORT_FAILURES) == []
    assert show(own, t0 + 10_000)["spendmeter.skipped", "jsonl", "not_json"] == 0
    assert show(own, t0 + 70_000)["spendmeter.skipped", "jsonl", "not_json"] == 2


def test_the_gauges_queries_use_indexes(own: Ledger, t0: int) -> None:
    """None of them reads a whole table of facts or rows, so a scrape does not grow with the history."""
    from spendmeter.ledger import gauges

    with own.read() as conn:
        word = "explain query plan"
        if conn.dialect.name == "postgresql":
            conn.exec_driver_sql("set local enable_seqscan = off")  # a table this small is quicker read as a whole
            word = "explain"
        queries = [f"{word} {query.text.replace(':since', '0')}" for query in (gauges._LAST_RUN, gauges._DRIFT)]
        plans = [" ".join(str(r[-1]) for r in conn.exec_driver_sql(query)) for query in queries]
    for plan in plans:
        assert "Seq Scan" not in plan
        assert "SCAN runs" not in plan
        assert "SCAN e" not in plan.replace("SCAN entries", "SCAN e ")


def test_a_page_costs_nothing_for_tasks_that_have_left(own: Ledger, t0: int) -> None:
    """Series of old tasks stay in the ledger but are not read again."""
    use(own, "s1", 1000, t0)
    for i in range(20):
        use(own, f"t{i}", 10, t0, task=f"old-{i}")
    show(own, t0)
    with own.read() as conn:
        rows = [len(exposition_module._rows(conn, exposition_module._series("shown_ms", gone))) for gone in (t0, t0 + 1)]
        kept = conn.exec_driver_sql("select count(*) from series").scalar_one()
    assert rows[0] == kept
    assert rows[1] == kept - 21 * 3
