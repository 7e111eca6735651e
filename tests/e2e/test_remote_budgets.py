"""Budgets of a central daemon and runs of other hosts: real wrappers, a real ``serve``, starts at once, kill -9, a daemon that goes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from procs import Daemon, stopping, wait_for
from sqlalchemy import func, select, update
from tests.fakecli.harness import CASES, CLAUDE, SRC, TESTS, until
from tests.hooks import Receiver
from tests.remotes import Host
from tests.replay import clone

from spendmeter.config import Settings
from spendmeter.ledger import Ledger, now_ms, reservations
from spendmeter.ledger import schema as t
from spendmeter.ledger.verify import verify
from spendmeter.records import usd

pytestmark = pytest.mark.e2e
CASE = CASES / "json-single"
COST_NUSD = 12_061_650  # what one run of it costs
ROOM = 5
STARTS = 30
REFUSED = re.compile(
    rb"spendmeter: run not started: (?:over budget central: \$0\.07 of \$0\.07 spent in all"
    rb"|budget central has no room: \$0\.\d\d of \$0\.07 spent(?:, [^,]+ by \d+ runs?)?, a run of dev takes about \$0\.01)\n"
)
Run = subprocess.Popen[bytes]


class Central(Daemon):
    """A daemon over a ledger of its own, and the budgets beside it."""

    def __init__(self, folder: Path, *flags: str, **env: str) -> None:
        self.file = folder / "budgets.yaml"
        self.file.write_text("budgets: []")
        self.ledger = f"sqlite:///{folder}/central.db"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPENDMETER_", "OTEL_"))}
        own = {"SPENDMETER_LEDGER": self.ledger, "SPENDMETER_BUDGETS": str(self.file), "PYTHONPATH": str(SRC), "HOME": str(folder)}
        super().__init__(kept | own | env, folder / "serve.log", *flags)

    def budget(self, limit_nusd: int, action: str, more: str = "") -> None:
        """What every run of dev may cost together."""
        match = "match: {agent: dev}, period: total"
        self.file.write_text(f"budgets:\n  - {{name: central, {match}, limit_usd: {usd(limit_nusd)}, action: {action}}}\n{more}")

    def token(self, scope: str) -> str:
        words = [sys.executable, "-m", "spendmeter", "token", "create", scope, "--scope", scope]
        return subprocess.run(words, env=self.env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Central]:
    """It runs, and one run of agent dev is in its ledger."""
    made = Central(tmp_path)
    with stopping(made):
        made.start()
        first = Host(tmp_path / "first", made.url)
        assert first.replay().stderr == b""
        yield made


@pytest.fixture
def ledger(central: Central) -> Iterator[Ledger]:
    with closing(Ledger(Settings(central.ledger))) as opened:
        yield opened


@pytest.fixture
def host(tmp_path: Path, central: Central) -> Host:
    made = Host(tmp_path / "host", central.url)
    made.env["SPENDMETER_BUDGETS_ON_ERROR"] = "block"  # nobody gets in unasked, however busy the machine is
    return made


def spent(ledger: Ledger) -> tuple[int, int]:
    """(nano-USD, runs) in the ledger."""
    with ledger.read() as conn:
        cost = conn.execute(select(func.sum(t.entries.c.reported_nusd), func.sum(t.entries.c.estimated_nusd))).one()
        return sum(x or 0 for x in cost), conn.execute(select(func.count()).select_from(t.runs)).scalar_one()


def held(ledger: Ledger) -> int:
    with ledger.read() as conn:
        return len(reservations.held(conn, now_ms()))


def test_thirty_starts_at_once_get_five_runs_worth(central: Central, ledger: Ledger, host: Host, tmp_path: Path) -> None:
    """Some end while others still ask. Five ran, the others say why not, and the central ledger holds what the five cost."""
    central.budget(COST_NUSD * (1 + ROOM), "block")
    runs = []
    for i in range(STARTS):
        case = clone(CASE, tmp_path / f"case-{i}", str(i))
        runs.append(host.start(CLAUDE, "-p", "x", env={"FAKE_CASE": str(case), "FAKE_LIVE_S": str(i % 4)}))
    said = [run.communicate(timeout=180)[1] for run in runs]
    assert Counter(run.returncode for run in runs) == {0: ROOM, 3: STARTS - ROOM}, said
    assert [line for run, line in zip(runs, said, strict=True) if run.returncode and not REFUSED.fullmatch(line)] == []
    assert subprocess.run([sys.executable, "-m", "spendmeter", "send", "--remote", central.url], env=host.env, check=True)
    assert spent(ledger) == (COST_NUSD * (1 + ROOM), 1 + ROOM)
    assert (held(ledger), verify(ledger)) == (0, [])


def test_what_the_killed_had_set_aside_lapses(central: Central, ledger: Ledger, host: Host, tmp_path: Path) -> None:
    """kill -9 of two of five: they hold what they had until nothing was heard of them for a minute, then two others have room.

    The three that live are heard of meanwhile. To make the minute shorter, all are said to have been silent for 40 s.
    """
    (sleeper := tmp_path / "bin" / "claude").parent.mkdir()
    sleeper.write_text("#!/bin/sh\nexec sleep 300\n")
    sleeper.chmod(0o755)
    central.budget(COST_NUSD * (1 + ROOM), "block")
    runs: list[Run] = []
    try:
        runs += [host.start(str(sleeper)) for _ in range(ROOM)]
        until(lambda: held(ledger) == ROOM)
        for run in runs[:2]:
            run.kill()
        assert host.replay().returncode == 3
        assert held(ledger) == ROOM
        with ledger.write() as conn:
            conn.execute(update(t.reservations).values(beat_ms=t.reservations.c.beat_ms - 40_000))
        until(lambda: held(ledger) == ROOM - 2)
        time.sleep(8)  # as long as the living would have lapsed too, had they not been heard
        runs += [host.start(str(sleeper)) for _ in range(3)]
        until(lambda: held(ledger) == ROOM and [run.poll() for run in runs].count(3) == 1)
        assert sum(run.poll() is None for run in runs) == ROOM
    finally:
        for run in runs:
            run.send_signal(signal.SIGTERM)
        for run in runs:
            run.communicate(timeout=60)
    until(lambda: held(ledger) == 0)
    assert spent(ledger)[0] == COST_NUSD


def test_a_budget_ends_a_run_of_another_host(central: Central, ledger: Ledger, host: Host) -> None:
    """The limit comes with the admission: exit code 3, and the central ledger has all of it with its outcome and why."""
    central.budget(COST_NUSD + 500_000_000, "kill")
    (link := host.folder / "claude").symlink_to(TESTS / "fakecli" / "runaway")
    env = {"RUNAWAY_CASE": str(CASES / "stream-json-tool"), "RUNAWAY_LOG": str(host.folder / "log")}
    done = host.run(str(link), env=env)
    assert (done.returncode, b"run ended: over budget central: " in done.stderr) == (3, True)
    with ledger.read() as conn:
        outcomes = conn.execute(select(t.runs.c.outcome).order_by(t.runs.c.ended_ms)).scalars().all()
        assert conn.execute(select(t.processes.c.stopped).where(t.processes.c.stopped.is_not(None))).scalars().all() == ["budget central"]
    assert (outcomes[-1], held(ledger)) == ("max_budget", 0)
    assert spent(ledger)[0] >= COST_NUSD + 500_000_000


def test_a_run_that_others_outspend_is_ended(central: Central, ledger: Ledger, host: Host, tmp_path: Path) -> None:
    """It uses nothing itself; another run of the agent uses the budget up, so both end within seconds."""
    central.budget(COST_NUSD * 40, "kill")
    (sleeper := tmp_path / "bin" / "claude").parent.mkdir()
    sleeper.write_text("#!/bin/sh\nexec sleep 300\n")
    sleeper.chmod(0o755)
    quiet = host.start(str(sleeper))
    until(lambda: held(ledger) == 1)
    (link := host.folder / "claude").symlink_to(TESTS / "fakecli" / "runaway")
    env = {"RUNAWAY_CASE": str(CASES / "stream-json-tool"), "RUNAWAY_LOG": str(host.folder / "log")}
    assert host.run(str(link), env=env).returncode == 3
    assert b"run ended: over budget central: " in quiet.communicate(timeout=60)[1]
    assert quiet.returncode == 3


@pytest.mark.parametrize(("on_error", "code"), [("allow", 0), ("block", 3)])
def test_where_the_daemon_has_gone_the_setting_decides(central: Central, ledger: Ledger, host: Host, on_error: str, code: int) -> None:
    """Such a run is recorded when the daemon is back, over its limit as it may be: then the next one is refused."""
    central.budget(COST_NUSD * 2, "block")
    central.kill()
    done = host.replay("json-tool", SPENDMETER_BUDGETS_ON_ERROR=on_error)
    assert done.returncode == code
    assert b"Connection refused" in done.stderr.splitlines()[0]
    central.start()
    words = [sys.executable, "-m", "spendmeter", "send", "--remote", central.url]
    assert subprocess.run(words, env=host.env, capture_output=True, check=True).stdout.startswith(b"1 " if code == 0 else b"0 ")
    assert spent(ledger)[1] == (2 if code == 0 else 1)
    assert host.replay("json-opus").returncode == (3 if code == 0 else 0)


def test_a_token_without_the_scope_is_told_in_one_line(tmp_path: Path) -> None:
    """At the start, with what to do; a token with it gets the run in."""
    daemon = Central(tmp_path, "--require-token")
    secrets = {scope: daemon.token(scope) for scope in ("read", "write")}
    daemon.budget(0, "block")
    host = Host(tmp_path / "host", daemon.url)
    host.env["SPENDMETER_BUDGETS_ON_ERROR"] = "block"
    with stopping(daemon):
        daemon.start()
        for secret, said in (
            ("", "put a token with the scope write into SPENDMETER_TOKEN"),
            (secrets["read"], "give its token the scope write"),
            (secrets["write"], "over budget central: $0.00 of $0.00 spent in all"),
        ):
            done = host.replay(SPENDMETER_TOKEN=secret)
            line = done.stderr.decode()
            assert (done.returncode, line.count("\n"), said in line) == (3, 1, True), line
            assert not any(x in line for x in secrets.values())
    assert not any(secret in daemon.log.read_text() for secret in secrets.values())


def test_thresholds_are_told_once_and_by_the_daemon(tmp_path: Path, central: Central) -> None:
    """However many hosts' runs cross them: one notice for each, posted where the daemon is; the hosts say nothing."""
    receiver = Receiver()
    central.budget(COST_NUSD * 4, "alert", f"notify:\n  - {{name: ops, webhook: '{receiver.url()}'}}\n")
    hosts = [Host(tmp_path / f"host{i}", central.url) for i in range(4)]
    for i, one in enumerate(hosts):
        case = clone(CASE, tmp_path / f"case-{i}", str(i))
        assert one.run(CLAUDE, "-p", "x", env={"FAKE_CASE": str(case)}).stderr == b""
    wait_for(lambda: "1" in {p.told["threshold"] for p in receiver.posts}, "the last threshold is told")
    time.sleep(5)  # for whatever might come again
    assert max(Counter(p.told["threshold"] for p in receiver.posts).values()) == 1
    receiver.close()
