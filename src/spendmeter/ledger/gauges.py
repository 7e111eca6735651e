"""Gauges about the ledger itself. Each query uses an index or a table's last row, so none grows with the history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from spendmeter import metrics as m
from spendmeter.ledger import budgeting, planning
from spendmeter.ledger.posting import label

if TYPE_CHECKING:
    from spendmeter.config import Settings
    from spendmeter.ledger import Ledger

Gauges = dict[m.Metric, list[tuple[tuple[str, ...], int | float]]]  # label values, value in the metric's own unit

EXPORT_KEY = "export."  # meta: export.<signal> -> {"success_ms", "failures"}; there while that signal is exported
SPOOLED = {"traces": "traced", "logs": "logged"}
DRIFT_WINDOW_MS = 86_400_000

# Steps from agent to agent along ix_runs_agent_task instead of reading every run.
_LAST_RUN = text(
    "with recursive a(agent) as (select min(agent) from runs union all "
    "select (select min(agent) from runs where agent > a.agent) from a where a.agent is not null) "
    "select agent, (select max(ended_ms) from runs where runs.agent = a.agent) from a where agent is not null"
)
_DRIFT = text(
    "select r.cli, sum(e.reported_nusd), sum(e.listed_nusd) from entries e "
    "join runs r on r.session_id = e.session_id and r.run_key = e.run_key "
    "where e.minute_ms >= :since and e.reported_nusd is not null and e.listed_nusd > 0 and coalesce(e.estimated_nusd, 0) = 0 group by r.cli"
)


@cache
def version() -> str:
    """Of spendmeter as it is installed."""
    return metadata.version("spendmeter")


def read(ledger: Ledger, conn: Connection, at_ms: int, meta: Mapping[str, str]) -> Gauges:
    """Every gauge that the ledger can tell at *at_ms*; pending debits and the scrape's duration are the page's own."""
    out: Gauges = {
        m.TASK_OVERFLOW: [((), _one(conn, "select count(*) from tasks where overflow = true"))],
        m.COST_DRIFT: _drift(conn, at_ms - DRIFT_WINDOW_MS),
        m.LAST_RUN: _last_runs(conn, ledger.settings),
        m.LEDGER_UNSETTLED: [((), _one(conn, "select count(*) from sessions where settle_at_ms is not null"))],
        m.LEDGER_CREATED: [((), int(meta["created_ms"]) / 1000)],
        m.NOTICES_PENDING: [((), _one(conn, "select count(*) from notices where due_ms is not null"))],
        m.BUILD_INFO: [((version(),), 1)],
    }
    out |= _sizes(conn)
    return out | _exports(conn, meta) | budgeting.gauges(ledger, conn, at_ms) | planning.gauges(ledger, conn)


def _drift(conn: Connection, since_ms: int) -> list[tuple[tuple[str, ...], int | float]]:
    """Reported over list price of the window's usage that has both, the CLI's figure covering all of it."""
    return [((label(cli),), float(told) / float(listed)) for cli, told, listed in conn.execute(_DRIFT, {"since": since_ms})]


def _last_runs(conn: Connection, settings: Settings) -> list[tuple[tuple[str, ...], int | float]]:
    last: dict[str, int] = {}
    for agent, ended in conn.execute(_LAST_RUN):
        name = label(agent, settings)
        last[name] = max(last.get(name, 0), ended or 0)
    return [((name,), ended / 1000) for name, ended in last.items()]


def _sizes(conn: Connection) -> Gauges:
    """Row counts without counting: rows are numbered as they come, and only the oldest calls ever go."""
    if conn.dialect.name == "sqlite":
        size = _one(conn, "select page_count * page_size from pragma_page_count, pragma_page_size")
        calls, sessions = (
            _one(conn, f"select (select max(rowid) from {table}) - (select min(rowid) from {table}) + 1")  # noqa: S608 - fixed names
            for table in ("calls", "sessions")
        )
    else:
        size = _one(conn, "select pg_database_size(current_database())")
        calls, sessions = (_estimate(conn, table) for table in ("calls", "sessions"))
    return {m.LEDGER_SIZE: [((), size)], m.LEDGER_CALLS: [((), calls)], m.LEDGER_SESSIONS: [((), sessions)]}


def _estimate(conn: Connection, table: str) -> int:
    """PostgreSQL's own estimate; a table that it has not looked at yet is small enough to be counted."""
    known = conn.execute(text("select reltuples from pg_class where oid = cast(:t as regclass)"), {"t": table}).scalar_one()
    return int(known) if known > 0 else _one(conn, f"select count(*) from {table}")  # noqa: S608 - a fixed name


def _exports(conn: Connection, meta: Mapping[str, str]) -> Gauges:
    out: Gauges = {m.EXPORT_PENDING: [], m.EXPORT_LAST_SUCCESS: [], m.EXPORT_FAILURES: []}
    for key, value in sorted(meta.items()):
        signal = key.removeprefix(EXPORT_KEY)
        if not key.startswith(EXPORT_KEY) or signal not in ("metrics", *SPOOLED):
            continue
        state: dict[str, Any] = json.loads(value)
        out[m.EXPORT_FAILURES].append(((signal,), state.get("failures", 0)))
        if state.get("success_ms"):
            out[m.EXPORT_LAST_SUCCESS].append(((signal,), state["success_ms"] / 1000))
        if signal in SPOOLED:
            out[m.EXPORT_PENDING].append(((signal,), _one(conn, f"select count(*) from spool where {SPOOLED[signal]} = false")))  # noqa: S608 - fixed names
    return out


def _one(conn: Connection, sql: str) -> int:
    return int(conn.execute(text(sql)).scalar_one() or 0)
