"""Plan snapshots, and what the runs that name a plan have used."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection


def gauges(conn: Connection) -> dict[Any, Any]:
    """The plan gauges, as ``ledger.gauges.Gauges``."""
    return {}
