"""A long history of token events, put straight into a ledger: the rows that as many POSTs would have left, made by the database itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from sqlalchemy.schema import CreateIndex, DropIndex

from spendmeter.ledger import Ledger, now_ms
from spendmeter.ledger import schema as t

HOUR_MS, YEAR_MS = 3_600_000, 365 * 86_400_000
AGENTS, MODELS = 20, 5
# Names come in no order, as real ones do, so that a new one finds its place in any part of an index.
_HEX = {
    "sqlite": "printf('%08x%024x', (i * 2654435761) % 4294967296, i)",
    "postgresql": "lpad(to_hex((i * 2654435761) % 4294967296), 8, '0') || lpad(to_hex(i), 24, '0')",
}
# What an event adds to, and the labels of that besides the agent; a task of last year is under the overflow label by now.
_OVERFLOW = '"__overflow__"'
_SERIES = {
    "spendmeter.tokens_in": "\"api\",\"model-' || (i % 5) || '\"",
    "spendmeter.tokens_out": "\"api\",\"model-' || (i % 5) || '\"",
    "spendmeter.cost_usd": "\"api\",\"model-' || (i % 5) || '\",\"estimated\"",
    "spendmeter.task.tokens_in": _OVERFLOW, "spendmeter.task.tokens_out": _OVERFLOW, "spendmeter.task.cost_usd": _OVERFLOW,
    "spendmeter.runs": '"api","unknown"',
}  # fmt: skip
TABLES = (t.sessions, t.calls, t.claims, t.processes, t.runs, t.entries, t.tasks, t.series, t.posted, t.spool, t.token_events)


def fill(ledger: Ledger, count: int) -> None:
    """A year of *count* events that ends now: 20 agents, 5 models, 40 events a task, a repository 1/30 and a workstream 1/7 of all."""
    made = [CreateIndex(x).compile(dialect=ledger._engine.dialect) for table in TABLES for x in table.indexes]
    dropped = [DropIndex(x).compile(dialect=ledger._engine.dialect) for table in TABLES for x in table.indexes]
    statements = [str(x) for x in dropped] + rows(ledger._engine.dialect.name, count) + [str(x) for x in made]
    if ledger._engine.dialect.name == "sqlite":
        ledger.close()  # opens again by itself; the journal can be left out only by who is alone with the file
        _sqlite(str(ledger._engine.url.database), statements)
    else:
        with ledger._engine.begin() as conn:
            _all(conn.connection.driver_connection, statements)
            for table in ("sessions", "series", "spool"):
                conn.exec_driver_sql(f"select setval(pg_get_serial_sequence('{table}', 'id'), (select max(id) from {table}))")
        with ledger._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql("vacuum analyze")  # as autovacuum leaves it


def _sqlite(file: str, statements: list[str]) -> None:
    """Without a journal: nobody needs it where a failure begins anew."""
    with closing(sqlite3.connect(file, isolation_level=None)) as conn:
        for pragma in ("journal_mode=off", "synchronous=off", "cache_size=-4000000", "temp_store=file", "locking_mode=exclusive"):
            conn.execute(f"pragma {pragma}")
        _all(conn, ["begin", *statements, "commit"])
        conn.execute("pragma journal_mode=wal")


def _all(conn: Any, statements: list[str]) -> None:
    for statement in statements:
        conn.execute(statement)


def rows(dialect: str, count: int) -> list[str]:
    """Statements that make every row; *i* counts the events from 0, those of a session are one higher."""
    start, step = now_ms() - YEAR_MS, YEAR_MS // count
    each = f"with recursive n(i) as (select cast(0 as bigint) union all select i + 1 from n where i < {count - 1})"
    name, at = _HEX[dialect], f"({start} + (i + 1) * {step})"
    agent, task, model = f"'agent-' || (i % {AGENTS})", "'SHOP-' || (i / 40)", f"'model-' || (i % {MODELS})"
    team, repo, commit = "'team-' || (i % 7)", "'org/repo-' || (i % 30)", "'c' || (i / 10)"
    used = "100 + i % 900, 50 + i % 400"
    attrs = f"""'{{"commit":"' || {commit} || '","workstream":"' || {team} || '"}}'"""
    made = {
        "sessions (id, cli, session, seen_ms, has_file, moved)": f"i + 1, 'api', {name}, {at}, true, i + 1",
        "calls (session_id, call_id, tokens_in, tokens_out, asked, answered, at_ms, views, role, traits)": (
            f"i + 1, {name}, {used}, {model}, {model}, {at}, 'file', 'main', '[]'"
        ),
        "claims (session_id, claim_id, agent, task, attrs, run_key)": f"i + 1, 'run:' || {name}, {agent}, {task}, {attrs}, {name}",
        "processes (session_id, run_key, run_id, ended_ms, repo, \"commit\", notes)": (
            f"i + 1, {name}, {name}, {at}, {repo}, {commit}, '[]'"
        ),
        """runs (session_id, run_key, cli, session, agent, task, attrs, outcome, implied, ended_ms, last_ms, trace_id, span_id, notes,
            workstream, repo, "commit")""": (
            f"i + 1, {name}, 'api', {name}, {agent}, {task}, {attrs}, 'unknown', false, {at}, {at} - {at} % 60000, {name},"
            f" substr({name}, 17), '[]', {team}, {repo}, {commit}"
        ),
        """entries (session_id, run_key, model, minute_ms, agent, task, tokens_in, tokens_out, estimated_nusd, listed_nusd,
            unpriced_tokens, calls)""": (
            f"i + 1, {name}, {model}, {at} - {at} % 60000, '', '', {used}, 1000000 + i % 1000, 1000000 + i % 1000, 0, 1"
        ),
        'spool (id, session_id, run_key, print, traced, logged)': f"i + 1, i + 1, {name}, {name}, true, true",
        """token_events (id, occurred_ms, created_ms, agent, task, workstream, repo, ref_type, ref_id, model, tokens_in, tokens_out,
            digest)""": (
            f"{name}, {at}, {at}, {agent}, {task}, {team}, {repo}, 'commit', {commit}, {model}, {used}, {name} || {name}"
        ),
    }  # fmt: skip
    pairs = f"{each} select {agent}, {task}, i / 40 > 2000, {at} from n where i % 40 < {AGENTS}"
    return [
        *(f"insert into {table} {each} select {values} from n" for table, values in made.items()),
        f"insert into tasks (agent, task, overflow, used_ms) {pairs}",
        *_shares(each),
        _hours(start),
    ]


def _shares(each: str) -> list[str]:
    """The series, and what each event has put into them."""
    few = f"with recursive n(i) as (select 0 union all select i + 1 from n where i < {AGENTS - 1})"
    series = [
        f"insert into series (id, family, labels, target, value, held, moved_ms)"
        f" {few} select {k * AGENTS + 1} + i, '{family}', '[\"agent-' || i || '\",{rest}]', 0, 0, 0, 0 from n"
        for k, (family, rest) in enumerate(_SERIES.items())
    ]
    kinds = " union all ".join(f"select {k} as k" for k in range(len(_SERIES)))
    posted = f"select i + 1, k * {AGENTS} + 1 + i % {AGENTS}, 1 from n cross join ({kinds}) as kinds"
    return [*series, f"insert into posted (session_id, series_id, amount) {each} {posted}"]


def _hours(start: int) -> str:
    """All of them are to be added up."""
    first, last = start - start % HOUR_MS, now_ms()
    each = f"with recursive n(i) as (select cast({first} as bigint) union all select i + {HOUR_MS} from n where i < {last})"
    return f"insert into stale_hours (hour_ms) {each} select i from n where i <= {last}"
