"""Where each budget stands: limit, spent, reserved, forecast, burn windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger


def gauges(ledger: Ledger, conn: Connection, at_ms: int) -> dict[Any, Any]:
    """The budget gauges at *at_ms*, as ``ledger.gauges.Gauges``."""
    return {}
