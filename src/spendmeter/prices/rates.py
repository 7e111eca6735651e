"""Rates as values: what one model costs on one day, and what usage costs at them. Decimal throughout, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from math import lcm
from types import MappingProxyType
from typing import NamedTuple

from spendmeter.records import Usage

INPUT = "input"
OUTPUT = "output"
CACHE_READ = "cache_read"
CACHE_WRITE_5M = "cache_write_5m"
CACHE_WRITE_1H = "cache_write_1h"
WEB_SEARCH = "web_search"

TOKEN_KINDS = (INPUT, OUTPUT, CACHE_READ, CACHE_WRITE_5M, CACHE_WRITE_1H)
KINDS = (*TOKEN_KINDS, WEB_SEARCH)

Usd = Mapping[str, Decimal]
NO_USD: Usd = MappingProxyType({})

_NUSD_PER_TOKEN = Decimal(1_000)  # USD per million tokens -> nano-USD per token
_NUSD_PER_SEARCH = Decimal(1_000_000)  # USD per thousand searches -> nano-USD per search


class Band(NamedTuple):
    """Rates of the calls whose whole input is greater than ``above`` tokens."""

    above: int
    usd: Usd


@dataclass(frozen=True, slots=True)
class Rates:
    """List prices of one model on one day.

    Attributes:
        model: "provider/model" of the library, or the pattern of the override entry.
        source: "genai-prices" or "override"; an override may leave some kinds to the library.
        valid_from: First UTC day of these rates; None when the source does not date them.
        bands: Ascending by ``above``, the first for calls of any size. USD per million tokens by kind (``TOKEN_KINDS``),
            and per thousand searches under "web_search". A kind that is missing has no known rate.
    """

    model: str
    source: str
    valid_from: date | None
    bands: tuple[Band, ...]
    _whole: dict[int, tuple[tuple[int | None, ...], int]] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def usd(self) -> Usd:
        """USD by kind for calls below every long-context threshold."""
        return self.bands[0].usd

    def at(self, context_tokens: int) -> Usd:
        """USD by kind for a call whose whole input, cached input included, is *context_tokens*."""
        for band in reversed(self.bands):
            if context_tokens > band.above:
                return band.usd
        return self.bands[0].usd

    def cost(self, usage: Usage, context_tokens: int | None = None) -> int | None:
        """Cost of *usage* in nano-USD, rounded half-even once.

        Args:
            usage: Disjoint counts; a field that is None counts as not used.
            context_tokens: Whole input of the call that chooses the long-context band; None means that *usage* is one
                call. Give 0 for the sum of many calls.

        Returns:
            None when a kind that was used has no rate.
        """
        usd = self.at(_context(usage) if context_tokens is None else context_tokens)
        found = self._whole.get(id(usd))
        rates, scale = found if found else self._whole.setdefault(id(usd), _in_whole_numbers(usd))
        total = 0
        for rate, count in zip(rates, _counts(usage), strict=True):
            if count is None or count <= 0:
                continue
            if rate is None:
                return None
            total += count * rate
        return _rounded(total, scale)


def _in_whole_numbers(usd: Usd) -> tuple[tuple[int | None, ...], int]:
    """Nano-USD per unit of each kind as whole multiples of 1/scale: thousands of calls are priced, and Decimal is slow."""
    rates = [None if (r := usd.get(k)) is None else r * (_NUSD_PER_SEARCH if k == WEB_SEARCH else _NUSD_PER_TOKEN) for k in KINDS]
    exact = [None if r is None else Fraction(r) for r in rates]
    scale = lcm(*[r.denominator for r in exact if r is not None])
    return tuple(None if r is None else int(r * scale) for r in exact), scale


def _rounded(total: int, scale: int) -> int:
    """*total* / *scale*, a half to the even neighbour."""
    whole, rest = divmod(total, scale)
    return whole + (2 * rest > scale or (2 * rest == scale and whole % 2 == 1))


def _counts(usage: Usage) -> tuple[int | None, ...]:
    return (usage.tokens_in, usage.tokens_out, usage.cache_read, usage.cache_write_5m, usage.cache_write_1h, usage.web_searches)


def _context(usage: Usage) -> int:
    return sum(x or 0 for x in (usage.tokens_in, usage.cache_read, usage.cache_write_5m, usage.cache_write_1h))


def rebuilt(rates: Rates, thresholds: set[int], usd_at: Callable[[int], Mapping[str, Decimal | None]]) -> Rates:
    """*rates* with bands made anew by *usd_at* at its own thresholds and at *thresholds*; kinds that come out None are left out."""
    aboves = sorted({band.above for band in rates.bands} | thresholds)
    bands = (Band(a, {k: v for k, v in usd_at(a).items() if v is not None}) for a in aboves)
    return replace(rates, bands=tuple(bands))


def times(rates: Rates, factor: Decimal) -> Rates:
    """*rates* with every token rate multiplied; fees per request are not."""
    return rebuilt(rates, set(), lambda a: {k: v if k == WEB_SEARCH else v * factor for k, v in rates.at(a + 1).items()})


def with_premium(rates: Rates, premium: Rates, standard: Rates) -> Rates:
    """*rates* with every token rate raised as *premium* stands to *standard*; a kind that either lacks is left out.

    Where *rates* holds the standard rates the result is exactly the premium ones. Fees per request stay.
    """

    def usd_at(above: int) -> dict[str, Decimal | None]:
        over, base = premium.at(above + 1), standard.at(above + 1)
        raised = {k: v * over[k] / base[k] for k, v in rates.at(above + 1).items() if k in over and base.get(k)}
        return {**raised, WEB_SEARCH: rates.usd.get(WEB_SEARCH)}

    return rebuilt(rates, {band.above for band in (*premium.bands, *standard.bands)}, usd_at)


def unknown(rates: Rates) -> Rates:
    """*rates* of a known model whose figures cannot be known: nothing but unused usage has a price."""
    return replace(rates, bands=(Band(0, NO_USD),))
