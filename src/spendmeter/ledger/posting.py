"""Durable counters: series totals that follow the settled rows of the ledger and never fall.

``posted`` holds what each session has put into each series, ``target`` is their sum, ``value`` its high-water mark. A fall
of the target is a debit: ``value`` stands until the target has caught up.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from spendmeter import metrics as m
from spendmeter.config import Settings
from spendmeter.ledger import schema as t
from spendmeter.ledger.bulk import among, upsert
from spendmeter.ledger.privacy import cleaned
from spendmeter.ledger.store import dump

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
        agent, task = _whose(run, e)
        _entry_amounts(add, e, (agent, run["cli"], e["model"]), (agent, m.OVERFLOW if (agent, task) in overflow else task))
    return dict(out)


def _whose(run: dict[str, Any], e: dict[str, Any]) -> tuple[str, str]:
    return e["agent"] or run["agent"], e["task"] or run["task"]


def pairs(runs: list[dict[str, Any]], entries: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """The (agent, task) that a session's usage belongs to."""
    by_key = {r["run_key"]: r for r in runs}
    return {(r["agent"], r["task"]) for r in runs} | {_whose(by_key[e["run_key"]], e) for e in entries}


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


@dataclass(frozen=True, slots=True)
class Share:
    """What a session's rows should add to each series, and the exemplar for what it adds now."""

    wanted: Amounts
    exemplar: str | None = None


def held(conn: Connection, sids: Collection[int]) -> dict[int, Amounts]:
    """What each of the sessions *sids* has put into each series, those that have put anything."""
    out: dict[int, Amounts] = defaultdict(dict)
    query = select(t.posted, t.series.c.family, t.series.c.labels).join(t.series, t.posted.c.series_id == t.series.c.id)
    for r in among(conn, query, t.posted.c.session_id, sids):
        out[r.session_id][r.family, r.labels] = int(r.amount)
    return dict(out)


def post(conn: Connection, shares: Mapping[int, Share], now_ms: int, settings: Settings) -> None:
    """Makes each session's share of every series as it should be."""
    before = held(conn, shares.keys())
    by: dict[tuple[str, str], int] = defaultdict(int)
    moved: list[tuple[int, tuple[str, str], int]] = []  # session, series, its new share
    exemplars: dict[tuple[str, str], tuple[int, str]] = {}
    for sid, share in sorted(shares.items()):
        had_all = before.get(sid, {})
        for key in sorted(share.wanted.keys() | had_all.keys()):
            n, had = share.wanted.get(key, 0), had_all.get(key, 0)
            if n != had:
                by[key] += n - had
                moved.append((sid, key, n))
                if share.exemplar and n > had:
                    exemplars[key] = n - had, share.exemplar
    if not moved:
        return
    rows = _series(conn, by, now_ms)
    conn.execute(_MOVE, [_moved(rows[key], n, now_ms, settings, exemplars.get(key)) for key, n in by.items()])
    upsert(conn, t.posted, [{"session_id": sid, "series_id": rows[key].id, "amount": n} for sid, key, n in moved if n])
    gone = [{"of": sid, "in": rows[key].id} for sid, key, n in moved if not n]
    if gone:
        conn.execute(_GONE, gone)


_GONE = delete(t.posted).where(t.posted.c.session_id == bindparam("of"), t.posted.c.series_id == bindparam("in"))


def _series(conn: Connection, keys: Collection[tuple[str, str]], now_ms: int) -> dict[tuple[str, str], Any]:
    """The row of each series, made where it is new."""
    s = t.series.c
    query = select(t.series).where(s.family.in_({f for f, _ in keys}))
    found = {(r.family, r.labels): r for r in among(conn, query, s.labels, {x for _, x in keys})}
    new = [key for key in keys if key not in found]
    if new:
        values = [{"family": f, "labels": x, "target": 0, "value": 0, "held": 0, "moved_ms": now_ms} for f, x in new]
        found |= {(r.family, r.labels): r for r in conn.execute(insert(t.series).returning(*s), values)}
    return found


