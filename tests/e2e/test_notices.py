"""Notices from real daemons on one ledger: through restarts, kills, a receiver that is down, and one that is slow."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from procs import Daemon, get, wait_for
from sqlalchemy import select, update
from tests.feed import use
from tests.hooks import Receiver

from spendmeter.ledger import Ledger, now_ms
from spendmeter.ledger import schema as t
from spendmeter.notices.delivery import CLAIM_MS

pytestmark = pytest.mark.e2e
CROSSINGS = 20


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def daemons(both: Ledger, receiver: Receiver, tmp_path: Path) -> Iterator[list[Daemon]]:
    """Two, of which each task has a limit, on one ledger; not started yet."""
    file = tmp_path / "budgets.yaml"
    file.write_text(
        "budgets: [{name: caps, per: task, period: total, limit_tokens: 100, thresholds: [0.8]}]\n"
        f"notify: [{{name: ops, webhook: '{receiver.url('/T0KEN')}', secret_env: HOOK_SECRET}}]\n"
    )
    env = os.environ | {"SPENDMETER_LEDGER": both.settings.ledger, "SPENDMETER_BUDGETS": str(file), "HOOK_SECRET": "S3CRET"}
    env["SPENDMETER_METRICS_SETTLE"] = "0"
    made = [Daemon(env, tmp_path / f"{name}.log") for name in "ab"]
    yield made
    for daemon in made:
        with contextlib.suppress(Exception):
            daemon.stop()
    said = "".join(d.log.read_text() for d in made if d.log.exists())
    assert "T0KEN" not in said
    assert "S3CRET" not in said
    assert "defect" not in said
    assert "Traceback" not in said


def cross(ledger: Ledger, first: int, last: int) -> None:
    """Each of these tasks uses 85 of its 100 tokens."""
    for i in range(first, last):
        use(ledger, f"s{i}", 85, now_ms(), task=f"T-{i}")


def rows(ledger: Ledger) -> list[Any]:
    with ledger.read() as conn:
        return list(conn.execute(select(t.notices)))


def tasks(receiver: Receiver) -> Counter[str]:
    """How often each task was told of."""
    return Counter(p.told["budget"]["value"] for p in list(receiver.posts))


def test_each_crossing_is_told_once_over_restarts(both: Ledger, daemons: list[Daemon], receiver: Receiver) -> None:
    """Two daemons that end and start again all the while: twenty crossings, twenty messages."""
    for daemon in daemons:
        daemon.start()
    for part in range(4):
        cross(both, part * 5, part * 5 + 5)
        time.sleep(random.uniform(0, 2))
        daemons[part % 2].stop()
        daemons[part % 2].start()
    wait_for(lambda: len(receiver.posts) >= CROSSINGS, f"all are told: {tasks(receiver)}")
    time.sleep(5)
    assert tasks(receiver) == Counter({f"T-{i}": 1 for i in range(CROSSINGS)})
    assert [(r.attempts, r.due_ms, r.error) for r in rows(both)] == [(1, None, None)] * CROSSINGS


def test_kill_minus_nine_loses_none_and_repeats_only_what_was_under_way(both: Ledger, daemons: list[Daemon], receiver: Receiver) -> None:
    """The receiver kills its sender now and then, before it answers: those come again, under their ids; nothing else does."""
    killed: list[str] = []
    armed, lock = threading.Event(), threading.Lock()

    def kill(notice_id: str) -> None:
        with lock:
            if armed.is_set() and len(receiver.ids) % 5 >= 2 and notice_id not in killed:
                armed.clear()
                killed.append(notice_id)
                for daemon in daemons:  # whichever sent it
                    daemon.kill()

    receiver.before = kill
    for part in range(4):
        for daemon in daemons:
            daemon.start()
        armed.set()
        cross(both, part * 5, part * 5 + 5)
        wait_for(lambda n=part: len(killed) > n, "one is killed")
    for daemon in daemons:
        daemon.start()
    with both.write() as conn:  # two minutes pass
        conn.execute(update(t.notices).where(t.notices.c.due_ms.is_not(None)).values(due_ms=t.notices.c.due_ms - CLAIM_MS))
    wait_for(lambda: len(rows(both)) == CROSSINGS and all(r.due_ms is None for r in rows(both)), f"all have come: {tasks(receiver)}")
    time.sleep(3)
    assert set(tasks(receiver)) == {f"T-{i}" for i in range(CROSSINGS)}
    assert {r.id for r in rows(both)} == set(receiver.ids)
    assert set(killed) <= {i for i, n in receiver.ids.items() if n > 1}
    assert all(receiver.ids[r.id] <= r.attempts for r in rows(both))  # not one that was not interrupted
    assert sum(r.attempts - 1 for r in rows(both)) <= 2 * len(killed)
    assert receiver.together == 1


def test_a_receiver_that_is_down_gets_everything_once_when_it_is_up(both: Ledger, daemons: list[Daemon], receiver: Receiver) -> None:
    """The daemons try, say so once, and deliver when the time has come."""
    receiver.status = 503
    for daemon in daemons:
        daemon.start()
    cross(both, 0, 3)
    wait_for(lambda: len(receiver.ids) == 3, "each is tried")
    gauge = "spendmeter_notices_pending 3"
    wait_for(lambda: gauge in get(f"{daemons[0].url}/metrics"), "the gauge shows what waits")
    receiver.status = 200
    before = len(receiver.posts)
    with both.write() as conn:  # half a minute passes
        conn.execute(update(t.notices).values(due_ms=now_ms()))
    wait_for(lambda: all(r.due_ms is None for r in rows(both)), "all are delivered")
    assert Counter(p.headers["webhook-id"] for p in receiver.posts[before:]) == Counter(list(receiver.ids))
    said = [line for d in daemons for line in d.log.read_text().splitlines() if "notices:" in line]
    assert sorted(said) == [
        f"spendmeter: notices: budget caps of T-{i} at 80%: 127.0.0.1: answered 503; kept, and tried again" for i in range(3)
    ]


@pytest.mark.alone
def test_a_slow_receiver_delays_nothing_else(both: Ledger, daemons: list[Daemon], receiver: Receiver) -> None:
    """It takes fifteen seconds: scrapes, new runs' counters and other notices' thread go on; the daemon ends in time all the same."""
    receiver.delay_s = 15
    daemon = daemons[0]
    daemon.start()
    cross(both, 0, 1)
    wait_for(lambda: receiver.posts, "the notice is under way")
    with both.write() as conn:
        conn.execute(update(t.sessions).values(settle_at_ms=now_ms()))
    took = []
    for _ in range(20):
        began = time.monotonic()
        get(f"{daemon.url}/metrics")
        took.append(time.monotonic() - began)
        time.sleep(0.1)
    assert max(took) < 1.5, took
    with both.read() as conn:
        assert conn.execute(select(t.sessions.c.id).where(t.sessions.c.settle_at_ms.is_not(None))).first() is None
    assert json.loads(get(f"{daemon.url}/api/v1/ledger"))["unsettled"] == 0
    assert get(f"{daemon.url}/livez") == "ok\n"
    began = time.monotonic()
    daemon.stop()
    assert time.monotonic() - began < 10
    assert rows(both)[0].sent_ms is None
