"""Durable counters: series totals that follow the settled rows of the ledger and never fall.

``posted`` holds what each session has put into each series, ``target`` is their sum, ``value`` its high-water mark. A fall
of the target is a debit: ``value`` stands until the target has caught up.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from spendmeter import metrics as m
from spendmeter.config import Settings
from spendmeter.ledger import schema as t
from spendmeter.ledger.privacy import cleaned
from spendmeter.ledger.store import dump, upsert

Amounts = dict[tuple[str, str], int]  # (family, labels as JSON) -> amount; money in nano-USD, time in ms
SKIPS = 0  # the session id under which skips are posted
LABEL_MAX = 128


def label(value: object, settings: Settings | None = None) -> str:
    """A label value: control characters out, at most 128 characters; e-mails and paths as *settings* say, where they are given."""
    text = "".join(c if c.isprintable() else "�" for c in str(value))
    return (cleaned(text, settings.privacy_emails, settings.privacy_paths) if settings else text)[:LABEL_MAX]


def amounts(runs: list[dict[str, Any]], entries: list[dict[str, Any]], overflow: set[tuple[str, str]], settings: Settings) -> Amounts:
    """What a session's rows add to each series."""
    out: Amounts = defaultdict(int)
    by_key = {r["run_key"]: r for r in runs}

    def add(metric: m.Metric, labels: tuple[str, ...], amount: int | None, suffix: str = "") -> None:
        if amount:
            out[metric.name + suffix, dump([label(x, settings) for x in labels])] += amount

    for run in runs:
        _run_amounts(add, run)
    for e in entries:
        run = by_key[e["run_key"]]
        base = (run["agent"], run["cli"], e["model"])
        task = m.OVERFLOW if (run["agent"], run["task"]) in overflow else run["task"]
        _entry_amounts(add, e, base, (run["agent"], task))
    return dict(out)


def _run_amounts(add: Any, run: dict[str, Any]) -> None:
    add(m.RUNS, (run["agent"], run["cli"], run["outcome"]), 1)
    if run["duration_ms"] is None or run["implied"]:
        return
    who = (run["agent"], run["cli"])
    add(m.RUN_DURATION, who, 1, "_count")
    add(m.RUN_DURATION, who, run["duration_ms"], "_sum")
    for edge in m.DURATION_BUCKETS_S:
        if run["duration_ms"] <= edge * 1000:
            add(m.RUN_DURATION, (*who, repr(edge)), 1, "_bucket")


def _entry_amounts(add: Any, e: dict[str, Any], base: tuple[str, str, str], task: tuple[str, str]) -> None:
    for metric, of_task, field in (
        (m.TOKENS_IN, m.TASK_TOKENS_IN, "tokens_in"),
        (m.TOKENS_OUT, m.TASK_TOKENS_OUT, "tokens_out"),
        (m.CACHE_READ, m.TASK_CACHE_READ, "cache_read"),
    ):
        add(metric, base, e[field])
        add(of_task, task, e[field])
    for ttl in ("5m", "1h"):
        add(m.CACHE_WRITE, (*base, ttl), e[f"cache_write_{ttl}"])
        add(m.TASK_CACHE_WRITE, task, e[f"cache_write_{ttl}"])
    add(m.REASONING, base, e["reasoning"])
    for source in ("reported", "estimated"):
        add(m.COST_USD, (*base, source), e[f"{source}_nusd"])
        add(m.TASK_COST_USD, task, e[f"{source}_nusd"])
    add(m.UNPRICED_TOKENS, (base[2],), e["unpriced_tokens"])


def post(conn: Connection, sid: int, wanted: Amounts, now_ms: int, settings: Settings, exemplar: str | None = None) -> None:
    """Makes the session's share of every series equal to *wanted*."""
    held = {
        (r.family, r.labels): int(r.amount)
        for r in conn.execute(
            select(t.series.c.family, t.series.c.labels, t.posted.c.amount)
            .join(t.posted, t.posted.c.series_id == t.series.c.id)
            .where(t.posted.c.session_id == sid)
        )
    }
    by = {key: wanted.get(key, 0) - held.get(key, 0) for key in sorted(wanted.keys() | held.keys())}
    moves = {key: n for key, n in by.items() if n}
    if not moves:
        return
    rows = _series(conn, moves, now_ms)
    conn.execute(_MOVE, [_moved(rows[key], n, now_ms, settings, exemplar) for key, n in moves.items()])
    upsert(conn, t.posted, [{"session_id": sid, "series_id": rows[k].id, "amount": wanted[k]} for k in moves if wanted.get(k)])
    gone = [rows[k].id for k in moves if not wanted.get(k)]
    if gone:
        conn.execute(delete(t.posted).where(t.posted.c.session_id == sid, t.posted.c.series_id.in_(gone)))


