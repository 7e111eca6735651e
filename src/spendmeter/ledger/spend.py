"""What has been spent of a budget: exact sums that the database makes, the same on SQLite and on PostgreSQL.

Usage is dated to the minute, runs by their end. ``since_ms`` is in a window, ``until_ms`` no longer is, None is without an edge; windows
with edges on whole minutes that touch add up. Which runs and models count is what ``Budget.covers`` says, put into SQL.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from sqlalchemy import JSON, ColumnElement, Connection, Select, case, cast, exists, false, func, literal, or_, select

from spendmeter.attribution import TAGS as OF_ENTRY
from spendmeter.budgets.model import TAGS, Budget, Unit
from spendmeter.budgets.periods import MINUTE_MS
from spendmeter.ledger import schema as t
from spendmeter.ledger import tagging
from spendmeter.ledger.amounts import SUMS, Where
from spendmeter.ledger.bulk import among
from spendmeter.ledger.query import within
from spendmeter.reconcile.facts import Key

_COST = ("reported_nusd", "estimated_nusd")
_TOKENS = SUMS[:5]  # all that are billed

Sums = dict[str | None, "Sum"]  # by value of budget.per; None: what has no value, or everything where the budget has no per


class Sum(NamedTuple):
    """``amount`` in the budget's unit; ``unpriced_tokens`` are missing from an amount of money, as nobody knows their price."""

    amount: int = 0
    unpriced_tokens: int = 0


def spent(conn: Connection, budget: Budget, since_ms: int | None, until_ms: int | None) -> Sums:
    """What each value of ``budget.per`` has spent in a window; without ``per`` one sum under None, which is always there."""
    if budget.per is None:
        return {None: spent_one(conn, budget, since_ms, until_ms, None)}
    rows = _rows(conn, budget, since_ms, until_ms, _tag(conn, budget.per, budget.unit)).subquery()
    found = conn.execute(select(rows.c.key, *_summed(rows)).group_by(rows.c.key))
    return {key or None: Sum(int(amount), int(unpriced)) for key, amount, unpriced in found}


def spent_one(conn: Connection, budget: Budget, since_ms: int | None, until_ms: int | None, value: str | None) -> Sum:
    """What one value of ``budget.per`` has spent in a window; *value* means nothing where the budget has no ``per``."""
    return _sum_one(conn, budget, since_ms, until_ms, value)


def _sum_one(
    conn: Connection, budget: Budget, since_ms: int | None, until_ms: int | None, value: str | None, *of: ColumnElement[bool]
) -> Sum:
    rows = _rows(conn, budget, since_ms, until_ms, literal("")).where(*of)
    if budget.per is not None:
        rows = rows.where(_equals(conn, budget.unit, budget.per, value or ""))
    amount, unpriced = conn.execute(select(*_summed(rows.subquery()))).one()
    return Sum(int(amount or 0), int(unpriced or 0))


def spent_under_way(
    conn: Connection, budget: Budget, since_ms: int | None, until_ms: int | None, value: str | None,
    runs: Iterable[tuple[Collection[Key], int]],
) -> int:  # fmt: skip
    """What of ``spent_one`` was used by *runs*, (sessions, when it began) of each: what their sessions hold from then on."""
    began = {key: at_ms for keys, at_ms in runs for key in keys}
    if not began or budget.unit == "runs":
        return 0
    s, r = t.sessions.c, t.runs.alias()
    named = among(conn, select(s.id, s.cli, s.session).where(s.cli.in_({cli for cli, _ in began})), s.session, {name for _, name in began})
    theirs = [
        (t.entries.c.session_id == row.id) & (t.entries.c.minute_ms >= at_ms - at_ms % MINUTE_MS) & (r.c.ended_ms >= at_ms)
        for row in named
        if (at_ms := began.get((row.cli, row.session))) is not None
    ]
    of_run = (r.c.session_id == t.entries.c.session_id) & (r.c.run_key == t.entries.c.run_key)
    return _sum_one(conn, budget, since_ms, until_ms, value, exists().where(of_run, or_(*theirs))).amount if theirs else 0


def by_minute(conn: Connection, budget: Budget, since_ms: int) -> list[tuple[int, int]]:
    """(minute, amount) from *since_ms* on, oldest first, whatever the value of ``budget.per``; minutes without any are left out."""
    at = _dated(budget)
    rows = _rows(conn, budget, since_ms, None, at - at % MINUTE_MS).subquery()
    found = conn.execute(select(rows.c.key, func.sum(rows.c.amount)).group_by(rows.c.key).order_by(rows.c.key))
    return [(int(minute), int(amount)) for minute, amount in found]


