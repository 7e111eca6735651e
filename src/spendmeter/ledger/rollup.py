"""Usage added up by the hour and one dimension, so that a view of years reads hours and not entries.

``hours`` follows from ``entries`` and ``runs`` alone. Whatever changes a run puts every hour that it touches into ``stale_hours``, in
the same transaction; a stale hour is read from the entries themselves until ``fold`` has added it up anew. So a sum is
exact whether or not anybody has folded, and only quicker where somebody has.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    union_all,
)

from spendmeter.attribution import TAGS
from spendmeter.ledger import schema as t
from spendmeter.ledger import tagging
from spendmeter.ledger.amounts import NOTHING, SUMS, Amounts, Where
from spendmeter.ledger.bulk import upsert

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
TOTAL = ""  # the dimension without one
DIMS = (TOTAL, "agent", "task", "cli", "model", "repo", "outcome")
FOLD_AT_ONCE = 500  # hours in one transaction
RANGES_MAX = 100  # of hours that one query names
_NONE = "~"  # a key that is NULL; others bear "=" before them

Keyed = dict[str | None, Amounts]


def touched(runs: Iterable[Mapping[str, Any]], entries: Iterable[Mapping[str, Any]], keys: Container[str]) -> set[int]:
    """The hours in which those of *runs* (by their last sign) and *entries* count whose run key is in *keys*."""
    times = [r["last_ms"] for r in runs if r["run_key"] in keys and r["last_ms"] is not None]
    times += [e["minute_ms"] for e in entries if e["run_key"] in keys]
    return {at - at % HOUR_MS for at in times}


def mark(conn: Connection, hours: Iterable[int]) -> None:
    """Has *hours* read from the entries until they are folded again."""
    upsert(conn, t.stale_hours, [{"hour_ms": h} for h in sorted(hours)])


def due(ledger: Ledger, before_ms: int) -> bool:
    """Whether ``fold`` would have anything to do."""
    with ledger.read() as conn:
        query = select(t.stale_hours.c.hour_ms).where(t.stale_hours.c.hour_ms < before_ms - before_ms % HOUR_MS)
        return conn.execute(query.limit(1)).first() is not None


def fold(conn: Connection, before_ms: int, at_most: int = FOLD_AT_ONCE) -> int:
    """Adds up stale hours before *before_ms*, the oldest first; how many it took."""
    query = select(t.stale_hours.c.hour_ms).where(t.stale_hours.c.hour_ms < before_ms - before_ms % HOUR_MS)
    hours = [int(r.hour_ms) for r in conn.execute(query.order_by(t.stale_hours.c.hour_ms).limit(at_most))]
    if not hours:
        return 0
    conn.execute(delete(t.hours).where(t.hours.c.hour_ms.in_(hours)))
    columns = ["dim", "key", "hour_ms", *SUMS, "last_runs"]
    for dim in DIMS:
        conn.execute(insert(t.hours).from_select(columns, _added_up(dim, _of(_joined(hours)))))
    conn.execute(delete(t.stale_hours).where(t.stale_hours.c.hour_ms.in_(hours)))
    return len(hours)


def sums(conn: Connection, dim: str, where: Where, key: str | None = None) -> Keyed:
    """Usage in the window of *where* by *dim*; of *key* alone where one is given. ``runs`` counts runs that were active in it."""
    fresh = _of(_fresh(conn, where))
    inner = union_all(_clean(dim, where, key), _raw(dim, fresh, key)).subquery()
    query = select(inner.c.key, *[func.sum(inner.c[s]).label(s) for s in SUMS]).group_by(inner.c.key)
    found = {_name(row[0]): _amounts(row[1:]) for row in conn.execute(query)}
    counts = _models(conn, where, key, fresh) if dim == "model" else _runs(conn, dim, where, key)
    whole = {name: found.get(name, NOTHING)._replace(runs=counts.get(name, 0)) for name in found.keys() | counts.keys()}
    return {name: amounts for name, amounts in whole.items() if amounts != NOTHING}


def by_day(conn: Connection, dim: str, where: Where, local: Callable[[Any], Any]) -> list[tuple[int, str | None, Amounts]]:
    """(first moment of the day as *local* has it, key, amounts) in the window, in no order; ``runs`` is 0.

    Args:
        local: gives the local time of the beginning of an hour, as SQL; whole hours apart from it.
    """
    inner = union_all(_clean(dim, where, None, hourly=True), _raw(dim, _of(_fresh(conn, where)), None, hourly=True)).subquery()
    at = local(inner.c.hour_ms)
    day = (at - at % literal_column(str(DAY_MS))).label("day")
    query = select(day, inner.c.key, *[func.sum(inner.c[s]).label(s) for s in SUMS]).group_by(text("day"), inner.c.key)
    return [(int(row[0]), _name(row[1]), _amounts(row[2:])) for row in conn.execute(query)]


def _amounts(told: Sequence[Any]) -> Amounts:
    return Amounts(*[None if x is None else int(x) for x in told])  # type: ignore[arg-type]


# -- parts of a window: whole hours that are folded; the rest is read from the entries ---------------------------------

Range = tuple[int, int]  # from, and the first moment after


def _inside(where: Where) -> tuple[int | None, int | None]:
    """The whole hours within the window: the first, and the one after the last."""
    first = None if where.since_ms is None else -(-where.since_ms // HOUR_MS) * HOUR_MS
    last = None if where.until_ms is None else where.until_ms // HOUR_MS * HOUR_MS
    return first, last


def _fresh(conn: Connection, where: Where) -> list[Range]:
    """What of the window must be read from the entries: its edges, and the hours that are stale."""
    first, last = _inside(where)
    since, until = where.since_ms, where.until_ms
    if since is not None and until is not None and first is not None and last is not None and first >= last:
        return [(since, until)]
    stale = select(t.stale_hours.c.hour_ms).where(*_between(t.stale_hours.c.hour_ms, first, last)).order_by(t.stale_hours.c.hour_ms)
    edges = ((since, first), (last, until))
    return _joined([int(r.hour_ms) for r in conn.execute(stale)]) + [(a, b) for a, b in edges if a is not None and b is not None and a < b]


def _joined(hours: Sequence[int]) -> list[Range]:
    """Ascending hours as ranges."""
    out: list[Range] = []
    for hour in hours:
        if out and out[-1][1] == hour:
            out[-1] = (out[-1][0], hour + HOUR_MS)
        else:
            out.append((hour, hour + HOUR_MS))
    return out


def _of(ranges: Sequence[Range]) -> ColumnElement[bool]:
    """Whether an entry is in any of *ranges*; the database finds those of each by the index on minutes."""
    e = t.entries.c
    if len(ranges) <= RANGES_MAX:
        return or_(false(), *[and_(*_between(e.minute_ms, *r)) for r in ranges])
    stale = exists().where(t.stale_hours.c.hour_ms == _hour())
    whole = and_(*_between(e.minute_ms, min(a for a, _ in ranges), max(b for _, b in ranges)), stale)
    return or_(whole, *[and_(*_between(e.minute_ms, a, b), ~stale) for a, b in ranges if (b - a) % HOUR_MS])


def _between(at: Any, since: int | None, until: int | None) -> list[Any]:
    return [*([at >= since] if since is not None else []), *([at < until] if until is not None else [])]


def _clean(dim: str, where: Where, key: str | None, *, hourly: bool = False) -> Select[Any]:
    h = t.hours.c
    first, last = _inside(where)
    query = select(*([h.hour_ms] if hourly else []), h.key, *[h[s] for s in SUMS]).where(h.dim == dim)
    query = query.where(~exists().where(t.stale_hours.c.hour_ms == h.hour_ms))
    query = query.where(*_between(h.hour_ms, first, last))
    return query if key is None else query.where(h.key == f"={key}")


def _raw(dim: str, fresh: ColumnElement[bool], key: str | None, *, hourly: bool = False) -> Select[Any]:
    e, r = t.entries.c, t.runs.c
    hour = [_hour()] if hourly else []
    name = _key(dim, _whose(dim))
    query = select(*[h.label("hour_ms") for h in hour], name.label("key"), *[func.sum(e[s]).label(s) for s in SUMS])
    query = query.select_from(t.entries.join(t.runs, (r.session_id == e.session_id) & (r.run_key == e.run_key))).where(fresh)
    query = query if key is None else query.where(name == f"={key}")
    return query.group_by(*hour, name)


def _whose(dim: str) -> ColumnElement[Any] | None:
    """What an entry counts under; of a run, its own column says."""
    return tagging.of_entry(dim) if dim in TAGS else None


def _key(dim: str, told: ColumnElement[Any] | None = None) -> ColumnElement[Any]:
    """Texts and not parameters: PostgreSQL shall see that what is selected is what is grouped by."""
    if dim == TOTAL:
        return literal_column("'=' || ''")
    column = told if told is not None else t.entries.c.model if dim == "model" else t.runs.c[dim]
    return case((column.is_(None), literal_column(f"'{_NONE}'")), else_=literal_column("'='").concat(column))


def _hour() -> ColumnElement[Any]:
    return t.entries.c.minute_ms - t.entries.c.minute_ms % literal_column(str(HOUR_MS))


def _name(key: str) -> str | None:
    return None if key == _NONE else key[1:]


# -- numbers of runs ---------------------------------------------------------------------------------------------------


def _runs(conn: Connection, dim: str, where: Where, key: str | None) -> dict[str | None, int]:
    """Runs that were active in the window: without an end to it, those whose last sign lies in it."""
    e, r, name = t.entries.c, t.runs.c, _key(dim)
    query = select(name.label("key"), func.count()).select_from(t.runs).where(*_between(r.last_ms, where.since_ms, None)).group_by(name)
    if where.until_ms is not None:
        seen = _used().where(*_between(e.minute_ms, where.since_ms, where.until_ms))
        query = query.where(or_(seen, and_(~_used(), r.last_ms < where.until_ms)))
    query = query if key is None else query.where(name == f"={key}")
    return {_name(k): int(n) for k, n in conn.execute(query)}


def _used() -> Any:
    """Whether a run has any entry."""
    return exists().where(t.entries.c.session_id == t.runs.c.session_id, t.entries.c.run_key == t.runs.c.run_key)


def _models(conn: Connection, where: Where, key: str | None, fresh: ColumnElement[bool]) -> dict[str | None, int]:
    """Runs by model; those without usage under None."""
    found = _last_with(conn, where, key, fresh) if where.until_ms is None else _any_with(conn, where, key)
    if key is None:
        unused = select(func.count()).select_from(t.runs).where(~_used(), *_between(t.runs.c.last_ms, where.since_ms, where.until_ms))
        found[None] = int(conn.execute(unused).scalar_one())
    return found


def _any_with(conn: Connection, where: Where, key: str | None) -> dict[str | None, int]:
    e = t.entries.c
    named = [] if key is None else [e.model == key]
    pairs = select(e.session_id, e.run_key, e.model).where(*_between(e.minute_ms, where.since_ms, where.until_ms), *named)
    each = pairs.distinct().subquery()
    return {k: int(n) for k, n in conn.execute(select(each.c.model, func.count()).group_by(each.c.model))}


def _last_with(conn: Connection, where: Where, key: str | None, fresh: ColumnElement[bool]) -> dict[str | None, int]:
    """Each run where its last minute with the model lies: so hours can be added up."""
    e, h = t.entries.c, t.hours.c
    clean = select(h.key, func.sum(h.last_runs)).where(h.dim == "model", ~exists().where(t.stale_hours.c.hour_ms == h.hour_ms))
    clean = clean.where(*_between(h.hour_ms, _inside(where)[0], None), *([] if key is None else [h.key == f"={key}"]))
    found = {_name(k): int(n or 0) for k, n in conn.execute(clean.group_by(h.key))}
    named = [] if key is None else [e.model == key]
    for model, n in conn.execute(select(e.model, func.count()).where(_is_last(), fresh, *named).group_by(e.model)):
        found[model] = found.get(model, 0) + int(n)
    return found


def _is_last() -> ColumnElement[bool]:
    """Whether an entry is its run's last of its model."""
    e, later = t.entries.c, t.entries.alias()
    same = (later.c.session_id == e.session_id, later.c.run_key == e.run_key, later.c.model == e.model)
    other = or_(later.c.agent > e.agent, and_(later.c.agent == e.agent, later.c.task > e.task))  # of two shares of a minute one is
    after = or_(later.c.minute_ms > e.minute_ms, and_(later.c.minute_ms == e.minute_ms, other))
    return ~exists().where(*same, after).correlate(t.entries)


