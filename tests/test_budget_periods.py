"""Facts about periods: windows tile time in every zone, and a day begins where its clock says."""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spendmeter.budgets.periods import LENGTHS_MS, MINUTE_MS, Period, Window, zone

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_MS, DAY_MS = LENGTHS_MS["h"], LENGTHS_MS["d"]
END_MS = 47_482 * DAY_MS  # 2100


def ms(text: str) -> int:
    """Of an ISO time, in UTC where it has no offset."""
    stamp = datetime.fromisoformat(text)
    return ((stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)) - EPOCH) // timedelta(milliseconds=1)


def clock(at_ms: int, name: str) -> datetime:
    """What a clock of the zone shows."""
    return (EPOCH + timedelta(milliseconds=at_ms)).astimezone(ZoneInfo(name)).replace(tzinfo=None)


@cache
def changes(name: str) -> tuple[int, ...]:
    """Instants at which the zone's clock was or will be changed."""
    place = ZoneInfo(name)

    def offset(s: int) -> timedelta | None:
        return (EPOCH + timedelta(seconds=s)).astimezone(place).utcoffset()

    def change(week: range) -> int:
        before = offset(week[0])
        return week[bisect_left(week, True, key=lambda s: offset(s) != before)] * 1000

    weeks = [range(s, s + 7 * 86_400 + 1) for s in range(0, END_MS // 1000, 7 * 86_400)]
    return tuple(change(week) for week in weeks if offset(week[0]) != offset(week[-1]))


zones = st.sampled_from(sorted(available_timezones()))
calendar = st.one_of(
    st.builds(Period, st.just("day"), zones),
    st.builds(Period, st.just("week"), zones, st.integers(1, 7)),
    st.builds(Period, st.just("month"), zones, st.integers(1, 31)),
)


@st.composite
def moments(draw: st.DrawFn) -> tuple[Period, int]:
    """A calendar period and an instant from 1970 to 2100, every other one within a day and a half of a change of the clock."""
    period = draw(calendar)
    near = changes(period.timezone) if draw(st.booleans()) else ()
    if not near:
        return period, draw(st.integers(0, END_MS))
    return period, draw(st.sampled_from(near)) + draw(st.integers(-36 * HOUR_MS, 36 * HOUR_MS))


@settings(deadline=None, max_examples=300)
@given(moments())
def test_every_instant_is_in_exactly_one_period(moment: tuple[Period, int]) -> None:
    """A window holds the instant that it was asked for, every instant of a window has that window, and neighbours touch."""
    period, at = moment
    w = period.window(at)
    assert w.end_ms is not None
    assert w.start_ms <= at < w.end_ms
    assert {period.window(x) for x in (w.start_ms, (w.start_ms + at) // 2, w.end_ms - 1)} == {w}
    assert period.window(w.end_ms).start_ms == w.end_ms
    assert period.window(w.start_ms - 1).end_ms == w.start_ms


@settings(deadline=None)
@given(moments())
def test_a_period_begins_when_its_clock_first_shows_midnight_or_later(moment: tuple[Period, int]) -> None:
    """At its start the clock comes to its first day, or over it, and in the two days before it showed none that late."""
    period, at = moment
    start = period.window(at).start_ms
    shown, before = clock(start, period.timezone), clock(start - 1, period.timezone)
    midnight = shown.replace(hour=0, minute=0, second=0)
    assert all(clock(start - 1 - minute * MINUTE_MS, period.timezone) < midnight for minute in range(0, 2 * 1440, 7))
    came_to = [shown.date() - timedelta(days=n) for n in range((shown.date() - before.date()).days)]  # two where one is missing
    assert any(begins(period, day) for day in came_to)


def begins(period: Period, day: date) -> bool:
    """Whether a period starts on a day of this name."""
    if period.kind == "week":
        return day.isoweekday() == period.starts
    return period.kind == "day" or day.day == min(period.starts, monthrange(day.year, day.month)[1])


@given(calendar, st.integers(0, END_MS), st.lists(st.tuples(st.integers(0, 800 * DAY_MS), st.integers(-(10**9), 10**12)), min_size=1))
def test_sums_over_periods_equal_the_total(period: Period, base: int, amounts: list[tuple[int, int]]) -> None:
    """Walking from window to window over two years, each amount is met once."""
    dated = [(base + offset, amount) for offset, amount in amounts]
    first, last = min(dated)[0], max(dated)[0]
    windows = [period.window(first)]
    while (end := windows[-1].end_ms) is not None and end <= last:
        windows.append(period.window(end))
    sums = [sum(amount for at, amount in dated if w.start_ms <= at < (w.end_ms or 0)) for w in windows]
    assert sum(sums) == sum(amount for _, amount in dated)


@pytest.mark.parametrize(
    ("period", "at", "start", "end"),
    [
        (Period("day"), "2026-11-22T23:59:59.999", "2026-11-22", "2026-11-23"),
        (Period("day"), "2026-11-23", "2026-11-23", "2026-11-24"),
        (Period("day", "Europe/Berlin"), "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00"),  # 23 hours
        (Period("day", "Europe/Berlin"), "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-25T23:00"),  # 25 hours
        (Period("day", "Asia/Kathmandu"), "2026-11-22T18:15", "2026-11-22T18:15", "2026-11-23T18:15"),
        # midnight is skipped: 00:00 is 01:00
        (Period("day", "Asia/Beirut"), "2026-03-28T22:00", "2026-03-28T22:00", "2026-03-29T21:00"),
        (Period("day", "America/Sao_Paulo"), "2018-11-04T03:00", "2018-11-04T03:00", "2018-11-05T02:00"),
        (Period("day", "America/Sao_Paulo"), "2018-11-04T02:59", "2018-11-03T03:00", "2018-11-04T03:00"),
        # midnight is within what is skipped: 23:30 is 00:30
        (Period("day", "America/Toronto"), "1919-03-31T04:30", "1919-03-31T04:30", "1919-04-01T04:00"),
        # the last hour of a day comes twice: it is all of that day
        (Period("day", "America/Sao_Paulo"), "2018-02-18T02:59", "2018-02-17T02:00", "2018-02-18T03:00"),
        # midnight comes twice, at 00:01 the clock goes back to 23:01: the first one counts
        (Period("day", "America/St_Johns"), "2006-10-29T02:30", "2006-10-29T02:30", "2006-10-30T03:30"),
        (Period("day", "America/St_Johns"), "2006-10-29T02:35", "2006-10-29T02:30", "2006-10-30T03:30"),
        # a day is missing: after Thursday, the 29th, came Saturday, the 31st
        (Period("day", "Pacific/Apia"), "2011-12-30T09:59", "2011-12-29T10:00", "2011-12-30T10:00"),
        (Period("day", "Pacific/Apia"), "2011-12-30T10:00", "2011-12-30T10:00", "2011-12-31T10:00"),
        (Period("week", "Pacific/Apia", 5), "2011-12-30T10:00", "2011-12-30T10:00", "2012-01-05T10:00"),
        (Period("month", "Pacific/Apia", 30), "2011-12-30T09:59", "2011-11-30T10:00", "2011-12-30T10:00"),
        # weeks
        (Period("week"), "2026-11-22T12:00", "2026-11-16", "2026-11-23"),
        (Period("week", starts=7), "2026-11-22T12:00", "2026-11-22", "2026-11-29"),
        (Period("week", starts=7), "2026-11-21T12:00", "2026-11-15", "2026-11-22"),
        (Period("week", "Europe/Berlin"), "2026-10-25T12:00", "2026-10-18T22:00", "2026-10-25T23:00"),  # 169 hours
        # months
        (Period("month"), "2028-02-29T12:00", "2028-02-01", "2028-03-01"),
        (Period("month", starts=31), "2026-02-28", "2026-02-28", "2026-03-31"),
        (Period("month", starts=31), "2026-02-27", "2026-01-31", "2026-02-28"),
        (Period("month", starts=31), "2028-02-29", "2028-02-29", "2028-03-31"),
        (Period("month", starts=31), "2026-05-15", "2026-04-30", "2026-05-31"),
        (Period("month", starts=15), "2026-01-14", "2025-12-15", "2026-01-15"),
        (Period("month", "Europe/Berlin"), "2026-10-31T22:30", "2026-09-30T22:00", "2026-10-31T23:00"),
        (Period("month", "Europe/Berlin"), "2026-10-31T23:00", "2026-10-31T23:00", "2026-11-30T23:00"),
        # rolling: the minute that runs is in it
        (Period("rolling", length_ms=5 * HOUR_MS), "2026-11-22T12:30:45.678", "2026-11-22T07:31", "2026-11-22T12:31"),
        (Period("rolling", length_ms=30 * DAY_MS), "2026-11-22T12:30", "2026-10-23T12:31", "2026-11-22T12:31"),
    ],
)
def test_the_window_of_an_instant(period: Period, at: str, start: str, end: str) -> None:
    """Explicit days, weeks and months, those at changes of the clock too; times are UTC."""
    w = period.window(ms(at))
    assert w == Window(ms(start), ms(end))
    assert w.length_ms == ms(end) - ms(start)


@given(st.integers(0, END_MS), st.integers(1, 100_000))
def test_a_rolling_window_moves_by_whole_minutes(at: int, minutes: int) -> None:
    """It is always as long as it says, holds the instant, and ends within a minute of it."""
    w = Period("rolling", length_ms=minutes * MINUTE_MS).window(at)
    assert w.end_ms is not None
    assert (w.length_ms, w.end_ms % MINUTE_MS) == (minutes * MINUTE_MS, 0)
    assert w.start_ms <= at < w.end_ms <= at + MINUTE_MS


def test_a_total_has_no_end() -> None:
    """It holds everything since 1970, and has no length."""
    w = Period("total").window(ms("2026-11-22"))
    assert (w, w.length_ms) == (Window(0, None), None)


@pytest.mark.parametrize(
    ("period", "text"),
    [
        (Period("day"), "day, UTC"),
        (Period("week", "Asia/Beirut", 7), "week from sunday, Asia/Beirut"),
        (Period("month", "Europe/Berlin"), "month from 1, Europe/Berlin"),
        (Period("rolling", length_ms=5 * HOUR_MS), "rolling 5h"),
        (Period("rolling", length_ms=90 * MINUTE_MS), "rolling 90m"),
        (Period("rolling", length_ms=30 * DAY_MS), "rolling 30d"),
        (Period("total", "Europe/Berlin", 3), "total"),
    ],
)
def test_a_period_as_text(period: Period, text: str) -> None:
    """As messages name it."""
    assert period.text == text


def test_utc_needs_no_time_zone_database() -> None:
    """The default works where none is installed."""
    assert zone("UTC") is UTC
