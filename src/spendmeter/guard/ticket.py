"""A run that was let in: what it has set aside, and the budgets that may end it."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from sqlalchemy import Connection

from spendmeter.budgets import Budget, Subject
from spendmeter.budgets.periods import MINUTE_MS
from spendmeter.errors import LedgerError
from spendmeter.guard import verdict
from spendmeter.ledger import Ledger, budgeting, now_ms, reservations
from spendmeter.ledger.budgeting import State
from spendmeter.ledger.reservations import Reservation

BEAT_MS = 15_000  # a reservation is renewed so often where nothing has changed
PACE_MS = 500  # and no more often than that where something has
PATIENCE_MS = 1000  # for the ledger's lock: the run goes on meanwhile


class Ticket:
    """Belongs to one run, under way in this process.

    ``kills``: whether a budget may end the run. ``exceeded``: the name of the one that has to, once ``beat`` has said so.
    """

    def __init__(self, reservation: Reservation, killers: Sequence[Budget], at_ms: int) -> None:
        """*reservation* was put into the ledger at *at_ms*."""
        self.run_id, self.kills = reservation.run_id, bool(killers)
        self.exceeded: str | None = None
        self._mine, self._killers = reservation, killers
        self._told, self._told_ms, self._looked_ms = reservation, at_ms, at_ms - PACE_MS
        self._models: set[str] = set()
        self._states: dict[str, tuple[tuple[object, ...], State]] = {}

    def beat(
        self, ledger: Ledger, used_nusd: int | None, used_tokens: int | None, models: AbstractSet[str], at_ms: int | None = None
    ) -> str | None:
        """Renews the reservation, and looks whether a budget has run out meanwhile.

        To be called often, by one thread: it does nothing more than twice a second. Not after the run's commit, which ends the
        reservation.

        Args:
            used_nusd: what the run has used so far, as far as is known; likewise *used_tokens*.
            models: those that it is known to have called.

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
        model = self._mine.subject.model or min(models, default=None)
        self._mine = replace(self._mine, subject=replace(self._mine.subject, model=model), used_nusd=used_nusd, used_tokens=used_tokens)
        if self._mine != self._told or not 0 <= at - self._told_ms < BEAT_MS:
            with ledger.write(PATIENCE_MS) as conn:
                reservations.put(conn, self._mine, at)
            self._told, self._told_ms = self._mine, at
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
            others = [r for r in reservations.held(conn, at) if r.run_id != self.run_id]
            for budget in self._killers:
                subject = self._subject(budget)
                if subject is None:
                    continue
                state = self._state(conn, budget, subject, at, moved)
                live = self._mine.used(budget) + sum(r.used(budget) for r in others if r.counts(budget, state.value))
                if state.spent + live >= budget.limit:
                    self.exceeded = budget.name
                    return verdict.over(state, live)
        return None

    def _subject(self, budget: Budget) -> Subject | None:
        """The run as *budget* sees it, with the model for which it counts there; None where it does not."""
        mine = self._mine.subject
        return next((s for s in (*(replace(mine, model=m) for m in sorted(self._models)), mine) if budget.covers(s)), None)

    def _state(self, conn: Connection, budget: Budget, subject: Subject, at: int, moved: int) -> State:
        """Where the budget stands by the ledger; summed up anew only if the ledger or the minute is another."""
        key = (moved, at // MINUTE_MS, subject)
        known = self._states.get(budget.name)
        if known is None or known[0] != key:
            known = self._states[budget.name] = (key, budgeting.state(conn, budget, subject, at))
        return known[1]
