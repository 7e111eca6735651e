"""What the first page shows, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from spendmeter.ledger import Ledger
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
    """The first day of anything."""
    found = report(ledger, ["month"], where=asked.filtered(), timezone=asked.zone)
    months = [r.keys[0] for r in found.rows if r.keys[0]]
    if not months or (today - date.fromisoformat(f"{months[0]}-01")).days >= 92:
        return date.fromisoformat(f"{months[0]}-01") if months else today
    days = report(ledger, ["day"], where=asked.filtered(), timezone=asked.zone)
    return min((date.fromisoformat(r.keys[0]) for r in days.rows if r.keys[0]), default=today)


def _day(ms: int, asked: Asked) -> date:
    return datetime.fromtimestamp(ms / 1000, zone(asked.zone)).date()
