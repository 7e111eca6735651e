"""What a run is expected to use, from the last runs of its agent."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from spendmeter.budgets import Subject
from spendmeter.ledger import schema as t
from spendmeter.ledger.amounts import SUMS, Amounts

LAST_RUNS = 50


def expected(conn: Connection, subject: Subject) -> tuple[int | None, int | None]:
    """(nano-USD, tokens) that a run of *subject* is expected to use, rounded up; None is not known.

    Each is the mean over the last 50 runs of the same agent and CLI, else of the agent, without those of which it is not known.
    """
    nusd, tokens = _means(_last(conn, subject.agent, subject.cli)) if subject.cli else (None, None)
    if nusd is not None and tokens is not None:
        return nusd, tokens
    of_agent = _means(_last(conn, subject.agent, None))
    return of_agent[0] if nusd is None else nusd, of_agent[1] if tokens is None else tokens


def _last(conn: Connection, agent: str | None, cli: str | None) -> list[Amounts]:
    """What each of the agent's last runs used, of those that used anything."""
    r, e = t.runs.c, t.entries.c
    wanted = [r.agent == agent, *([r.cli == cli] if cli else [])]
    last = select(r.session_id, r.run_key).where(*wanted).order_by(r.ended_ms.desc(), r.session_id.desc()).limit(LAST_RUNS).subquery()
    query = select(*[func.sum(e[name]) for name in SUMS])
    query = query.join(last, (last.c.session_id == e.session_id) & (last.c.run_key == e.run_key)).group_by(e.session_id, e.run_key)
    return [Amounts(*[None if x is None else int(x) for x in row]) for row in conn.execute(query)]  # type: ignore[arg-type]


def _means(runs: Sequence[Amounts]) -> tuple[int | None, int | None]:
    return _mean([run.cost_nusd for run in runs if run.cost_nusd is not None]), _mean([run.tokens for run in runs])


def _mean(values: Sequence[int]) -> int | None:
    return -(-sum(values) // len(values)) if values else None
