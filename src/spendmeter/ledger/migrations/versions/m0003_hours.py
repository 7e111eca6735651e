"""Usage added up by the hour: the tables, and every hour marked as not added up yet."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds tables, and to each run its last sign of life."""
    op.add_column("runs", sa.Column("last_ms", sa.BigInteger(), nullable=True))
    op.create_index("ix_runs_last", "runs", ["last_ms"])
    op.create_table("stale_hours", sa.Column("hour_ms", sa.BigInteger(), primary_key=True, autoincrement=False))
    big = sa.BigInteger()
    sums = ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out", "reasoning", "web_searches",
            "reported_nusd", "estimated_nusd", "listed_nusd")  # fmt: skip
    op.create_table(
        "hours",
        sa.Column("dim", sa.Text(), primary_key=True, autoincrement=False),
        sa.Column("hour_ms", big, primary_key=True, autoincrement=False),
        sa.Column("key", sa.Text(), primary_key=True, autoincrement=False),
        *[sa.Column(name, big, nullable=True) for name in sums],
        sa.Column("unpriced_tokens", big, nullable=False),
        sa.Column("calls", sa.Integer(), nullable=True),
        sa.Column("last_runs", sa.Integer(), nullable=False),
    )
    op.execute(
        "update runs set last_ms = coalesce((select max(minute_ms) from entries "
        "where entries.session_id = runs.session_id and entries.run_key = runs.run_key), ended_ms)"
    )
    op.execute("insert into stale_hours (hour_ms) select distinct minute_ms - minute_ms % 3600000 from entries")
