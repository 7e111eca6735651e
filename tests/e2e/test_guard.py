"""A hundred real ``spendmeter run`` at once against a budget with room for ten, and what a kill -9 leaves of it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import func, select
from tests.fakecli.harness import CASES, CLAUDE, Wrapper, until
from tests.replay import clone

from spendmeter.budgets import Subject
from spendmeter.config import Settings
from spendmeter.ledger import Ledger, now_ms, reservations
from spendmeter.ledger import schema as t
from spendmeter.ledger.reservations import Reservation
from spendmeter.ledger.verify import verify
from spendmeter.records import usd
from spendmeter.runner.recover import recover

pytestmark = pytest.mark.e2e

CASE = CASES / "json-single"
COST_NUSD = 12_061_650  # what one run of it costs
RUN = ("--agent", "heartbeat-3", "--task", "T-1")
ROOM = 10
STARTS = 100
REFUSED = re.compile(
    rb"spendmeter: run not started: (?:over budget headless: \$0\.13 of \$0\.13 spent in all"
    rb"|budget headless has no room: \$0\.\d\d of \$0\.13 spent(?:, [^,]+ by \d+ runs?)?, a run of heartbeat-3 takes about \$0\.01)\n"
)
LATE = b"spendmeter: this run was not recorded yet: the ledger did not answer in time"  # it ended while the machine was too busy
Run = subprocess.Popen[bytes]


@pytest.fixture
def wrapper(tmp_path: Path) -> Wrapper:
    return made_wrapper(tmp_path)


def made_wrapper(folder: Path) -> Wrapper:
    """A budget that has room for ten more runs like the one that is in its ledger."""
    folder.mkdir(exist_ok=True)
    made = Wrapper(folder, real=True)
    limit = usd(COST_NUSD * (1 + ROOM))
    text = f"budgets:\n  - {{name: headless, match: {{agent: 'heartbeat*'}}, period: total, limit_usd: {limit}, action: block}}\n"
    (folder / "budgets.yaml").write_text(text)
    made.env["SPENDMETER_BUDGETS"] = str(folder / "budgets.yaml")
    assert made.run(CLAUDE, "-p", "x", flags=RUN, env={"FAKE_CASE": str(CASE)}).returncode == 0
    return made


@pytest.fixture
def ledger(wrapper: Wrapper) -> Iterator[Ledger]:
    with closing(Ledger(Settings(wrapper.ledger))) as opened:
        yield opened


def spent(ledger: Ledger) -> tuple[int, int]:
    """(nano-USD, runs) in the ledger."""
    with ledger.read() as conn:
        cost = conn.execute(select(func.sum(t.entries.c.reported_nusd), func.sum(t.entries.c.estimated_nusd))).one()
        return sum(x or 0 for x in cost), conn.execute(select(func.count()).select_from(t.runs)).scalar_one()


def held(ledger: Ledger) -> int:
    with ledger.read() as conn:
        return len(reservations.held(conn, now_ms()))


def test_a_hundred_starts_at_once_get_ten_runs_worth(wrapper: Wrapper, ledger: Ledger, tmp_path: Path) -> None:
    """Some end while others still ask. Ten ran, the others say why not, and the ledger holds what the ten cost."""
    runs = []
    for i in range(STARTS):
        case = clone(CASE, tmp_path / f"case-{i}", str(i))
        runs.append(wrapper.start(CLAUDE, "-p", "x", flags=RUN, env={"FAKE_CASE": str(case), "FAKE_LIVE_S": str(i % 4)}))
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert Counter(run.returncode for run in runs) == {0: ROOM, 3: STARTS - ROOM}
    assert all(
        REFUSED.fullmatch(line) if run.returncode else line.startswith(LATE) or not line for run, line in zip(runs, said, strict=True)
    )
    recover(wrapper.ledger)  # as the next command would
    assert spent(ledger) == (COST_NUSD * (1 + ROOM), 1 + ROOM)
    assert held(ledger) == 0
    assert verify(ledger) == []


def test_killing_half_of_those_under_way_lets_as_many_in(wrapper: Wrapper, ledger: Ledger, tmp_path: Path) -> None:
    """kill -9 of the wrappers frees what they had set aside at once."""
    sleeper = tmp_path / "bin" / "claude"
    sleeper.parent.mkdir()
    sleeper.write_text("#!/bin/sh\nexec sleep 300\n")
    sleeper.chmod(0o755)
    runs: list[Run] = []

    def start(n: int) -> None:
        runs.extend(wrapper.start(str(sleeper), flags=RUN) for _ in range(n))

    with ending(runs):
        start(ROOM + 2)
        until(lambda: held(ledger) == ROOM and len(refused(runs)) == 2)
        alive = [run for run in runs if run.poll() is None]
        for run in alive[: ROOM // 2]:
            run.kill()
        assert until(lambda: held(ledger) == ROOM // 2, 20)  # a heartbeat that went missing would take a minute
        start(ROOM // 2 + 3)
        until(lambda: held(ledger) == ROOM and len(refused(runs)) == 5)
        assert sum(run.poll() is None for run in runs) == ROOM
    assert held(ledger) == 0
    assert spent(ledger)[0] == COST_NUSD


def test_a_busy_ledger_is_waited_for_as_long_as_it_gets_on(tmp_path: Path) -> None:
    """15 s without any progress and the budgets cannot be checked; a writer that comes in between makes it worth waiting on."""
    stuck, busy = (made_wrapper(tmp_path / name) for name in ("stuck", "busy"))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(closing(Ledger(Settings(w.ledger)))) for w in (stuck, busy)]
        stack.enter_context(opened[0].write())
        with opened[1].write() as conn:
            runs = [w.start("sh", "-c", "exit 7", flags=RUN, env={"SPENDMETER_BUDGETS_ON_ERROR": "block"}) for w in (stuck, busy)]
            time.sleep(8)
            reservations.put(conn, Reservation("f" * 32, Subject("heartbeat-9"), now_ms(), 0, 0), now_ms())
        with opened[1].write():
            time.sleep(10)
        said = [run.communicate(timeout=180)[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [3, 7]
    assert said[0].startswith("spendmeter: run not started: its budgets cannot be checked: LedgerError: ledger sqlite:")
    assert said[0].endswith("database is locked; another process held it for long; try again\n")
    assert said[1] == ""


def refused(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.poll() == 3]


@contextlib.contextmanager
def ending(runs: list[Run]) -> Iterator[None]:
    """Ends every run that is left."""
    try:
        yield
    finally:
        for run in runs:
            run.send_signal(signal.SIGTERM)
        for run in runs:
            run.communicate(timeout=60)
