"""How long the web page takes with a million calls in the ledger: run it as ``python benchmarks/pages.py [RUNS]``.

RUNS runs (50,000) over half a year, of 20 calls and some five entries each, put straight into an SQLite ledger. A real daemon serves it;
every view is asked for the first time, so nothing is kept from before. The ratio is to one statement of SQLite's own that reads every
entry once and adds them up by agent, in this process: the least that a view must cost that keeps no sums.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from sqlalchemy import insert, text

from spendmeter.config import Settings
from spendmeter.ledger import Ledger, now_ms, rollup
from spendmeter.ledger import schema as t

MINUTE_MS, DAY_MS, CALLS = 60_000, 86_400_000, 20
AGENTS = [f"agent-{i}" for i in range(8)]
MODELS = ["claude-sonnet-4-5", "claude-opus-4-5", "claude-haiku-4-5", "gpt-5-codex", "gemini-2.5-pro"]
VIEWS = (
    "/?period=today",
    "/",
    "/?period=all",
    "/?period=all&sort=tokens",
    "/?period=all&agent=agent-3",
    "/?period=all&task=T-77",
    "/runs",
    "/runs/last",
)
FLOOR = (
    "select r.agent, sum(e.tokens_in), sum(e.reported_nusd) from entries e "
    "join runs r on r.session_id = e.session_id and r.run_key = e.run_key group by r.agent"
)


def fill(ledger: Ledger, runs: int) -> None:
    """Rows as ``derive`` would make them."""
    luck, end = random.Random(1), now_ms()
    for first in range(1, runs + 1, 5000):
        made: dict[str, list[dict[str, object]]] = {"sessions": [], "runs": [], "entries": [], "calls": []}
        for i in range(first, min(first + 5000, runs + 1)):
            _run(made, i, end - luck.randrange(180 * DAY_MS), luck)
        with ledger.write() as conn:
            for name, rows in made.items():
                conn.execute(insert(t.META.tables[name]), rows)
            rollup.mark(conn, {int(str(e["minute_ms"])) // rollup.HOUR_MS * rollup.HOUR_MS for e in made["entries"]})


def _run(made: dict[str, list[dict[str, object]]], i: int, end: int, luck: random.Random) -> None:
    key, model, minutes = f"w:{i:032x}", luck.choice(MODELS), luck.randint(2, 8)
    last = end // MINUTE_MS * MINUTE_MS
    made["sessions"].append({"id": i, "cli": "claude", "session": f"s{i}", "seen_ms": end, "has_file": True, "moved": i})
    made["runs"].append({
        "session_id": i, "run_key": key, "cli": "claude", "session": f"s{i}", "agent": luck.choice(AGENTS), "attrs": "{}",
        "task": f"T-{luck.randint(1, 9000)}", "outcome": luck.choice(["ok"] * 9 + ["error"]), "implied": False, "started_ms": end - 60_000,
        "ended_ms": end, "duration_ms": 60_000, "trace_id": key[2:], "span_id": key[2:18], "repo": luck.choice(["shop", "site", "api"]),
        "notes": "[]", "last_ms": last,
    })  # fmt: skip
    made["entries"] += [{
        "session_id": i, "run_key": key, "model": model, "minute_ms": last - k * MINUTE_MS, "tokens_in": luck.randint(10, 5000),
        "cache_read": luck.randint(0, 100_000), "tokens_out": luck.randint(10, 3000), "reported_nusd": luck.randint(10**6, 10**8),
        "listed_nusd": luck.randint(10**6, 10**8), "unpriced_tokens": 0, "calls": CALLS // minutes,
    } for k in range(minutes)]  # fmt: skip
    made["calls"] += [{
        "session_id": i, "call_id": f"req_{i}_{k}", "tokens_in": 10, "tokens_out": 10, "asked": model, "answered": model,
        "at_ms": end - k * 10_000, "views": "file", "role": "main", "traits": "[]",
    } for k in range(CALLS)]  # fmt: skip


def main(runs: int) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Settings(f"sqlite:///{folder}/ledger.db", settle_s=0))
        fill(ledger, runs)
        begun = time.perf_counter()
        hours = ledger.fold()
        folding = time.perf_counter() - begun
        with ledger.read() as conn:
            begun = time.perf_counter()
            conn.execute(text(FLOOR)).all()
            floor = time.perf_counter() - begun
        print(f"{runs * CALLS:,} calls; {hours:,} hours added up in {folding:.1f} s; all entries read once: {floor:.3f} s\n")
        print("| view, asked for first | seconds | ratio |\n|---|---|---|")
        for view in VIEWS:
            seconds = _asked(Path(folder), ledger.settings.ledger, view)
            print(f"| `{view}` | {seconds:.3f} | {seconds / floor:.2f}x |")
        ledger.close()


def _asked(folder: Path, url: str, view: str) -> float:
    """Seconds of the first request to a daemon that has just started."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "spendmeter", "serve", "--port", str(port)]
        daemon = subprocess.Popen(command, env=os.environ | {"SPENDMETER_LEDGER": url}, stdout=log, stderr=log)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).read()
                break
            except OSError:
                time.sleep(0.1)
        begun = time.perf_counter()
        urllib.request.urlopen(f"http://127.0.0.1:{port}{view}", timeout=60).read()
        return time.perf_counter() - begun
    finally:
        daemon.terminate()
        daemon.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
