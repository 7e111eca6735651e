"""What the ledger's usage says of budgets at one moment, kept as long as it cannot have changed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sqlalchemy import Connection

from spendmeter.budgets.burn import window_lengths
from spendmeter.budgets.model import Budget
from spendmeter.budgets.periods import MINUTE_MS, Period, Window
from spendmeter.ledger.spend import Sums, by_minute, spent

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger

_TREND_MS = 7 * 86_400_000  # the most that a forecast looks back
_TREND_PART = 4  # of a period, which it looks back at most


@dataclass(frozen=True, slots=True)
class Reading:
    """One budget: what each value of its ``per`` has spent in *window*; then as in ``budgeting.State``."""

    budget: Budget
    window: Window
    sums: Sums
    forecast: int | None
    windows: tuple[tuple[int, int], ...]


class Minutes:
    """Amounts by minute from *since_ms* on, of which any stretch is added up at once."""

    def __init__(self, since_ms: int, amounts: Sequence[tuple[int, int]]) -> None:
        self.since_ms = since_ms
        self._at = [at for at, _ in amounts]
        self._upto = [0, *accumulate(amount for _, amount in amounts)]

    def between(self, start_ms: int, end_ms: int) -> int:
        """The sum from *start_ms*, which is in it, to *end_ms*, which no longer is."""
        return self._upto[bisect_left(self._at, end_ms)] - self._upto[bisect_left(self._at, start_ms)]


@dataclass(slots=True)
class _Kept:
    """What was read of one budget: the sums of one window, and amounts by minute for any stretch after their start."""

    window: Window | None = None
    sums: Sums = field(default_factory=dict)
    minutes: Minutes | None = None


@dataclass(slots=True)
class _Memory:
    """What was read of *budgets* while the ledger's ``moved`` was this."""

    budgets: Sequence[Budget] = ()
    moved: int = -1
    kept: list[_Kept] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)


_MEMORIES: WeakKeyDictionary[Ledger, _Memory] = WeakKeyDictionary()


def readings(ledger: Ledger, conn: Connection, budgets: Sequence[Budget], at_ms: int) -> list[Reading]:
    """Every budget at *at_ms*, in their order. Any thread may ask; what cannot have changed is not read again."""
    memory = _MEMORIES.setdefault(ledger, _Memory())
    moved = ledger.moved(conn)
    with memory.lock:
        if (memory.moved, memory.budgets) != (moved, budgets):
            memory.moved, memory.budgets, memory.kept = moved, budgets, [_Kept() for _ in budgets]
        return [_reading(conn, budget, kept, at_ms) for budget, kept in zip(budgets, memory.kept, strict=True)]


def edges(budget: Budget, at_ms: int) -> tuple[Window, int | None, int | None]:
    """The budget's window at *at_ms*, and where it begins and ends for a sum: a total takes in all there is."""
    window = budget.period.window(at_ms)
    return (window, None, None) if budget.period.kind == "total" else (window, window.start_ms, window.end_ms)


def _reading(conn: Connection, budget: Budget, kept: _Kept, at_ms: int) -> Reading:
    window, since_ms, until_ms = edges(budget, at_ms)
    if kept.window != window:
        kept.window, kept.sums = window, spent(conn, budget, since_ms, until_ms)
    if budget.per is not None or budget.period.kind == "total":
        return Reading(budget, window, kept.sums, None, ())
    end = at_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS
    minutes = _minutes(conn, budget, kept, window, end)
    windows = tuple((s, minutes.between(end - s * 1000, end)) for s in window_lengths(budget.period))
    return Reading(budget, window, kept.sums, _forecast(budget.period, window, kept.sums[None].amount, minutes, end), windows)


def _minutes(conn: Connection, budget: Budget, kept: _Kept, window: Window, end_ms: int) -> Minutes:
    since = end_ms - max(_trend_ms(budget.period, window), *[s * 1000 for s in window_lengths(budget.period)])
    if kept.minutes is None or kept.minutes.since_ms > since:
        kept.minutes = Minutes(since, by_minute(conn, budget, since))
    return kept.minutes


def _trend_ms(period: Period, window: Window) -> int:
    """How far a forecast looks back; 0 where nothing is foretold."""
    ends = period.kind != "rolling" and window.length_ms is not None
    return min((window.length_ms or 0) // _TREND_PART, _TREND_MS) // MINUTE_MS * MINUTE_MS if ends else 0


def _forecast(period: Period, window: Window, spent: int, minutes: Minutes, end_ms: int) -> int | None:
    """What will be spent at the window's end at the rate of late, whether this period or the last one had it."""
    trend = _trend_ms(period, window)
    if not trend or window.end_ms is None:
        return None
    return spent + minutes.between(end_ms - trend, end_ms) * (window.end_ms - end_ms) // trend
