"""From facts to rows: a session's runs and dated entries, a pure function of its facts and its kin's."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, delete, select, update

from spendmeter.ledger import costing, rollup
from spendmeter.ledger import schema as t
from spendmeter.ledger.store import FIELDS, Store, call_fact, dump, fingerprint, upsert
from spendmeter.reconcile.facts import CallFact, SessionFacts
from spendmeter.reconcile.kin import Age, age, disowned, marks
from spendmeter.reconcile.rule import Foreign
from spendmeter.reconcile.split import RunSlice, split
from spendmeter.records import Level, Usage

COLUMNS = ("plan", "workflow", "stage", "workstream", "release")  # attributes that are columns of runs too

Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # runs, entries


def affected(conn: Connection, grown: Iterable[int]) -> set[int]:
    """*grown* and every session whose totals lean on them: copies of their calls, and forks that start from their totals."""
    out = set(grown)
    for sid in list(out):
        other = t.calls.alias()
        kin = select(t.copies.c.session_id).join(t.calls, t.calls.c.call_id == t.copies.c.call_id).where(t.calls.c.session_id == sid)
        twins = select(other.c.session_id).join(t.calls, t.calls.c.call_id == other.c.call_id).where(t.calls.c.session_id == sid)
        forks = (
            select(t.sessions.c.id).join(t.finishes, t.finishes.c.fingerprint == t.sessions.c.wants).where(t.finishes.c.session_id == sid)
        )
        for query in (kin.distinct(), twins.distinct(), forks.distinct(), _marked(sid)):
            out |= {int(r[0]) for r in conn.execute(query)}
    return out


def gather(store: Store, sid: int) -> tuple[SessionFacts, Foreign]:
    """The session's facts, with calls that others own taken out, and what its kin knows."""
    facts, conn = store.load(sid), store.conn
    mine, copied, owners = disowned(sid, facts, _twins(conn, sid, facts), lambda s: _age(store, s))
    for row in conn.execute(
        select(t.calls)
        .join(t.copies, t.copies.c.call_id == t.calls.c.call_id)
        .where(t.copies.c.session_id == sid, t.calls.c.session_id != sid)
    ):
        fact = call_fact(row)
        copied[fact.call_id] = copied[fact.call_id].join(fact) if fact.call_id in copied else fact
        owners.add(int(row.session_id))
    for mark in sorted(marks(facts)):
        holders = conn.execute(select(t.bases.c.session_id).where(t.bases.c.kind == "mark", t.bases.c.source == mark))
        owners.add(min([sid, *(int(r.session_id) for r in holders)], key=lambda s: _age(store, s)))
    owners.discard(sid)
    levels = tuple(v for owner in sorted(owners) for v in _dated(conn, owner, facts))
    return mine, Foreign(copied, levels, _peers(store, sid, mine))


def _marked(sid: int) -> Any:
    """Sessions that hold a row of this one's, or it one of theirs."""
    mine = t.bases.alias()
    same = (t.bases.c.kind == mine.c.kind) & (t.bases.c.source == mine.c.source)
    return select(t.bases.c.session_id).join(mine, same).where(mine.c.session_id == sid, mine.c.kind == "mark").distinct()


def _age(store: Store, sid: int) -> Age:
    """A closed session is older than any other: what it has counted stays its own."""
    return (-1, "") if store.is_closed(sid) else age(store.load(sid))


def _twins(conn: Connection, sid: int, facts: SessionFacts) -> dict[str, list[tuple[int, CallFact]]]:
    """Calls that other sessions hold as their own too; of those that closed ones do, only *facts* still tell."""
    mine = t.calls.alias()
    found: dict[str, list[tuple[int, CallFact]]] = defaultdict(list)
    query = select(t.calls).join(mine, mine.c.call_id == t.calls.c.call_id).where(mine.c.session_id == sid, t.calls.c.session_id != sid)
    for row in conn.execute(query):
        found[row.call_id].append((int(row.session_id), call_fact(row)))
    closed = select(t.closed_calls).join(mine, mine.c.call_id == t.closed_calls.c.call_id)
    for row in conn.execute(closed.where(mine.c.session_id == sid, t.closed_calls.c.session_id != sid, t.closed_calls.c.own)):
        found[row.call_id].append((int(row.session_id), facts.calls[row.call_id]))
    return found


