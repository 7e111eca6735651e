"""May this run start? Every budget is looked at, and what the run will use set aside, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection

from spendmeter.budgets import Budget, Budgets, Subject
from spendmeter.budgets.model import GUARDING
from spendmeter.guard import verdict
from spendmeter.guard.expecting import expected
from spendmeter.guard.ticket import Ticket
from spendmeter.ledger import Ledger, budgeting, now_ms, reservations
from spendmeter.ledger.budgeting import State
from spendmeter.ledger.liveness import Mark
from spendmeter.ledger.reservations import Reservation


@dataclass(frozen=True, slots=True)
class Admission:
    """``lines``: warnings where the run may start, else the one line that says why not. ``ticket``: what it has set aside, if any.

    ``waits``: it may not start now, but there may be room once the usage of runs that have ended is in the ledger.
    """

    allowed: bool
    lines: list[str]
    ticket: Ticket | None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """Every budget that covers a run, in file order, and a line for each that is in its way, the worst first."""

    states: list[State]
    refusals: list[str]

    @property
    def nearest(self) -> State | None:
        """The one with the least share of its limit left."""
        return max(self.states, key=_fullness, default=None)

    def as_dict(self) -> dict[str, Any]:
        """``{"allowed", "budgets": [...], "refusals": [...]}``"""
        return {"allowed": not self.refusals, "budgets": [s.as_dict() for s in self.states], "refusals": self.refusals}


def admit(
    ledger: Ledger, budgets: Budgets, subject: Subject, run_id: str, *, max_cost_nusd: int | None = None, max_tokens: int | None = None,
    is_pending: Callable[[str], bool] = lambda run_id: False, at_ms: int | None = None, holder: Mark | None = None,
) -> Admission:  # fmt: skip
    """Lets a run in, or not, by every budget with action warn, block or kill that covers it.

    Args:
        run_id: 32 hex digits; the run's commit gives back what it has set aside.
        max_cost_nusd: what the run is ended at in any case; likewise *max_tokens*.
        is_pending: whether the usage of a run, by its id, is still to be recorded on this host, its process being dead.
        holder: the process that is to be alive as long as this holds; by default this one.

    Raises:
        LedgerError: it cannot be read or written; nothing was set aside.
    """
    at = now_ms() if at_ms is None else at_ms
    asked = [b for b in budgets.budgets if b.action != "alert" and b.may_cover(subject)]
    killers = [b for b in asked if b.action == "kill"]
    guards = bool(killers) or any(b.action in GUARDING and b.covers(subject) for b in asked)
    with ledger.read() as conn:  # who is refused here need not wait for the lock, and of a hundred at once most are
        run = _run(conn, subject, run_id, (max_cost_nusd, max_tokens), at)
        seen = _look(conn, asked, run, at, is_pending)
    if guards and not seen.refusals:
        with ledger.write() as conn:
            seen = _look(conn, asked, run, at, is_pending)
            for gone in seen.gone:
                reservations.drop(conn, gone.run_id)
            if not seen.refusals:
                reservations.put(conn, run, at, holder)
    if seen.refusals:
        return Admission(False, seen.refusals[:1], None, seen.waits)
    return Admission(True, [verdict.over(s) for s in seen.states if s.over], Ticket(run, killers, at) if guards else None)


def check(ledger: Ledger, budgets: Budgets, subject: Subject, *, at_ms: int | None = None) -> Check:
    """Whether a run of *subject* is within every budget that covers it, whatever the budget's action. Sets nothing aside.

    Raises:
        LedgerError: it cannot be read.
    """
    at = now_ms() if at_ms is None else at_ms
    with ledger.read() as conn:
        run = _run(conn, subject, "", (None, None), at)
        states = [budgeting.state(conn, b, subject, at) for b in budgets.budgets if b.covers(subject)]
        return Check(states, _refusals(states, run, reservations.held(conn, at)))


def _run(conn: Connection, subject: Subject, run_id: str, most: tuple[int | None, int | None], at: int) -> Reservation:
    """What the run would set aside, *most* at the most: nano-USD and tokens."""
    nusd, tokens = (min((n for n in pair if n is not None), default=None) for pair in zip(expected(conn, subject), most, strict=True))
    return Reservation(run_id, subject, at, nusd, tokens)


class _Seen(NamedTuple):
    """One look: budgets that cover the run, why those that guard keep it out, whether it is to wait, and who holds nothing any more."""

    states: list[State]
    refusals: list[str]
    waits: bool
    gone: list[Reservation]


def _look(conn: Connection, budgets: Sequence[Budget], run: Reservation, at: int, is_pending: Callable[[str], bool]) -> _Seen:
    """What is still to be recorded of a run that has ended stays set aside: it is spent, and nowhere else."""
    alive, dead = reservations.parted(conn, at)
    pending = [r for r in dead if is_pending(r.run_id)]
    holders = [*alive, *pending]
    states = [_holding(budgeting.state(conn, b, run.subject, at, holders), holders) for b in budgets if b.covers(run.subject)]
    guarding = [s for s in states if s.budget.action in GUARDING]
    waits = bool(pending) and not any(s.over for s in guarding)
    return _Seen(states, _refusals(guarding, run, holders), waits, [r for r in dead if r not in pending])


def _holding(state: State, holders: Sequence[Reservation]) -> State:
    return replace(state, reserved=sum(r.amount(state.budget) for r in holders if r.counts(state.budget, state.value)))


def _refusals(states: Sequence[State], run: Reservation, holders: Sequence[Reservation]) -> list[str]:
    """A line for each that is over its limit, or by its action keeps out a run that it has no room for; the worst first."""
    out = []
    for s in sorted(states, key=lambda s: (s.over, _fullness(s)), reverse=True):
        if s.over:
            out.append(verdict.over(s))
        elif s.budget.action in GUARDING and s.spent + s.reserved + run.amount(s.budget) > s.budget.limit:
            out.append(verdict.no_room(s, sum(r.counts(s.budget, s.value) for r in holders), run))
    return out


def _fullness(state: State) -> float:
    """The share of the limit that is spent or set aside."""
    return (state.spent + state.reserved) / state.budget.limit if state.budget.limit else float("inf")
