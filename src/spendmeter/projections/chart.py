"""Spend by day (by month where days would be too many) as stacked columns: what the template needs to draw them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from spendmeter.ledger import now_ms
from spendmeter.ledger.amounts import NOTHING, Amounts, Where
from spendmeter.ledger.periods import when_ms, zone
from spendmeter.ledger.query import Report, report, spent_by

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger

DAYS_MIN, DAYS_MAX = 14, 62
NAMED = 5  # agents with a colour of their own; the rest share one
OTHERS = "others"
TICKS = 4
_STEPS = (1, 2, 4, 6, 8, 10)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a column: percent of its height from the top, and which colour."""

    name: str
    slot: int
    top: float
    height: float
    cost_nusd: int


@dataclass(frozen=True, slots=True)
class Column:
    """A day or month; ``height`` in percent of the plot. ``label`` is empty where there is no room for one."""

    key: str
    title: str
    label: str
    height: float
    segments: tuple[Segment, ...]
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Chart:
    """Columns, oldest first; ``ticks`` from the top down, in nano-USD; ``legend`` names the colours in use."""

    unit: str  # day | month
    columns: tuple[Column, ...]
    ticks: tuple[int, ...]
    legend: tuple[tuple[int, str], ...]

    @property
    def digits(self) -> int:
        """Places that the ticks need."""
        return 2 if all(t % 10_000_000 == 0 for t in self.ticks) else 4

    @property
    def known(self) -> bool:
        """Whether any column has a cost."""
        return any(c.amounts.cost_nusd is not None for c in self.columns)


def spend(ledger: Ledger, where: Where, timezone: str, today: date | None = None) -> tuple[Chart, Amounts]:
    """The chart of the window of *where*, but of no less than ``DAYS_MIN`` days up to its end, and the window's own total.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    last = today or _day(now_ms() if where.until_ms is None else where.until_ms - 1, timezone)
    least = when_ms(f"{last - timedelta(days=DAYS_MIN - 1)}", timezone)
    since = where.since_ms if where.since_ms is None else min(where.since_ms, least)
    found = spent_by(ledger, "day", "agent", replace(where, since_ms=since), timezone)
    days = [date.fromisoformat(r.keys[0]) for r in found.rows if r.keys[0] is not None]
    first = min(days, default=last) if where.since_ms is None else _day(where.since_ms, timezone)
    by = unit(first, last)
    if by == "month":
        found = spent_by(ledger, by, "agent", where, timezone)
    total = NOTHING
    for row in found.rows if by == "month" or since == where.since_ms else report(ledger, [], where=where).rows:
        total = total.plus(row.amounts)
    return chart(found, by, min(first, last), last), total


def _day(ms: int, timezone: str) -> date:
    return datetime.fromtimestamp(ms / 1000, zone(timezone)).date()


def unit(first: date, last: date) -> str:
    """What a column is to stand for, from *first* to *last*."""
    return "day" if (last - first).days < DAYS_MAX else "month"


def chart(found: Report, by: str, first: date, last: date) -> Chart:
    """The chart of *found*, a report by (*by*, agent), over *first* .. *last* and at least ``DAYS_MIN`` days."""
    costs: dict[str, dict[str, Amounts]] = {}
    for row in found.rows:
        if row.keys[0] is not None:
            costs.setdefault(row.keys[0], {})[row.keys[1] or "unknown"] = row.amounts
    slots = _slots(found)
    keys = list(_months(first, last) if by == "month" else _days(min(first, last - timedelta(days=DAYS_MIN - 1)), last))
    top = _nice(max((sum(a.cost_nusd or 0 for a in costs.get(_key(d, by), {}).values()) for d in keys), default=0))
    every = -(-len(keys) // 7)
    left = range(len(keys) - 1, -1, -1)  # counted from the end, so that the last day is always labelled
    columns = [_column(d, by, costs.get(_key(d, by), {}), slots, top, labelled=n % every == 0) for n, d in zip(left, keys, strict=True)]
    named = sorted({(slot, name if slot < NAMED else OTHERS) for name, slot in slots.items()})
    return Chart(by, tuple(columns), tuple(top * (TICKS - i) // TICKS for i in range(TICKS + 1)), tuple(named))


def _slots(found: Report) -> dict[str, int]:
    """A colour for each agent, the dearest first, so that a colour stays as long as the order does."""
    sums: dict[str, int] = {}
    for row in found.rows:
        name = row.keys[1] or "unknown"
        sums[name] = sums.get(name, 0) + (row.amounts.cost_nusd or 0)
    order = sorted(sums, key=lambda n: (-sums[n], n))
    return {name: min(i, NAMED) for i, name in enumerate(order)}


def _column(d: date, by: str, agents: dict[str, Amounts], slots: dict[str, int], top: int, *, labelled: bool) -> Column:
    total = NOTHING
    stacked: dict[int, tuple[str, int]] = {}
    for name, a in agents.items():
        total = total.plus(a)
        slot = slots[name]
        stacked[slot] = (name if slot < NAMED else OTHERS, stacked.get(slot, ("", 0))[1] + (a.cost_nusd or 0))
    whole = total.cost_nusd or 0
    segments, below = [], 0
    for slot, (name, nusd) in sorted(stacked.items()):
        if nusd:
            below += nusd
            segments.append(Segment(name, slot, 100 * (whole - below) / whole, 100 * nusd / whole, nusd))
    title = f"{d:%B %Y}" if by == "month" else f"{d:%a} {d.day} {d:%b %Y}"
    short = f"{d:%b %y}" if by == "month" else f"{d.day} {d:%b}"
    return Column(_key(d, by), title, short if labelled else "", 100 * whole / top if top else 0, tuple(segments), total)


def _key(d: date, by: str) -> str:
    return f"{d:%Y-%m}" if by == "month" else f"{d:%Y-%m-%d}"


def _days(first: date, last: date) -> Iterator[date]:
    for i in range((last - first).days + 1):
        yield first + timedelta(days=i)


def _months(first: date, last: date) -> Iterator[date]:
    d = first.replace(day=1)
    while d <= last:
        yield d
        d = (d + timedelta(days=32)).replace(day=1)


def _nice(nusd: int) -> int:
    """The least round sum that is no less."""
    if nusd <= 0:
        return 0
    scale = int(10 ** (len(str(nusd)) - 1))
    return next(s for s in _STEPS if s * scale >= nusd) * scale