def _series(conn: Connection, keys: Collection[tuple[str, str]], now_ms: int) -> dict[tuple[str, str], Any]:
    """The row of each series, made where it is new."""
    s = t.series.c
    families, labels = {f for f, _ in keys}, {x for _, x in keys}
    found = {(r.family, r.labels): r for r in conn.execute(select(t.series).where(s.family.in_(families), s.labels.in_(labels)))}
    for key in keys:
        if key not in found:
            values = {"family": key[0], "labels": key[1], "target": 0, "value": 0, "held": 0, "moved_ms": now_ms}
            found[key] = conn.execute(insert(t.series).values(**values).returning(*s)).one()
    return found


_MOVING = ("target", "value", "held", "shown_ms", "pushed_ms", "moved_ms", "exemplar")
_MOVE = update(t.series).where(t.series.c.id == bindparam("series_id")).values({x: bindparam(f"to_{x}") for x in _MOVING})


def _moved(row: Any, by: int, now_ms: int, settings: Settings, exemplar: str | None) -> dict[str, Any]:
    """One series as it is after its move. A task's series that had left starts anew from the value that it last showed."""
    target = row.target + by
    values = {x: getattr(row, x) for x in _MOVING} | {"target": target, "value": max(row.value, target), "moved_ms": now_ms}
    if exemplar and by > 0:
        values["exemplar"] = f'{exemplar[:-1]},"value":{by}}}'
    if row.family.startswith("spendmeter.task.") and row.moved_ms < now_ms - settings.task_ttl_s * 1000:
        seen = row.shown_ms is not None or row.pushed_ms is not None  # else nobody knows of its value yet
        values |= {"held": row.value if seen else row.held, "shown_ms": None, "pushed_ms": None}
    return {"series_id": row.id} | {f"to_{x}": value for x, value in values.items()}


def slots(conn: Connection, pairs: set[tuple[str, str]], now_ms: int, settings: Settings) -> set[tuple[str, str]]:
    """Gives each (agent, task) its place; returns those that go under the overflow label, for good."""
    out = set()
    since = now_ms - int(settings.task_ttl_s * 1000)
    for agent, task in sorted(pairs):
        row = conn.execute(select(t.tasks).where(t.tasks.c.agent == agent, t.tasks.c.task == task)).first()
        if row is None:
            live = len(
                conn.execute(
                    select(t.tasks.c.task).where(t.tasks.c.used_ms >= since, t.tasks.c.overflow.is_(False)).limit(settings.max_tasks)
                ).all()
            )
            over = live >= settings.max_tasks
        else:
            over = bool(row.overflow)
        upsert(conn, t.tasks, [{"agent": agent, "task": task, "overflow": over, "used_ms": now_ms}])
        if over:
            out.add((agent, task))
    return out


def skip_amounts(conn: Connection) -> Amounts:
    """What the filed skips add to their series."""
    rows = conn.execute(select(t.skips.c.source, t.skips.c.reason, func.count().label("n")).group_by(t.skips.c.source, t.skips.c.reason))
    return {(m.SKIPPED.name, dump([label(r.source), label(r.reason)])): int(r.n) for r in rows}


def enqueue(conn: Connection, sid: int, runs: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
    """Puts each run whose content is new into the spool; what was already sent as it stands is not sent again."""
    known = {r.run_key: r.print for r in conn.execute(select(t.spool.c.run_key, t.spool.c.print).where(t.spool.c.session_id == sid))}
    mine: dict[str, list[str]] = defaultdict(list)
    for e in entries:
        mine[e["run_key"]].append(repr(sorted(e.items())))
    for run in runs:
        body = [sorted(run.items()), sorted(mine[run["run_key"]])]
        mark = hashlib.sha256(repr(body).encode()).hexdigest()[:32]
        if known.get(run["run_key"]) == mark:
            continue
        key = (t.spool.c.session_id == sid) & (t.spool.c.run_key == run["run_key"])
        conn.execute(delete(t.spool).where(key))
        conn.execute(insert(t.spool).values(session_id=sid, run_key=run["run_key"], print=mark, traced=False, logged=False))
    for gone in known.keys() - {r["run_key"] for r in runs}:
        conn.execute(delete(t.spool).where(t.spool.c.session_id == sid, t.spool.c.run_key == gone))
