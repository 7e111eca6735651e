"""Where each budget stands: limit, spent, reserved, forecast, burn windows."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection

from spendmeter import metrics as m
from spendmeter.budgets.burn import window_text
from spendmeter.budgets.definitions import Definitions
from spendmeter.budgets.model import Budget, Budgets, Subject, Threshold
from spendmeter.budgets.periods import Window
from spendmeter.errors import ConfigError
from spendmeter.ledger import reservations
from spendmeter.ledger.posting import label
from spendmeter.ledger.readings import Reading, edges, readings
from spendmeter.ledger.reservations import Reservation
from spendmeter.ledger.spend import Sum, spent_one, spent_under_way
from spendmeter.records import iso, usd

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger
    from spendmeter.ledger.gauges import Gauges

log = logging.getLogger("spendmeter.budgets")


@dataclass(frozen=True, slots=True)
class State:
    """A budget, or one value of its ``per``, in its window. Amounts are in the budget's unit.

    ``value``: of ``per``; None is the value of runs that have none, and everything where the budget has no ``per``.
    ``unpriced_tokens``: what is missing from an amount of money, as nobody knows its price.
    ``reserved``: set aside for runs under way. ``forecast``: what will be spent at the window's end; None where nothing is foretold.
    ``windows``: (seconds, spent in as many seconds up to now), the shortest first.
    """

    budget: Budget
    value: str | None
    window: Window
    spent: int
    unpriced_tokens: int = 0
    reserved: int = 0
    forecast: int | None = None
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def remaining(self) -> int:
        """Limit less spent, below 0 where it is overspent."""
        return self.budget.limit - self.spent

    @property
    def share(self) -> Decimal | None:
        """Spent of the limit, 1 = all of it; None where the limit is 0."""
        return Decimal(self.spent) / self.budget.limit if self.budget.limit else None

    @property
    def over(self) -> bool:
        """Whether nothing of the limit is left; a limit of 0 never had anything."""
        return self.spent >= self.budget.limit

    @property
    def crossed(self) -> tuple[Threshold, ...]:
        """Thresholds that have been reached; none before anything is spent."""
        return tuple(x for x in self.budget.thresholds if self.spent and self.spent >= x.at * self.budget.limit)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: money as decimal strings, times in ISO 8601, UTC; what does not apply is null."""
        b, share = self.budget, self.share
        return {
            "name": b.name, "value": self.value, "per": b.per, "action": b.action, "owner": b.owner, "description": b.description,
            "unit": b.unit, "period": self._period(), f"limit_{b.unit}": b.told(b.limit), f"spent_{b.unit}": b.told(self.spent),
            f"remaining_{b.unit}": b.told(self.remaining), f"reserved_{b.unit}": b.told(self.reserved),
            f"forecast_{b.unit}": b.told(self.forecast), "unpriced_tokens": self.unpriced_tokens,
            "share": None if share is None else str(share.quantize(Decimal("0.0001"), ROUND_DOWN)),
            "thresholds": [{"at": f"{x.at.normalize():f}", "severity": x.severity, "crossed": x in self.crossed} for x in b.thresholds],
            "over": self.over,
        }  # fmt: skip

    def _period(self) -> dict[str, Any]:
        period, window, total = self.budget.period, self.window, self.budget.period.kind == "total"
        seconds = None if window.length_ms is None else window.length_ms // 1000
        start, end = None if total else iso(window.start_ms), None if window.end_ms is None else iso(window.end_ms)
        return {"kind": period.kind, "timezone": period.timezone, "start": start, "end": end, "seconds": seconds}