_MOVING = ("target", "value", "held", "shown_ms", "pushed_ms", "moved_ms", "exemplar")
_MOVE = update(t.series).where(t.series.c.id == bindparam("series_id")).values({x: bindparam(f"to_{x}") for x in _MOVING})


def _moved(row: Any, by: int, now_ms: int, settings: Settings, exemplar: tuple[int, str] | None) -> dict[str, Any]:
    """One series as it is after its move. A task's series that had left starts anew from the value that it last showed."""
    target = row.target + by
    values = {x: getattr(row, x) for x in _MOVING} | {"target": target, "value": max(row.value, target), "moved_ms": now_ms}
    if exemplar and by > 0:
        values["exemplar"] = f'{exemplar[1][:-1]},"value":{exemplar[0]}}}'
    if row.family.startswith("spendmeter.task.") and row.moved_ms < now_ms - settings.task_ttl_s * 1000:
        seen = row.shown_ms is not None or row.pushed_ms is not None  # else nobody knows of its value yet
        values |= {"held": row.value if seen else row.held, "shown_ms": None, "pushed_ms": None}
    return {"series_id": row.id} | {f"to_{x}": value for x, value in values.items()}


def slots(conn: Connection, pairs: set[tuple[str, str]], now_ms: int, settings: Settings) -> set[tuple[str, str]]:
    """Gives each (agent, task) its place; returns those that go under the overflow label, for good."""
    k = t.tasks.c
    mine = select(t.tasks).where(k.agent.in_({agent for agent, _ in pairs}))
    known = {(r.agent, r.task): bool(r.overflow) for r in among(conn, mine, k.task, {task for _, task in pairs})}
    if new := sorted(pairs - known.keys()):
        since = now_ms - int(settings.task_ttl_s * 1000)
        live = select(k.task).where(k.used_ms >= since, k.overflow.is_(False)).limit(settings.max_tasks)
        free = settings.max_tasks - len(conn.execute(live).all())
        known |= {pair: i >= free for i, pair in enumerate(new)}
    upsert(conn, t.tasks, [{"agent": a, "task": x, "overflow": known[a, x], "used_ms": now_ms} for a, x in sorted(pairs)])
    return {pair for pair in pairs if known[pair]}


def skip_amounts(conn: Connection) -> Amounts:
    """What the filed skips add to their series."""
    rows = conn.execute(select(t.skips.c.source, t.skips.c.reason, func.count().label("n")).group_by(t.skips.c.source, t.skips.c.reason))
    return {(m.SKIPPED.name, dump([label(r.source), label(r.reason)])): int(r.n) for r in rows}


def enqueue(conn: Connection, rows: Mapping[int, tuple[list[dict[str, Any]], list[dict[str, Any]]]]) -> None:
    """Puts each run whose content is new into the spool; what was already sent as it stands is not sent again.

    Args:
        rows: by session: its runs and entries.
    """
    known = {(r.session_id, r.run_key): r.print for r in among(conn, select(t.spool), t.spool.c.session_id, rows.keys())}
    prints: dict[tuple[int, str], str] = {}
    for sid, (runs, entries) in rows.items():
        mine: dict[str, list[str]] = defaultdict(list)
        for e in entries:
            mine[e["run_key"]].append(repr(sorted(e.items())))
        for run in runs:
            body = [sorted(run.items()), sorted(mine[run["run_key"]])]
            prints[sid, run["run_key"]] = hashlib.sha256(repr(body).encode()).hexdigest()[:32]
    stale = [{"of": sid, "run": key} for (sid, key), mark in known.items() if prints.get((sid, key)) != mark]
    if stale:
        conn.execute(_STALE, stale)
    news = [key for key, mark in prints.items() if known.get(key) != mark]
    if news:
        values = [{"session_id": s, "run_key": k, "print": prints[s, k], "traced": False, "logged": False} for s, k in news]
        conn.execute(insert(t.spool), values)


_STALE = delete(t.spool).where(t.spool.c.session_id == bindparam("of"), t.spool.c.run_key == bindparam("run"))
