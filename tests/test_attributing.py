"""Re-attribution: rows move, and the counters' past stays where it is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from spendmeter.ledger import Ledger, attributing, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.attributing import attribute
from spendmeter.ledger.copying import copy
from spendmeter.ledger.retention import retain
from spendmeter.ledger.shifts import _group, _left, applied
from spendmeter.ledger.verify import verify
from spendmeter.records import Finish, Moment, Observation
from tests.attributed import BY_BRANCH, DAY_MS, HELPER, Host, at, by_agent, call, put, whose
from tests.made import NOON
from tests.test_ledger import counters


def test_re_attribution_moves_rows_and_not_the_counters_past(host: Host) -> None:
    """Reports move at once; the old series stands, the new one begins with what is used from now on; verify is clean throughout."""
    old, new = host(None), host(BY_BRANCH)
    for session in ("a", "b"):
        put(old, at(session), call(session, 1, 100))
    before = counters(old)
    done = attribute(new)
    assert (done.sessions, done.looked) == (2, 2)
    assert whose(old) == {("developer", "ABC-1"): 200}
    assert counters(old) == before
    assert verify(old) == []
    put(old, call("a", 2, 7))
    assert by_agent(old) == {"unknown": 200, "developer": 7}
    assert by_agent(old, "spendmeter.task.tokens_in") == {"unknown": 200, "developer": 7}
    assert all(counters(old)[key] >= value for key, value in before.items())
    assert verify(old) == []
    assert attribute(new).looked == 0


def test_usage_that_was_not_counted_goes_under_the_new_labels_at_once(host: Host) -> None:
    """Of a session that waits to be settled, only what was posted before stays under the old ones."""
    old, new = host(None), host(BY_BRANCH)
    put(old, call("s", 1, 100), at("s"))
    slow = Ledger(replace(old.settings, settle_s=3600))
    put(slow, call("s", 2, 11), settled=False)
    put(slow, call("t", 1, 5), at("t"), settled=False)
    attribute(new)
    assert by_agent(old) == {"unknown": 100}
    new.settle(now_ms() + 3_700_000)
    assert by_agent(old) == {"unknown": 100, "developer": 16}
    assert verify(old) == []
    slow.close()


def test_a_session_that_grows_takes_the_rules_and_leaves_its_counters_alone(host: Host) -> None:
    """Rules that come later hold for a session from its next usage on, without a word of anybody."""
    put(host(None), at("s"), call("s", 1, 100))
    new = host(BY_BRANCH)
    put(new, call("s", 2, 9))
    assert whose(new) == {("developer", "ABC-1"): 109}
    assert by_agent(new) == {"unknown": 100, "developer": 9}
    put(new, call("s", 2, 9))
    assert verify(new) == []


def test_rules_change_back_and_forth(host: Host) -> None:
    """Each change leaves what was counted meanwhile where it is; back at the first rules everything is as it began, and goes on there."""
    put(host(None), at("s"), call("s", 1, 100))
    attribute(one := host(BY_BRANCH))
    put(one, call("s", 2, 10))
    attribute(two := host([{"match": {"cwd": "*"}, "set": {"agent": "other"}}]))
    put(two, call("s", 3, 1))
    assert by_agent(two) == {"unknown": 100, "developer": 10, "other": 1}
    attribute(none := host([]))
    assert whose(none) == {("unknown", "unknown"): 111}
    assert by_agent(none) == {"unknown": 100, "developer": 10, "other": 1}
    put(none, call("s", 4, 2))
    assert by_agent(none) == {"unknown": 102, "developer": 10, "other": 1}
    assert verify(none) == []


def test_usage_that_turns_out_to_be_another_sessions_is_a_debit_of_the_old_series(host: Host) -> None:
    """After re-attribution a session falls: no series falls, none is below nothing, the totals are right."""
    ledger = host(BY_BRANCH)
    put(host(None), at("s"), Moment("claude", "s", "own", 2000), call("s", 1, 100), call("s", 2, 50))
    attribute(ledger)
    before = counters(ledger)
    put(ledger, Moment("claude", "p", "own", 1000), replace(call("s", 1, 100), session="p"))
    assert whose(ledger) == {("developer", "ABC-1"): 50, ("unknown", "unknown"): 100}
    after = counters(ledger)
    assert all(after[key] >= value for key, value in before.items())
    with ledger.read() as conn:
        assert {r.labels: r.target for r in conn.execute(select(t.series).where(t.series.c.family == "spendmeter.tokens_in"))} == {
            '["unknown","claude","m"]': 150
        }
    assert verify(ledger) == []


def test_a_split_that_comes_later_moves_no_counter(host: Host) -> None:
    """A rule on subagents for what was counted already: rows are parted, the counter is not, and goes on in two series."""
    ledger = host(HELPER)
    put(host(None), at("s"), call("s", 1, 60), call("s", 2, 40, subagent="x"))
    before = counters(ledger)
    done = attribute(ledger)
    assert [(m.rules, m.before, m.after, m.sessions, m.amounts.runs, m.amounts.tokens) for m in done.moves] == [
        ((1,), ("unknown", "unknown"), ("helper", "unknown"), 1, 1, 40),
        ((2,), ("unknown", "unknown"), ("developer", "unknown"), 1, 1, 60),
    ]
    assert counters(ledger) == before
    put(ledger, call("s", 3, 3, subagent="x"), call("s", 4, 4))
    assert by_agent(ledger) == {"unknown": 100, "helper": 3, "developer": 4}
    assert verify(ledger) == []


def test_tasks_beyond_the_greatest_number_keep_their_past(both: Ledger) -> None:
    """Re-attributed to a task that later finds no series of its own: the old series stands, the overflow has the new usage alone."""
    few = Ledger(replace(both.settings, max_tasks=1, attribution=BY_BRANCH))
    plain = Ledger(replace(both.settings, max_tasks=1))
    put(plain, at("s"), call("s", 1, 100))
    attribute(few)
    put(plain, call("s", 2, 7))
    shown = {k[1]: n for k, n in counters(few).items() if k[0] == "spendmeter.task.tokens_in"}
    assert shown == {'["unknown","unknown"]': 100, '["developer","__overflow__"]': 7}
    assert verify(few) == []
    few.close()
    plain.close()


def test_closed_sessions_stay_and_a_copy_keeps_what_was_left(host: Host, new_url: Callable[[], str]) -> None:
    """Re-attribution passes over what retention has closed; its shifts stay with it, and ``ledger copy`` takes them along."""
    put(host(None), at("s"), call("s", 1, 100))
    attribute(one := host(BY_BRANCH))
    put(one, call("s", 2, 5))
    retain(one, DAY_MS, at_ms=now_ms() + 400 * DAY_MS)
    done = attribute(two := host([{"match": {"cwd": "*"}, "set": {"agent": "other"}}]))
    assert (done.looked, done.closed, whose(two)) == (0, 1, {("developer", "ABC-1"): 105})
    assert verify(two) == []
    copy(two, url := new_url())
    moved = Ledger(replace(two.settings, ledger=url))
    assert (counters(moved), whose(moved), verify(moved)) == (counters(two), whose(two), [])
    moved.close()


def test_only_what_was_active_lately_is_looked_at(host: Host) -> None:
    """``since`` leaves older sessions as they are; a dry run leaves all."""
    put(host(None), at("old"), call("old", 1, 1, at_ms=NOON - 9 * DAY_MS), at("new"), call("new", 1, 2))
    ledger = host(BY_BRANCH)
    assert attribute(ledger, dry_run=True).sessions == 2
    assert whose(ledger) == {("unknown", "unknown"): 3}
    assert attribute(ledger, since_ms=NOON - DAY_MS).sessions == 1
    assert whose(ledger) == {("unknown", "unknown"): 1, ("developer", "ABC-1"): 2}


def test_attributes_and_runs_without_usage_move_too(host: Host) -> None:
    """A run that used nothing has an agent; attributes alone are a move from someone to himself."""
    put(host(None), at("s"), Finish("claude", "s", "r", "r", "error", ended_ms=NOON))
    done = attribute(one := host(BY_BRANCH))
    assert [(m.after, m.amounts.runs, m.amounts.tokens) for m in done.moves] == [(("developer", "ABC-1"), 1, 0)]
    done = attribute(host([*BY_BRANCH, {"match": {"cwd": "*"}, "set": {"team": "x", "plan": "book"}}]))
    assert [(m.rules, m.before, m.after, m.attrs) for m in done.moves] == [
        ((2,), ("developer", "ABC-1"), ("developer", "ABC-1"), ("plan", "team"))
    ]
    with one.read() as conn:
        assert conn.execute(select(t.runs.c.plan)).scalar_one() == "book"
    assert verify(one) == []


LABELS = st.sampled_from(['["a","c","m"]', '["b","c","m"]', '["d","c","m"]', '["a","c","n"]'])
PART = st.dictionaries(st.tuples(st.just("spendmeter.tokens_in"), LABELS), st.integers(1, 1000))


@given(held=PART, wanted=PART, later=PART)
def test_shifts_keep_every_sum(held: dict[Any, int], wanted: dict[Any, int], later: dict[Any, int]) -> None:
    """By all labels but agent and task, shares add up to the rows, whatever those become; none is negative; equal sums stay put."""

    def by_group(amounts: dict[Any, int]) -> dict[Any, int]:
        out: dict[Any, int] = {}
        for key, n in amounts.items():
            out[_group(key)] = out.get(_group(key), 0) + n
        return {k: n for k, n in out.items() if n}

    shifts = _left(held, wanted)
    assert by_group(shifts) == {}
    for now in (wanted, later):
        shares = applied(now, shifts)
        assert by_group(shares) == by_group(now)
        assert all(n > 0 for n in shares.values())
    if by_group(held) == by_group(wanted):
        assert applied(wanted, shifts) == held


MANY = 200
VICTIM = """
import sys
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger.attributing import attribute
ledger = Ledger(Settings(sys.argv[1], settle_s=0, attribution=[{"match": {"cwd": "*"}, "set": {"agent": "developer"}}]))
attribute(ledger, progress=lambda done, all_: print(done, flush=True))
"""


def fill(ledger: Ledger, number: int) -> None:
    """Sessions of three calls, one of them a subagent's."""
    facts: list[Observation] = []
    for i in range(number):
        facts += [at(f"s{i}"), *[call(f"s{i}", n, 10 * n, subagent="x" if n == 2 else None) for n in (1, 2, 3)]]
    put(ledger, *facts)


