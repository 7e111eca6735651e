"""Calendar periods in a time zone, and rolling ones. Pure arithmetic over milliseconds UTC."""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

Kind = Literal["day", "week", "month", "rolling", "total"]
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MINUTE_MS = 60_000
LENGTHS_MS = {"d": 86_400_000, "h": 3_600_000, "m": MINUTE_MS}  # of what a rolling period is written in, longest first
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_LOCAL = datetime(1970, 1, 1)  # noqa: DTZ001 - wall clock time, whose offset is what is looked for


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start_ms``, which is in it, to ``end_ms``, which no longer is; None is without end."""

    start_ms: int
    end_ms: int | None

    @property
    def length_ms(self) -> int | None:
        """None is without end."""
        return None if self.end_ms is None else self.end_ms - self.start_ms


@dataclass(frozen=True, slots=True)
class Period:
    """How long a limit holds.

    ``starts``: of a week its first day (1 Monday .. 7 Sunday), of a month its first day (1 .. 31; in a shorter month its last
    day). ``length_ms``: of a rolling period.
    """

    kind: Kind
    timezone: str = "UTC"
    starts: int = 1
    length_ms: int | None = None

    def window(self, at_ms: int) -> Window:
        """The period that holds *at_ms*: of a rolling one, the length that ends with its minute.

        Days begin at local midnight: the first one where the clock shows it twice; where it skips midnight, the first instant
        after. So windows of a calendar period touch, and each instant is in exactly one. A day that a zone left out has none.

        Raises:
            OSError, ValueError, KeyError: the time zone is not known.
            OverflowError: *at_ms* is not within the years 2 to 9998.
        """
        if self.kind == "total":
            return Window(0, None)
        if self.kind == "rolling":
            end = at_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS
            return Window(end - (self.length_ms or 0), end)
        first = self._first_day((_EPOCH + timedelta(milliseconds=at_ms)).astimezone(zone(self.timezone)).date())
        while (end := _midnight_ms(self.timezone, self._next(first))) <= at_ms:  # the clock went back over midnight, or a day is missing
            first = self._next(first)
        return Window(_midnight_ms(self.timezone, first), end)

    @property
    def text(self) -> str:
        """For a message: "day, UTC", "week from sunday, UTC", "month from 1, Europe/Berlin", "rolling 5h", "total"."""
        if self.kind == "total":
            return "total"
        if self.kind == "rolling":
            length = self.length_ms or 0
            unit = next(u for u, ms in LENGTHS_MS.items() if length % ms == 0)
            return f"rolling {length // LENGTHS_MS[unit]}{unit}"
        starts = "" if self.kind == "day" else f" from {WEEKDAYS[self.starts - 1] if self.kind == 'week' else self.starts}"
        return f"{self.kind}{starts}, {self.timezone}"

    def _first_day(self, day: date) -> date:
        """First day of the period that *day* is in."""
        if self.kind == "day":
            return day
        if self.kind == "week":
            return day - timedelta(days=(day.isoweekday() - self.starts) % 7)
        first = _day_of(_month(day), self.starts)
        return first if first <= day else _day_of(_month(day) - 1, self.starts)

    def _next(self, first: date) -> date:
        """First day of the period after the one that begins on *first*."""
        if self.kind == "month":
            return _day_of(_month(first) + 1, self.starts)
        return first + timedelta(days=1 if self.kind == "day" else 7)


def zone(name: str) -> tzinfo:
    """The time zone *name*; UTC needs no time zone database.

    Raises:
        OSError, ValueError, KeyError: there is none of that name.
    """
    return UTC if name == "UTC" else ZoneInfo(name)


def _month(day: date) -> int:
    """Months since the year 0."""
    return day.year * 12 + day.month - 1


def _day_of(month: int, day: int) -> date:
    """Day *day* of a month counted from the year 0, or the month's last day where it is shorter."""
    year, index = divmod(month, 12)
    return date(year, index + 1, min(day, monthrange(year, index + 1)[1]))


@lru_cache(4096)
def _midnight_ms(timezone: str, day: date) -> int:
    """The first instant at which the clock of *timezone* shows midnight of *day* or later."""
    place = zone(timezone)
    midnight = datetime(day.year, day.month, day.day, tzinfo=place)
    local_s = (midnight.replace(tzinfo=None) - _EPOCH_LOCAL) // timedelta(seconds=1)
    before_s, after_s = _offset_s(midnight), _offset_s(midnight.replace(fold=1))
    if after_s <= before_s:
        return (local_s - before_s) * 1000
    # The clock never shows it (PEP 495: fold 0 has the offset before the gap, fold 1 the one after): the gap's instant is between.
    seconds = range(local_s - after_s, local_s - before_s + 1)
    jump = bisect_left(seconds, True, key=lambda s: _offset_s((_EPOCH + timedelta(seconds=s)).astimezone(place)) == after_s)
    return seconds[jump] * 1000


def _offset_s(at: datetime) -> int:
    return (at.utcoffset() or timedelta(0)) // timedelta(seconds=1)
