"""Rows of runs and entries put straight into a ledger, as ``derive`` would make them, and ledgers of earlier schemas for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, delete, insert

import spendmeter.ledger
from spendmeter.ledger import Ledger, planning, rollup
from spendmeter.ledger import schema as t

NOON = int(datetime(2026, 11, 2, 12, tzinfo=UTC).timestamp() * 1000)
MIGRATIONS = Config()
MIGRATIONS.set_main_option("script_location", str(Path(spendmeter.ledger.__file__).parent / "migrations"))
Shared = Callable[..., Ledger]  # of the fixture ``shared``


@contextmanager
def earlier(url: str, revision: str) -> Iterator[Connection]:
    """Makes the tables of an earlier schema at *url*, to be filled."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as conn:
        MIGRATIONS.attributes["connection"] = conn
        command.upgrade(MIGRATIONS, revision)
        yield conn
    engine.dispose()


def empty(ledger: Ledger) -> None:
    """Takes every row out of a ledger but what it is."""
    with ledger.write() as conn:
        for table in reversed(t.META.sorted_tables):
            if table.name not in ("meta", "alembic_version"):
                conn.execute(delete(table))
        conn.execute(delete(t.meta).where(t.meta.c.key == planning.PRUNED_KEY))


@dataclass
class Made:
    """Makes one run after the other, each of a session of its own."""

    ledger: Ledger
    count: int = 0

    def run(self, *entries: dict[str, Any], **run: Any) -> None:
        """A run with these columns, and an entry of it for each of *entries*; what is not given has a value all the same."""
        self.count += 1
        key = {"session_id": self.count, "run_key": f"r{self.count}"}
        head = {
            "cli": "claude", "session": f"s{self.count}", "agent": "developer", "task": "T-1", "attrs": "{}", "outcome": "ok",
            "implied": False, "started_ms": NOON - 1000, "ended_ms": NOON, "duration_ms": 1000,
            "trace_id": "", "span_id": "", "notes": "[]",
        }  # fmt: skip
        made = [key | {"model": "m", "minute_ms": NOON, "unpriced_tokens": 0} | e for e in entries]
        row = key | head | run
        row["last_ms"] = max((e["minute_ms"] for e in made), default=row["ended_ms"])
        with self.ledger.write() as conn:
            conn.execute(insert(t.runs).values(row))
            for e in made:
                conn.execute(insert(t.entries).values(e))
            rollup.mark(conn, rollup.touched([row], made, {key["run_key"]}))
