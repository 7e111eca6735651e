"""Runs of other hosts: what is set aside for one lasts as long as its host says, now and then, that it is under way."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace

from spendmeter.budgets import Budgets
from spendmeter.guard.ticket import BEAT_MS, PATIENCE_MS, Standing, standings
from spendmeter.ledger import Ledger, now_ms, reservations
from spendmeter.ledger.liveness import ELSEWHERE
from spendmeter.ledger.reservations import Reservation

LATE_MS = 3_600_000  # a word is no later than a request lasts; the rest is room for clocks that differ


def renew(ledger: Ledger, run: Reservation, at_ms: int | None = None) -> Reservation:
    """Keeps *run* set aside for most of a minute more; it comes back where it was taken for dead. It began when it was first heard of.

    A word that comes after the run itself, overtaken on its way, sets nothing aside.

    Raises:
        LedgerError: the ledger cannot be written now.
    """
    at = now_ms() if at_ms is None else at_ms
    with ledger.read() as conn:
        found = reservations.find(conn, run.run_id)
    run = replace(run, started_ms=found[0].started_ms if found else at)
    if found is None or found[0] != run or not 0 <= at - found[1] < BEAT_MS:  # who only looks need not wait for the lock
        with ledger.write(PATIENCE_MS) as conn:
            if reservations.find(conn, run.run_id) or not reservations.is_spent(conn, run.run_id, at - LATE_MS):
                reservations.put(conn, run, at, ELSEWHERE)
    return run


def watch(ledger: Ledger, budgets: Budgets, run: Reservation, models: AbstractSet[str], at_ms: int | None = None) -> list[Standing]:
    """The budgets that may end *run*, which is known to have called *models*, as they stand now.

    Raises:
        LedgerError: the ledger cannot be read now.
    """
    at = now_ms() if at_ms is None else at_ms
    killers = [b for b in budgets.budgets if b.action == "kill" and b.may_cover(run.subject)]
    if not killers:
        return []
    with ledger.read() as conn:
        return list(standings(conn, killers, run, models, at))
