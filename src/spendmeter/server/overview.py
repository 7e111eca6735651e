"""What the first page shows, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spendmeter.ledger import Ledger, now_ms
from spendmeter.ledger.amounts import NOTHING, Amounts
from spendmeter.ledger.budgeting import State
from spendmeter.ledger.query import Row, RunLine, Where, report, runs
from spendmeter.projections.chart import Chart, spend
from spendmeter.projections.top import fullest
from spendmeter.server.asked import PERIODS, Asked

ROWS = 10  # of a table; what is beyond is added up
RUNS = 12
BUDGETS = 8
TABLES = {"agent": "By agent", "task": "By task", "model": "By model", "repo": "By repository", "outcome": "By outcome"}


@dataclass(frozen=True, slots=True)
class Card:
    """A period and what was spent in it."""

    period: str
    label: str
    total: Amounts


@dataclass(frozen=True, slots=True)
class Table:
    """Usage by one dimension, the greatest first; ``rest`` adds up *more* further rows."""

    by: str
    title: str
    rows: tuple[Row, ...]
    rest: Amounts
    more: int
    total: Amounts


@dataclass(frozen=True, slots=True)
class Overview:
    """The page's content. ``budgets``: the fullest first; ``budgets_more``: how many are not shown."""

    period: str
    cards: tuple[Card, ...]
    total: Amounts
    chart: Chart
    tables: tuple[Table, ...]
    runs: tuple[RunLine, ...]
    facts: dict[str, Any]
    empty: bool  # no run at all, whatever the filters
    budgets: tuple[State, ...] = ()
    budgets_more: int = 0


def overview(ledger: Ledger, asked: Asked) -> Overview:
    """All of it.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    sums = {p: report(ledger, [], where=asked.where(p)).total for p in PERIODS}
    period = asked.period or ("month" if sums["month"].runs else "all")
    where = asked.where(period)
    facts = ledger.identity() | {"calls": sums["all"].calls}
    chart, _ = spend(ledger, where, asked.zone, asked.today().date())
    empty = not sums["all"].runs and (not asked.filters or not runs(ledger, Where(), 1))
    return Overview(
        period, tuple(Card(p, label, sums[p]) for p, label in PERIODS.items()), sums[period], chart,
        tuple(_table(ledger, by, title, where, asked.sort) for by, title in TABLES.items()), tuple(runs(ledger, where, RUNS)), facts, empty,
        *_budgets(ledger),
    )  # fmt: skip


def _budgets(ledger: Ledger) -> tuple[tuple[State, ...], int]:
    """The fullest budgets (of one with ``per`` each value counts), and how many there are besides."""
    found = fullest(ledger, now_ms())
    return tuple(found[:BUDGETS]), max(0, len(found) - BUDGETS)


def _table(ledger: Ledger, by: str, title: str, where: Where, sort: str | None) -> Table:
    found = report(ledger, [by], where=where)
    rows = sorted(found.rows, key=lambda r: -r.amounts.tokens) if sort == "tokens" else found.rows
    rest = NOTHING
    for row in rows[ROWS:]:
        rest = rest.plus(row.amounts)
    return Table(by, title, tuple(rows[:ROWS]), rest, max(0, len(rows) - ROWS), found.total)
