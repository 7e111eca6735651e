"""What each source saw of the sessions of a while, beside what all of them give together. Reads only.

Totals are those of ``entries``; each source's share is the rule over its facts alone (``reconcile/seen.py``), some sessions at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, func, select

from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger, derive, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.bulk import among, batches
from spendmeter.ledger.store import Store
from spendmeter.reconcile.rule import Rule
from spendmeter.reconcile.seen import SOURCES, Seen, seen
from spendmeter.records import NOTHING, Usage

TOP = 20
FIELDS = ("tokens_in", "cache_read", "cache_write", "tokens_out", "reasoning", "cost")  # that are compared
_ROUNDING = 1e-4  # share of a cost that adding up rounded figures may lose
_EVERY_SESSION = ("file", "otlp")  # sources that, once in use, are to see every session; what is printed only a wrapper sees
COMPLETE, LESS, UNTOLD, UNSEEN = "complete", "less", "cannot_tell", "not_seen"


def amount(used: Usage, name: str) -> int | None:
    """One of ``FIELDS`` of *used*."""
    value: int | None = used.cost_nusd if name == "cost" else getattr(used, name)
    return value


class View(NamedTuple):
    """What one source saw of something whose total is *of*; ``seen`` None: nothing. ``of.cost_nusd`` is what any CLI itself told."""

    of: Usage
    seen: Seen | None

    @property
    def missing(self) -> dict[str, float]:
        """By field, the share of the total that this source did not see."""
        out = {}
        for name in FIELDS if self.seen else ():
            there, whole = amount(self.seen.usage, name), amount(self.of, name)  # type: ignore[union-attr] # FIELDS only where seen
            if there is not None and whole and (lost := 1 - there / whole) > (_ROUNDING if name == "cost" else 0):
                out[name] = lost
        return out

    @property
    def untold(self) -> list[str]:
        """Fields that there is something of, and that this source tells nothing of."""
        used = self.seen.usage if self.seen else NOTHING
        return [name for name in FIELDS if self.seen and amount(self.of, name) and amount(used, name) is None]

    @property
    def verdict(self) -> str:
        """``not_seen``, ``cannot_tell`` (any tokens), ``less`` or ``complete``."""
        if self.seen is None:
            return UNSEEN
        if self.of.tokens and all(x is None for x in self.seen.usage[:5]):
            return UNTOLD
        return LESS if self.missing else COMPLETE

    @property
    def share(self) -> float | None:
        """Of the total's tokens; None where that cannot be told."""
        if self.seen is None or self.verdict == UNTOLD or not self.of.tokens:
            return None
        return self.seen.usage.tokens / self.of.tokens

    @property
    def gap(self) -> int:
        """Tokens of the total that it did not see; 0 where it could not tell."""
        used = self.seen.usage.tokens if self.seen else 0
        return 0 if self.verdict == UNTOLD else max(0, self.of.tokens - used)


@dataclass(frozen=True, slots=True)
class Session:
    """One session; ``views`` by source, empty where its facts are gone because it was closed."""

    cli: str
    session: str
    last_ms: int | None
    closed: bool
    total: Usage
    calls: int | None
    views: Mapping[str, View]


@dataclass(slots=True)
class Sum:
    """What one source saw of a CLI's sessions: in how many it saw anything, in how many all, and of what total."""

    sessions: int = 0
    complete: int = 0
    untold: int = 0  # sessions of which it cannot tell any tokens
    calls: int | None = None
    used: Usage = NOTHING
    of: Usage = NOTHING  # by field, the total of the sessions of which it told that
    whole: Usage = NOTHING  # the total of the sessions of which it told tokens

    def add(self, view: View) -> None:
        """Adds a session that it saw."""
        if view.seen is None:
            return
        self.sessions += 1
        self.complete += view.verdict == COMPLETE
        self.untold += view.verdict == UNTOLD
        self.calls = (self.calls or 0) + view.seen.calls if view.seen.calls is not None else self.calls
        if view.verdict != UNTOLD:
            self.used, self.of = self.used.plus(view.seen.usage), self.of.plus(_where_told(view.seen.usage, view.of))
            self.whole = self.whole.plus(view.of)

    @property
    def view(self) -> View:
        """The sessions of which it told tokens, as one; of a field, those of which it told that, or all if there is none."""
        of = Usage(*[every if told is None else told for told, every in zip(self.of, self.whole, strict=True)])
        return View(of, Seen(self.calls, self.used) if self.sessions else None)


def _where_told(used: Usage, of: Usage) -> Usage:
    """The fields of *of* that *used* tells; cache writes of both lifetimes where it tells either."""
    told = Usage(*[None if x is None else y for x, y in zip(used, of, strict=True)])
    return told if used.cache_write is None else told._replace(cache_write_5m=of.cache_write_5m, cache_write_1h=of.cache_write_1h)


@dataclass(slots=True)
class OfCli:
    """The sessions of one CLI; ``total`` and ``sums`` (by source) leave out the closed ones."""

    cli: str
    sessions: int = 0
    closed: int = 0
    calls: int | None = None
    total: Usage = NOTHING
    sums: dict[str, Sum] = field(default_factory=lambda: {source: Sum() for source in SOURCES})

    def add(self, one: Session) -> None:
        """Adds a session."""
        self.sessions += 1
        self.closed += one.closed
        if one.closed:
            return
        self.total = self.total.plus(one.total)
        self.calls = (self.calls or 0) + one.calls if one.calls is not None else self.calls
        for source, view in one.views.items():
            self.sums[source].add(view)

    def share(self, source: str) -> float | None:
        """Of all tokens, those that *source* saw; None where it saw none or cannot tell."""
        s = self.sums[source]
        return s.used.tokens / self.total.tokens if s.sessions > s.untold and self.total.tokens else None


