"""Re-attribution: sessions that are in the ledger already come to go by today's rules.

Runs, entries, reports and budgets move at once; what counters have counted stays where it is (``shifts``). Sessions are taken some at a
time, each lot in one transaction: whoever is killed midway has done a part, and the rest is done the next time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, exists, select, update

from spendmeter.errors import ConfigError
from spendmeter.ledger import Ledger, derive, now_ms, posting, shifts, tagging
from spendmeter.ledger import schema as t
from spendmeter.ledger.amounts import NOTHING, SUMS, Amounts
from spendmeter.ledger.bulk import among, batches
from spendmeter.ledger.store import Store

AT_ONCE = 50  # sessions in one transaction: other writers wait for that long
Pair = tuple[str, str]  # agent, task
Progress = Callable[[int, int], None]  # sessions done, sessions in all


@dataclass(frozen=True, slots=True)
class Move:
    """What goes from one agent and task to another by the same rules (numbers from 1; none: no rule holds any more).

    ``attrs`` are the attributes that change. ``runs`` counts runs of which anything moves.
    """

    rules: tuple[int, ...]
    before: Pair
    after: Pair
    attrs: tuple[str, ...]
    sessions: int
    amounts: Amounts

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        keys = ("agent", "task")
        return {
            "rules": list(self.rules), "from": dict(zip(keys, self.before, strict=True)), "to": dict(zip(keys, self.after, strict=True)),
            "attrs": list(self.attrs), "sessions": self.sessions, **self.amounts.as_dict(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attributed:
    """What re-attribution moved, or would move: ``sessions`` of those ``looked`` at; ``closed`` ones stay as they are."""

    moves: tuple[Move, ...]
    sessions: int
    looked: int
    closed: int


@dataclass(slots=True)
class _Moved:
    """A move while it is added up."""

    sessions: set[int] = field(default_factory=set)
    runs: set[tuple[int, str]] = field(default_factory=set)
    amounts: Amounts = NOTHING


_Moves = dict[tuple[tuple[int, ...], Pair, Pair, tuple[str, ...]], _Moved]


def attribute(ledger: Ledger, *, since_ms: int | None = None, dry_run: bool = False, progress: Progress | None = None) -> Attributed:
    """Has the ledger's sessions go by the rules of its settings, those that go by them already left out.

    Args:
        since_ms: only sessions with a sign of life since then.
        dry_run: only tell what would move.

    Raises:
        ConfigError: the settings have no rules.
        LedgerError: the ledger cannot be written.
    """
    rules = ledger.rules
    if rules is None:
        remedy = "write [[attribution]] rules into it, or attribution = [] to take back what rules gave"
        raise ConfigError(f"{ledger.settings.file or 'settings: no file (--config)'}: no attribution; {remedy}")
    with ledger.read() as conn:
        sids, closed = _asked(conn, rules.name, since_ms)
    found: _Moves = {}
    changed, done, _ = 0, 0, ledger.prices  # loaded before any lock is taken
    for i in range(0, len(sids), AT_ONCE):
        some = sids[i : i + AT_ONCE]
        with ledger.read() if dry_run else ledger.write() as conn:
            changed += _some(conn, ledger, tagging.Trial(rules), some, found, dry_run=dry_run)
        done += len(some)
        if progress:
            progress(done, len(sids))
    return Attributed(tuple(sorted((_move(*item) for item in found.items()), key=_order)), changed, len(sids), closed)


def _asked(conn: Connection, name: str | None, since_ms: int | None) -> tuple[list[int], int]:
    """The sessions that go by other rules, and the number of those among them that are closed."""
    s, r = t.sessions.c, t.runs.c
    query = select(s.id, s.closed_ms).where(s.ruleset.is_distinct_from(name)).order_by(s.id)
    if since_ms is not None:
        query = query.where(exists().where(r.session_id == s.id, r.last_ms >= since_ms))
    rows = conn.execute(query).all()
    open_ = [int(row.id) for row in rows if row.closed_ms is None]
    return open_, len(rows) - len(open_)


def _some(conn: Connection, ledger: Ledger, trial: tagging.Trial, sids: list[int], found: _Moves, *, dry_run: bool) -> int:
    """Moves some sessions and adds up what has moved; how many of them changed."""
    store = Store(conn, now_ms())
    sids = [sid for sid in sids if not store.is_closed(sid)]
    before, after = derive.stored(conn, sids), derive.derive(store, sids, ledger.prices, trial)
    changed = {sid for sid in sids if _add(found, trial, sid, before[sid], after[sid])}
    if not dry_run:
        _write(conn, ledger, trial, store, after)
    return len(changed)


def _write(conn: Connection, ledger: Ledger, trial: tagging.Trial, store: Store, after: dict[int, derive.Rows]) -> None:
    s = t.sessions.c
    tagging.go_by(conn, trial.rules, after.keys())
    changed = derive.replace(store, after)
    shifts.leave(conn, {sid: after[sid] for sid in changed}, ledger.settings)
    settled = {int(r.id) for r in among(conn, select(s.id).where(s.settle_at_ms.is_(None)), s.id, changed)}
    posting.enqueue(conn, {sid: after[sid] for sid in settled})
    number = ledger.moved(conn) + 1
    for some in batches(changed):
        conn.execute(update(t.sessions).where(s.id.in_(some)).values(moved=number))


# -- what moves --------------------------------------------------------------------------------------------------------


def _add(found: _Moves, trial: tagging.Trial, sid: int, before: derive.Rows, after: derive.Rows) -> bool:
    """Adds up what moves in one session; whether anything does."""
    old, new = ({r["run_key"]: r for r in rows[0]} for rows in (before, after))
    any_ = False
    for key in old.keys() & new.keys():
        attrs = _differing(old[key]["attrs"], new[key]["attrs"])
        flows = list(_flows(_of(old[key]), _of(new[key]), _cells(old[key], before), _cells(new[key], after)))
        if attrs and not flows:
            flows = [(_of(new[key]), _of(new[key]), NOTHING)]
        for here, there, amounts in flows:
            by = _by(trial, sid, new[key], here, there, attrs)
            moved = found.setdefault((by, here, there, attrs), _Moved())
            moved.sessions.add(sid)
            moved.runs.add((sid, key))
            moved.amounts = moved.amounts.plus(amounts)
            any_ = True
    return any_


def _of(run: dict[str, Any]) -> Pair:
    return run["agent"], run["task"]


def _differing(before: str, after: str) -> tuple[str, ...]:
    old, new = json.loads(before), json.loads(after)
    return tuple(sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)))


def _by(trial: tagging.Trial, sid: int, run: dict[str, Any], here: Pair, there: Pair, attrs: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of the rules that set what has changed."""
    values = {key: there[i] for i, key in enumerate(("agent", "task")) if here[i] != there[i]}
    values |= {key: value for key, value in json.loads(run["attrs"]).items() if key in attrs}
    numbers = (trial.why.get((sid, run["run_key"], key, value)) for key, value in values.items())
    return tuple(sorted({n for n in numbers if n is not None}))


