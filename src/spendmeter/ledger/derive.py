"""From facts to rows: a session's runs and dated entries, a pure function of its facts and its kin's."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update

from spendmeter.attribution import Rules
from spendmeter.ledger import costing, rollup, tagging
from spendmeter.ledger import schema as t
from spendmeter.ledger.bulk import among, upsert
from spendmeter.ledger.store import Store, call_fact, dump, fingerprint, level_fact
from spendmeter.reconcile.facts import CallFact, SessionFacts
from spendmeter.reconcile.kin import Age, age, disowned, inherited, least_told, marks, models_at
from spendmeter.reconcile.rule import Foreign
from spendmeter.reconcile.split import RunSlice, split
from spendmeter.records import Level, Tags, Usage

COLUMNS = ("plan", "workflow", "stage", "workstream", "release")  # attributes that are columns of runs too

Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # runs, entries


def affected(conn: Connection, grown: Collection[int]) -> set[int]:
    """*grown* and every session whose totals lean on them: copies of their calls, and forks that start from their totals."""
    out = set(grown)
    mine, other = t.calls.alias(), t.calls.alias()
    kin = select(t.copies.c.session_id).join(mine, mine.c.call_id == t.copies.c.call_id)
    twins = select(other.c.session_id).join(mine, (mine.c.call_id == other.c.call_id) & (mine.c.session_id != other.c.session_id))
    forks = select(t.sessions.c.id).join(t.finishes, t.finishes.c.fingerprint == t.sessions.c.wants)
    marked, bearer = t.bases.alias(), t.bases.alias()
    same = (marked.c.kind == bearer.c.kind) & (marked.c.source == bearer.c.source)
    marks = select(marked.c.session_id).join(bearer, same).where(bearer.c.kind == "mark")
    for query, of in ((kin, mine), (twins, mine), (forks, t.finishes), (marks, bearer)):
        out |= {int(r[0]) for r in among(conn, query.distinct(), of.c.session_id, grown)}
    return out


@dataclass(slots=True)
class Kin:
    """What other sessions know of the same things as some sessions.

    Attributes:
        twins: by session, by call id: the others that hold the call as their own, and how each saw it.
        copied: by session: the calls of others that its files repeat, and whose they are.
        holders: by mark: the sessions that hold it.
        totals: by fingerprint: the totals of runs, whose they are, and which run's.
    """

    twins: dict[int, dict[str, list[tuple[int, CallFact]]]]
    copied: dict[int, list[tuple[int, CallFact]]]
    holders: dict[str, list[int]]
    totals: dict[str, list[tuple[int, Usage, str]]]


def kin_of(store: Store, sids: Collection[int]) -> Kin:
    """What the derivation of the sessions *sids* needs of others."""
    store.load_all(sids)
    out, conn = Kin(_twins(store, sids), defaultdict(list), defaultdict(list), defaultdict(list)), store.conn
    of = select(t.copies.c.session_id.label("holder"), t.calls).join(t.copies, t.copies.c.call_id == t.calls.c.call_id)
    with_copies = [sid for sid in sids if store.facts[sid].copies]
    for row in among(conn, of.where(t.calls.c.session_id != t.copies.c.session_id), t.copies.c.session_id, with_copies):
        out.copied[row.holder].append((int(row.session_id), call_fact(row)))
    every = {mark for sid in sids for mark in marks(store.facts[sid])}
    for row in among(conn, select(t.bases.c.source, t.bases.c.session_id).where(t.bases.c.kind == "mark"), t.bases.c.source, every):
        out.holders[row.source].append(int(row.session_id))
    wanted = {w for sid in sids if (w := _wants(store.facts[sid]))}
    f = t.finishes.c
    for row in among(conn, select(f.fingerprint, f.session_id, f.total, f.run_key), f.fingerprint, wanted):
        out.totals[row.fingerprint].append((int(row.session_id), Usage(*json.loads(row.total)), row.run_key))
    return out


def gather(store: Store, sid: int, kin: Kin | None = None) -> tuple[SessionFacts, Foreign]:
    """The session's facts, with calls that others own taken out, and what its *kin* knows."""
    facts, kin = store.load(sid), kin or kin_of(store, [sid])
    mine, copied, owners = disowned(sid, facts, kin.twins.get(sid, {}), lambda s: _age(store, s))
    for owner, fact in kin.copied.get(sid, ()):
        copied[fact.call_id] = copied[fact.call_id].join(fact) if fact.call_id in copied else fact
        owners.add(owner)
    for mark in sorted(marks(facts)):
        owners.add(min([sid, *kin.holders[mark]], key=lambda s: _age(store, s)))
    owners.discard(sid)
    levels = inherited((age(store.load(owner)), _dated(store.conn, owner, facts)) for owner in owners)
    peers = [p for p in kin.totals.get(_wants(mine) or "", ()) if p[0] != sid]
    told = least_told((used, models_at(store.load(other), key)) for other, used, key in peers)
    return mine, Foreign(copied, levels, frozenset(used for _, used, _ in peers), told)


