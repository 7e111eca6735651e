"""Many rows by one statement: what a statement costs is mostly not its rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, Select, Table
from sqlalchemy.dialects import postgresql, sqlite

AT_ONCE = 1000  # values that one query names
_statements: dict[tuple[str, str, tuple[str, ...]], tuple[str, tuple[str, ...] | None]] = {}


def upsert(conn: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts *rows*, which tell the same columns, or replaces those with the same primary key."""
    if not rows:
        return
    told = tuple(rows[0])
    found = _statements.get((conn.dialect.name, table.name, told))
    if found is None:
        found = _statements[conn.dialect.name, table.name, told] = _upsert(conn.dialect, table, told)
    sql, order = found
    conn.exec_driver_sql(sql, [dict(r) for r in rows] if order is None else [tuple([r[name] for name in order]) for r in rows])


def _upsert(dialect: Dialect, table: Table, told: tuple[str, ...]) -> tuple[str, tuple[str, ...] | None]:
    """The statement as the driver takes it, and the order of its values where they have no names there."""
    stmt = (postgresql.insert if dialect.name == "postgresql" else sqlite.insert)(table)
    keys = [c.name for c in table.primary_key]
    values = {c.name: stmt.excluded[c.name] for c in table.columns if c.name not in keys and c.name in told}
    whole = stmt.on_conflict_do_update(index_elements=keys, set_=values) if values else stmt.on_conflict_do_nothing()
    made: Any = whole.compile(dialect=dialect, column_keys=list(told))
    return str(made), tuple(made.positiontup) if made.positiontup else None


def among(conn: Connection, query: Select[Any], column: ColumnElement[Any], values: Collection[Any]) -> Iterator[Any]:
    """The rows of *query* whose *column* is one of *values*."""
    for some in batches(values):
        yield from conn.execute(query.where(column.in_(some)))


def batches(values: Collection[Any]) -> Iterator[list[Any]]:
    """*values* in order, as many at a time as one statement takes."""
    every = sorted(values)
    for i in range(0, len(every), AT_ONCE):
        yield every[i : i + AT_ONCE]
