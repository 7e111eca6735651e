"""Records events: their rows and their usage in one transaction."""

from __future__ import annotations

import secrets
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, insert, select

from spendmeter.config import Settings
from spendmeter.errors import LedgerError, SpendmeterError
from spendmeter.ledger import Batch, Ledger, Process, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.costing import Prices
from spendmeter.ledger.engine import ConnectionLostError, reconnecting
from spendmeter.records import NANO, Call, Claim, Tags
from spendmeter.token_events.cleaning import kept
from spendmeter.token_events.fields import COST_MAX_USD
from spendmeter.token_events.model import FieldError, TokenEvent, TokenEventError
from spendmeter.token_events.workstreams import Workstreams

CLI = "api"  # what a run that no CLI made is listed under
_IN = 500  # values in one list of a query
Row = dict[str, Any]  # of the table token_events
_Named = Sequence[tuple[str, TokenEvent]]  # what was asked for at once: events, and the ids that they get


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
    done = record_each(ledger, [events])[0]
    if isinstance(done, Exception):
        raise done
    return done


def record_each(ledger: Ledger, asked: Sequence[Sequence[TokenEvent]]) -> list[Recorded | Exception]:
    """As ``record`` does with each of *asked* one after the other, but in one transaction. What is wrong with one troubles no other.

    Raises:
        LedgerError: no transaction could be begun, or its connection was lost.
    """
    prices = ledger.prices
    dear = [_too_dear(prices, events) for events in asked]
    # Ids are given once, so that it can be tried again where the connection is lost midway.
    named = [[(secrets.token_hex(16), e) for e in events] for events, wrong in zip(asked, dear, strict=True) if wrong is None]
    done = iter(_together(ledger, prices, named) if named else ())
    return [next(done) if wrong is None else wrong for wrong in dear]


def _together(ledger: Ledger, prices: Prices, asked: Sequence[_Named]) -> Sequence[Recorded | Exception]:
    begun = False

    def once() -> list[Recorded | ConflictError]:
        nonlocal begun
        with ledger.write() as conn:
            begun = True
            return _record(ledger, conn, prices, asked)

    try:
        return reconnecting(once)
    except ConnectionLostError:
        raise
    except Exception as e:
        if isinstance(e, LedgerError) and not begun:
            raise
        return [e] if len(asked) == 1 else [done for one in asked for done in _together(ledger, prices, [one])]


def _record(ledger: Ledger, conn: Connection, prices: Prices, asked: Sequence[_Named]) -> list[Recorded | ConflictError]:
    now = now_ms()
    by_id, by_key = _known(conn, [one for named in asked for one in named])
    workstreams, fresh = Workstreams(conn, ledger.settings), list[tuple[TokenEvent, Row]]()
    out: list[Recorded | ConflictError] = []
    for named in asked:
        try:
            rows, added = _rows_of(named, by_id, by_key, workstreams, ledger.settings, now)
        except ConflictError as e:
            out.append(e)
            continue
        for _, row in added:
            by_key[row["idempotency_key"]] = row
            workstreams.add(row["task"], row["occurred_ms"], row["workstream"])
        fresh += added
        mine = {name for name, _ in named}
        out.append(Recorded(rows, any(row["id"] in mine for row in rows)))
    if fresh:
        conn.execute(insert(t.token_events), [row for _, row in fresh])
        ledger.commit_in(conn, _batch(fresh, now), prices)
    return out


def _rows_of(
    named: _Named, by_id: Mapping[str, Row], by_key: dict[str | None, Row], workstreams: Workstreams, settings: Settings, now: int
) -> tuple[list[Row], list[tuple[TokenEvent, Row]]]:
    """(a row for each event, those that are to be added)

    Raises:
        ConflictError: a key names an event that differs.
    """
    keys, last = ChainMap[str | None, Row]({}, by_key), dict[str, str | None]()
    rows, added = [], []
    for i, (name, event) in enumerate(named):
        row = by_id.get(name) or (keys.get(event.idempotency_key) if event.idempotency_key else None)
        if row is None:
            row = _row(name, kept(event, settings), _workstream(event, last, workstreams, settings), now, event.digest)
            added.append((event, row))
            keys[event.idempotency_key] = row
        elif row["digest"] != event.digest:
            raise ConflictError(i)
        rows.append(row)
    return rows, added


def _too_dear(prices: Prices, events: Sequence[TokenEvent]) -> TokenEventError | None:
    """The price of all those tokens must fit the ledger too."""
    errors = []
    for i, e in enumerate(events):
        listed = prices.price(e.model, e.usage, e.occurred_ms) if e.model else None
        if listed is not None and listed > COST_MAX_USD * NANO:
            at = f"{i}." if len(events) > 1 else ""
            errors.append(FieldError(f"{at}tokens_in", f"at list price the event costs more than {COST_MAX_USD} USD; cut it into several"))
    return TokenEventError(errors) if errors else None


def _known(conn: Connection, named: _Named) -> tuple[dict[str, Row], dict[str | None, Row]]:
    """Rows that are there already, by id and by idempotency key."""
    c = t.token_events.c
    by_id = {r["id"]: r for r in _rows(conn, c.id, [name for name, _ in named])}
    keys = [e.idempotency_key for _, e in named if e.idempotency_key]
    return by_id, {r["idempotency_key"]: r for r in _rows(conn, c.idempotency_key, keys)}


def _rows(conn: Connection, column: Column[Any], values: Sequence[str]) -> Iterator[Row]:
    for i in range(0, len(values), _IN):
        for r in conn.execute(select(t.token_events).where(column.in_(values[i : i + _IN]))):
            yield dict(r._mapping)


def _workstream(event: TokenEvent, last: dict[str, str | None], known: Workstreams, settings: Settings) -> str | None:
    """The event's own, else that of its task; *last* keeps by task what the events before it in their list have."""
    if event.workstream or event.task == "unknown":
        last[event.task] = kept(event, settings).workstream
    elif event.task not in last:
        last[event.task] = known.of(event.task)
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