def _age(store: Store, sid: int) -> Age:
    """A closed session is older than any other: what it has counted stays its own."""
    return (-1, "") if store.is_closed(sid) else age(store.load(sid))


def _twins(store: Store, sids: Collection[int]) -> dict[int, dict[str, list[tuple[int, CallFact]]]]:
    """Calls that other sessions hold as their own too; of those that closed ones do, only the sessions' own facts still tell."""
    mine = t.calls.alias()
    found: dict[int, dict[str, list[tuple[int, CallFact]]]] = defaultdict(lambda: defaultdict(list))
    same = (mine.c.call_id == t.calls.c.call_id) & (t.calls.c.session_id != mine.c.session_id)
    for row in among(store.conn, select(mine.c.session_id.label("holder"), t.calls).join(mine, same), mine.c.session_id, sids):
        found[row.holder][row.call_id].append((int(row.session_id), call_fact(row)))
    closed = t.closed_calls.c
    same = (mine.c.call_id == closed.call_id) & (closed.session_id != mine.c.session_id) & closed.own
    query = select(mine.c.session_id.label("holder"), closed.session_id, closed.call_id).join(t.closed_calls, same)
    for row in among(store.conn, query, mine.c.session_id, sids):
        found[row.holder][row.call_id].append((int(row.session_id), store.facts[row.holder].calls[row.call_id]))
    return found


def _dated(conn: Connection, owner: int, facts: SessionFacts) -> Iterable[Level]:
    for r in conn.execute(select(t.levels).where(t.levels.c.session_id == owner, t.levels.c.epoch != "")):
        yield level_fact(r, facts.cli, "")


def _wants(facts: SessionFacts) -> str | None:
    restored = facts.first_restored()
    return None if restored is None else fingerprint(restored)


def remember(store: Store, sids: Collection[int]) -> None:
    """Notes which totals the sessions wait for, so that they are looked at again when those come."""
    wants = [{"sid": sid, "to_wants": _wants(store.load(sid))} for sid in sids]
    told = [w for w in wants if w["to_wants"] or w["sid"] not in store.fresh]
    if told:
        store.conn.execute(_WANTS, told)


_WANTS = update(t.sessions).where(t.sessions.c.id == bindparam("sid"), t.sessions.c.wants.is_distinct_from(bindparam("to_wants")))
_WANTS = _WANTS.values(wants=bindparam("to_wants"))


def derive(store: Store, sids: Collection[int], prices: costing.Prices, trial: tagging.Trial | None = None) -> dict[int, Rows]:
    """The sessions' rows of ``runs`` and ``entries``; under the rules on *trial* instead of those that each goes by."""
    kin, rules = kin_of(store, sids), tagging.rulesets(store.conn)
    wrapped: dict[int, dict[str, Any]] = defaultdict(dict)
    for r in among(store.conn, select(t.processes), t.processes.c.session_id, sids):
        wrapped[r.session_id][r.run_key] = r
    out = {}
    for head in among(store.conn, select(t.sessions), t.sessions.c.id, sids):
        of = rules.get(head.ruleset) if trial is None else trial.rules
        out[head.id] = _rows(head, gather(store, head.id, kin), wrapped[head.id], prices, of, trial)
    return out


