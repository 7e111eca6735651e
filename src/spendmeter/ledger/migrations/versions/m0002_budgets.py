"""Budgets and plans: reservations, notices, plan snapshots; why a run was stopped; which plan a run names."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds tables and columns; runs learn their plan from their attributes."""
    op.add_column("sessions", sa.Column("moved", sa.BigInteger(), nullable=True))
    op.create_index("ix_sessions_moved", "sessions", ["moved"])
    op.add_column("processes", sa.Column("stopped", sa.Text(), nullable=True))
    for name in ("plan", "workflow", "stage"):
        op.add_column("runs", sa.Column(name, sa.Text(), nullable=True))
    op.create_index("ix_runs_plan", "runs", ["plan"])
    _new_tables()
    conn = op.get_bind()
    conn.execute(sa.text("update sessions set moved = id"))
    told = conn.execute(sa.text("select session_id, run_key, attrs from runs where attrs like '%\"plan\"%' or attrs like '%\"workflow\"%' "
                                "or attrs like '%\"stage\"%'")).all()  # fmt: skip
    for sid, key, attrs in told:
        values = {name: json.loads(attrs).get(name) for name in ("plan", "workflow", "stage")}
        conn.execute(
            sa.text("update runs set plan = :plan, workflow = :workflow, stage = :stage where session_id = :s and run_key = :k"),
            values | {"s": sid, "k": key},
        )


def _new_tables() -> None:
    big, text, whole = sa.BigInteger(), sa.Text(), sa.Integer()
    op.create_table(
        "reservations",
        sa.Column("run_id", text, primary_key=True, autoincrement=False), sa.Column("host", text, nullable=False),
        sa.Column("pid", whole, nullable=False), sa.Column("born", text, nullable=False), sa.Column("agent", text, nullable=False),
        sa.Column("task", text, nullable=False), sa.Column("cli", text), sa.Column("model", text), sa.Column("repo", text),
        sa.Column("attrs", text, nullable=False), sa.Column("started_ms", big, nullable=False), sa.Column("beat_ms", big, nullable=False),
        sa.Column("expected_nusd", big), sa.Column("expected_tokens", big), sa.Column("used_nusd", big), sa.Column("used_tokens", big),
    )  # fmt: skip
    op.create_table(
        "notices",
        sa.Column("id", text, primary_key=True), sa.Column("budget", text, nullable=False), sa.Column("value", text, nullable=False),
        sa.Column("threshold", text, nullable=False), sa.Column("period_start_ms", big, nullable=False),
        sa.Column("notifier", text, nullable=False), sa.Column("at_ms", big, nullable=False), sa.Column("body", text, nullable=False),
        sa.Column("attempts", whole, nullable=False), sa.Column("due_ms", big), sa.Column("sent_ms", big), sa.Column("error", text),
    )  # fmt: skip
    op.create_index("ix_notices_due", "notices", ["due_ms"])
    op.create_index("ix_notices_budget", "notices", ["budget", "at_ms"])
    op.create_table(
        "plans",
        sa.Column("snapshot_id", text, primary_key=True, autoincrement=False), sa.Column("name", text, nullable=False),
        sa.Column("body", text, nullable=False), sa.Column("recorded_ms", big, nullable=False), sa.Column("seen_ms", big, nullable=False),
    )  # fmt: skip
    op.create_index("ix_plans_name", "plans", ["name", "seen_ms"])
