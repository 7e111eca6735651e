"""Token events over HTTP on a long ledger: run it as ``python benchmarks/events.py [EVENTS] [--postgresql]``.

EVENTS events (100,000) over a year, put straight into a ledger in SQLite, or in a PostgreSQL server that is started for it with Debian's
defaults, and a daemon on it in this process. A task has 40 events, a repository 1/30, a workstream 1/7 of all. Prints milliseconds, median
and 95th percentile, of one client's requests over one connection; then what 8 and 32 clients, in processes of their own, get done at once
while two more read; then how the database goes about each question. The ratio of a write is to one row inserted by SQL and committed to
the same disk, that of a read to ``GET /livez`` of the same daemon.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import uvicorn
from events_history import fill
from sqlalchemy import event

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.server.app import create_app
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers
from spendmeter.token_events import Asked, page, read, record, summary

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.pg import Server

MODEL, WRITES, READS = "claude-sonnet-4-5", 200, 200
CROWDS, CROWD_S, READERS = (8, 32), 20.0, 2
TOLD = {"agent": "agent-1", "task": "SHOP-1", "model": MODEL, "tokens_in": 100, "tokens_out": 50}
Took = list[float]  # milliseconds, ascending


@contextmanager
def place(postgresql: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """URL of an empty ledger, and one row of SQL committed to the same disk, the floor of a write."""
    if postgresql:
        server = Server(durable=True)
        try:
            with psycopg.connect(server.url, autocommit=True) as floor:
                floor.execute("create table floor (n integer)")
                yield server.database(), lambda: floor.execute("insert into floor values (1)")
        finally:
            server.remove()
    else:
        with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(f"{folder}/floor.db", isolation_level=None)) as floor:
            floor.executescript("pragma journal_mode=wal; pragma synchronous=full; create table floor (n integer)")
            yield f"sqlite:///{folder}/ledger.db", lambda: floor.execute("insert into floor values (1)")


@contextmanager
def daemon(book: Book) -> Iterator[int]:
    """The port of a daemon over *book*."""
    config = uvicorn.Config(create_app(book, Workers(book)), port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
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


def timed(work: Callable[[], object], count: int) -> Took:
    """After one that does not count."""
    work()
    return sorted(_once(work) for _ in range(count))


def _once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def at(took: Took, share: float) -> float:
    """The percentile."""
    return took[int(len(took) * share)]


def crowd(port: int, clients: int, path: str, body: object, end: float) -> tuple[Took, int]:
    """What *clients*, each over a connection that it keeps, wait for answers until the time *end*; how many were refused."""
    refused = []

    def one(_number: int) -> Took:
        took = []
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            ask = asked(connection, path, body)
            while time.time() < end:
                try:
                    took.append(_once(ask))
                except AssertionError:
                    refused.append(one)
        return took

    with ThreadPoolExecutor(clients) as pool:
        return sorted(x for took in pool.map(one, range(clients)) for x in took), len(refused)


def main() -> None:
    """Prints the tables."""
    told = argparse.ArgumentParser()
    told.add_argument("events", nargs="?", type=int, default=100_000)
    told.add_argument("--postgresql", action="store_true")
    args = told.parse_args()
    with place(args.postgresql) as (url, floor), closing(Book(Settings(url, zero_first_s=0, settle_s=0))) as book:
        start = time.monotonic()
        fill(book.ledger(), args.events)
        book.ledger().fold()
        size = _bytes(book.ledger()) / args.events
        print(f"{args.events} events put in and added up in {time.monotonic() - start:.0f} s; {size:.0f} bytes each on disk")
        measure(book, args.events, floor)


def measure(book: Book, count: int, floor: Callable[[], object]) -> None:
    """All tables, of a ledger of *count* events."""
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{f'{count} events; ms':<44} {'median':>9} {'95 %':>9} {'to floor':>9} {'an event':>10}")
    with daemon(book) as port:
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            _writes(connection, floor)
            _reads(connection, count)
        for clients in CROWDS:
            _at_once(port, clients, count)
    _ways(book.ledger())


def _bytes(ledger: Ledger) -> int:
    if ledger._engine.dialect.name == "sqlite":
        return Path(str(ledger._engine.url.database)).stat().st_size
    with ledger.read() as conn:
        return int(conn.exec_driver_sql("select pg_database_size(current_database())").scalar_one())


def _line(name: str, took: Took, floor: float, each: int = 1) -> None:
    middle, late = at(took, 0.5), at(took, 0.95)
    print(f"{name:<44} {middle:>9.2f} {late:>9.2f} {middle / floor:>8.1f}x {middle / each:>10.2f}", flush=True)


def _writes(connection: http.client.HTTPConnection, floor: Callable[[], object]) -> None:
    bottom = timed(floor, WRITES)
    _line("one row of SQL, committed (floor of writes)", bottom, at(bottom, 0.5))
    _line("POST one event", timed(asked(connection, "/token-events", TOLD), WRITES), at(bottom, 0.5))
    _line("POST 100 events", timed(asked(connection, "/token-events", [TOLD] * 100), 10), at(bottom, 0.5), 100)


def _reads(connection: http.client.HTTPConnection, count: int) -> None:
    floor = timed(asked(connection, "/livez"), READS)
    _line("GET /livez (floor of reads)", floor, at(floor, 0.5))
    middle, summed = count // 2, "/token-events/summary?scope="
    name = f"{middle * 2654435761 % 4294967296:08x}{middle:024x}"
    paths = {
        "/token-events?limit=50": READS, "/token-events?agent=agent-7&limit=50": READS, "/token-events?repo=org/repo-3&since=30d": READS,
        f"{summed}task&id=SHOP-{middle // 40}": READS, f"{summed}commit&id=c{middle // 10}": READS, f"{summed}session&id={name}": READS,
        f"{summed}repo&id=org/repo-3": 3, f"{summed}workstream&id=team-3": 3,
        "/metrics": 20, "/": 3, "/?period=all": 3, "/api/v1/report?by=agent": 3, "/api/v1/report?by=day&since=30d": 3,
    }  # fmt: skip
    for path, times in paths.items():
        _line(f"GET {path.partition('&id')[0]}", timed(asked(connection, path), times), at(floor, 0.5))


def _at_once(port: int, clients: int, count: int) -> None:
    """Half of the clients in each of two processes, readers in a third: none of them shall be what is waited for."""
    path, end = f"/token-events/summary?scope=task&id=SHOP-{count // 80}", time.time() + 2 + CROWD_S
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        writers = [pool.submit(crowd, port, clients // 2, "/token-events", TOLD, end) for _ in range(2)]
        reader = pool.submit(crowd, port, READERS, path, None, end)
        written, (read_, lost) = sorted(x for w in writers for x in w.result()[0]), reader.result()
        refused = sum(w.result()[1] for w in writers), lost
    print(f"\n{clients} clients that POST one event each, {READERS} that ask for a summary, for {CROWD_S:.0f} s:")
    for name, took, failed in (("POST", written, refused[0]), ("summary", read_, refused[1])):
        spans = " ".join(f"p{share * 100:.0f} {at(took, share):.1f} ms" for share in (0.5, 0.95, 0.99))
        print(f"  {name}: {len(took) / CROWD_S:.0f}/s, {spans}; {failed} refused", flush=True)


def _ways(ledger: Ledger) -> None:
    """EXPLAIN of what is asked, and what a POST makes the database do."""
    told: list[tuple[str, Any]] = []
    event.listen(ledger._engine, "before_cursor_execute", lambda _c, _k, statement, values, *_: told.append((statement, values)))
    one = read(TOLD)
    questions: dict[str, Callable[[], object]] = {
        "list by agent": lambda: page(ledger, Asked(agent="agent-7"), 50),
        "list by repository, of 30 days": lambda: page(ledger, Asked(repo="org/repo-3", since_ms=1), 50),
        **{f"summary of a {scope}": lambda scope=scope: summary(ledger, scope, "x") for scope in ("task", "commit", "session")},  # type: ignore[misc]
        "POST": lambda: record(ledger, [one]),
    }
    how = "explain query plan" if ledger._engine.dialect.name == "sqlite" else "explain"
    for name, ask in questions.items():
        told.clear()
        ask()
        print(f"\n{name} ({len(told)} statements):")
        asked_ = [x for x in told if x[0].startswith("SELECT")]
        with ledger.read() as conn:
            for statement, values in asked_:
                for row in conn.exec_driver_sql(f"{how} {statement}", values):
                    print(f"  {row[-1]}")


if __name__ == "__main__":
    main()
