"""Reservations: held as long as their run is alive, by pid and start on its own host and by heartbeat elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from spendmeter.budgets import Budget, Period, Subject
from spendmeter.ledger import Batch, Ledger, liveness, reservations
from spendmeter.ledger import schema as t
from spendmeter.ledger.reservations import Reservation
from tests.made import NOON

DEV = Subject("dev", "T-1", "claude", "claude-opus-4-5", "shop", {"team": "blue"})
RUN = Reservation("a" * 32, DEV, NOON, 5, 70, 3, None)


def budget(unit: str, **more: Any) -> Budget:
    return Budget("b", Period("total"), unit, 100, **more)  # type: ignore[arg-type]


def put(ledger: Ledger, run: Reservation = RUN, at_ms: int = NOON, **row: Any) -> None:
    """Sets *run* aside; *row* is what another process would have written."""
    with ledger.write() as conn:
        reservations.put(conn, run, at_ms)
        if row:
            conn.execute(update(t.reservations).where(t.reservations.c.run_id == run.run_id).values(**row))


def held(ledger: Ledger, at_ms: int = NOON) -> list[Reservation]:
    with ledger.read() as conn:
        return reservations.held(conn, at_ms)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of our own that lives until it is killed, and is reaped only by ``wait``."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; print(1, flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What *process* would have written of itself."""
    return {"pid": process.pid, "born": liveness.born(process.pid)}


def test_what_is_set_aside_is_held_as_it_was(both: Ledger) -> None:
    """Every field comes back, unknown ones as None; the oldest run comes first."""
    later = Reservation("b" * 32, Subject("dev", "T-2"), NOON + 1)
    put(both, later)
    put(both)
    assert held(both) == [RUN, later]
    put(both, replace(RUN, used_tokens=9))
    assert [r.used_tokens for r in held(both)] == [9, None]


@pytest.mark.parametrize(("unit", "used", "amount"), [("usd", 3, 5), ("tokens", 0, 70), ("runs", 0, 1)])
def test_a_run_takes_what_it_is_expected_to_use(unit: str, used: int, amount: int) -> None:
    """In the budget's unit; what it has used is known apart from that, and a run has not yet counted as one."""
    assert (RUN.used(budget(unit)), RUN.amount(budget(unit))) == (used, amount)


def test_a_run_takes_what_it_has_used_once_that_is_more() -> None:
    """An expectation that has proved too low is none any more."""
    assert replace(RUN, used_nusd=8).amount(budget("usd")) == 8


def test_a_run_without_history_takes_the_budgets_reserve_or_a_twentieth() -> None:
    """In nano-USD as in tokens."""
    new = Reservation("c" * 32, DEV, NOON)
    assert [new.amount(budget("usd")), new.amount(budget("tokens", reserve=33))] == [5, 33]


def test_a_run_counts_for_its_own_value_of_per() -> None:
    """Where the budget has no ``per`` for every one that it matches; an attribute that it lacks is the value None."""
    mine, blue, wing = budget("usd"), budget("usd", per="team"), budget("usd", per="wing")
    assert [RUN.counts(mine, None), RUN.counts(blue, "blue"), RUN.counts(blue, "red"), RUN.counts(wing, None)] == [True, True, False, True]
    assert not RUN.counts(budget("usd", match={"agent": ("rev*",)}), None)


def test_a_live_process_holds_on_without_a_heartbeat(ledger: Ledger, sleeper: subprocess.Popen[bytes]) -> None:
    """Its own host sees it: a suspended wrapper loses nothing."""
    put(ledger, **of(sleeper))
    assert held(ledger, NOON + 7 * 86_400_000) == [RUN]


def test_a_process_that_is_gone_holds_nothing(ledger: Ledger, sleeper: subprocess.Popen[bytes]) -> None:
    """At once, however young its heartbeat is."""
    put(ledger, **of(sleeper))
    sleeper.kill()
    sleeper.wait()
    assert held(ledger) == []


def test_a_zombie_holds_nothing(ledger: Ledger, sleeper: subprocess.Popen[bytes]) -> None:
    """Killed and not reaped: its pid and its start are still there."""
    put(ledger, **of(sleeper))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    os.kill(sleeper.pid, 0)
    assert held(ledger) == []


def test_a_pid_that_another_process_has_now_holds_nothing(ledger: Ledger, sleeper: subprocess.Popen[bytes]) -> None:
    """The start tells them apart."""
    put(ledger, **of(sleeper) | {"born": "1"})
    assert held(ledger) == []


@pytest.mark.parametrize("where", ["another host", "the same host, booted again", "a container of the same name"])
def test_of_elsewhere_only_the_heartbeat_tells(ledger: Ledger, where: str) -> None:
    """Though the pid lives here too: for a minute after the last heartbeat it is alive, then no longer."""
    name, boot, namespace = liveness.here().split()
    hosts = {"another host": f"{name}-2 {boot} {namespace}", "the same host, booted again": f"{name} 0 {namespace}"}
    put(ledger, host=hosts.get(where, f"{name} {boot} pid:[1]"))
    assert [len(held(ledger, NOON + ms)) for ms in (0, 60_000, 60_001)] == [1, 1, 0]


def test_a_process_that_cannot_be_looked_at_lives_by_its_heartbeat(
    ledger: Ledger, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No /proc, or one that hides what is others': the pid tells that it is gone, else the heartbeat does."""
    put(ledger, **of(sleeper))
    monkeypatch.setattr(liveness, "born", lambda pid: None)
    assert [len(held(ledger, NOON + ms)) for ms in (60_000, 60_001)] == [1, 0]
    sleeper.kill()
    sleeper.wait()
    assert held(ledger) == []


def test_the_dead_are_told_apart_and_not_deleted(both: Ledger) -> None:
    """Gauges ask in transactions that read."""
    gone = replace(RUN, run_id="d" * 32)
    put(both)
    put(both, gone, born="1")
    assert held(both) == [RUN]
    with both.read() as conn:
        assert reservations.parted(conn, NOON) == ([RUN], [gone])


def test_a_commit_takes_the_place_of_its_own_runs_reservation(both: Ledger) -> None:
    """In one transaction, and of no other's."""
    put(both)
    put(both, replace(RUN, run_id="d" * 32))
    both.commit(Batch([], releases=RUN.run_id))
    assert [r.run_id for r in held(both)] == ["d" * 32]