def _dated(conn: Connection, owner: int, facts: SessionFacts) -> Iterable[Level]:
    for r in conn.execute(select(t.levels).where(t.levels.c.session_id == owner, t.levels.c.epoch != "")):
        used = Usage(*[getattr(r, x) for x in FIELDS])
        yield Level(facts.cli, "", r.model, used, r.epoch, r.reading, r.epoch_ms, r.start_ms, r.read_ms, r.guess)


def _peers(store: Store, sid: int, facts: SessionFacts) -> frozenset[Usage]:
    """Other sessions' run totals that equal what this one's first result started from."""
    wants = _wants(facts)
    if wants is None:
        return frozenset()
    rows = store.conn.execute(select(t.finishes.c.total).where(t.finishes.c.fingerprint == wants, t.finishes.c.session_id != sid))
    return frozenset(Usage(*json.loads(r.total)) for r in rows)


def _wants(facts: SessionFacts) -> str | None:
    restored = facts.first_restored()
    return None if restored is None else fingerprint(restored)


def remember(store: Store, sid: int) -> None:
    """Notes which total the session waits for, so that it is looked at again when that comes."""
    wants = _wants(store.load(sid))
    store.conn.execute(update(t.sessions).where(t.sessions.c.id == sid, t.sessions.c.wants.is_distinct_from(wants)).values(wants=wants))


def derive(store: Store, sid: int, prices: costing.Prices) -> Rows:
    """The session's rows of ``runs`` and ``entries``."""
    facts, foreign = gather(store, sid)
    head = store.conn.execute(select(t.sessions).where(t.sessions.c.id == sid)).one()
    wrapped = {r.run_key: r for r in store.conn.execute(select(t.processes).where(t.processes.c.session_id == sid))}
    runs: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for piece_of in split(facts, foreign):
        run = _run_row(sid, facts, piece_of, wrapped.get(piece_of.run_key), head)
        runs.append(run)
        merged: dict[tuple[str, int], dict[str, Any]] = {}
        for piece in piece_of.pieces:
            ended = piece_of.ended_ms or run["ended_ms"] or head.seen_ms
            money = costing.cost(piece, prices, ended)
            for e in costing.entries(piece, money, ended, prices):
                row = _entry_row(sid, piece_of.run_key, e)
                key = e.model, e.minute_ms
                merged[key] = _added(merged[key], row) if key in merged else row
        lines += merged.values()
        run["last_ms"] = max((minute for _, minute in merged), default=run["ended_ms"])
    return runs, lines


def _run_row(sid: int, facts: SessionFacts, run: RunSlice, wrapped: Any, head: Any) -> dict[str, Any]:
    outcome, ended, duration = run.outcome, run.ended_ms, run.duration_ms
    started = ended - duration if ended is not None and duration is not None else None
    out: dict[str, Any] = {
        "exit_code": None,
        "signal": None,
        "parent_span_id": None,
        "repo": None,
        "branch": head.branch,
        "commit": None,
        "notes": "[]",
    }
    trace, span = ids(facts.cli, facts.session, run.run_key)
    if wrapped is not None:
        out |= {name: getattr(wrapped, name) for name in out if getattr(wrapped, name) is not None}
        started, ended = wrapped.started_ms, wrapped.ended_ms
        duration = ended - started if started is not None and ended is not None else duration
        trace, span = wrapped.trace_id or trace, wrapped.span_id or span
        outcome = "max_budget" if wrapped.stopped else _outcome(run.outcome, wrapped.exit_code, wrapped.signal)
    out["notes"] = dump([*run.unknown, *json.loads(out["notes"] or "[]")])
    return out | {
        "session_id": sid, "run_key": run.run_key, "cli": facts.cli, "session": facts.session,
        "agent": run.tags.agent, "task": run.tags.task,
        "attrs": dump(dict(run.tags.attrs)), **{x: run.tags.attrs.get(x) for x in COLUMNS},
        "outcome": outcome, "implied": run.implied, "started_ms": started,
        "ended_ms": ended if ended is not None else head.seen_ms, "duration_ms": duration, "trace_id": trace, "span_id": span,
    }  # fmt: skip


