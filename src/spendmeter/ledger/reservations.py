"""What is set aside for runs that are under way, so that many starts at once cannot all pass one budget."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from spendmeter.budgets.model import FIRST_RUN_SHARE, Budget, Subject


@dataclass(frozen=True, slots=True)
class Reservation:
    """One run under way: what it is expected to use, and what it has used so far; None is not known."""

    run_id: str
    subject: Subject
    started_ms: int
    expected_nusd: int | None = None
    expected_tokens: int | None = None
    used_nusd: int | None = None
    used_tokens: int | None = None

    def amount(self, budget: Budget) -> int:
        """What it takes of *budget*, in the budget's unit: what is expected, or what it has used if that is more."""
        if budget.unit == "runs":
            return 1
        money = budget.unit == "usd"
        expected, used = (self.expected_nusd, self.used_nusd) if money else (self.expected_tokens, self.used_tokens)
        if expected is None:
            expected = budget.reserve if budget.reserve is not None else budget.limit // FIRST_RUN_SHARE
        return max(expected, used or 0)


def held(conn: Connection, at_ms: int) -> list[Reservation]:
    """Reservations of runs that are alive at *at_ms*."""
    return []
