"""Closes sessions that ended long ago: their runs and entries stay for ever as they are, most of the facts behind them go.

No total changes, for totals are sums of runs and entries. Of a closed session are kept its runs' totals, its dated readings and its
calls' ids, which is what a later fork of it is told apart by. What its sources tell when they are read again is passed over; usage
that it has not counted is a skip, reason "session closed". Sessions that lean on each other are closed together or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, delete, exists, func, or_, select, update

from spendmeter.ledger import Ledger, derive, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.bulk import upsert
from spendmeter.ledger.store import Store

AT_ONCE = 200  # sessions in one transaction; more where they lean on each other
LEAST_S = 86_400.0  # less would close sessions that are still in use
TOO_SOON = "less than 1d would close sessions that are still in use; write e.g. 400d"
_GONE = (t.calls, t.copies, t.parts, t.bases, t.prompts, t.claims, t.levels)
_UNDATED = t.levels.c.epoch == ""  # no fork starts from such a reading


class Retained(NamedTuple):
    """How many sessions were closed, and how many rows of facts went with them."""

    sessions: int = 0
    facts: int = 0


def retain(
    ledger: Ledger, older_ms: int, *, dry_run: bool = False, at_ms: int | None = None, at_once: int = AT_ONCE,
    goes_on: Callable[[], bool] = lambda: True,
) -> Retained:  # fmt: skip
    """Closes the sessions whose last sign of life is more than *older_ms* before *at_ms* (now).

    Args:
        dry_run: only tell what would be closed.
        at_once: sessions in one transaction; more where they lean on each other.
        goes_on: asked before each transaction; once it is not so, what was closed by then stays closed.

    Raises:
        LedgerError: the ledger cannot be written.
    """
    now = now_ms() if at_ms is None else at_ms
    after, facts, seen = 0, 0, set[int]()
    while goes_on():
        with ledger.read() if dry_run else ledger.write() as conn:
            some = _quiet(conn, now - older_ms, after, at_once)
            if not some:
                break
            sids = _whole_families(conn, some, now - older_ms) - seen
            facts += _count(conn, sids) if dry_run else _close(conn, sids, now)
            seen |= sids
            after = max(some)
    return Retained(len(seen), facts)


def _quiet(conn: Connection, before_ms: int, after: int, at_most: int) -> list[int]:
    """The next sessions of which nothing was heard since *before_ms*, all of whose usage is in the counters."""
    query = select(t.sessions.c.id).where(t.sessions.c.id > after, *_is_quiet(before_ms))
    return [int(r.id) for r in conn.execute(query.order_by(t.sessions.c.id).limit(at_most))]


def _is_quiet(before_ms: int) -> list[ColumnElement[bool]]:
    s, r = t.sessions.c, t.runs.c
    runs = exists().where(r.session_id == s.id)
    late = runs.where(or_(r.last_ms >= before_ms, r.ended_ms >= before_ms))
    return [s.closed_ms.is_(None), s.settle_at_ms.is_(None), runs, ~late]


def _whole_families(conn: Connection, sids: Iterable[int], before_ms: int) -> set[int]:
    """Those of *sids* that no open session leans on, with all that lean on them."""
    out: set[int] = set()
    for sid in sids:
        if sid in out:
            continue
        family, grown = {sid}, {sid}
        while grown:
            grown = derive.affected(conn, grown) - family
            family |= grown
        mine = select(t.sessions.c.id).where(t.sessions.c.id.in_(family))
        closed = set(conn.execute(mine.where(t.sessions.c.closed_ms.is_not(None))).scalars())
        if family == closed | set(conn.execute(mine.where(*_is_quiet(before_ms))).scalars()):
            out |= family - closed
    return out


def _count(conn: Connection, sids: set[int]) -> int:
    return sum(conn.execute(select(func.count()).select_from(x).where(_of(x, sid))).scalar_one() for x in _GONE for sid in sids)


def _of(table: Table, sid: int) -> ColumnElement[bool]:
    """The rows that a closed session does without."""
    mine = table.c.session_id == sid
    return mine & _UNDATED if table is t.levels else mine


def _close(conn: Connection, sids: set[int], now: int) -> int:
    store, dropped = Store(conn, now), 0
    owned = {sid: derive.gather(store, sid)[0].calls.keys() for sid in sids}  # of all before any fact goes
    for sid, own in owned.items():
        upsert(conn, t.closed_calls, [{"session_id": sid, "call_id": x, "own": x in own} for x in store.load(sid).calls])
        dropped += sum(conn.execute(delete(table).where(_of(table, sid))).rowcount for table in _GONE)
        conn.execute(update(t.sessions).where(t.sessions.c.id == sid).values(closed_ms=now))
    return dropped