def _added_up(dim: str, which: ColumnElement[bool]) -> Select[Any]:
    e, r = t.entries.c, t.runs.c
    hour, name = _hour(), _key(dim, _whose(dim))
    last: Any = func.sum(case((_is_last(), 1), else_=0)) if dim == "model" else literal(0)
    query = select(literal(dim), name, hour, *[func.sum(e[s]) for s in SUMS], last).where(which)
    return query.select_from(t.entries.join(t.runs, (r.session_id == e.session_id) & (r.run_key == e.run_key))).group_by(hour, name)


def differences(conn: Connection) -> Sequence[int]:
    """Folded hours that do not say what their entries say."""
    out = set()
    fields = [*SUMS, "last_runs"]
    for dim in DIMS:
        h = t.hours.c
        held = select(h.hour_ms, h.key, *[h[f] for f in fields]).where(h.dim == dim, ~exists().where(t.stale_hours.c.hour_ms == h.hour_ms))
        stands = {(r[0], r[1]): tuple(r[2:]) for r in conn.execute(held)}
        should = {(r[2], r[1]): tuple(r[3:]) for r in conn.execute(_added_up(dim, true()))}
        stale = {int(r.hour_ms) for r in conn.execute(select(t.stale_hours.c.hour_ms))}
        for key in stands.keys() | {k for k in should if k[0] not in stale}:
            if stands.get(key) != should.get(key):
                out.add(int(key[0]))
    return sorted(out)
