"""Token events over HTTP on a long ledger: run it as ``python benchmarks/events.py [EVENTS]``.

EVENTS events (100,000) over a year, put straight into an SQLite ledger, and a daemon on it in this process. A task has 40 events, a
repository 1/30, a workstream 1/7 of all. Prints a table of milliseconds, median and 95th percentile of one client's requests over one
connection, then how SQLite goes about the questions. The ratio of a write is to one row inserted by SQL and committed to the same disk,
that of a read to ``GET /livez`` of the same daemon.
"""

from __future__ import annotations

import http.client
import json
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import event, insert

from spendmeter.config import Settings
from spendmeter.ledger import Ledger, now_ms
from spendmeter.ledger import schema as t
from spendmeter.server.app import create_app
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers
from spendmeter.token_events import Asked, page, summary

MINUTE_MS, YEAR_MS, CHUNK = 60_000, 365 * 86_400_000, 10_000
MODEL, WRITES, READS = "claude-sonnet-4-5", 100, 200
Tables = tuple[list[dict[str, Any]], ...]


def history(ledger: Ledger, count: int) -> None:
    """A year of events that ends now: 20 agents, 5 models."""
    start, step = now_ms() - YEAR_MS, YEAR_MS // count
    tables = (t.sessions, t.calls, t.claims, t.runs, t.entries, t.token_events)
    with ledger.write() as conn:
        for first in range(0, count, CHUNK):
            made = [_event(i, start + (i + 1) * step) for i in range(first, min(first + CHUNK, count))]
            for table, rows in zip(tables, zip(*made, strict=True), strict=True):
                conn.execute(insert(table), list(rows))


def _event(i: int, at_ms: int) -> tuple[dict[str, Any], ...]:
    """(session, call, claim, run, entry, event) of one."""
    name = f"{i:032x}"
    key = {"session_id": i + 1, "run_key": name}
    used = {"tokens_in": 100 + i % 900, "tokens_out": 50 + i % 400}
    told = {"agent": f"agent-{i % 20}", "task": f"SHOP-{i // 40}"}
    part = {"workstream": f"team-{i % 7}", "repo": f"org/repo-{i % 30}"}
    attrs, model = json.dumps({"workstream": part["workstream"], "commit": f"c{i // 10}"}, separators=(",", ":")), f"model-{i % 5}"
    return (
        {"id": i + 1, "cli": "api", "session": name, "seen_ms": at_ms, "has_file": True, "moved": i + 1},
        {"session_id": i + 1, "call_id": name, **used, "answered": model, "at_ms": at_ms, "views": "file", "role": "main", "traits": "[]"},
        {"session_id": i + 1, "claim_id": f"run:{name}", **told, "attrs": attrs, "run_key": name},
        key | told | part | {
            "cli": "api", "session": name, "commit": f"c{i // 10}", "attrs": attrs, "outcome": "unknown", "implied": False,
            "ended_ms": at_ms, "last_ms": at_ms, "trace_id": "ab" * 16, "span_id": "cd" * 8, "notes": "[]",
        },
        key | used | {
            "model": model, "minute_ms": at_ms - at_ms % MINUTE_MS, "estimated_nusd": 1_000_000 + i, "unpriced_tokens": 0, "calls": 1,
        },
        told | part | used | {
            "id": name, "occurred_ms": at_ms, "created_ms": at_ms, "ref_type": "commit", "ref_id": f"c{i // 10}", "model": model,
            "digest": "0" * 64,
        },
    )  # fmt: skip


@contextmanager
def daemon(book: Book) -> Iterator[http.client.HTTPConnection]:
    """A connection to a daemon over *book*."""
    config = uvicorn.Config(create_app(book, Workers(book)), port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with closing(http.client.HTTPConnection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])) as connection:
        yield connection
    server.should_exit = True
    thread.join()


