"""Reading of untrusted JSON fields: a number, a time or nothing, never an exception."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

LIMIT = 1 << 53


def count(value: object) -> int | None:
    """A count of 0 or more as int, else None (also for bools, fractions and absurd sizes)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value < LIMIT or value != int(value):
        return None
    return int(value)


def text(value: object) -> str | None:
    """A string that is not empty, cut to 256 characters, else None."""
    return value[:256] if isinstance(value, str) and value else None


def mapping(value: object) -> dict[str, Any]:
    """A JSON object, or an empty one."""
    return value if isinstance(value, dict) else {}


def when_ms(value: object) -> int | None:
    """Milliseconds since the epoch of an ISO-8601 text or a number of ms, else None."""
    if isinstance(value, str):
        try:
            stamp = datetime.fromisoformat(value)
        except ValueError:
            return None
        stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
        return int(stamp.timestamp() * 1000 + 0.5)
    return count(value)
