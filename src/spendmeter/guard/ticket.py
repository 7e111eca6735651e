"""A run that was let in: what it has set aside, and the budgets that may end it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import NamedTuple

from sqlalchemy import Connection

from spendmeter.budgets import Budget, Subject
from spendmeter.budgets.periods import MINUTE_MS
from spendmeter.errors import LedgerError
from spendmeter.guard import verdict
from spendmeter.ledger import Ledger, budgeting, now_ms, reservations
from spendmeter.ledger.budgeting import State
from spendmeter.ledger.reservations import Reservation
from spendmeter.reconcile.facts import Key

BEAT_MS = 15_000  # a reservation is renewed so often where nothing has changed
PACE_MS = 500  # and no more often than that where something has
PATIENCE_MS = 1000  # for the ledger's lock: the run goes on meanwhile


class Standing(NamedTuple):
    """One budget that may end a run: where it stands by the ledger, and what runs under way have used of it besides."""

    state: State
    mine: int
    others: int

    @property
    def left(self) -> int:
        """What the run itself may have used in all when it is to be ended."""
        return max(0, self.state.budget.limit - self.state.spent - self.others)

    @property
    def over(self) -> str | None:
        """The line that says that it is used up; None where it is not."""
        return verdict.over(self.state, self.mine + self.others) if self.mine >= self.left else None


def standings(
    conn: Connection, killers: Iterable[Budget], mine: Reservation, models: AbstractSet[str], at_ms: int,
    state: Callable[[Connection, Budget, Subject, int, list[Reservation]], State] = budgeting.state,
) -> Iterator[Standing]:  # fmt: skip
    """Those of *killers* that the run counts for, as they stand now.

    Args:
        mine: what the run has set aside and used.
        models: those that it is known to have called.
        state: looks up where a budget stands.
    """
    others = [r for r in reservations.held(conn, at_ms) if r.run_id != mine.run_id]
    held = [*others, mine]
    for budget in killers:
        subject = _counted(budget, mine.subject, models)
        if subject is not None:
            found = state(conn, budget, subject, at_ms, held)
            yield Standing(found, mine.used(budget), sum(r.used(budget) for r in others if r.counts(budget, found.value)))


def using(
    run: Reservation, used_nusd: int | None, used_tokens: int | None, models: AbstractSet[str], sessions: AbstractSet[Key] = frozenset()
) -> Reservation:
    """*run* once it has used so much, of *models*, in *sessions* among others."""
    subject = replace(run.subject, model=run.subject.model or min(models, default=None))
    return replace(run, subject=subject, used_nusd=used_nusd, used_tokens=used_tokens, sessions=run.sessions | sessions)


class Ticket:
    """Belongs to one run, under way in this process.

    ``reservation``: what it has set aside. ``kills``: whether a budget may end the run. ``exceeded``: the name of the one that has to,
    once ``beat`` has said so.
    """

    def __init__(self, reservation: Reservation, killers: Sequence[Budget], at_ms: int) -> None:
        """*reservation* was put into the ledger at *at_ms*."""
        self.run_id, self.kills = reservation.run_id, bool(killers)
        self.exceeded: str | None = None
        self.reservation, self._killers = reservation, killers
        self._told, self._told_ms, self._looked_ms = reservation, at_ms, at_ms - PACE_MS
        self._models: set[str] = set()
        self._states: dict[str, tuple[tuple[object, ...], State]] = {}

    def beat(
        self, ledger: Ledger, used_nusd: int | None, used_tokens: int | None, models: AbstractSet[str],
        sessions: AbstractSet[Key] = frozenset(), *, at_ms: int | None = None,
    ) -> str | None:  # fmt: skip
        """Renews the reservation, and looks whether a budget has run out meanwhile.

        To be called often, by one thread: it does nothing more than twice a second. Not after the run's commit, which ends the
        reservation.

        Args:
            used_nusd: what the run has used so far, as far as is known; likewise *used_tokens*.
            models: those that it is known to have called.
            sessions: those that it is known to go on in; what the ledger has of them since the run began counts as the run's.

        Returns:
            The line that says which budget is used up and ends the run, by what the ledger holds and what all runs under way have
            used; None where none is.

        Raises:
            LedgerError: it cannot be read or written now; the next beat tries again.
        """
        at = now_ms() if at_ms is None else at_ms
        if 0 <= at - self._looked_ms < PACE_MS:
            return None
        self._looked_ms = at
        self._models |= models
        self.reservation = using(self.reservation, used_nusd, used_tokens, models, sessions)
        if self.reservation != self._told or not 0 <= at - self._told_ms < BEAT_MS:
            with ledger.write(PATIENCE_MS) as conn:
                reservations.put(conn, self.reservation, at)
            self._told, self._told_ms = self.reservation, at
        return self._ended_by(ledger, at) if self.kills else None

    def drop(self, ledger: Ledger) -> None:
        """Gives back what was set aside; where that fails, it expires by itself when this process ends."""
        try:
            with ledger.write(PATIENCE_MS) as conn:
                reservations.drop(conn, self.run_id)
        except LedgerError:
            return

    def _ended_by(self, ledger: Ledger, at: int) -> str | None:
        with ledger.read() as conn:
            moved = ledger.moved(conn)
            for found in standings(conn, self._killers, self.reservation, self._models, at, lambda *asked: self._state(moved, *asked)):
                if line := found.over:
                    self.exceeded = found.state.budget.name
                    return line
        return None

    def _state(self, moved: int, conn: Connection, budget: Budget, subject: Subject, at: int, held: list[Reservation]) -> State:
        """Where the budget stands by the ledger; summed up anew only if the ledger, the minute or who is under way is another."""
        key = (moved, at // MINUTE_MS, subject, {r.run_id: r.sessions for r in held})
        known = self._states.get(budget.name)
        if known is None or known[0] != key:
            known = self._states[budget.name] = (key, budgeting.state(conn, budget, subject, at, held))
        return known[1]


def _counted(budget: Budget, run: Subject, models: AbstractSet[str]) -> Subject | None:
    """The run as *budget* sees it, with the model for which it counts there; None where it does not."""
    return next((s for s in (*(replace(run, model=m) for m in sorted(models)), run) if budget.covers(s)), None)
