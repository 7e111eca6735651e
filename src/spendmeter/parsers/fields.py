"""Reading of untrusted JSON fields: a number, a time or nothing, never an exception."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

LIMIT = 1 << 53


def count(value: object) -> int | None:
    """A count of 0 or more as int, else None (also for bools, fractions and absurd sizes)."""
    if type(value) is int:
        return value if 0 <= value < LIMIT else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value < LIMIT or value != int(value):
        return None
    return int(value)


def counts(row: dict[str, Any], *names: str) -> tuple[int | None, ...] | None:
    """The counts under *names*, None for each that is missing; None for all where one is there and is no count."""
    found = tuple(count(row.get(n)) for n in names)
    return None if any(v is None and row.get(n) is not None for n, v in zip(names, found, strict=True)) else found


def less(whole: int | None, *parts: int | None) -> int | None:
    """*whole* without its *parts*, at least 0; None where the whole is unknown."""
    return None if whole is None else max(0, whole - sum(p or 0 for p in parts))


def text(value: object) -> str | None:
    """A string that is not empty, cut to 256 characters, else None; what no database takes (NUL, half a character) is replaced."""
    if not isinstance(value, str) or not value:
        return None
    cut = value[:256].replace("\0", "?")
    return cut if cut.isascii() else cut.encode("utf-8", "replace").decode()


def digest(value: object) -> str:
    """A short name of a JSON value."""
    try:
        told = json.dumps(value, sort_keys=True)
    except (ValueError, RecursionError):
        told = "?"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


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
