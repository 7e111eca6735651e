"""What is set aside for runs that are under way, so that many starts at once cannot all pass one budget."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select

from spendmeter.budgets.model import FIRST_RUN_SHARE, Budget, Subject
from spendmeter.ledger import liveness
from spendmeter.ledger import schema as t
from spendmeter.ledger.bulk import upsert
from spendmeter.ledger.store import dump
from spendmeter.reconcile.facts import Key


@dataclass(frozen=True, slots=True)
class Reservation:
    """One run under way: what it is expected to use, and what it has used so far; None is not known.

    ``sessions``: where it writes down what it uses, so that the ledger may know some of that already.
    """

    run_id: str
    subject: Subject
    started_ms: int
    expected_nusd: int | None = None
    expected_tokens: int | None = None
    used_nusd: int | None = None
    used_tokens: int | None = None
    sessions: frozenset[Key] = frozenset()

    def amount(self, budget: Budget) -> int:
        """What it takes of *budget*, in the budget's unit: what is expected, or what it has used if that is more."""
        if budget.unit == "runs":
            return 1
        expected = self.expected_nusd if budget.unit == "usd" else self.expected_tokens
        if expected is None:
            expected = budget.reserve if budget.reserve is not None else budget.limit // FIRST_RUN_SHARE
        return max(expected, self.used(budget))

    def counts(self, budget: Budget, value: str | None) -> bool:
        """Whether it takes of *budget*; of one with ``per``, whether it takes of the limit that *value* has."""
        return budget.covers(self.subject) and budget.value(self.subject) == value

    def used(self, budget: Budget) -> int:
        """What it is known to have used of *budget* so far; as a run it counts once it has ended."""
        known = {"usd": self.used_nusd, "tokens": self.used_tokens, "runs": None}[budget.unit]
        return known or 0


def held(conn: Connection, at_ms: int) -> list[Reservation]:
    """Reservations of runs that are alive at *at_ms*, the oldest first. Deletes nothing."""
    return parted(conn, at_ms)[0]


def parted(conn: Connection, at_ms: int) -> tuple[list[Reservation], list[Reservation]]:
    """(alive, dead) at *at_ms*, each with the oldest first."""
    out: tuple[list[Reservation], list[Reservation]] = ([], [])
    for row in conn.execute(select(t.reservations).order_by(t.reservations.c.started_ms, t.reservations.c.run_id)):
        is_alive = liveness.is_alive(liveness.Mark(row.host, row.pid, row.born), row.beat_ms, at_ms)
        out[not is_alive].append(_reservation(row))
    return out


def find(conn: Connection, run_id: str) -> tuple[Reservation, int] | None:
    """What is set aside for the run, dead or alive, and when it was last renewed."""
    row = conn.execute(select(t.reservations).where(t.reservations.c.run_id == run_id)).first()
    return (_reservation(row), row.beat_ms) if row else None


def put(conn: Connection, reservation: Reservation, at_ms: int, holder: liveness.Mark | None = None) -> None:
    """Sets aside for a run of *holder*, by default this process, or renews what was: it counts as alive at *at_ms*."""
    told = {name: getattr(reservation, name) for name in Reservation.__slots__ if name not in ("subject", "sessions")}
    s = reservation.subject
    of = {"agent": s.agent or "unknown", "task": s.task or "unknown", "cli": s.cli, "model": s.model, "repo": s.repo}
    told |= of | {"attrs": dump(dict(s.attrs)), "sessions": dump(sorted(reservation.sessions)) if reservation.sessions else None}
    upsert(conn, t.reservations, [told | {"beat_ms": at_ms} | (holder or liveness.own())._asdict()])


def drop(conn: Connection, run_id: str) -> None:
    """Gives back what was set aside for the run."""
    conn.execute(delete(t.reservations).where(t.reservations.c.run_id == run_id))


def is_spent(conn: Connection, run_id: str, since_ms: int) -> bool:
    """Whether the run is recorded, and ended at *since_ms* or later: it needs nothing set aside any more."""
    r, p = t.runs.c, t.processes.c
    ended = select(p.run_id).join_from(t.runs, t.processes, (r.session_id == p.session_id) & (r.run_key == p.run_key))
    return conn.execute(ended.where(r.ended_ms >= since_ms, p.run_id == run_id).limit(1)).first() is not None


def _reservation(row: Any) -> Reservation:
    subject = Subject(row.agent, row.task, row.cli, row.model, row.repo, json.loads(row.attrs))
    return Reservation(
        row.run_id, subject, row.started_ms, row.expected_nusd, row.expected_tokens, row.used_nusd, row.used_tokens,
        frozenset((cli, session) for cli, session in json.loads(row.sessions or "[]")),
    )  # fmt: skip