def _rows(
    head: Any, known: tuple[SessionFacts, Foreign], wrapped: Mapping[str, Any], prices: costing.Prices, rules: Rules | None,
    trial: tagging.Trial | None,
) -> Rows:  # fmt: skip
    """The rows of one session, *head* being its own row and *wrapped* its processes by run."""
    runs: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for piece_of in split(*known):
        run = _run_row(head.id, known[0], piece_of, wrapped.get(piece_of.run_key), head)
        runs.append(run)
        whose = tagging.Whose(rules, head, run, piece_of.tags, trial) if rules else None
        if whose:
            run |= _tags(whose.tags)
        merged: dict[tuple[str, int, costing.Share], dict[str, Any]] = {}
        for piece in piece_of.pieces:
            ended = piece_of.ended_ms or run["ended_ms"] or head.seen_ms
            money = costing.cost(piece, prices, ended)
            share_of = whose.share_of(piece.model) if whose else None
            for e in costing.entries(piece, money, ended, prices, share_of):
                row = _entry_row(head.id, piece_of.run_key, e)
                key = e.model, e.minute_ms, e.share
                merged[key] = _added(merged[key], row) if key in merged else row
        if whose:
            tagging.join(run, merged.values())
        lines += merged.values()
        run["last_ms"] = max((key[1] for key in merged), default=run["ended_ms"])
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
        **_tags(run.tags),
        "outcome": outcome, "implied": run.implied, "started_ms": started,
        "ended_ms": ended if ended is not None else head.seen_ms, "duration_ms": duration, "trace_id": trace, "span_id": span,
    }  # fmt: skip


def _tags(tags: Tags) -> dict[str, Any]:
    columns = {name: tags.attrs.get(name) for name in COLUMNS}
    return {"agent": tags.agent, "task": tags.task, "attrs": dump(dict(tags.attrs)), **columns}


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
        "agent": e.share[0], "task": e.share[1],
    }  # fmt: skip


_KEYS = tuple(c.name for c in t.entries.primary_key)


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two entries of one key (two asked-for models, one that answered) as one."""
    return {k: v if k in _KEYS else b[k] if v is None else v if b[k] is None else v + b[k] for k, v in a.items()}


def stored(conn: Connection, sids: Collection[int]) -> dict[int, Rows]:
    """The sessions' rows as they stand."""
    out: dict[int, Rows] = {sid: ([], []) for sid in sids}
    for i, table in enumerate((t.runs, t.entries)):
        for r in among(conn, select(table), table.c.session_id, sids):
            out[r.session_id][i].append(dict(r._mapping))
    return out


def replace(store: Store, rows: Mapping[int, Rows]) -> set[int]:
    """Brings the sessions' stored rows to *rows*, touching only those that differ; the sessions of which any did."""
    conn, out, hours = store.conn, set(), set()
    before = stored(conn, rows.keys() - store.fresh)
    fresh: list[list[dict[str, Any]]] = [[], []]
    for sid, new in rows.items():
        old, changed = before.get(sid, ([], [])), set[str]()  # of runs
        for i, table in enumerate((t.runs, t.entries)):
            gone, moved = _changes(old[i], new[i], [c.name for c in table.primary_key])
            for where in gone:
                conn.execute(delete(table).where(*[table.c[k] == v for k, v in where.items()]))
            fresh[i] += moved
            changed |= {r["run_key"] for r in (*gone, *moved)}
        hours |= rollup.touched(*old, changed) | rollup.touched(*new, changed)
        if changed:
            out.add(sid)
    upsert(conn, t.runs, fresh[0])
    upsert(conn, t.entries, fresh[1])
    rollup.mark(conn, hours)
    return out


def _changes(old: list[dict[str, Any]], new: list[dict[str, Any]], keys: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(keys of rows that are no more, rows that are new or differ)"""
    if not old:
        return [], new
    before, after = {_key(r, keys): r for r in old}, {_key(r, keys): r for r in new}
    gone = [dict(zip(keys, k, strict=True)) for k in before.keys() - after.keys()]
    return gone, [r for k, r in after.items() if before.get(k) != r]


def _key(row: dict[str, Any], keys: list[str]) -> tuple[Any, ...]:
    return tuple(row[k] for k in keys)


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Whether both hold the same rows, in any order."""
    return _sorted(a) == _sorted(b)


def _sorted(rows: list[dict[str, Any]]) -> list[list[tuple[str, str]]]:
    return sorted([sorted((k, repr(v)) for k, v in r.items()) for r in rows])