@pytest.mark.parametrize("delay_ms", [0, 30, 80, 150])
def test_kill_9_in_the_middle_of_re_attribution_leaves_whole_sessions(host: Host, delay_ms: int) -> None:
    """What was done stays, the rest is done the next time; the counters never move."""
    ledger = host([{"match": {"cwd": "*"}, "set": {"agent": "developer"}}])
    fill(host(None), MANY)
    before = counters(ledger)
    args = [sys.executable, "-c", VICTIM, ledger.settings.ledger]
    victim = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    victim.stdout.readline()
    time.sleep(delay_ms / 1000)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert (verify(ledger), counters(ledger)) == ([], before)
    rest = attribute(ledger).looked
    assert rest <= MANY - attributing.AT_ONCE
    assert whose(ledger) == {("developer", "unknown"): 60 * MANY}
    assert (verify(ledger), counters(ledger)) == ([], before)


def test_a_thousand_sessions_are_quick(host: Host) -> None:
    """Re-attribution of 1,000 sessions takes seconds, and again no time at all."""
    fill(host(None), 1000)
    begun = time.process_time()
    assert attribute(ledger := host(HELPER)).sessions == 1000
    took = time.process_time() - begun
    assert took < 30, took
    begun = time.process_time()
    assert attribute(ledger).looked == 0
    assert time.process_time() - begun < 1


def test_verify_notices_a_shift_that_was_tampered_with(host: Host) -> None:
    """A shift is held to what the counters stand at."""
    put(host(None), at("s"), call("s", 1, 100))
    attribute(ledger := host(BY_BRANCH))
    with ledger.write() as conn:
        conn.execute(update(t.shifts).where(t.shifts.c.amount > 0).values(amount=t.shifts.c.amount + 1))
    assert {d.what for d in verify(ledger)} == {"series"}
