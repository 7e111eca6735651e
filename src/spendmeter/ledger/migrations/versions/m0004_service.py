"""The ledger as a service: token events, access tokens, remote runs."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds tables."""
    _access_tokens()
    _token_events()
    _scopes_of_runs()
    _closed_sessions()


def _closed_sessions() -> None:
    op.create_index("ix_bases_source", "bases", ["source"])
    op.add_column("sessions", sa.Column("closed_ms", sa.BigInteger(), nullable=True))
    op.create_table(
        "closed_calls",
        sa.Column("session_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("call_id", sa.Text(), primary_key=True, autoincrement=False), sa.Column("own", sa.Boolean(), nullable=False),
    )  # fmt: skip
    op.create_index("ix_closed_calls_call_id", "closed_calls", ["call_id"])


def _token_events() -> None:
    big, text = sa.BigInteger(), sa.Text()
    op.create_table(
        "token_events",
        sa.Column("id", text, primary_key=True, autoincrement=False), sa.Column("occurred_ms", big, nullable=False),
        sa.Column("created_ms", big, nullable=False), sa.Column("agent", text, nullable=False), sa.Column("task", text, nullable=False),
        *[sa.Column(name, text, nullable=True) for name in ("workstream", "repo", "ref_type", "ref_id", "model")],
        *[sa.Column(name, big, nullable=True) for name in ("tokens_in", "tokens_out", "cache_read", "cache_write", "cost_nusd")],
        sa.Column("note", text, nullable=True), sa.Column("idempotency_key", text, nullable=True),
        sa.Column("digest", text, nullable=False),
    )  # fmt: skip
    op.create_index("ix_token_events_occurred", "token_events", ["occurred_ms", "id"])
    op.create_index("ix_token_events_agent", "token_events", ["agent", "occurred_ms", "id"])
    op.create_index("ix_token_events_task", "token_events", ["task", "occurred_ms", "id"])
    for name, known in (("model", "model"), ("workstream", "workstream"), ("repo", "repo"), ("ref", "ref_id")):
        _where_known(f"ix_token_events_{name}", "token_events", known, known, "occurred_ms", "id")
    _where_known("ux_token_events_key", "token_events", "idempotency_key", "idempotency_key", unique=True)


def _scopes_of_runs() -> None:
    """Runs learn what they are summed up by, from their attributes."""
    for name in ("workstream", "release"):
        op.add_column("runs", sa.Column(name, sa.Text(), nullable=True))
    conn = op.get_bind()
    told = conn.execute(
        sa.text("select session_id, run_key, attrs from runs where attrs like '%\"workstream\"%' or attrs like '%\"release\"%'")
    )
    for sid, key, attrs in told.all():
        values = {name: json.loads(attrs).get(name) for name in ("workstream", "release")}
        conn.execute(
            sa.text("update runs set workstream = :workstream, release = :release where session_id = :s and run_key = :k"),
            values | {"s": sid, "k": key},
        )
    op.create_index("ix_runs_session", "runs", ["session"])
    op.create_index("ix_aliases_alias", "aliases", ["alias"])
    for name in ("repo", "commit", "release", "workstream"):
        _where_known(f"ix_runs_{name}", "runs", name, name)
    _where_known("ix_runs_task_workstream", "runs", "workstream", "task", "ended_ms")


def _where_known(name: str, table: str, known: str, *columns: str, unique: bool = False) -> None:
    told = sa.text(f'"{known}" is not null')
    op.create_index(name, table, list(columns), unique=unique, sqlite_where=told, postgresql_where=told)


def _access_tokens() -> None:
    big, text = sa.BigInteger(), sa.Text()
    op.create_table(
        "access_tokens",
        sa.Column("digest", text, primary_key=True, autoincrement=False), sa.Column("name", text, nullable=False),
        sa.Column("scopes", text, nullable=False), sa.Column("created_ms", big, nullable=False), sa.Column("expires_ms", big),
        sa.Column("used_ms", big), sa.UniqueConstraint("name"),
    )  # fmt: skip
