"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "aliases",
        sa.Column("cli", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("alias", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("cli", "alias"),
    )
    op.create_table(
        "bases",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("by_model", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", "kind", "source"),
    )
    op.create_table(
        "calls",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("call_id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("tokens_in", sa.BigInteger(), nullable=True),
        sa.Column("cache_read", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_5m", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_1h", sa.BigInteger(), nullable=True),
        sa.Column("tokens_out", sa.BigInteger(), nullable=True),
        sa.Column("reasoning", sa.BigInteger(), nullable=True),
        sa.Column("web_searches", sa.BigInteger(), nullable=True),
        sa.Column("cost_nusd", sa.BigInteger(), nullable=True),
        sa.Column("asked", sa.Text(), nullable=True),
        sa.Column("answered", sa.Text(), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=True),
        sa.Column("views", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("subagent", sa.Text(), nullable=True),
        sa.Column("traits", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "call_id"),
    )
    op.create_index("ix_calls_call_id", "calls", ["call_id"], unique=False)
    op.create_table(
        "claims",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("claim_id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("attrs", sa.Text(), nullable=False),
        sa.Column("run_key", sa.Text(), nullable=True),
        sa.Column("start_ms", sa.BigInteger(), nullable=True),
        sa.Column("end_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", "claim_id"),
    )
    op.create_table(
        "copies",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("call_id", sa.Text(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "call_id"),
    )
    op.create_index("ix_copies_call_id", "copies", ["call_id"], unique=False)
    op.create_table(
        "entries",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_key", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("minute_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tokens_in", sa.BigInteger(), nullable=True),
        sa.Column("cache_read", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_5m", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_1h", sa.BigInteger(), nullable=True),
        sa.Column("tokens_out", sa.BigInteger(), nullable=True),
        sa.Column("reasoning", sa.BigInteger(), nullable=True),
        sa.Column("web_searches", sa.BigInteger(), nullable=True),
        sa.Column("reported_nusd", sa.BigInteger(), nullable=True),
        sa.Column("estimated_nusd", sa.BigInteger(), nullable=True),
        sa.Column("listed_nusd", sa.BigInteger(), nullable=True),
        sa.Column("unpriced_tokens", sa.BigInteger(), nullable=False),
        sa.Column("calls", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", "run_key", "model", "minute_ms"),
    )
    op.create_index("ix_entries_minute", "entries", ["minute_ms"], unique=False)
    op.create_table(
        "finishes",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_key", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("leader", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("total", sa.Text(), nullable=False),
        sa.Column("own", sa.Text(), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("session_id", "run_key"),
    )
    op.create_index("ix_finishes_fingerprint", "finishes", ["fingerprint"], unique=False)
    op.create_table(
        "levels",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("reading", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("tokens_in", sa.BigInteger(), nullable=True),
        sa.Column("cache_read", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_5m", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_1h", sa.BigInteger(), nullable=True),
        sa.Column("tokens_out", sa.BigInteger(), nullable=True),
        sa.Column("reasoning", sa.BigInteger(), nullable=True),
        sa.Column("web_searches", sa.BigInteger(), nullable=True),
        sa.Column("cost_nusd", sa.BigInteger(), nullable=True),
        sa.Column("epoch_ms", sa.BigInteger(), nullable=True),
        sa.Column("start_ms", sa.BigInteger(), nullable=True),
        sa.Column("read_ms", sa.BigInteger(), nullable=True),
        sa.Column("guess", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "epoch", "reading", "model"),
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "parts",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("part_id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("tokens_in", sa.BigInteger(), nullable=True),
        sa.Column("cache_read", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_5m", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_1h", sa.BigInteger(), nullable=True),
        sa.Column("tokens_out", sa.BigInteger(), nullable=True),
        sa.Column("reasoning", sa.BigInteger(), nullable=True),
        sa.Column("web_searches", sa.BigInteger(), nullable=True),
        sa.Column("cost_nusd", sa.BigInteger(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("guess", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "kind", "part_id", "model"),
    )
    op.create_table(
        "posted",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("series_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "series_id"),
    )
    op.create_index("ix_posted_series", "posted", ["series_id"], unique=False)
    op.create_table(
        "processes",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_key", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("started_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("trace_id", sa.Text(), nullable=True),
        sa.Column("span_id", sa.Text(), nullable=True),
        sa.Column("parent_span_id", sa.Text(), nullable=True),
        sa.Column("repo", sa.Text(), nullable=True),
        sa.Column("branch", sa.Text(), nullable=True),
        sa.Column("commit", sa.Text(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "run_key"),
    )
    op.create_table(
        "prompts",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "at_ms"),
    )
    op.create_table(
        "runs",
        sa.Column("session_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_key", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("cli", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("attrs", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("implied", sa.Boolean(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("trace_id", sa.Text(), nullable=False),
        sa.Column("span_id", sa.Text(), nullable=False),
        sa.Column("parent_span_id", sa.Text(), nullable=True),
        sa.Column("repo", sa.Text(), nullable=True),
        sa.Column("branch", sa.Text(), nullable=True),
        sa.Column("commit", sa.Text(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "run_key"),
    )
    op.create_index("ix_runs_agent_ended", "runs", ["agent", "ended_ms"], unique=False)
    op.create_index("ix_runs_ended", "runs", ["ended_ms"], unique=False)
    op.create_index("ix_runs_task", "runs", ["task"], unique=False)
    op.create_table(
        "series",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("target", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("shown_ms", sa.BigInteger(), nullable=True),
        sa.Column("pushed_ms", sa.BigInteger(), nullable=True),
        sa.Column("moved_ms", sa.BigInteger(), nullable=False),
        sa.Column("exemplar", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("family", "labels"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cli", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("own_ms", sa.BigInteger(), nullable=True),
        sa.Column("cwd", sa.Text(), nullable=True),
        sa.Column("branch", sa.Text(), nullable=True),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("has_file", sa.Boolean(), nullable=False),
        sa.Column("settle_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("wants", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("cli", "session"),
    )
    op.create_index("ix_sessions_settle", "sessions", ["settle_at_ms"], unique=False)
    op.create_index("ix_sessions_wants", "sessions", ["wants"], unique=False)
    op.create_table(
        "skips",
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "sources",
        sa.Column("path", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("path"),
    )
    op.create_table(
        "spool",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.Integer(), nullable=False),
        sa.Column("run_key", sa.Text(), nullable=False),
        sa.Column("print", sa.Text(), nullable=False),
        sa.Column("traced", sa.Boolean(), nullable=False),
        sa.Column("logged", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("session_id", "run_key"),
    )
    op.create_index("ix_spool_logged", "spool", ["logged"], unique=False)
    op.create_index("ix_spool_traced", "spool", ["traced"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("agent", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("task", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("overflow", sa.Boolean(), nullable=False),
        sa.Column("used_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent", "task"),
    )
    op.create_index("ix_tasks_used", "tasks", ["used_ms"], unique=False)
