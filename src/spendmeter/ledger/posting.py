"""Durable counters: series totals that follow the settled rows of the ledger and never fall.

``posted`` holds what each session has put into each series, ``target`` is their sum, ``value`` its high-water mark. A fall
of the target is a debit: ``value`` stands until the target has caught up.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from spendmeter import metrics as m
from spendmeter.config import Settings
from spendmeter.ledger import schema as t
from spendmeter.ledger.store import dump, upsert

Amounts = dict[tuple[str, str], int]  # (family, labels as JSON) -> amount; money in nano-USD, time in ms
SKIPS = 0  # the session id under which skips are posted
LABEL_MAX = 128


def label(value: object) -> str:
    """A label value: control characters out, at most 128 characters."""
    text = "".join(c if c.isprintable() else "�" for c in str(value))
    return text[:LABEL_MAX]


def amounts(runs: list[dict[str, Any]], entries: list[dict[str, Any]], overflow: set[tuple[str, str]]) -> Amounts:
    """What a session's rows add to each series."""
    out: Amounts = defaultdict(int)
    by_key = {r["run_key"]: r for r in runs}

    def add(metric: m.Metric, labels: tuple[str, ...], amount: int | None, suffix: str = "") -> None:
        if amount:
            out[metric.name + suffix, dump([label(x) for x in labels])] += amount

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
        (r.family, r.labels): (int(r.id), int(r.amount))
        for r in conn.execute(
            select(t.series.c.id, t.series.c.family, t.series.c.labels, t.posted.c.amount)
            .join(t.posted, t.posted.c.series_id == t.series.c.id)
            .where(t.posted.c.session_id == sid)
        )
    }
    for key in sorted(wanted.keys() | held.keys()):
        amount, before = wanted.get(key, 0), held.get(key, (0, 0))[1]
        if amount == before:
            continue
        series_id = held[key][0] if key in held else _series_id(conn, key, now_ms)
        _move(conn, series_id, amount - before, now_ms, settings, exemplar)
        if amount:
            upsert(conn, t.posted, [{"session_id": sid, "series_id": series_id, "amount": amount}])
        else:
            conn.execute(delete(t.posted).where(t.posted.c.session_id == sid, t.posted.c.series_id == series_id))


def _series_id(conn: Connection, key: tuple[str, str], now_ms: int) -> int:
    found = conn.execute(select(t.series.c.id).where(t.series.c.family == key[0], t.series.c.labels == key[1])).first()
    if found is None:
        values = {"family": key[0], "labels": key[1], "target": 0, "value": 0, "held": 0, "moved_ms": now_ms}
        found = conn.execute(insert(t.series).values(**values).returning(t.series.c.id)).one()
    return int(found.id)


def _move(conn: Connection, series_id: int, by: int, now_ms: int, settings: Settings, exemplar: str | None) -> None:
    """Moves one series. A task's series that had left starts anew from the value that it last showed."""
    row = conn.execute(select(t.series).where(t.series.c.id == series_id)).one()
    target = row.target + by
    values: dict[str, Any] = {"target": target, "value": max(row.value, target), "moved_ms": now_ms}
    if exemplar and by > 0:
        values["exemplar"] = f'{exemplar[:-1]},"value":{by}}}'
    if row.family.startswith("spendmeter.task.") and row.moved_ms < now_ms - settings.task_ttl_s * 1000:
        seen = row.shown_ms is not None or row.pushed_ms is not None  # else nobody knows of its value yet
        values |= {"held": row.value if seen else row.held, "shown_ms": None, "pushed_ms": None}
    conn.execute(update(t.series).where(t.series.c.id == series_id).values(**values))


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