def _summed(rows: Any) -> list[ColumnElement[Any]]:
    return [func.sum(rows.c.amount), func.sum(rows.c.unpriced)]


def _rows(conn: Connection, budget: Budget, since_ms: int | None, until_ms: int | None, key: ColumnElement[Any]) -> Select[Any]:
    """(key, amount, unpriced) of each entry or run that counts."""
    named = {*budget.match, *([budget.per] if budget.per is not None else [])}
    make = _runs if budget.unit == "runs" else _entries
    window = within(_dated(budget), Where(since_ms, until_ms))
    return make(budget, key.label("key"), named).where(*window, *[_matches(conn, budget.unit, *item) for item in budget.match.items()])


def _dated(budget: Budget) -> Any:
    return t.runs.c.ended_ms if budget.unit == "runs" else t.entries.c.minute_ms


def _entries(budget: Budget, key: ColumnElement[Any], named: set[str]) -> Select[Any]:
    e = t.entries.c
    amount = reduce(add, [func.coalesce(e[name], 0) for name in (_COST if budget.unit == "usd" else _TOKENS)])
    unpriced = e.unpriced_tokens if budget.unit == "usd" else literal(0)
    rows = select(key, amount.label("amount"), unpriced.label("unpriced")).select_from(t.entries)
    return rows.join(t.runs, _OF_RUN) if named - {"model"} else rows


def _runs(budget: Budget, key: ColumnElement[Any], named: set[str]) -> Select[Any]:
    """A run counts once, whatever the number of its models that match; per model, once for each."""
    r = t.runs.c
    rows = select(key, literal(1).label("amount"), literal(0).label("unpriced"))
    if "model" not in named:
        return rows.select_from(t.runs)
    # + 0: SQLite shall go by the window's index, not read all runs in the order of the key to find what is distinct
    return rows.add_columns(r.session_id + 0, r.run_key).distinct().select_from(t.runs.outerjoin(t.entries, _OF_RUN))


_OF_RUN = (t.runs.c.session_id == t.entries.c.session_id) & (t.runs.c.run_key == t.entries.c.run_key)


# -- what Budget.covers says, in SQL -----------------------------------------------------------------------------------


def _tag(conn: Connection, name: str, unit: Unit = "usd") -> ColumnElement[str]:
    """The value of a tag or an attribute; "" where it is not known. A part of a run's usage may have a tag of its own, a run has one.

    Always an expression: the index of a tag with few values would be preferred to a window's, and take in the whole history.
    """
    if name in OF_ENTRY and unit != "runs":
        return tagging.of_entry(name)
    if name in TAGS:
        return func.coalesce(t.entries.c.model if name == "model" else t.runs.c[name], "")
    return func.coalesce(_attribute(conn, name), "")


def _attribute(conn: Connection, name: str) -> ColumnElement[Any]:
    """The value of any key, whatever its characters: no path is made of it. PostgreSQL reads no JSON with a NUL, so that tells nothing."""
    attrs: Any = t.runs.c.attrs
    if conn.dialect.name == "sqlite":
        each = func.json_each(attrs).table_valued("key", "value")
        return select(each.c.value).where(each.c.key == name).correlate(t.runs).scalar_subquery()
    return func.json_extract_path_text(cast(case((func.strpos(attrs, "\\u0000") == 0, attrs)), JSON), name)


def _equals(conn: Connection, unit: Unit, name: str, value: str) -> ColumnElement[bool]:
    """Tasks have an index that narrows, for each has few runs; it does not know of the parts of runs."""
    by_run = name == "task" and (unit == "runs" or not tagging.shared(conn))
    return (t.runs.c.task if by_run else _tag(conn, name, unit)) == value


def _matches(conn: Connection, unit: Unit, name: str, patterns: Iterable[str]) -> ColumnElement[bool]:
    return or_(false(), *[_like(conn, unit, name, p) for p in patterns])


def _like(conn: Connection, unit: Unit, name: str, pattern: str) -> ColumnElement[bool]:
    if not set(pattern) & {"*", "?"}:
        return _equals(conn, unit, name, pattern)
    if conn.dialect.name == "sqlite":
        return _tag(conn, name, unit).op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
    return _tag(conn, name, unit).like(re.sub(r"[\\%_]", r"\\\g<0>", pattern).replace("*", "%").replace("?", "_"))
