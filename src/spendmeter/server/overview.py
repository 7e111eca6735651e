"""What the first page shows, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import func, select

from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.amounts import NOTHING, Amounts
from spendmeter.ledger.periods import when_ms, zone
from spendmeter.ledger.query import Report, Row, RunLine, Where, report, runs
from spendmeter.server.asked import PERIODS, Asked
from spendmeter.server.chart import DAYS_MIN, Chart, chart, unit

ROWS = 10  # of a table; what is beyond is added up
RUNS = 12
TABLES = {"agent": "By agent", "task": "By task", "model": "By model", "outcome": "By outcome"}


@dataclass(frozen=True, slots=True)
class Card:
    """A period and what was spent in it."""

    period: str
    label: str
    total: Amounts


@dataclass(frozen=True, slots=True)
class Table:
    """Usage by one dimension, the dearest first; ``rest`` adds up *more* further rows."""

    by: str
    title: str
    rows: tuple[Row, ...]
    rest: Amounts
    more: int
    total: Amounts


@dataclass(frozen=True, slots=True)
class Overview:
    """The page's content."""

    period: str
    cards: tuple[Card, ...]
    total: Amounts
    chart: Chart
    tables: tuple[Table, ...]
    runs: tuple[RunLine, ...]
    facts: dict[str, Any]
    empty: bool  # no run at all, whatever the filters


def overview(ledger: Ledger, asked: Asked) -> Overview:
    """All of it.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    sums = {p: report(ledger, [], where=asked.where(p)).total for p in PERIODS}
    period = asked.period or ("month" if sums["month"].runs else "all")
    where = asked.where(period)
    facts = ledger.facts_about()
    empty = not sums["all"].runs and (not asked.filters or not runs(ledger, Where(), 1))
    return Overview(
        period, tuple(Card(p, label, sums[p]) for p, label in PERIODS.items()), sums[period], _chart(ledger, asked, period),
        tuple(_table(ledger, by, title, where) for by, title in TABLES.items()), tuple(runs(ledger, where, RUNS)), facts, empty,
    )  # fmt: skip


def _table(ledger: Ledger, by: str, title: str, where: Where) -> Table:
    found = report(ledger, [by], where=where)
    rest = NOTHING
    for row in found.rows[ROWS:]:
        rest = rest.plus(row.amounts)
    return Table(by, title, found.rows[:ROWS], rest, max(0, len(found.rows) - ROWS), found.total)


def _chart(ledger: Ledger, asked: Asked, period: str) -> Chart:
    """Of the period, but of no less than ``DAYS_MIN`` days."""
    today = asked.today().date()
    start = asked.since_ms(period)
    first = _day(start, asked) if start is not None else _first(ledger, asked, today)
    by = unit(first, today)
    least = when_ms(f"{date.fromordinal(today.toordinal() - DAYS_MIN + 1)}", asked.zone)
    since = None if start is None else min(start, least)
    found: Report = report(ledger, [by, "agent"], where=asked.filtered(since), timezone=asked.zone)
    return chart(found, by, min(first, today), today)


def _first(ledger: Ledger, asked: Asked, today: date) -> date:
    """The first day of any usage."""
    e, r = t.entries.c, t.runs.c
    query = select(func.min(e.minute_ms))
    if asked.filters:
        query = query.join(t.runs, (r.session_id == e.session_id) & (r.run_key == e.run_key))
        query = query.where(*[(e if name == "model" else r)[name] == value for name, value in asked.filters.items()])
    with ledger.read() as conn:
        first = conn.execute(query).scalar_one()
    return today if first is None else _day(first, asked)


def _day(ms: int, asked: Asked) -> date:
    return datetime.fromtimestamp(ms / 1000, zone(asked.zone)).date()
