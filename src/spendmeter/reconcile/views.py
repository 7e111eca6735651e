"""Calls of one id space, cut by time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from spendmeter.reconcile.facts import CallFact
from spendmeter.reconcile.rule import FOREVER


class View:
    """What one id space holds of a session's calls."""

    def __init__(self, calls: Iterable[CallFact]) -> None:
        calls = list(calls)
        self._calls = sorted((c for c in calls if c.at_ms is not None), key=lambda c: (c.at_ms or 0, c.call_id))
        self._times = [c.at_ms or 0 for c in self._calls]
        self._undated = [c for c in calls if c.at_ms is None]

    def within(self, after: int, until: int) -> list[CallFact]:
        """Those after *after* up to *until*, in order; undated ones go with the whole, as nothing says which stretch they are of."""
        found = self._calls[bisect_right(self._times, after) : bisect_right(self._times, until)]
        return found + self._undated if until >= FOREVER and after < 0 else found
