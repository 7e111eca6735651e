"""Token events in a ledger, and how it goes about a question."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import event

from spendmeter.ledger import Ledger
from spendmeter.token_events import read_all, record

MODEL = "claude-sonnet-4-5"
AT = "2026-11-01T12:00:00Z"
AT_MS = int(datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp() * 1000)
FULL = {
    "agent": "dev", "task": "T-1", "workstream": "shop", "repo": "org/shop", "ref_type": "release", "ref_id": "1.2", "model": MODEL,
    "tokens_in": 1000, "tokens_out": 200, "cache_read": 5000, "cache_write": 300, "cost_usd": "0.012345678", "note": "one\nline more",
    "occurred_at": AT, "idempotency_key": "k-1",
}  # fmt: skip


def post(ledger: Ledger, *told: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of events that are recorded together; one without amounts has a token of input."""
    return record(ledger, read_all([{"tokens_in": 1} | one for one in told])).rows


def ways(ledger: Ledger, ask: Callable[[], object]) -> str:
    """How SQLite goes about all that *ask* asks the ledger."""
    asked: list[tuple[str, Any]] = []

    def note(_conn: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        asked.append((statement, values))

    event.listen(ledger._engine, "before_cursor_execute", note)
    ask()
    event.remove(ledger._engine, "before_cursor_execute", note)
    with ledger.read() as conn:
        return "\n".join(str(r[-1]) for s, v in asked if s.startswith("SELECT") for r in conn.exec_driver_sql(f"explain query plan {s}", v))