def asked(connection: http.client.HTTPConnection, path: str, body: object = None) -> Callable[[], None]:
    """One request, answered well."""
    data = None if body is None else json.dumps(body)
    headers = {} if body is None else {"content-type": "application/json"}

    def ask() -> None:
        connection.request("GET" if body is None else "POST", path, data, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in {200, 201}, answer.status

    return ask


def timed(work: Callable[[], None], count: int) -> tuple[float, float]:
    """(median, 95th percentile) in ms, after one that does not count."""
    work()
    took = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        took.append((time.perf_counter() - start) * 1000)
    took.sort()
    return took[count // 2], took[int(count * 0.95)]


def one_row(file: Path) -> Callable[[], None]:
    """The floor of a write: a row of SQL, committed."""
    conn = sqlite3.connect(file, isolation_level=None)
    conn.executescript("pragma journal_mode=wal; pragma synchronous=full; create table floor (n integer)")
    return lambda: conn.execute("insert into floor values (1)") and None


def _line(name: str, took: tuple[float, float], floor: float, each: int = 1) -> None:
    print(f"{name:<44} {took[0]:>9.2f} {took[1]:>9.2f} {took[0] / floor:>8.1f}x {took[0] / each:>10.2f}")


def main() -> None:
    """Prints the tables."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder, closing(Book(_settings(folder))) as book:
        history(book.ledger(), count)
        print(f"{f'{count} events; ms':<44} {'median':>9} {'95 %':>9} {'to floor':>9} {'an event':>10}")
        with daemon(book) as connection:
            _writes(connection, Path(folder) / "floor.db")
            _reads(connection, count)
        _ways(book.ledger())


def _settings(folder: str) -> Settings:
    return Settings(f"sqlite:///{Path(folder) / 'ledger.db'}", zero_first_s=0, settle_s=0)


def _writes(connection: http.client.HTTPConnection, file: Path) -> None:
    floor = timed(one_row(file), WRITES)
    _line("one row of SQL, committed (floor of writes)", floor, floor[0])
    told = {"agent": "agent-1", "task": "SHOP-1", "model": MODEL, "tokens_in": 100, "tokens_out": 50}
    _line("POST one event", timed(asked(connection, "/token-events", told), WRITES), floor[0])
    _line("POST 100 events", timed(asked(connection, "/token-events", [told] * 100), 10), floor[0], 100)


def _reads(connection: http.client.HTTPConnection, count: int) -> None:
    floor = timed(asked(connection, "/livez"), READS)
    _line("GET /livez (floor of reads)", floor, floor[0])
    middle, cases = count // 2, {"limit=50": READS, "agent=agent-7&limit=50": READS, "repo=org/repo-3&since=30d": READS}
    for query, times in cases.items():
        _line(f"GET /token-events?{query}", timed(asked(connection, f"/token-events?{query}"), times), floor[0])
    scopes = {
        "task": f"SHOP-{middle // 40}",
        "commit": f"c{middle // 10}",
        "session": f"{middle:032x}",
        "repo": "org/repo-3",
        "workstream": "team-3",
    }
    for scope, name in scopes.items():
        big = scope in ("repo", "workstream")
        path = f"/token-events/summary?scope={scope}&id={name}"
        _line(f"GET .../summary?scope={scope}", timed(asked(connection, path), 10 if big else READS), floor[0])


def _ways(ledger: Ledger) -> None:
    """EXPLAIN of what the reads above ask."""
    told: list[tuple[str, Any]] = []
    event.listen(ledger._engine, "before_cursor_execute", lambda _c, _k, statement, values, *_: told.append((statement, values)))
    questions: dict[str, Callable[[], object]] = {
        "list by agent": lambda: page(ledger, Asked(agent="agent-7"), 50),
        "summary of a task": lambda: summary(ledger, "task", "SHOP-1"),
        "summary of a session": lambda: summary(ledger, "session", "x"),
    }
    for name, ask in questions.items():
        told.clear()
        ask()
        print(f"\n{name}:")
        with ledger.read() as conn:
            for statement, values in [x for x in told if x[0].startswith("SELECT")]:
                for row in conn.exec_driver_sql(f"explain query plan {statement}", values):
                    print(f"  {row[-1]}")


if __name__ == "__main__":
    main()
