"""One entry of the local override file: which calls it covers and what it does to the library's rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase

from spendmeter.prices.rates import NO_USD, Band, Rates, Usd, rebuilt

SOURCE = "override"
_NO_BANDS = (Band(0, NO_USD),)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of prices.yaml; rates in USD per million tokens whatever unit they were written in."""

    match: str
    start: date | None = None
    end: date | None = None  # the first day that is no longer covered
    usd: Usd = field(default_factory=dict)
    above: int | None = None
    long_usd: Usd = field(default_factory=dict)
    premiums: Mapping[tuple[str, str], Decimal] = field(default_factory=dict)  # (trait, value) -> factor

    def covers(self, names: tuple[str, ...], day: date) -> bool:
        """Whether the glob matches any of *names* and *day* is in [from, to)."""
        dated = (self.start is None or self.start <= day) and (self.end is None or day < self.end)
        return dated and any(fnmatchcase(name.lower(), self.match.lower()) for name in names)

    def over(self, standard: Rates | None) -> Rates:
        """The entry's rates; kinds that it does not name come from *standard*."""
        base = Rates(self.match, SOURCE, self.start, standard.bands if standard else _NO_BANDS)

        def usd_at(above: int) -> dict[str, Decimal | None]:
            long = self.long_usd if self.above is not None and above >= self.above else NO_USD
            return {**base.at(above + 1), **self.usd, **long}

        return rebuilt(base, set() if self.above is None else {self.above}, usd_at)
