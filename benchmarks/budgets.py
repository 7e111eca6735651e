"""What ten budgets add to a /metrics page over a long history: run it as ``python benchmarks/budgets.py [RUNS]``.

RUNS runs (200,000) of three entries each, over a year, put straight into an SQLite ledger; 2,000 series. The budgets are of every kind:
by agent, model, attribute and repository, per task and per team, calendar months, weeks and days, rolling hours, totals. The page without
budgets is made in the same process. Prints a table of seconds; the ratio is to the page without budgets in the same row.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scrape import best, filled, label_sets
from sqlalchemy import func, insert, update

from spendmeter.budgets import Subject
from spendmeter.budgets.file import load
from spendmeter.ledger import Ledger, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.budgeting import state
from spendmeter.ledger.exposition import exposition
from spendmeter.projections.prometheus import render

MINUTE_MS, YEAR_MS, CHUNK = 60_000, 365 * 86_400_000, 20_000
BUDGETS = """
budgets:
  - {name: everything, period: month, limit_usd: 1000}
  - {name: headless, period: month, timezone: Europe/Berlin, limit_usd: 100, match: {agent: "agent-1*"}}
  - {name: today, period: day, limit_usd: 50, action: warn}
  - {name: week, period: week, limit_tokens: 90000000, match: {repo: [org/repo-1, org/repo-2*]}}
  - {name: opus, period: month, limit_usd: 500, match: {model: "model-1*", cli: claude}}
  - {name: team, period: month, limit_usd: 300, match: {team: team-3}}
  - {name: five-hours, period: 5h, limit_tokens: 20000000, action: block}
  - {name: storms, period: 1h, per: task, limit_runs: 20, action: block}
  - {name: task-cap, period: total, per: task, limit_usd: 5, action: kill}
  - {name: teams, period: 30d, per: team, limit_usd: 400}
"""


def history(ledger: Ledger, runs: int) -> None:
    """A year of runs that ends now: 20 agents, a task for 40 runs in a row, 7 teams, 30 repositories, 5 models."""
    end = now_ms()
    with ledger.write() as conn:
        for first in range(0, runs, CHUNK):
            made = list(_runs(range(first, min(first + CHUNK, runs)), end - YEAR_MS, YEAR_MS // runs))
            for table, rows in zip((t.sessions, t.runs, t.entries), zip(*made, strict=True), strict=True):
                conn.execute(insert(table), [row for part in rows for row in part])


def _runs(numbers: range, start_ms: int, step_ms: int) -> Iterator[tuple[list[dict[str, Any]], ...]]:
    """(session, run, entries) of each."""
    for i in numbers:
        ended, session = start_ms + (i + 1) * step_ms, f"{i:032x}"
        key, cli = {"session_id": i + 1, "run_key": f"w:{session}"}, ("claude", "codex", "gemini", "qwen")[i % 4]
        attrs = json.dumps({"plan": "book", "team": f"team-{i % 7}"}, separators=(",", ":"))
        run = key | {
            "cli": cli, "session": session, "agent": f"agent-{i % 20}", "task": f"SHOP-{i // 40}", "repo": f"org/repo-{i % 30}",
            "attrs": attrs, "outcome": "ok", "implied": False, "started_ms": ended - 180_000, "ended_ms": ended, "duration_ms": 180_000,
            "trace_id": "ab" * 16, "span_id": "cd" * 8, "notes": "[]",
        }  # fmt: skip
        used = {
            "tokens_in": 100, "cache_read": 5000, "cache_write_5m": 300, "tokens_out": 500, "reported_nusd": 1_234_567 + i,
            "listed_nusd": 1_234_567, "unpriced_tokens": 0, "calls": 2,
        }  # fmt: skip
        minute = ended // MINUTE_MS * MINUTE_MS
        entries = [key | used | {"model": f"model-{(i + k % 2) % 5}", "minute_ms": minute - k * MINUTE_MS} for k in range(3)]
        yield [{"id": i + 1, "cli": cli, "session": session, "seen_ms": ended, "has_file": True, "moved": i + 1}], [run], entries


def move(ledger: Ledger) -> None:
    """What a commit does to the sums that are kept: they hold no longer."""
    with ledger.write() as conn:
        conn.execute(update(t.sessions).where(t.sessions.c.id == 1).values(moved=func.coalesce(t.sessions.c.moved, 0) + 10**9))


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Prints the table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    with tempfile.TemporaryDirectory() as folder:
        plain, file = filled(Path(folder) / "ledger.db", label_sets(2_000)), Path(folder) / "budgets.yaml"
        history(plain, runs)
        file.write_text(BUDGETS)
        with_budgets = Ledger(replace(plain.settings, budgets_file=file))
        print(f"{f'{runs} runs, 10 budgets':<32} {'without':>9} {'with':>9} {'ratio':>7}")
        _pages(plain, with_budgets)
        _guard(with_budgets, file)


def _pages(plain: Ledger, ledger: Ledger) -> None:
    at = now_ms()

    def page(one: Ledger, at_ms: int = at) -> object:
        return render(exposition(one, "scrape", at_ms))

    def moved(one: Ledger) -> float:
        move(one)
        return timed(lambda: page(one))

    cases: dict[str, Callable[[Ledger], float]] = {
        "first page": lambda one: timed(lambda: page(one)),
        "again, nothing new": lambda one: best(lambda: page(one)),
        "after a commit": lambda one: min(moved(one) for _ in range(5)),
        "in another minute": lambda one: min(timed(lambda: page(one, at + n * MINUTE_MS)) for n in range(1, 6)),  # noqa: B023 - called at once
    }
    for name, case in cases.items():
        without, with_ = case(plain), case(ledger)
        print(f"{name:<32} {without:>9.4f} {with_:>9.4f} {with_ / without:>6.1f}x")


def _guard(ledger: Ledger, file: Path) -> None:
    """What a start of `spendmeter run` waits for: the budgets that cover one run, each read anew."""
    run = Subject("agent-12", "SHOP-7", "claude", None, "org/repo-1", {"team": "team-3"})
    budgets = [b for b in load(file).budgets if b.covers(run)]
    with ledger.read() as conn:
        took = best(lambda: [state(conn, b, run, now_ms()) for b in budgets])
    print(f"{f'guard: {len(budgets)} budgets of a run':<32} {took:>19.4f}")


if __name__ == "__main__":
    main()
