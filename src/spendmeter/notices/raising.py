"""Turns thresholds that were crossed into notices, each once in a period, whoever looks and however often."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from spendmeter.budgets.model import Budgets, Notifier, Threshold
from spendmeter.guard.verdict import standing
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.budgeting import State, states
from spendmeter.ledger.store import dump
from spendmeter.notices.delivery import percent, tells
from spendmeter.records import iso

TYPE = "budget.threshold"


@dataclass(frozen=True, slots=True)
class _News:
    """Thresholds that a notifier has not been told of in this period, the lowest first. With the last one the others go without saying."""

    state: State
    notifier: Notifier
    fresh: tuple[Threshold, ...]


class _Spent(msgspec.Struct):
    """Of a notice's body: what had been spent then, in the unit of the budget."""

    spent_usd: str | None = None
    spent_tokens: int | None = None


class _Body(msgspec.Struct):
    budget: _Spent


_read = msgspec.json.Decoder(_Body).decode
_Told = list[tuple[Decimal, Decimal]]  # thresholds, and what had been spent when they were told


def raise_new(ledger: Ledger, budgets: Budgets, at_ms: int) -> int:
    """Records what has been crossed by *at_ms*; of several thresholds at once only the highest is to be told.

    Returns:
        How many notices are to be delivered for it.

    Raises:
        LedgerError: the ledger cannot be read or written.
    """
    crossed = [s for s in states(ledger, budgets, at_ms) if s.crossed] if budgets.notifiers else []
    with ledger.read() as conn:
        if not _news(conn, budgets, crossed, at_ms):
            return 0
    with ledger.write() as conn:
        news = _news(conn, budgets, crossed, at_ms)  # once more, for another process may have come first
        ledger_id = conn.execute(select(t.meta.c.value).where(t.meta.c.key == "ledger_id")).scalar_one()
        for n in news:
            _record(conn, ledger_id, n, at_ms)
    return len(news)


def _news(conn: Connection, budgets: Budgets, crossed: Sequence[State], at_ms: int) -> list[_News]:
    out, known = [], dict[str, dict[tuple[str, str], _Told]]()
    for s in crossed:
        told = known.get(s.budget.name)
        if told is None:
            told = known[s.budget.name] = _told(conn, s, at_ms)
        for n in budgets.notifiers:
            before = told.get((s.value or "", n.name), [])
            fresh = sorted((x for x in s.crossed if not _is_told(x.at, _limit(s), before)), key=lambda x: x.at)
            if fresh and tells(s.budget, n):
                out.append(_News(s, n, tuple(fresh)))
    return out


def _is_told(at: Decimal, limit: Decimal, before: _Told) -> bool:
    """Whether some notice of *before* told of no smaller a share, and of no less spent: a limit that is raised has news again."""
    return any(share >= at and spent >= at * limit for share, spent in before)


def _limit(state: State) -> Decimal:
    return Decimal(state.budget.told(state.budget.limit) or 0)


def _told(conn: Connection, state: State, at_ms: int) -> dict[tuple[str, str], _Told]:
    """What was recorded in this period by value and notifier."""
    row, of = t.notices.c, state.budget
    query = select(row.value, row.notifier, row.threshold, row.body).where(row.budget == of.name, _in_period(state, at_ms))
    out: dict[tuple[str, str], _Told] = {}
    for value, notifier, threshold, body in conn.execute(query):
        spent = getattr(_read(body).budget, f"spent_{of.unit}")
        if spent is not None:
            out.setdefault((value, notifier), []).append((Decimal(threshold), Decimal(spent)))
    return out


def _in_period(state: State, at_ms: int) -> Any:
    """Whether a row is of the period that holds *at_ms*; of a rolling one, whether it is younger than the period is long."""
    period, window, made = state.budget.period, state.window, t.notices.c.at_ms
    if period.kind == "rolling":
        return made > at_ms - (period.length_ms or 0)
    return made >= window.start_ms if window.end_ms is None else made.between(window.start_ms, window.end_ms - 1)


def _record(conn: Connection, ledger_id: str, n: _News, at_ms: int) -> None:
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    rows = [_row(ledger_id, n, threshold, at_ms) for threshold in n.fresh]
    rows[-1]["due_ms"] = at_ms
    row = t.notices.c
    lower = (row.budget == n.state.budget.name) & (row.value == (n.state.value or "")) & (row.notifier == n.notifier.name)
    waiting = lower & row.due_ms.is_not(None) & _in_period(n.state, at_ms)
    conn.execute(update(t.notices).where(waiting).values(due_ms=None))  # the higher one says it all
    conn.execute(make(t.notices).on_conflict_do_nothing(), rows)


def _row(ledger_id: str, n: _News, threshold: Threshold, at_ms: int) -> dict[str, Any]:
    s, at = n.state, str(threshold.at)
    rolling = s.budget.period.kind == "rolling"
    marks = (ledger_id, s.budget.name, s.value or "", at, at_ms if rolling else s.window.start_ms, n.notifier.name, str(_limit(s)))
    notice_id = hashlib.sha256(dump(marks).encode()).hexdigest()[:32]
    return {
        "id": notice_id, "budget": s.budget.name, "value": s.value or "", "threshold": at, "period_start_ms": s.window.start_ms,
        "notifier": n.notifier.name, "at_ms": at_ms, "body": _body(notice_id, ledger_id, s, threshold, at, at_ms),
        "attempts": 0, "due_ms": None, "sent_ms": None, "error": None,
    }  # fmt: skip


def _body(notice_id: str, ledger_id: str, state: State, threshold: Threshold, at: str, at_ms: int) -> str:
    return dump(
        {
            "id": notice_id, "type": TYPE, "created_at": iso(at_ms), "budget": state.as_dict(), "threshold": at,
            "severity": threshold.severity, "text": f"past {percent(at)} of budget {standing(state)}", "ledger_id": ledger_id,
        }
    )  # fmt: skip