@dataclass(frozen=True, slots=True)
class Compared:
    """CLIs by name, and the sessions with the largest gaps first: seen in part, then not seen by a source that saw others."""

    clis: tuple[OfCli, ...]
    sessions: tuple[Session, ...]


def compare(ledger: Ledger, since_ms: int | None, clis: Sequence[str], top: int = TOP) -> Compared:
    """Every session of *clis* with a sign of life since *since_ms* (None: all), in bounded memory.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    sums: dict[str, OfCli] = {}
    worst = _Worst(top)
    with ledger.read() as conn:
        recent = () if since_ms is None else (t.runs.c.last_ms >= since_ms,)
        for one in _sessions(conn, _last(conn, t.runs.c.cli.in_(clis), *recent)):
            sums.setdefault(one.cli, OfCli(one.cli)).add(one)
            worst.add(one)
    return Compared(tuple(sums[cli] for cli in sorted(sums)), worst.found(sums))


def of_session(ledger: Ledger, name: str, clis: Sequence[str]) -> list[Session]:
    """The sessions of *clis* with the id *name*, or known by it as an alias.

    Raises:
        LedgerError: there is none.
    """
    s, a = t.sessions.c, t.aliases.c
    query = select(s.id).outerjoin(t.aliases, (a.cli == s.cli) & (a.session == s.session)).where((s.session == name) | (a.alias == name))
    with ledger.read() as conn:
        sids = conn.execute(query.where(s.cli.in_(clis))).scalars().all()
        found = list(_sessions(conn, dict.fromkeys(sids) | _last(conn, t.runs.c.session_id.in_(sids))))
    if not found:
        raise LedgerError(f'session "{name}" is not in the ledger; spendmeter report --by session lists those that are')
    return found


def _last(conn: Connection, *where: ColumnElement[bool]) -> dict[int, int | None]:
    """When each session with such a run gave its last sign of life in one, by id."""
    r = t.runs.c
    return {int(sid): at for sid, at in conn.execute(select(r.session_id, func.max(r.last_ms)).where(*where).group_by(r.session_id))}


def _sessions(conn: Connection, last: Mapping[int, int | None]) -> Iterator[Session]:
    """What is known of the sessions that are keys of *last*, some at a time."""
    for sids in batches(last):
        store, totals = Store(conn, now_ms()), _totals(conn, sids)
        heads = sorted(among(conn, select(t.sessions), t.sessions.c.id, sids), key=lambda head: head.id)  # no database promises an order
        kin = derive.kin_of(store, [head.id for head in heads if head.closed_ms is None])
        for head in heads:
            closed, (used, calls) = head.closed_ms is not None, totals[head.id]
            views = {} if closed else _views(Rule(*derive.gather(store, head.id, kin)), used)
            yield Session(head.cli, head.session, last[head.id], closed, used, calls, views)


def _views(rule: Rule, used: Usage) -> dict[str, View]:
    return {source: View(used, seen(rule, source)) for source in SOURCES}


def _totals(conn: Connection, sids: Sequence[int]) -> dict[int, tuple[Usage, int | None]]:
    """Usage, with what CLIs themselves told of its cost, and calls, as reports have them."""
    e, names = t.entries.c, Usage._fields[:-1]
    sums = [func.sum(e[name]) for name in (*names, "reported_nusd", "calls")]
    out: dict[int, tuple[Usage, int | None]] = defaultdict(lambda: (NOTHING, None))
    for sid, *told in among(conn, select(e.session_id, *sums).group_by(e.session_id), e.session_id, sids):
        *used, calls = (None if x is None else int(x) for x in told)  # a sum on PostgreSQL is a decimal
        out[sid] = Usage(*used), calls
    return out


class _Worst:
    """Keeps, by CLI and source, the sessions of which it saw least, apart for those of which it saw nothing."""

    def __init__(self, top: int) -> None:
        self._top, self._count = top, 0
        self._heaps: dict[tuple[str, str, bool], list[tuple[int, int, Session]]] = defaultdict(list)

    def add(self, one: Session) -> None:
        """Takes a session."""
        for source, view in one.views.items():
            if view.gap:
                self._count += 1
                heap, item = self._heaps[one.cli, source, view.seen is None], (view.gap, self._count, one)
                heappush(heap, item) if len(heap) < self._top else heappushpop(heap, item)

    def found(self, sums: Mapping[str, OfCli]) -> tuple[Session, ...]:
        """The worst of all, then those that a source which is in use saw nothing of."""
        kept: dict[tuple[bool, int, int], Session] = {}
        for (cli, source, unseen), heap in self._heaps.items():
            if not unseen or (source in _EVERY_SESSION and sums[cli].sums[source].sessions):
                kept |= {(unseen, -gap, -number): one for gap, number, one in heap}
        order = {id(kept[key]): kept[key] for key in sorted(kept)}
        return tuple(order.values())[: self._top]
