"""Attribution."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds tables, columns and an index."""
    _attribution()
    op.drop_index("ix_tasks_used", "tasks")
    op.create_index("ix_tasks_overflow", "tasks", ["overflow", "used_ms"])


def _attribution() -> None:
    text = sa.Text()
    op.create_table(
        "rulesets",
        sa.Column("id", text, primary_key=True, autoincrement=False),
        sa.Column("body", text, nullable=False), sa.Column("splits", sa.Boolean(), nullable=False),
    )  # fmt: skip
    op.create_table(
        "shifts",
        sa.Column("session_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("family", text, primary_key=True, autoincrement=False),
        sa.Column("labels", text, primary_key=True, autoincrement=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
    )  # fmt: skip
    op.add_column("sessions", sa.Column("ruleset", text, nullable=True))
    op.add_column("calls", sa.Column("subagent_type", text, nullable=True))
    _shares_of_runs()


def _shares_of_runs() -> None:
    """Entries get an agent and a task of their own, as part of their key. SQLite cannot change a key: the table is made anew."""
    if op.get_bind().dialect.name == "postgresql":
        for name in ("agent", "task"):
            op.execute(f"alter table entries add column {name} text not null default ''")
            op.execute(f"alter table entries alter column {name} drop default")
        op.execute("alter table entries drop constraint entries_pkey, add primary key (session_id, run_key, model, minute_ms, agent, task)")
        return
    op.drop_index("ix_entries_minute", "entries")
    op.rename_table("entries", "entries_before")
    big, keys = sa.BigInteger(), ("session_id", "run_key", "model", "minute_ms", "agent", "task")
    kinds = {"session_id": sa.Integer(), "minute_ms": big}
    amounts = (
        "tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out", "reasoning", "web_searches",
        "reported_nusd", "estimated_nusd", "listed_nusd",
    )  # fmt: skip
    op.create_table(
        "entries",
        *[sa.Column(name, kinds.get(name, sa.Text()), autoincrement=False, nullable=False) for name in keys],
        *[sa.Column(name, big, nullable=True) for name in amounts],
        sa.Column("unpriced_tokens", big, nullable=False), sa.Column("calls", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint(*keys),
    )  # fmt: skip
    held = ", ".join([*keys[:4], *amounts, "unpriced_tokens", "calls"])
    op.execute(f"insert into entries ({held}, agent, task) select {held}, '', '' from entries_before")  # noqa: S608 - fixed names
    op.drop_table("entries_before")
    op.create_index("ix_entries_minute", "entries", ["minute_ms"])
