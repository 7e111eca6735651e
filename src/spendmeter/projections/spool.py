"""What waits to be sent: finished runs whose content is new, with a mark per signal, and the lease that one exporter holds."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, delete, select, text
from sqlalchemy.dialects import postgresql, sqlite

from spendmeter.ledger import Ledger, derive, liveness
from spendmeter.ledger import schema as t
from spendmeter.ledger.gauges import EXPORT_KEY, SPOOLED
from spendmeter.ledger.store import Store, dump
from spendmeter.reconcile.facts import CallFact
from spendmeter.reconcile.split import split
from spendmeter.records import Usage, total

Spooled = Literal["traces", "logs"]
LEASE = f"{EXPORT_KEY}lease"  # of the exporter
_LIVE: set[str] = set()  # tokens of leases that this process holds
_FIELDS = [name for name in Usage._fields if name != "cost_nusd"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row of the spool. ``mark`` names the run's content: what changes meanwhile is not marked as sent."""

    id: int
    session_id: int
    run_key: str
    mark: str


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run as it is sent: its row of ``runs``, its entries by model, and its calls where they are known."""

    row: dict[str, Any]
    by_model: dict[str, Usage]  # cost_nusd: reported and estimated together
    calls: tuple[CallFact, ...]
    call_count: int | None

    @property
    def usage(self) -> Usage:
        """All models together."""
        return total(self.by_model.values())


def waiting(ledger: Ledger, signal: Spooled, after_id: int, limit: int) -> list[Waiting]:
    """The next rows that *signal* has not sent, oldest first."""
    flag = t.spool.c[SPOOLED[signal]]
    query = select(t.spool.c.id, t.spool.c.session_id, t.spool.c.run_key, t.spool.c.print)
    with ledger.read() as conn:
        rows = conn.execute(query.where(flag.is_(False), t.spool.c.id > after_id).order_by(t.spool.c.id).limit(limit)).all()
    return [Waiting(*r) for r in rows]


def load(ledger: Ledger, rows: Iterable[Waiting], *, with_calls: bool) -> dict[int, FinishedRun]:
    """The runs behind *rows* by spool id; one that has gone meanwhile is left out."""
    out: dict[int, FinishedRun] = {}
    calls: dict[int, dict[str, tuple[CallFact, ...]]] = {}
    with ledger.read() as conn:
        for w in rows:
            row = conn.execute(select(t.runs).where(t.runs.c.session_id == w.session_id, t.runs.c.run_key == w.run_key)).first()
            if row is None:
                continue
            if with_calls and w.session_id not in calls:
                calls[w.session_id] = _calls(conn, w.session_id)
            by_model, count = _entries(conn, w)
            out[w.id] = FinishedRun(dict(row._mapping), by_model, calls.get(w.session_id, {}).get(w.run_key, ()), count)
    return out


def _entries(conn: Connection, w: Waiting) -> tuple[dict[str, Usage], int | None]:
    found: dict[str, list[Usage]] = {}
    counts = []
    for e in conn.execute(select(t.entries).where(t.entries.c.session_id == w.session_id, t.entries.c.run_key == w.run_key)):
        costs = [x for x in (e.reported_nusd, e.estimated_nusd) if x is not None]
        used = [*(getattr(e, f) for f in _FIELDS), sum(costs) if costs else None]
        found.setdefault(e.model, []).append(Usage(*used))
        counts += [e.calls] if e.calls is not None else []
    return {model: total(parts) for model, parts in sorted(found.items())}, sum(counts) if counts else None


def _calls(conn: Connection, sid: int) -> dict[str, tuple[CallFact, ...]]:
    """Calls by run, as the ledger itself cuts the session; each call has one owner."""
    slices = split(*derive.gather(Store(conn, 0), sid))
    return {s.run_key: tuple(sorted((c for p in s.pieces for c in p.calls), key=lambda c: (c.at_ms or 0, c.call_id))) for s in slices}


def mark_sent(ledger: Ledger, signal: Spooled, rows: Iterable[Waiting]) -> None:
    """Marks *rows* as sent, each only if it is still what was sent: ids are used again."""
    values = [{"i": w.id, "p": w.mark} for w in rows]
    if values:
        with ledger.write() as conn:
            conn.execute(text(f"update spool set {SPOOLED[signal]} = true where id = :i and print = :p"), values)  # noqa: S608 - fixed names


def put(conn: Connection, key: str, value: str) -> None:
    """Sets a key of ``meta``."""
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    stmt = make(t.meta).values(key=key, value=value)
    conn.execute(stmt.on_conflict_do_update(index_elements=["key"], set_={"value": stmt.excluded.value}))


class Lease:
    """One process per ledger at a time, by default to export. A holder that died on this host is known as dead at once, others by time."""

    def __init__(self, ledger: Ledger, key: str = LEASE) -> None:
        """*key* of ``meta`` names what it is for."""
        self._ledger, self._key = ledger, key
        self._token = secrets.token_hex(8)

    def take(self, now_ms: int, for_ms: int) -> bool:
        """Whether it is ours until *for_ms* from now."""
        mine = {"until_ms": now_ms + for_ms, "token": self._token} | liveness.own()._asdict()
        with self._ledger.write() as conn:
            held = conn.execute(select(t.meta.c.value).where(t.meta.c.key == self._key)).scalar_one_or_none()
            if held and self._alive(json.loads(held), now_ms):
                return False
            put(conn, self._key, dump(mine))
        _LIVE.add(self._token)
        return True

    def _alive(self, held: dict[str, Any], now_ms: int) -> bool:
        if held["token"] == self._token or held["until_ms"] <= now_ms:
            return False
        holder = liveness.Mark(held["host"], held["pid"], held.get("born", ""))  # a lease of an older spendmeter lacks the latter
        return held["token"] in _LIVE if holder == liveness.own() else liveness.is_alive(holder, now_ms, now_ms)

    def drop(self) -> None:
        """Gives it back."""
        if self._token in _LIVE:
            _LIVE.discard(self._token)
            with self._ledger.write() as conn:
                mine = t.meta.c.value.contains(self._token)
                conn.execute(delete(t.meta).where(t.meta.c.key == self._key, mine))