def _outcome(told: str, exit_code: int | None, signal: int | None) -> str:
    """The CLI's own word, else what its exit says."""
    if told not in ("unknown", "ok"):
        return told
    if signal or exit_code in (129, 130, 137, 143):
        return "killed"
    if exit_code:
        return "error"
    return "ok" if exit_code == 0 else told


def ids(cli: str, session: str, key: str) -> tuple[str, str]:
    """Trace id and span id (hex) that always belong to *key*."""
    digest = hashlib.sha256(f"{cli}\0{session}\0{key}".encode()).hexdigest()
    return digest[:32], digest[32:48]


def _entry_row(sid: int, run_key: str, e: costing.Entry) -> dict[str, Any]:
    used = e.usage._asdict()
    del used["cost_nusd"]
    return {
        "session_id": sid, "run_key": run_key, "model": e.model, "minute_ms": e.minute_ms, **used, "reported_nusd": e.money.reported,
        "estimated_nusd": e.money.estimated, "listed_nusd": e.money.listed, "unpriced_tokens": e.money.unpriced, "calls": e.calls,
    }  # fmt: skip


_KEYS = ("session_id", "run_key", "model", "minute_ms")


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two entries of one key (two asked-for models, one that answered) as one."""
    return {k: v if k in _KEYS else b[k] if v is None else v if b[k] is None else v + b[k] for k, v in a.items()}


def stored(conn: Connection, sid: int) -> Rows:
    """The session's rows as they stand."""
    runs, entries = ([dict(r._mapping) for r in conn.execute(select(x).where(x.c.session_id == sid))] for x in (t.runs, t.entries))
    return runs, entries


def replace(conn: Connection, sid: int, rows: Rows) -> bool:
    """Brings the session's stored rows to *rows*, touching only those that differ; whether any did."""
    before: list[list[dict[str, Any]]] = []
    changed: set[str] = set()  # runs
    for table, new in ((t.runs, rows[0]), (t.entries, rows[1])):
        keys = [c.name for c in table.primary_key]
        old = {_key(r, keys): r for r in (dict(x._mapping) for x in conn.execute(select(table).where(table.c.session_id == sid)))}
        wanted = {_key(r, keys): r for r in new}
        gone = [dict(zip(keys, k, strict=True)) for k in old.keys() - wanted.keys()]
        for where in gone:
            conn.execute(delete(table).where(*[table.c[k] == v for k, v in where.items()]))
        moved = [r for k, r in wanted.items() if old.get(k) != r]
        upsert(conn, table, moved)
        changed |= {r["run_key"] for r in (*gone, *moved)}
        before.append(list(old.values()))
    for runs, entries in (before, rows):
        rollup.mark(conn, rollup.touched(runs, entries, changed))
    return bool(changed)


def _key(row: dict[str, Any], keys: list[str]) -> tuple[Any, ...]:
    return tuple(row[k] for k in keys)


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Whether both hold the same rows, in any order."""
    return _sorted(a) == _sorted(b)


def _sorted(rows: list[dict[str, Any]]) -> list[list[tuple[str, str]]]:
    return sorted([sorted((k, repr(v)) for k, v in r.items()) for r in rows])
