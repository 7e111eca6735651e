"""Where budgets are heading: forecasts and burn windows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spendmeter.budgets import Period
from spendmeter.budgets.burn import Burn, burn_windows, nominal_ms, window_lengths, window_text
from tests.made import NOON, Made
from tests.standings import DAY, HOUR, MINUTE, MONTH, TODAY, TOTAL, budget, ms, standing


def run_at(made: Made, text: str, tokens: int, **run: Any) -> None:
    made.run({"minute_ms": ms(text), "tokens_in": tokens}, **run)


# -- forecast ----------------------------------------------------------------------------------------------------------


def test_a_month_goes_on_as_in_the_last_week(made: Made) -> None:
    """What was spent since the period began, and for the rest of it the rate of seven days, whichever period they were in."""
    run_at(made, "2026-10-24T23:00", 1_000_000)  # more than 7 days ago
    run_at(made, "2026-10-30T10:00", 600)
    run_at(made, "2026-11-01T10:00", 100)
    (found,) = standing(made.ledger, budget(period=MONTH), at=ms("2026-11-02T11:59:30"))
    assert (found.spent, found.forecast) == (100, 100 + 700 * (28 * 24 + 12) // (7 * 24))


def test_a_short_period_looks_back_a_quarter_of_itself(made: Made) -> None:
    """A day goes on as in the last six hours; in its last minute there is nothing left to come."""
    for text, tokens in (("2026-11-02T05:59", 100), ("2026-11-02T06:00", 30), ("2026-11-02T11:59", 6)):
        run_at(made, text, tokens)
    one = budget(period=TODAY)
    (found,) = standing(made.ledger, one, at=ms("2026-11-02T11:59:30"))
    assert (found.spent, found.forecast) == (136, 136 + 36 * 12 // 6)
    (late,) = standing(made.ledger, one, at=ms("2026-11-02T23:59:59"))
    assert (late.spent, late.forecast) == (136, 136)


def test_what_has_no_end_has_no_forecast(made: Made) -> None:
    """Nor has a budget of which each value has its own."""
    made.run({"tokens_in": 5})
    found = standing(made.ledger, budget(period=Period("rolling", length_ms=DAY)), budget(), budget(period=MONTH, per="task"))
    assert [s.forecast for s in found] == [None, None, None]


# -- burn windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length_ms", "windows"),
    [
        (30 * DAY, ["1h 5m", "6h 30m", "1d 2h", "3d 6h"]),
        (7 * DAY, ["15m 5m", "1h24m 7m", "5h36m 28m", "16h48m 1h24m"]),
        (DAY, ["15m 5m", "30m 5m", "1h 5m", "2h24m 12m"]),
        (5 * HOUR, ["15m 5m", "30m 5m", "1h 5m", "2h24m 5m"]),
    ],
)
def test_burn_windows_scale_with_the_period(length_ms: int, windows: list[str]) -> None:
    """From those of 30 days, down to lengths that hold enough to tell."""
    found = burn_windows(length_ms)
    assert [f"{window_text(b.long_s)} {window_text(b.short_s)}" for b in found] == windows
    assert [(b.factor, b.severity) for b in found] == [(14.4, "page"), (6.0, "page"), (3.0, "ticket"), (1.0, "ticket")]


@given(st.integers(MINUTE, 1000 * DAY))
def test_windows_of_any_period_are_whole_minutes(length_ms: int) -> None:
    """The short one is shorter than the long one, and slower burning is looked at for longer."""
    found = burn_windows(length_ms)
    assert all(b.long_s % 60 == b.short_s % 60 == 0 and 300 <= b.short_s < b.long_s for b in found)
    assert [b.long_s for b in found] == sorted({b.long_s for b in found})
    assert burn_windows(length_ms + DAY)[0].long_s >= found[0].long_s


def test_every_month_has_the_same_windows() -> None:
    """So rules that were written in one hold in the next; a total has none."""
    assert [nominal_ms(Period(kind)) for kind in ("day", "week", "month", "total")] == [DAY, 7 * DAY, 30 * DAY, None]  # type: ignore[arg-type]
    assert [window_text(s) for s in window_lengths(MONTH)] == ["5m", "30m", "1h", "2h", "6h", "1d", "3d"]
    assert window_lengths(Period("rolling", length_ms=30 * DAY)) == window_lengths(MONTH)
    assert window_lengths(TOTAL) == ()
    assert burn_windows(30 * DAY)[0] == Burn(14.4, 3600, 300, "page")


def test_a_window_holds_what_was_spent_in_it(made: Made) -> None:
    """It ends with the minute of now; each is what a rolling budget of that length has spent."""
    for minutes in (0, 4, 5, 29, 30, 59, 60, 119, 120, 360, 1439, 1440, 4319, 4320):
        made.run({"minute_ms": NOON - minutes * MINUTE, "tokens_in": 1 + minutes})
    at = NOON + 59_999
    (found,) = standing(made.ledger, budget(period=MONTH), at=at)
    assert [window_text(s) for s, _ in found.windows] == ["5m", "30m", "1h", "2h", "6h", "1d", "3d"]
    rolling = [budget(period=Period("rolling", length_ms=s * 1000)) for s, _ in found.windows]
    assert [amount for _, amount in found.windows] == [standing(made.ledger, r, at=at)[0].spent for r in rolling]
    assert found.windows[0] == (300, 1 + 5)
