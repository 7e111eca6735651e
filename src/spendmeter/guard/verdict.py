"""What the guard says of a budget: one line each, with nothing in it but tags, names and sums."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from spendmeter.budgets import Budget
from spendmeter.budgets.periods import zone
from spendmeter.ledger.budgeting import State
from spendmeter.ledger.posting import label
from spendmeter.ledger.reservations import Reservation
from spendmeter.projections.messages import messages

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DONE = {"usd": "spent", "tokens": "used", "runs": "made"}


def over(state: State, live: int = 0) -> str:
    """The budget is used up; *live*: what runs under way are known to have used of it, which is not in the ledger yet."""
    part = f", {quantity(state.budget, live)} of it by runs under way" if live else ""
    return f"over budget {standing(state, live)}{part}"


def standing(state: State, live: int = 0) -> str:
    """The budget's name and how much of it is spent, since when."""
    return f"{_name(state)}: {_spent(state, live)} {_when(state)}"


def no_room(state: State, holders: int, run: Reservation) -> str:
    """What is left of the budget, after what *holders* runs under way have set aside, is too little for *run*."""
    b, line = state.budget, f"budget {_name(state)} has no room: {_spent(state)}"
    if b.unit == "runs":
        return f"{line}, {messages().whole(holders)} under way"
    if holders:
        line += f", {quantity(b, state.reserved)} reserved by {counted(holders, 'run')}"
    known = run.expected_nusd if b.unit == "usd" else run.expected_tokens
    told = f"a run of {label(run.subject.agent)} takes about" if known is not None else "a run reserves"
    return f"{line}, {told} {quantity(b, run.amount(b))}"


def left(state: State) -> str:
    """How much of the budget is left, and for how long."""
    end = state.window.end_ms
    until = "" if state.budget.period.kind == "rolling" or end is None else f" until {_time(state, end)}"
    rest = state.remaining - state.reserved
    return f"{_name(state)}, {quantity(state.budget, max(0, rest))} of {quantity(state.budget, state.budget.limit)} left{until}"


def quantity(budget: Budget, amount: int) -> str:
    """$1,234.56; 12,000 tokens; 20 runs."""
    return messages().money(amount) if budget.unit == "usd" else counted(amount, budget.unit.removesuffix("s"))


def counted(n: int, what: str) -> str:
    """1 run; 12,000 runs."""
    return f"{messages().whole(n)} {what}{'' if n == 1 else 's'}"


def _name(state: State) -> str:
    per = state.budget.per
    return state.budget.name if per is None else f"{state.budget.name} for {label(per)} {label(state.value or 'unknown')}"


def _spent(state: State, live: int = 0) -> str:
    b, unpriced = state.budget, state.unpriced_tokens
    spent, limit = (quantity(b, n) for n in (state.spent + live, b.limit))
    done = f"{spent.partition(' ')[0]} of {limit} {_DONE[b.unit]}"
    return f"{done} and {counted(unpriced, 'token')} without a price" if unpriced else done


def _when(state: State) -> str:
    period = state.budget.period
    if period.kind == "total":
        return "in all"
    return f"in the last {period.text.split()[-1]}" if period.kind == "rolling" else f"since {_time(state, state.window.start_ms)}"


def _time(state: State, ms: int) -> str:
    timezone = state.budget.period.timezone
    return f"{(_EPOCH + timedelta(milliseconds=ms)).astimezone(zone(timezone)):%Y-%m-%d %H:%M} {timezone}"