_Cells = dict[tuple[str, int], dict[Pair, Amounts]]  # model and minute -> by whose it is


def _cells(run: dict[str, Any], rows: derive.Rows) -> _Cells:
    out: _Cells = defaultdict(dict)
    for e in rows[1]:
        if e["run_key"] == run["run_key"]:
            pair = e["agent"] or run["agent"], e["task"] or run["task"]
            out[e["model"], e["minute_ms"]][pair] = Amounts(*[e[name] for name in SUMS])
    return out


def _flows(before: Pair, after: Pair, old: _Cells, new: _Cells) -> Iterator[tuple[Pair, Pair, Amounts]]:
    """What goes from whom to whom. Where a minute had several owners and gets several others, the largest is matched with the largest."""
    if before != after and not new:
        yield before, after, NOTHING
    for cell, there in new.items():
        here = old.get(cell, {before: NOTHING})
        gone = _ranked({pair: a for pair, a in here.items() if there.get(pair) != a})
        for i, (pair, amounts) in enumerate(come := _ranked({pair: a for pair, a in there.items() if here.get(pair) != a})):
            if len(come) == 1 and len(gone) > 1:
                yield from ((left, pair, a) for left, a in gone if left != pair)
            elif gone and (left := gone[min(i, len(gone) - 1)][0]) != pair:
                yield left, pair, amounts


def _ranked(parts: dict[Pair, Amounts]) -> list[tuple[Pair, Amounts]]:
    return sorted(parts.items(), key=lambda x: (-x[1].tokens, x[0]))


def _move(key: tuple[tuple[int, ...], Pair, Pair, tuple[str, ...]], moved: _Moved) -> Move:
    rules, before, after, attrs = key
    return Move(rules, before, after, attrs, len(moved.sessions), moved.amounts._replace(runs=len(moved.runs)))


def _order(move: Move) -> tuple[Any, ...]:
    """By rule, the dearest first."""
    return move.rules, -(move.amounts.cost_nusd or 0), -move.amounts.tokens, move.before, move.after, move.attrs
