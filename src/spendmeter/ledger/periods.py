"""Times that people write, and days and months of a time zone as SQL."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Connection, case, func, literal

from spendmeter.errors import LedgerError

_UNITS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DAY_MS = 86_400_000
_END_MS = 253_402_300_800_000  # the year 10000, which no calendar here knows
_LAST = 36_525  # days from 1970 to 2070: beyond, the offset stays as it is there
_FORMATS = {"day": ("%Y-%m-%d", "YYYY-MM-DD"), "month": ("%Y-%m", "YYYY-MM")}


def zone(name: str) -> ZoneInfo:
    """The time zone *name*.

    Raises:
        LedgerError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise LedgerError(f'timezone "{name}" is not known; write an IANA name such as UTC or Europe/Berlin') from None


def when_ms(text: str, timezone: str = "UTC", now_ms: int | None = None) -> int:
    """Milliseconds of an ISO date (its first moment), an ISO datetime, "today", "yesterday", or a while ago: "7d", "24h".

    Args:
        timezone: of dates and of datetimes without an offset.

    Raises:
        LedgerError: *text* is none of these.
    """
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    text = text.strip()
    if (length_ms := _length_ms(text)) is not None:
        return max(0, now - length_ms)
    place = zone(timezone)
    try:
        if text in ("today", "yesterday"):
            midnight = datetime.fromtimestamp(now / 1000, place).replace(hour=0, minute=0, second=0, microsecond=0)
            stamp = midnight - timedelta(days=text == "yesterday")
        else:
            stamp = datetime.fromisoformat(f"{text}-01" if re.fullmatch(r"\d{4}-\d{2}", text) else text)
            stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=place)
        return int(stamp.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise LedgerError(f'time "{text}" is not understood; write 2026-11-01, 2026-11-01T15:00, today, or a while ago: 7d, 24h') from None


def until_ms(text: str, now_ms: int) -> int:
    """Milliseconds of a time that is yet to come: an ISO date or datetime in UTC, or a while ahead, "90d", "12h".

    Raises:
        LedgerError: *text* is none of these, or not after *now_ms*.
    """
    length_ms = _length_ms(text.strip())
    try:
        at_ms = when_ms(text, now_ms=now_ms) if length_ms is None else now_ms + length_ms
    except LedgerError:
        raise LedgerError(f'"{text}" is not understood; write a length such as 90d or 12h, or a date such as 2030-01-31') from None
    if not now_ms < at_ms < _END_MS:
        raise LedgerError(f'"{text}" is not between now and the year 10000; write a length such as 90d, or a date that is yet to come')
    return at_ms


def _length_ms(text: str) -> int | None:
    """ "90d" as milliseconds; None for what is no length."""
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    return int(match[1]) * _UNITS[match[2]] if match else None


def shifted(at_ms: Any, timezone: str, first_ms: int, last_ms: int) -> ColumnElement[int]:
    """*at_ms*, which lies in *first_ms* .. *last_ms*, plus the zone's offset at that moment."""
    steps = _offsets(timezone, first_ms // _DAY_MS, last_ms // _DAY_MS + 1)
    if len(steps) == 1:
        return at_ms + steps[0][1] if steps[0][1] else at_ms  # type: ignore[no-any-return]
    whens = [(at_ms < until, at_ms + offset) for (until, _), (_, offset) in zip(steps[1:], steps, strict=False)]
    return case(*whens, else_=at_ms + steps[-1][1])


@lru_cache(16)
def _offsets(timezone: str, first_day: int, last_day: int) -> tuple[tuple[int, int], ...]:
    """(from ms, offset ms) of each stretch with one offset, ascending; days are counted from the epoch."""
    place = zone(timezone)

    def offset(ms: int) -> int:
        found = datetime.fromtimestamp(ms / 1000, UTC).astimezone(place).utcoffset()
        return int(found.total_seconds() * 1000) if found else 0

    first, last = max(0, min(first_day, _LAST)), max(0, min(last_day, _LAST))
    out = [(0, offset(first * _DAY_MS))]
    for day in range(first, last):
        start, end = day * _DAY_MS, (day + 1) * _DAY_MS
        before = out[-1][1]
        if offset(end) != before:
            minutes = range(start // 60_000 + 1, end // 60_000 + 1)
            at = minutes[bisect_left(minutes, True, key=lambda m: offset(m * 60_000) != before)]
            out.append((at * 60_000, offset(end)))
    return tuple(out)


def by_the_hour(timezone: str, first_ms: int, last_ms: int) -> bool:
    """Whether the zone's days begin at whole hours UTC, from *first_ms* to *last_ms*."""
    steps = _offsets(timezone, first_ms // _DAY_MS, last_ms // _DAY_MS + 1)
    return not any(offset % 3_600_000 or start % 3_600_000 for start, offset in steps)


def name_of(local_ms: int, unit: str) -> str | None:
    """ "2026-11-22" or, for the unit month, "2026-11" of local milliseconds; None for a time beyond the calendar."""
    try:
        return datetime.fromtimestamp(local_ms / 1000, UTC).strftime(_FORMATS[unit][0])
    except (ValueError, OverflowError):
        return None


def day_text(conn: Connection, local_ms: ColumnElement[int]) -> ColumnElement[str]:
    """ "2026-11-22" of local milliseconds; NULL for a time beyond the calendar."""
    return _text(conn, local_ms, "day")


def month_text(conn: Connection, local_ms: ColumnElement[int]) -> ColumnElement[str]:
    """ "2026-11" of local milliseconds."""
    return _text(conn, local_ms, "month")


def _text(conn: Connection, local_ms: ColumnElement[int], period: str) -> ColumnElement[str]:
    sqlite, postgres = _FORMATS[period]
    if conn.dialect.name == "sqlite":
        return func.strftime(sqlite, local_ms // 1000, "unixepoch")
    return func.to_char(func.timezone("UTC", func.to_timestamp(local_ms / literal(1000.0))), postgres)
