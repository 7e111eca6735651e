"""Burn rates: how fast a budget goes, over which windows, and when that is too fast.

A burn rate of 1 uses the limit up exactly at the period's end; 14.4 over an hour uses 2 % of a month of 30 days. An alert looks at
two windows: the long one says that much has gone, the short one that it still goes, so that the alert ends soon after the burning.

Source:
    https://sre.google/workbook/alerting-on-slos/ (multiwindow, multi-burn-rate alerts), scaled from its 30 days.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from spendmeter.budgets.periods import Period

DAY_S = 86_400
MONTH_S = 30 * DAY_S  # the length that the windows are made for; of a calendar month too, so that its windows are every month's
_LEAST_SHORT_S = 300
_NOMINAL_S = {"day": DAY_S, "week": 7 * DAY_S, "month": MONTH_S}


@dataclass(frozen=True, slots=True)
class Burn:
    """Burning *factor* times as fast as the limit allows, over both windows."""

    factor: float
    long_s: int
    short_s: int
    severity: Literal["page", "ticket"]


_MONTHLY = (  # and the least length of the long window
    (Burn(14.4, 3_600, 300, "page"), 900),
    (Burn(6.0, 21_600, 1_800, "page"), 1_800),
    (Burn(3.0, DAY_S, 7_200, "ticket"), 3_600),
    (Burn(1.0, 3 * DAY_S, 21_600, "ticket"), 8_640),
)


def nominal_ms(period: Period) -> int | None:
    """The length that the windows of *period* go by: the same for every month and every day; None for a total, which has no rate."""
    if period.kind == "rolling":
        return period.length_ms
    return _NOMINAL_S[period.kind] * 1000 if period.kind in _NOMINAL_S else None


def burn_windows(length_ms: int) -> tuple[Burn, ...]:
    """The alerts of a period of *length_ms*, fastest first; windows in whole minutes, none so short that it holds next to nothing."""
    return tuple(
        Burn(b.factor, _scaled(b.long_s, length_ms, least_s), _scaled(b.short_s, length_ms, _LEAST_SHORT_S), b.severity)
        for b, least_s in _MONTHLY
    )


def window_lengths(period: Period) -> tuple[int, ...]:
    """Every window of *period* in seconds, the shortest first; none for a total."""
    length = nominal_ms(period)
    return tuple(sorted({s for b in burn_windows(length) for s in (b.long_s, b.short_s)})) if length else ()


def _scaled(window_s: int, length_ms: int, least_s: int) -> int:
    minutes = round(Fraction(window_s * length_ms, MONTH_S * 1000 * 60))
    return max(minutes * 60, least_s)


def window_text(window_s: int) -> str:
    """A window's length as Prometheus writes it: 5m, 1h, 2h24m, 3d."""
    days, rest = divmod(window_s, DAY_S)
    hours, rest = divmod(rest, 3_600)
    parts = ((days, "d"), (hours, "h"), (rest // 60, "m"))
    return "".join(f"{n}{unit}" for n, unit in parts if n) or "0m"