def states(ledger: Ledger, budgets: Budgets, at_ms: int, subject: Subject | None = None) -> list[State]:
    """Every budget at *at_ms* in file order; one with ``per`` once for each value, what is spent most first, and once at least.

    Args:
        subject: leaves out budgets that do not cover such a run, and values other than its own.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    with ledger.read() as conn:
        held = reservations.held(conn, at_ms)
        found = readings(ledger, conn, budgets.budgets, at_ms)
    if subject is None:
        return [state for reading in found for state in _standing(reading, held)]
    return [_state(r, r.budget.value(subject), _reserved(r.budget, held)) for r in found if r.budget.covers(subject)]


def state(conn: Connection, budget: Budget, subject: Subject, at_ms: int, held: Collection[Reservation] | None = None) -> State:
    """*budget* as it stands for a run of *subject* at *at_ms*: no forecast, no burn windows, nothing read that is not needed.

    What *held*, the runs under way, have used is reserved and not spent, also where the ledger has read it in their sessions meanwhile.
    """
    value = budget.value(subject)
    window, since_ms, until_ms = edges(budget, at_ms)
    held = reservations.held(conn, at_ms) if held is None else held
    amount, unpriced = spent_one(conn, budget, since_ms, until_ms, value)
    amount -= spent_under_way(conn, budget, since_ms, until_ms, value, [(r.sessions, r.started_ms) for r in held])
    return State(budget, value, window, amount, unpriced, _reserved(budget, held)[value])


def _standing(reading: Reading, held: Iterable[Reservation]) -> list[State]:
    """The budget, or each value that has spent or reserved anything."""
    reserved = _reserved(reading.budget, held)
    values = set(reading.sums) | set(reserved) or {None}
    return sorted((_state(reading, v, reserved) for v in values), key=lambda s: (-s.spent, -s.reserved, s.value or ""))


def _state(reading: Reading, value: str | None, reserved: Mapping[str | None, int]) -> State:
    used = reading.sums.get(value, Sum())
    return State(reading.budget, value, reading.window, *used, reserved.get(value, 0), reading.forecast, reading.windows)


def _reserved(budget: Budget, held: Iterable[Reservation]) -> Mapping[str | None, int]:
    """What is set aside by value of ``per``; 0 for any other."""
    out: dict[str | None, int] = defaultdict(int)
    for reservation in held:
        if budget.covers(reservation.subject):
            out[budget.value(reservation.subject)] += reservation.amount(budget)
    return out


# -- gauges ------------------------------------------------------------------------------------------------------------


class _Told:
    """The definitions of one ledger's settings, and what was last said about their file."""

    def __init__(self, ledger: Ledger) -> None:
        self.definitions, self.trouble = Definitions(ledger.settings.budgets_file), ""


_TOLD: WeakKeyDictionary[Ledger, _Told] = WeakKeyDictionary()


def gauges(ledger: Ledger, conn: Connection, at_ms: int) -> Gauges:
    """Every budget gauge at *at_ms*. Of a budget with ``per``: the value that has spent most, and how many are over.

    A budgets file that is wrong shows as it last was right; one that never was shows nothing. Both are logged, once.
    """
    budgets = defined(ledger).budgets
    held = reservations.held(conn, at_ms) if budgets else []
    out: Gauges = {}
    for reading in readings(ledger, conn, budgets, at_ms) if budgets else []:
        for metric, labels, value in _points(_standing(reading, held)):
            out.setdefault(metric, []).append((labels, value))
    return out


def defined(ledger: Ledger) -> Budgets:
    """The budgets of the ledger's settings; those that were last right where their file is wrong now."""
    told = _TOLD.get(ledger) or _TOLD.setdefault(ledger, _Told(ledger))
    try:
        budgets = told.definitions.current()
        remedy = "its budgets stay as they last were right"
    except ConfigError:
        budgets, remedy = Budgets(), "no budget is shown until it is right"
    trouble, told.trouble = told.trouble, told.definitions.trouble
    if told.trouble and told.trouble != trouble:
        log.warning("%s; %s", told.trouble, remedy)
    return budgets


def _points(standing: Sequence[State]) -> Iterator[tuple[m.Metric, tuple[str, ...], int | float]]:
    """(metric, label values, value) of one budget, of which *standing* holds every value, the greatest first."""
    top, budget = standing[0], standing[0].budget
    unit, name = budget.unit, label(budget.name)
    amounts = {m.BUDGET_LIMIT[unit]: budget.limit, m.BUDGET_SPENT[unit]: top.spent, m.BUDGET_REMAINING[unit]: top.remaining,
               m.BUDGET_RESERVED[unit]: top.reserved, m.BUDGET_FORECAST[unit]: top.forecast}  # fmt: skip
    yield from ((metric, (name,), _shown(budget, amount)) for metric, amount in amounts.items() if amount is not None)
    yield from ((m.BUDGET_WINDOW_SPENT[unit], (name, window_text(s)), _shown(budget, amount)) for s, amount in top.windows)
    yield m.BUDGET_OVER, (name,), sum(s.over for s in standing)
    if unit == "usd":
        yield m.BUDGET_UNPRICED, (name,), sum(s.unpriced_tokens for s in standing)
    if top.window.length_ms is not None:
        yield m.BUDGET_PERIOD_START, (name,), top.window.start_ms / 1000
        yield m.BUDGET_PERIOD, (name,), top.window.length_ms / 1000


def _shown(budget: Budget, amount: int) -> int | float:
    return float(usd(amount)) if budget.unit == "usd" else amount
