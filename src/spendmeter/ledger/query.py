"""What the ledger's entries and runs add up to, cut by any dimension. Reads only; one state per question.

Entries are kept by the minute, so a window's edges hold to the minute; windows are half-open, neighbouring ones add up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, cast, exists, false, func, null, or_, select, union_all

from spendmeter.attribution import TAGS
from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger, rollup, tagging
from spendmeter.ledger import schema as t
from spendmeter.ledger.amounts import NOTHING, SUMS, Amounts, Where
from spendmeter.ledger.lines import RunLine, TaskTotals
from spendmeter.ledger.periods import by_the_hour, day_text, month_text, name_of, shifted, when_ms

__all__ = [
    "DIMENSIONS", "Amounts", "Report", "Row", "RunLine", "TaskTotals", "Where", "check", "report", "run_totals", "runs", "spent_by",
    "task_totals",
    "within",
]  # fmt: skip
DIMENSIONS = ("agent", "task", "cli", "model", "day", "month", "repo", "session", "outcome")
ATTR = "attr:"
_OF_RUN = ("agent", "task", "cli", "repo", "session", "outcome")
_NEAR = 5000  # most recent names that a misspelt one is compared with


class Row(NamedTuple):
    """One line of a report; ``keys`` in the order of ``Report.by``, None where it is not known."""

    keys: tuple[str | None, ...]
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Report:
    """Rows by the dimensions *by*, dearest first or, by day and month, oldest first; their tokens and cost add up to ``total``.

    A run on several rows (models, days) counts once in the total.
    """

    by: tuple[str, ...]
    rows: tuple[Row, ...]
    total: Amounts

    def as_dict(self) -> dict[str, Any]:
        """``{"rows": [...], "total": {...}}`` of design.md section 6."""
        rows = [dict(zip(self.by, r.keys, strict=True)) | r.amounts.as_dict() for r in self.rows]
        return {"rows": rows, "total": self.total.as_dict()}


def report(
    ledger: Ledger,
    by: Sequence[str],
    since: int | str | None = None,
    until: int | str | None = None,
    *,
    agent: str | None = None,
    task: str | None = None,
    cli: str | None = None,
    model: str | None = None,
    timezone: str = "UTC",
    where: Where | None = None,
) -> Report:
    """What was used and what it cost, by the dimensions *by*.

    Args:
        by: any of ``DIMENSIONS`` and ``attr:KEY``.
        since: ms since the epoch or a text that ``periods.when_ms`` takes; belongs to the window.
        until: likewise; no longer belongs to the window.
        timezone: IANA name; where days and months begin.
        where: further filters, instead of the ones above.

    Raises:
        LedgerError: an unknown dimension, time or zone.
    """
    check(by)
    where = where or Where(_ms(since, timezone), _ms(until, timezone), agent=agent, task=task, cli=cli, model=model)
    with ledger.read() as conn:
        rows = _summed(conn, tuple(by), where, timezone)
        apart = rows if set(by).isdisjoint(("model", "day", "month")) else _summed(conn, (), where, timezone)
    total = NOTHING
    for row in rows:
        total = total.plus(row.amounts)
    return Report(tuple(by), tuple(sorted(rows, key=_order(by))), total._replace(runs=sum(r.amounts.runs for r in apart)))


def spent_by(ledger: Ledger, unit: str, dim: str, where: Where, timezone: str) -> Report:
    """``report(ledger, [unit, dim], ...)`` for *unit* day or month, from hours that are added up already where that can be.

    Rows tell no number of runs then.
    """
    named = {name for name in (*_OF_RUN, "model") if getattr(where, name) is not None}
    if where.attrs or named or dim not in rollup.DIMS:
        return report(ledger, [unit, dim], where=where, timezone=timezone)
    with ledger.read() as conn:
        first, last = _edges(conn)
        if not by_the_hour(timezone, first, last):
            return report(ledger, [unit, dim], where=where, timezone=timezone)
        found = rollup.by_day(conn, dim, where, lambda at: shifted(at, timezone, first, last))
    rows: dict[tuple[str | None, ...], Amounts] = {}
    total = NOTHING
    for day, key, amounts in found:
        name = (name_of(day, unit), key)
        rows[name] = rows[name].plus(amounts) if name in rows else amounts
        total = total.plus(amounts)
    by = (unit, dim)
    return Report(by, tuple(sorted((Row(k, a) for k, a in rows.items()), key=_order(by))), total)


def check(by: Iterable[str]) -> None:
    """Raises LedgerError for an unknown dimension."""
    for name in by:
        if name not in DIMENSIONS and not (name.startswith(ATTR) and len(name) > len(ATTR)):
            near = get_close_matches(name, DIMENSIONS, 1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise LedgerError(f'by "{name}" is not one of {", ".join(DIMENSIONS)}, attr:KEY{hint}')


def _ms(value: int | str | None, timezone: str) -> int | None:
    return when_ms(value, timezone) if isinstance(value, str) else value


def _order(by: Sequence[str]) -> Any:
    def key(row: Row) -> tuple[Any, ...]:
        names = [(k is None, k or "") for k in row.keys]
        dates = [n for n, name in zip(names, by, strict=True) if name in ("day", "month")]
        cost = row.amounts.cost_nusd
        return (*dates, cost is None, -(cost or 0), -row.amounts.tokens, *names)

    return key


def _summed(conn: Connection, by: tuple[str, ...], where: Where, timezone: str) -> list[Row]:
    """Rows in no order, from hours that are added up already where one dimension is all that is asked of."""
    asked = {*by, *(name for name in (*_OF_RUN, "model") if getattr(where, name) is not None)}
    if where.attrs or len(asked) > 1 or not asked <= set(rollup.DIMS) or len(by) > 1:
        return _rows(conn, by, where, timezone)
    dim = next(iter(asked), rollup.TOTAL)
    found = rollup.sums(conn, dim, where, getattr(where, dim) if dim else None)
    return [Row((key,) if by else (), amounts) for key, amounts in found.items()]


def _rows(conn: Connection, by: tuple[str, ...], where: Where, timezone: str) -> list[Row]:
    """Rows in no order. A run counts once, for its own agent and task, whoever was given a part of its usage."""
    found = _found(conn, by, where, timezone)
    named = {*by, *(name for name in TAGS if getattr(where, name) is not None)}
    if not named.isdisjoint(TAGS) and tagging.shared(conn):
        runs, used = found, _found(conn, by, where, timezone, shared=True)
        found = {k: used.get(k, NOTHING)._replace(runs=runs.get(k, NOTHING).runs) for k in runs.keys() | used.keys()}
    return [Row(keys, amounts) for keys, amounts in found.items() if amounts != NOTHING]


def _found(
    conn: Connection, by: tuple[str, ...], where: Where, timezone: str, *, shared: bool = False
) -> dict[tuple[str | None, ...], Amounts]:
    """Sums by keys. Attributes are JSON: they are cut here, the rest is in SQL."""
    with_attrs = bool(where.attrs) or any(name.startswith(ATTR) for name in by)
    dims = tuple(name for name in dict.fromkeys(by) if not name.startswith(ATTR)) + (("attrs",) if with_attrs else ())
    found: dict[tuple[str | None, ...], Amounts] = {}
    for line in conn.execute(_grouped(conn, dims, where, timezone, shared=shared)):
        told = dict(zip(dims, line[: len(dims)], strict=True))
        attrs = json.loads(told.get("attrs") or "{}")
        if any(attrs.get(k) != v for k, v in where.attrs.items()):
            continue
        keys = tuple(attrs.get(name[len(ATTR) :]) if name.startswith(ATTR) else told[name] for name in by)
        amounts = Amounts(*[None if x is None else int(x) for x in line[len(dims) :]])  # type: ignore[arg-type]
        found[keys] = found.get(keys, NOTHING).plus(amounts) if keys in found else amounts
    return {keys: amounts for keys, amounts in found.items() if amounts.runs}


def _grouped(conn: Connection, dims: tuple[str, ...], where: Where, timezone: str, *, shared: bool = False) -> Select[Any]:
    """Sums by *dims*: first by run, so that counting runs is counting rows, then over runs.

    Args:
        shared: go by whose each entry is; else by whose its run is.
    """
    names = [f"k{i}" for i in range(len(dims))]
    e, r, no_model = t.entries.c, t.runs.c, cast(null(), t.entries.c.model.type)
    dated = _dating(conn, timezone) if {"day", "month"} & set(dims) else {}
    used = [_dimension(d, e.model, e.minute_ms, dated, shared=shared).label(n) for d, n in zip(dims, names, strict=True)]
    unused = [_dimension(d, no_model, r.ended_ms, dated).label(n) for d, n in zip(dims, names, strict=True)]
    inner = union_all(_with_usage(used, names, where, shared=shared), _without_usage(unused, where)).subquery()
    sums = [func.sum(inner.c[name]).label(name) for name in SUMS]
    return select(*[inner.c[n] for n in names], *sums, func.count().label("runs")).group_by(*[inner.c[n] for n in names])


def _with_usage(keys: list[Any], names: list[str], where: Where, *, shared: bool) -> Select[Any]:
    r, e = t.runs.c, t.entries.c
    query = select(*keys, *[func.sum(e[s]).label(s) for s in SUMS]).select_from(t.entries)
    query = query.join(t.runs, (r.session_id == e.session_id) & (r.run_key == e.run_key))
    query = query.where(*_of_run(where, shared=shared), *within(e.minute_ms, where))
    if where.model is not None:
        query = query.where(e.model == where.model)
    # in a window SQLite shall go by the minutes' index, not read all entries in the order of the key to group them
    session = e.session_id if where.since_ms is None and where.until_ms is None else e.session_id + 0
    return query.group_by(session, e.run_key, *names)


def _without_usage(keys: list[Any], where: Where) -> Select[Any]:
    r, e = t.runs.c, t.entries.c
    nothing = cast(null(), t.BIG)
    used = exists().where(e.session_id == r.session_id, e.run_key == r.run_key)
    query = select(*keys, *[nothing.label(s) for s in SUMS]).select_from(t.runs)
    query = query.where(~used, *_of_run(where), *within(r.ended_ms, where))
    return query.where(false()) if where.model is not None else query


def _dating(conn: Connection, timezone: str) -> dict[str, Any]:
    """For "day" and "month" a function from a time's column to the period's text."""
    first, last = _edges(conn)
    return {
        "day": lambda at: day_text(conn, shifted(at, timezone, first, last)),
        "month": lambda at: month_text(conn, shifted(at, timezone, first, last)),
    }


def _edges(conn: Connection) -> tuple[int, int]:
    """The first and the last moment of anything."""
    edges = [f(c) for c in (t.entries.c.minute_ms, t.runs.c.ended_ms) for f in (func.min, func.max)]
    told = [int(x) for edge in edges if (x := conn.execute(select(edge)).scalar_one()) is not None]  # one each: by the index
    return min(told, default=0), max(told, default=0)


def _dimension(name: str, model: Any, at_ms: Any, dated: dict[str, Any], *, shared: bool = False) -> ColumnElement[Any]:
    if name == "model":
        return model  # type: ignore[no-any-return]
    return dated[name](at_ms) if name in dated else _named(name, shared=shared)


def _named(name: str, *, shared: bool) -> ColumnElement[Any]:
    return tagging.of_entry(name) if shared and name in TAGS else t.runs.c[name]


def _of_run(where: Where, *, shared: bool = False) -> list[ColumnElement[bool]]:
    return [_named(name, shared=shared) == getattr(where, name) for name in _OF_RUN if getattr(where, name) is not None]


def within(at_ms: Any, where: Where) -> list[ColumnElement[bool]]:
    """Conditions that hold *at_ms* to the window of *where*."""
    out = []
    if where.since_ms is not None:
        out.append(at_ms >= where.since_ms)
    if where.until_ms is not None:
        out.append(at_ms < where.until_ms)
    return out


# -- runs --------------------------------------------------------------------------------------------------------------


def runs(ledger: Ledger, where: Where | None = None, limit: int | None = None) -> list[RunLine]:
    """Runs that *where* takes in (by the end of the run), the latest first, each with all of its usage."""
    where = where or Where()
    query = select(t.runs).where(*_of_run(where), *within(t.runs.c.ended_ms, where))
    if where.model is not None:
        key = (t.entries.c.session_id == t.runs.c.session_id) & (t.entries.c.run_key == t.runs.c.run_key)
        query = query.where(exists().where(key, t.entries.c.model == where.model))
    query = query.order_by(t.runs.c.ended_ms.desc(), t.runs.c.session_id.desc(), t.runs.c.run_key.desc())
    with ledger.read() as conn:
        heads = conn.execute(query if limit is None or where.attrs else query.limit(limit)).all()
        heads = [h for h in heads if not where.attrs or where.attrs.items() <= json.loads(h.attrs).items()]
        return _lines(conn, heads[:limit])


def _lines(conn: Connection, heads: Sequence[Any]) -> list[RunLine]:
    e = t.entries.c
    found: dict[tuple[int, str], list[tuple[str, Amounts]]] = {}
    ids = sorted({int(h.session_id) for h in heads})
    for i in range(0, len(ids), 500):
        sums = select(e.session_id, e.run_key, e.model, *[func.sum(e[s]) for s in SUMS]).where(e.session_id.in_(ids[i : i + 500]))
        for session_id, key, model, *told in conn.execute(sums.group_by(e.session_id, e.run_key, e.model)):
            amounts = Amounts(*[None if x is None else int(x) for x in told])  # type: ignore[arg-type]
            found.setdefault((session_id, key), []).append((model, amounts))
    return [_line(h, found.get((h.session_id, h.run_key), [])) for h in heads]


def _line(head: Any, by_model: list[tuple[str, Amounts]]) -> RunLine:
    amounts = NOTHING
    for _, part in by_model:
        amounts = amounts.plus(part)
    return RunLine(
        head.run_key, head.cli, head.session, head.agent, head.task, head.outcome, bool(head.implied), json.loads(head.attrs),
        tuple(sorted(m for m, _ in by_model)), head.started_ms, head.ended_ms, head.duration_ms, head.exit_code, head.repo, head.branch,
        tuple(json.loads(head.notes)), amounts._replace(runs=1),
    )  # fmt: skip


def run_totals(ledger: Ledger, key: str = "last") -> RunLine:
    """The run that ended last, or the one that *key* names: its run key, its wrapper's run id, its session, or the start of one.

    Raises:
        LedgerError: no run is named so, or several are.
    """
    if key == "last":
        found = runs(ledger, limit=1)
        if not found:
            raise LedgerError("no run in the ledger yet; meter one with: spendmeter run --agent NAME --task KEY -- COMMAND")
        return found[0]
    with ledger.read() as conn:
        heads = _known_as(conn, key)
        if len(heads) == 1:
            return _lines(conn, heads)[0]
    if heads:
        some = ", ".join(sorted(h.run_key for h in heads)[:3])
        raise LedgerError(f'run "{key}" is the name of {len(heads)} runs ({some}, ...); write more of it')
    raise LedgerError(f'run "{key}" is not in the ledger; write "last", a run key, a run id or a session')


def _known_as(conn: Connection, key: str) -> Sequence[Any]:
    """Runs of that very name, else runs whose name starts so. At most 50."""
    r, p = t.runs.c, t.processes.c
    wrapped = exists().where(p.session_id == r.session_id, p.run_key == r.run_key)
    exact = select(t.runs).where(or_(r.run_key == key, r.run_key == f"w:{key}", wrapped.where(p.run_id == key))).limit(50)
    by_session = select(t.runs).where(r.session == key).order_by(r.ended_ms.desc()).limit(50)
    starts = [c.startswith(key, autoescape=True) for c in (r.run_key, r.session)] + [r.run_key.startswith(f"w:{key}", autoescape=True)]
    loose = select(t.runs).where(or_(*starts, wrapped.where(p.run_id.startswith(key, autoescape=True)))).limit(50)
    for query in (exact, by_session, loose):
        if heads := conn.execute(query).all():
            return heads[:1] if query is by_session else heads
    return []


def task_totals(ledger: Ledger, task: str) -> TaskTotals:
    """What *task* used and cost, by agent.

    Raises:
        LedgerError: no run has the task; names near matches.
    """
    found = report(ledger, ["agent"], where=Where(task=task))
    if not found.rows:
        raise LedgerError(_unknown_task(ledger, task))
    r = t.runs.c
    times = func.sum(r.duration_ms), func.min(func.coalesce(r.started_ms, r.ended_ms)), func.max(r.ended_ms)
    with ledger.read() as conn:
        work, first, last = conn.execute(select(*times).where(r.task == task)).one()
        counts = conn.execute(select(r.outcome, func.count()).where(r.task == task).group_by(r.outcome).order_by(r.outcome))
        outcomes = {str(name): int(n) for name, n in counts}
    agents = tuple((row.keys[0] or "unknown", row.amounts) for row in found.rows)
    return TaskTotals(task, agents, found.total, outcomes, None if work is None else int(work), first, last)


def _unknown_task(ledger: Ledger, task: str) -> str:
    with ledger.read() as conn:
        latest = func.max(t.runs.c.ended_ms)
        names = [r.task for r in conn.execute(select(t.runs.c.task).group_by(t.runs.c.task).order_by(latest.desc()).limit(_NEAR))]
    folded = {n.casefold(): n for n in reversed(names)}
    near = [folded[n] for n in get_close_matches(task.casefold(), list(folded), 3, 0.6)]
    if near:
        return f'task "{task}" is not in the ledger; did you mean {" or ".join(near)}?'
    recent = ", ".join([n for n in names if n != "unknown"][:3])
    rest = f"the latest are {recent}" if recent else "no run has a task yet (--task on spendmeter run)"
    return f'task "{task}" is not in the ledger; {rest}'
