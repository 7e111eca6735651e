"""Copies a whole ledger into another database: every fact, row and counter, so that the copy goes on where the ledger stands.

It is one transaction on either side: what is copied is one state, and a copy that is interrupted leaves an empty ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Integer, Table, delete, func, insert, select, text

from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.amounts import SUMS
from spendmeter.ledger.engine import safe

BATCH = 2000  # rows in one statement
CHECKED = {  # their sums are compared
    t.entries: SUMS, t.hours: SUMS, t.series: ("target", "value", "held"), t.posted: ("amount",), t.shifts: ("amount",),
}  # fmt: skip
Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy holds: rows by table, the tables without any left out."""

    ledger_id: str
    rows: dict[str, int]


def copy(source: Ledger, url: str, progress: Progress | None = None) -> Copied:
    """Copies *source* to the database *url*, which must hold no usage, and compares both before it is kept.

    Raises:
        LedgerError: the target is not empty or cannot be written, or the copy is not equal; the target is then as it was.
    """
    target = Ledger(Settings(url))
    try:
        with source.read() as old, target.write() as new:
            _require_empty(new, url)
            counts = {table: _count(old, table) for table in t.META.sorted_tables}
            _copy_tables(old, new, counts, progress or (lambda done, all_: None))
            _compare(old, new, url)
            ledger_id = str(new.execute(select(t.meta.c.value).where(t.meta.c.key == "ledger_id")).scalar_one())
            return Copied(ledger_id, {table.name: n for table, n in counts.items() if n})
    finally:
        target.close()


def _require_empty(new: Connection, url: str) -> None:
    for table in t.META.sorted_tables:
        if table is not t.meta and new.execute(select(table).limit(1)).first():
            raise LedgerError(f"ledger {safe(url)} holds {table.name} already; name an empty database, or a file that does not exist")


def _copy_tables(old: Connection, new: Connection, counts: dict[Table, int], progress: Progress) -> None:
    new.execute(delete(t.meta))  # the copy is the same ledger: its id and start time are those of its counters
    done, all_ = 0, sum(counts.values())
    for table in counts:
        for rows in _batches(old, table):
            new.execute(insert(table), rows)
            done += len(rows)
            progress(done, all_)
        go_on_numbering(new, table)


def _batches(old: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    found = old.execute(select(table).order_by(*table.primary_key), execution_options={"yield_per": BATCH})
    for part in found.mappings().partitions():
        yield [dict(row) for row in part]


def go_on_numbering(new: Connection, table: Table) -> None:
    """Has the next row of *table* numbered after those that were put in with their numbers.

    PostgreSQL numbers by a sequence of its own, SQLite by the greatest number.
    """
    for column in table.primary_key:
        if new.dialect.name == "postgresql" and _is_numbered(column):
            last = select(func.max(column)).scalar_subquery()
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            new.execute(select(func.setval(sequence, func.coalesce(last, 0) + 1, text("false"))))


def _is_numbered(column: Column[Any]) -> bool:
    return isinstance(column.type, Integer) and column.autoincrement == "auto"


def _compare(old: Connection, new: Connection, url: str) -> None:
    for table in t.META.sorted_tables:
        here, there = _sums(old, table), _sums(new, table)
        if here != there:
            raise LedgerError(
                f"copy to {safe(url)} is not equal: {table.name} holds {there}, should be {here}; nothing was kept, try again"
            )


def _count(conn: Connection, table: Table) -> int:
    return int(conn.execute(select(func.count()).select_from(table)).scalar_one())


def _sums(conn: Connection, table: Table) -> tuple[int | None, ...]:
    """How many rows it has, and what its amounts add up to."""
    sums = [func.sum(table.c[name]) for name in CHECKED.get(table, ())]
    row = conn.execute(select(func.count(), *sums).select_from(table)).one()
    return tuple(None if x is None else int(x) for x in row)
