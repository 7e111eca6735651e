"""A real Prometheus at 1 s scrapes: 200 runs of 8 processes at once, the daemon killed three times, 50 runs replayed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import procs
import pytest
from sqlalchemy import select
from tests.replay import clone
from tests.runs import FIELDS, ROOT, Chain

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.verify import verify

pytestmark = pytest.mark.e2e
RUNS, WORKERS, KILLS, REPLAYS = 200, 8, 3, 50
CASES = (
    "json-tool",
    "json-subagent-haiku",
    "stream-json-subagent-bg",
    "max-budget-usd",
    "kill-sigterm-json",
    "text-tool",
    "json-opus",
    "err-529",
)
FAKE = Path(__file__).parents[1] / "fakecli" / "claude"

WORKER = """
import os, subprocess, sys
fake, cases = sys.argv[1], sys.argv[2:]
for case in cases:
    name = os.path.basename(case)
    number = int(name.split("-")[0])
    own = [sys.executable, "-m", "spendmeter", "run", "--agent", f"agent-{number % 3}", "--task", f"T-{number % 20}", "--", fake, "-p", "x"]
    home = os.path.join(case, "own-home")
    env = os.environ | {"FAKE_CASE": case, "HOME": home, "CLAUDE_CONFIG_DIR": os.path.join(home, ".claude")}
    done = subprocess.run(own, env=env, stdout=subprocess.DEVNULL)
    assert done.returncode == 0, case
"""


def test_prometheus_says_what_the_ledger_says(tmp_path: Path) -> None:
    """Per series ``max - min`` over the whole time equals the ledger exactly, and ``increase()`` is right within its extrapolation."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    env = os.environ | {"SPENDMETER_LEDGER": url, "SPENDMETER_METRICS_ZERO_FIRST": "3", "SPENDMETER_METRICS_SETTLE": "2"}
    cases = [
        clone(ROOT / "claude" / CASES[i % len(CASES)], tmp_path / "cases" / f"{i:03d}-{CASES[i % len(CASES)]}", str(i)) for i in range(RUNS)
    ]
    daemon = procs.Daemon(env, tmp_path / "serve.log")
    daemon.start()
    prometheus = procs.Prometheus(tmp_path, f"127.0.0.1:{daemon.port}")
    with procs.stopping(daemon, prometheus):
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(FAKE), *map(str, cases[w::WORKERS])], env=env, stderr=subprocess.PIPE, text=True
            )
            for w in range(WORKERS)
        ]
        for _ in range(KILLS):
            time.sleep(8)
            daemon.kill()
            time.sleep(1)
            daemon.start()
        for worker in workers:
            _, err = worker.communicate(timeout=600)
            assert worker.returncode == 0, err[-1000:]
            assert "spendmeter:" not in err
        again = [str(c / "stdout") for c in cases[:REPLAYS]]
        subprocess.run([sys.executable, "-m", "spendmeter", "ingest", *again], env=env, check=True, capture_output=True)
        for case in cases[:REPLAYS]:
            subprocess.run(
                [sys.executable, "-m", "spendmeter", "sync", "--home", str(case / "own-home")], env=env, check=True, capture_output=True
            )
        ledger = Ledger(Settings(url, zero_first_s=3, settle_s=2))
        want = procs.counters(ledger)
        procs.wait_for(lambda: prometheus.query("spendmeter_ledger_unsettled_sessions") == {(): 0.0}, "all usage is settled")
        time.sleep(8)  # zero_first and some scrapes
        want = procs.counters(ledger)
        check_counters(prometheus, want)
        check_truth(ledger)
        assert verify(ledger) == []
        ledger.close()


def check_counters(prometheus: procs.Prometheus, want: dict[procs.Series, float]) -> None:
    names = sorted({name for name, _ in want})
    assert {"spendmeter_tokens_in_total", "spendmeter_cost_usd_total", "spendmeter_task_tokens_out_total", "spendmeter_runs_total"} <= set(
        names
    )
    for name in names:
        top, low = prometheus.query(f"max_over_time({name}[1h])"), prometheus.query(f"min_over_time({name}[1h])")
        rise, count = prometheus.query(f"increase({name}[1h])"), prometheus.query(f"count_over_time({name}[1h])")
        assert {labels: top[labels] - low[labels] for labels in top} == {labels: v for (n, labels), v in want.items() if n == name}
        for labels, value in rise.items():
            exact = top[labels] - low[labels]
            assert exact * (1 - 1e-9) <= value <= exact * (1 + 2.2 / max(count[labels] - 1, 1)), (name, labels)


def check_truth(ledger: Ledger) -> None:
    """The ledger holds what the model server billed for 200 runs."""
    with ledger.read() as conn:
        rows = conn.execute(select(*[t.entries.c[f] for f in FIELDS])).all()
        runs = conn.execute(select(t.runs.c.agent)).all()
    got = {f: sum(r[i] or 0 for r in rows) for i, f in enumerate(FIELDS)}
    each = [Chain("claude", (ROOT / "claude" / CASES[i % len(CASES)],)) for i in range(RUNS)]
    low, high = ({f: sum(c.truth(least)[f] for c in each) for f in FIELDS} for least in (True, False))
    assert all(low[f] <= got[f] <= high[f] for f in FIELDS), (got, low, high)
    assert len(runs) == RUNS
    assert all(r.agent.startswith("agent-") for r in runs)
