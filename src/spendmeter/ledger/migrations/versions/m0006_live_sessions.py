"""Reservations name the sessions of their runs."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds a column."""
    op.add_column("reservations", sa.Column("sessions", sa.Text(), nullable=True))
