"""Recomputes everything that follows from the facts and says what the ledger holds otherwise."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from spendmeter.ledger import Ledger, derive, now_ms, posting, rollup, shifts
from spendmeter.ledger import schema as t
from spendmeter.ledger.store import Store


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as its facts say. Amounts of money are nano-USD."""

    what: str  # series | runs | entries | hours
    where: str  # family and labels, or cli and session
    stands: str
    should_be: str


def verify(ledger: Ledger) -> list[Difference]:
    """Every difference between the stored rows and totals and what the facts give; empty when the ledger is right.

    Sessions that are not settled yet are held to what they had posted, not to what they will post.
    """
    out: list[Difference] = []
    ledger.settle()
    with ledger.write() as conn:  # holds writers off, so that one state is looked at
        store = Store(conn, now_ms())
        wanted: dict[tuple[str, str], int] = defaultdict(int)
        over = {(r.agent, r.task) for r in conn.execute(select(t.tasks).where(t.tasks.c.overflow.is_(True)))}
        for head in conn.execute(select(t.sessions)).all():
            out += _session(ledger, store, head.id, f"{head.cli} {head.session}", wanted, over, settled=head.settle_at_ms is None)
            store.facts.clear()
        for key, amount in posting.skip_amounts(conn).items():
            wanted[key] += amount
        out += _series(conn, wanted)
        out += [Difference("hours", str(hour), "sums", "the sums of its entries") for hour in rollup.differences(conn)]
    return out


def _session(
    ledger: Ledger, store: Store, sid: int, name: str, wanted: dict[tuple[str, str], int], over: set[tuple[str, str]], *, settled: bool
) -> list[Difference]:
    conn, out = store.conn, []
    stored = derive.stored(conn, [sid])[sid]
    rows = stored if store.is_closed(sid) else derive.derive(store, [sid], ledger.prices)[sid]
    for table, old, new in zip((t.runs, t.entries), stored, rows, strict=True):
        if not derive.same(old, new):
            out.append(Difference(table.name, name, f"{len(old)} rows", f"{len(new)} rows of other content"))
    if settled:
        counted = shifts.applied(posting.amounts(rows[0], rows[1], over, ledger.settings), shifts.of(conn, [sid]).get(sid, {}))
    else:
        counted = posting.held(conn, [sid]).get(sid, {})
    for key, amount in counted.items():
        wanted[key] += amount
    return out


def _series(conn: Connection, wanted: dict[tuple[str, str], int]) -> list[Difference]:
    sums = {
        r.series_id: int(r.n)
        for r in conn.execute(select(t.posted.c.series_id, func.sum(t.posted.c.amount).label("n")).group_by(t.posted.c.series_id))
    }
    out, seen = [], set()
    for r in conn.execute(select(t.series)):
        key = r.family, r.labels
        seen.add(key)
        should, name = wanted.get(key, 0), f"{r.family} {r.labels}"
        if r.target != should:
            out.append(Difference("series", name, str(r.target), str(should)))
        if sums.get(r.id, 0) != r.target:
            out.append(Difference("series", f"{name} by session", str(sums.get(r.id, 0)), str(r.target)))
        if r.value < r.target:
            out.append(Difference("series", f"{name} shown", str(r.value), f"at least {r.target}"))
    out += [
        Difference("series", f"{f} {labels}", "missing", str(n))
        for (f, labels), n in sorted(wanted.items())
        if n and (f, labels) not in seen
    ]
    return out
