"""What was used for one task, workstream, repository, commit, release or session: posted events and metered runs together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, literal, select, union_all

from spendmeter.config import Settings
from spendmeter.ledger import Ledger, tagging
from spendmeter.ledger import schema as t
from spendmeter.ledger.amounts import NOTHING, SUMS, Amounts
from spendmeter.records import usd_text
from spendmeter.token_events.cleaning import names
from spendmeter.token_events.model import tokens_total

SCOPES = ("task", "workstream", "repo", "commit", "release", "session")


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums over a scope's events and runs; ``by_model`` and ``by_agent`` are their tokens, input and output."""

    scope: str
    scope_id: str
    amounts: Amounts
    events: int
    by_model: Mapping[str, int | None]
    by_agent: Mapping[str, int | None]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; None where nothing tells."""
        used = self.amounts
        return {
            "scope": self.scope, "scope_id": self.scope_id, "tokens_in": used.tokens_in, "tokens_out": used.tokens_out,
            "tokens_total": _tokens(used), "cost_usd": usd_text(used.cost_nusd), "event_count": self.events,
            "by_model": dict(self.by_model), "by_agent": dict(self.by_agent),
        }  # fmt: skip


def summary(ledger: Ledger, scope: str, scope_id: str) -> Summary:
    """Sums over what *scope*, one of ``SCOPES``, names by *scope_id*; of nothing, if nothing is named so.

    An event is a run of its own, so what is in both lists is counted once.
    """
    r, e = t.runs.c, t.entries.c
    mine = _runs_of(ledger.settings, scope, scope_id)
    agent = tagging.of_entry("agent")
    used = select(e.model, agent, *[func.sum(e[name]) for name in SUMS]).group_by(e.model, agent)
    used = used.join_from(t.runs, t.entries, (r.session_id == e.session_id) & (r.run_key == e.run_key))
    with ledger.read() as conn:
        events = conn.execute(select(func.count()).select_from(t.runs).where(mine)).scalar_one()
        of_task = scope == "task" and tagging.shared(conn)
        rows = conn.execute(used.where(names(tagging.of_entry("task"), "task", scope_id, ledger.settings) if of_task else mine)).all()
    total: Amounts = NOTHING
    by_model: dict[str, Amounts] = {}
    by_agent: dict[str, Amounts] = {}
    for model, agent, *told in rows:
        amounts = Amounts(*[None if x is None else int(x) for x in told])  # type: ignore[arg-type]
        total = total.plus(amounts)
        by_model[model] = by_model.get(model, NOTHING).plus(amounts)
        by_agent[agent] = by_agent.get(agent, NOTHING).plus(amounts)
    return Summary(scope, scope_id, total, events, _ranked(by_model), _ranked(by_agent))


def _runs_of(settings: Settings, scope: str, scope_id: str) -> ColumnElement[bool]:
    """Which runs; a session also by its other names, and by the events that refer to it."""
    if scope != "session":
        return names(t.runs.c[scope], scope, scope_id, settings)
    other = select(t.aliases.c.session).where(t.aliases.c.alias == scope_id)
    events = t.token_events.c
    posted = select(events.id).where(events.ref_type == "session", events.ref_id == scope_id)
    return t.runs.c.session.in_(union_all(select(literal(scope_id)), other, posted))


def _ranked(found: Mapping[str, Amounts]) -> dict[str, int | None]:
    """Most tokens first."""
    return {name: _tokens(a) for name, a in sorted(found.items(), key=lambda x: (-(_tokens(x[1]) or 0), x[0]))}


def _tokens(used: Amounts) -> int | None:
    return tokens_total(used.tokens_in, used.tokens_out)
