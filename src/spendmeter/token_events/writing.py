"""Records events: their rows and their usage in one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, insert, select

from spendmeter.config import Settings
from spendmeter.errors import SpendmeterError
from spendmeter.ledger import Batch, Ledger, Process, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.costing import Prices
from spendmeter.ledger.engine import reconnecting
from spendmeter.records import NANO, Call, Claim, Tags
from spendmeter.token_events.cleaning import kept, names
from spendmeter.token_events.fields import COST_MAX_USD
from spendmeter.token_events.model import FieldError, TokenEvent, TokenEventError

CLI = "api"  # what a run that no CLI made is listed under
_IN = 500  # values in one list of a query
Row = dict[str, Any]  # of the table token_events


class ConflictError(SpendmeterError):
    """An idempotency key names another event already; ``index`` is that of the new one."""

    def __init__(self, index: int) -> None:
        super().__init__("the idempotency key was used for another event; take a new key, or send that event unchanged")
        self.index = index


class Recorded(NamedTuple):
    """A row for each event, in their order; ``new`` is False where all of them were known before."""

    rows: list[Row]
    new: bool


def record(ledger: Ledger, events: Sequence[TokenEvent]) -> Recorded:
    """Records all of *events* or none. One whose idempotency key is known is the one that was recorded then.

    Raises:
        ConflictError: a key names an event that differs.
        TokenEventError: an event costs more than any does.
        LedgerError: the ledger cannot be written.
    """
    prices = ledger.prices
    _check_prices(prices, events)
    named = [(secrets.token_hex(16), e) for e in events]  # once, so that it can be tried again where the connection is lost midway

    def once() -> Recorded:
        with ledger.write() as conn:
            return _record(ledger, conn, prices, named)

    return reconnecting(once)


def _record(ledger: Ledger, conn: Connection, prices: Prices, named: Sequence[tuple[str, TokenEvent]]) -> Recorded:
    now = now_ms()
    by_id, by_key = _known(conn, named)
    workstreams: dict[str, str | None] = {}
    rows, fresh = [], []
    for i, (name, event) in enumerate(named):
        row = by_id.get(name) or by_key.get(event.idempotency_key)
        if row is None:
            row = _row(name, kept(event, ledger.settings), _workstream(conn, event, workstreams, ledger.settings), now, event.digest)
            fresh.append((event, row))
            if event.idempotency_key:
                by_key[event.idempotency_key] = row
        elif row["digest"] != event.digest:
            raise ConflictError(i)
        rows.append(row)
    if fresh:
        conn.execute(insert(t.token_events), [row for _, row in fresh])
        ledger.commit_in(conn, _batch(fresh, now), prices)
    mine = {name for name, _ in named}
    return Recorded(rows, any(row["id"] in mine for row in rows))


def _check_prices(prices: Prices, events: Sequence[TokenEvent]) -> None:
    """The price of all those tokens must fit the ledger too."""
    errors = []
    for i, e in enumerate(events):
        listed = prices.price(e.model, e.usage, e.occurred_ms) if e.model else None
        if listed is not None and listed > COST_MAX_USD * NANO:
            at = f"{i}." if len(events) > 1 else ""
            errors.append(FieldError(f"{at}tokens_in", f"at list price the event costs more than {COST_MAX_USD} USD; cut it into several"))
    if errors:
        raise TokenEventError(errors)


def _known(conn: Connection, named: Sequence[tuple[str, TokenEvent]]) -> tuple[dict[str, Row], dict[str | None, Row]]:
    """Rows that are there already, by id and by idempotency key."""
    c = t.token_events.c
    by_id = {r["id"]: r for r in _rows(conn, c.id, [name for name, _ in named])}
    keys = [e.idempotency_key for _, e in named if e.idempotency_key]
    return by_id, {r["idempotency_key"]: r for r in _rows(conn, c.idempotency_key, keys)}


def _rows(conn: Connection, column: Column[Any], values: Sequence[str]) -> Iterator[Row]:
    for i in range(0, len(values), _IN):
        for r in conn.execute(select(t.token_events).where(column.in_(values[i : i + _IN]))):
            yield dict(r._mapping)


def _workstream(conn: Connection, event: TokenEvent, last: dict[str, str | None], settings: Settings) -> str | None:
    """The event's own, else what its task's latest run (events are runs too) names; *last* keeps what is found by task."""
    if event.workstream or event.task == "unknown":
        last[event.task] = kept(event, settings).workstream
        return last[event.task]
    if event.task not in last:
        r = t.runs.c
        mine = names(r.task, "task", event.task, settings)
        named = select(r.workstream).where(mine, r.workstream.is_not(None)).order_by(r.ended_ms.desc()).limit(1)
        last[event.task] = conn.execute(named).scalar_one_or_none()
    return last[event.task]


def _row(name: str, event: TokenEvent, workstream: str | None, now: int, digest: str) -> Row:
    """*event* as it is kept; *digest* is of what was posted, so that it is known again whatever is made of names by then."""
    told = {field: getattr(event, field) for field in event.__slots__}
    at = now if event.occurred_ms is None else event.occurred_ms
    return told | {"id": name, "workstream": workstream, "occurred_ms": at, "created_ms": now, "digest": digest}


def _batch(fresh: Sequence[tuple[TokenEvent, Row]], now: int) -> Batch:
    """Each event is a session with one run and one call, all named by its id. The note is no part of them."""
    calls = [Call(CLI, r["id"], r["id"], e.usage, e.model, e.model, r["occurred_ms"]) for e, r in fresh]
    claims = [Claim(CLI, r["id"], f"run:{r['id']}", _tags(r), r["id"]) for _, r in fresh]
    processes = [
        Process(CLI, r["id"], r["id"], r["id"], ended_ms=r["occurred_ms"], repo=r["repo"], commit=_commit(r))
        for _, r in fresh
        if r["repo"] or _commit(r)
    ]
    return Batch(calls, claims, processes, settled=True, seen_ms=now)


def _tags(row: Row) -> Tags:
    """What it refers to is an attribute of that name, as a run has it that was given ``--attr release=1.2``."""
    attrs = {"workstream": row["workstream"], row["ref_type"]: row["ref_id"]}
    return Tags(row["agent"], row["task"], {name: value for name, value in attrs.items() if name and value})


def _commit(row: Row) -> str | None:
    return row["ref_id"] if row["ref_type"] == "commit" else None
