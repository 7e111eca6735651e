"""What re-attribution leaves in place: usage that was counted stays under its labels, later usage goes under the new ones.

A session's shift of a series is added to what its rows say of it. The shifts of series that differ in agent and task alone add up to
nothing, so no total changes. A share that would fall below nothing (usage has turned out to be less) is taken from the others.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import cache

from sqlalchemy import Connection, delete, select

from spendmeter import metrics as m
from spendmeter.config import Settings
from spendmeter.ledger import posting
from spendmeter.ledger import schema as t
from spendmeter.ledger.bulk import among, batches, upsert
from spendmeter.ledger.costing import cut
from spendmeter.ledger.derive import Rows
from spendmeter.ledger.posting import Amounts
from spendmeter.ledger.store import dump

Key = tuple[str, str]  # family, labels as JSON


def of(conn: Connection, sids: Collection[int]) -> dict[int, Amounts]:
    """The shifts of those of the sessions *sids* that have any."""
    out: dict[int, Amounts] = defaultdict(dict)
    for r in among(conn, select(t.shifts), t.shifts.c.session_id, sids):
        out[r.session_id][r.family, r.labels] = int(r.amount)
    return dict(out)


def applied(wanted: Amounts, shifts: Amounts) -> Amounts:
    """What a session should add to each series: *wanted* by its rows, and its *shifts*; never less than nothing."""
    if not shifts:
        return wanted
    out = {key: wanted.get(key, 0) + shifts.get(key, 0) for key in wanted.keys() | shifts.keys()}
    for key in sorted(key for key, n in out.items() if n < 0):
        lacking, out[key] = -out[key], 0
        for other in _givers(key, out, shifts):
            taken = min(lacking, max(0, out[other]))
            out[other] -= taken
            lacking -= taken
    return {key: n for key, n in out.items() if n}


def _givers(key: Key, out: Iterable[Key], shifts: Amounts) -> list[Key]:
    """Whom what *key* lacks is taken from: the overflow that a task's usage has gone to, what was left in place, the rest."""
    group, agent = _group(key), json.loads(key[1])[0]
    return sorted(
        (other for other in out if other != key and _group(other) == group),
        key=lambda other: (json.loads(other[1]) != [agent, m.OVERFLOW], shifts.get(other, 0) <= 0, other),
    )


def leave(conn: Connection, rows: Mapping[int, Rows], settings: Settings) -> None:
    """Has what the sessions have counted until now stay where it is, *rows* being what they hold from now on."""
    for some in batches(rows.keys()):
        conn.execute(delete(t.shifts).where(t.shifts.c.session_id.in_(some)))
    held = posting.held(conn, rows.keys())
    over = {(r.agent, r.task) for r in conn.execute(select(t.tasks).where(t.tasks.c.overflow.is_(True)))} if held else set()
    values = [
        {"session_id": sid, "family": family, "labels": labels, "amount": n}
        for sid in sorted(held)
        for (family, labels), n in sorted(_left(held[sid], posting.amounts(*rows[sid], over, settings)).items())
    ]
    upsert(conn, t.shifts, values)


def _left(held: Amounts, wanted: Amounts) -> Amounts:
    """By series, what was counted under it less its part of what it should have been counted under."""
    counted: dict[Key, int] = defaultdict(int)
    series: dict[Key, list[Key]] = defaultdict(list)
    for key, n in held.items():
        counted[_group(key)] += n
    for key in sorted(wanted):
        series[_group(key)].append(key)
    out: dict[Key, int] = defaultdict(int)
    for group, keys in series.items():
        parts = cut(counted[group], [wanted[key] for key in keys])
        for key, part in zip(keys, parts, strict=True):
            out[key] -= part or 0
    for key, n in held.items():
        if _group(key) in series:
            out[key] += n
    return {key: n for key, n in out.items() if n}


def _group(key: Key) -> Key:
    """Equal for series that differ in agent and task alone."""
    family, labels = key
    names = _labels(family)
    rest = [x for i, x in enumerate(json.loads(labels)) if names[i : i + 1] not in (("agent",), ("task",))]
    return family, dump(rest)


@cache
def _labels(family: str) -> tuple[str, ...]:
    """Names of a family's labels; a histogram's families have its name before theirs."""
    return next(x.labels for x in m.DURABLE if family == x.name or (x is m.RUN_DURATION and family.startswith(x.name)))
