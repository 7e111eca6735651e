"""``PriceTable``: what a call costs at list price on its own day. Pure but for the clock that stands in for an unknown day."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from spendmeter.prices import rates, rules
from spendmeter.prices.override import Entry
from spendmeter.prices.rates import Rates
from spendmeter.records import Usage

if TYPE_CHECKING:
    from spendmeter.prices.library import Found

Traits = tuple[tuple[str, str], ...]

_NO_TRAITS: Mapping[str, str] = MappingProxyType({})
_DAY_MS = 86_400_000
_LAST_MS = 253_402_300_799_999  # the end of the year 9999
_CACHED = 16_384


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class PriceTable:
    """Dated list prices: the override file, then genai-prices, then the published rules that it lacks.

    Attributes:
        version: Names everything a price depends on: "genai-prices 0.2.3, rules 2026-11-21, prices.yaml 1a2b3c4d".
    """

    version: str

    def __init__(self, entries: tuple[Entry, ...] = (), version: str = "", now_ms: Callable[[], int] = _now_ms) -> None:
        """Use ``load``; tests give *entries* and a fixed clock here."""
        self.version = version
        self._entries = entries
        self._now_ms = now_ms
        self._find = lru_cache(_CACHED)(_find)
        self._hourly = lru_cache(_CACHED)(lambda model: (found := self._find(model)) is not None and found.hourly)
        self._daily: dict[tuple[str, int, Traits], Rates | None] = {}  # of models whose price is the same all day
        self._resolved = lru_cache(_CACHED)(self._resolve)

    @classmethod
    def load(cls, override: Path | None = None, now_ms: Callable[[], int] = _now_ms) -> PriceTable:
        """The installed prices, with the *override* file laid over them.

        Raises:
            PriceError: The file cannot be read or an entry is wrong; the message names file, line, value and remedy.
        """
        from importlib import metadata  # 20 ms

        version = f"genai-prices {metadata.version('genai-prices')}, rules {rules.VERSION}"
        if override is None:
            return cls(version=version, now_ms=now_ms)
        from spendmeter.prices.override_file import read

        entries, digest = read(override)
        return cls(entries, f"{version}, {override.name} {digest}", now_ms)

    def price(
        self,
        model: str,
        usage: Usage,
        at_ms: int | None,
        traits: Mapping[str, str] = _NO_TRAITS,
        *,
        context_tokens: int | None = None,
    ) -> int | None:
        """List price of *usage* in nano-USD at the rates in force at *at_ms*, rounded half-even once.

        Args:
            model: As the CLI names it; ``[1m]`` and provider prefixes are understood.
            usage: Disjoint counts (``tokens_in`` excludes cache); a field that is None counts as not used.
            at_ms: Time of the call; None takes the rates of now.
            traits: What changes the rate: speed, geo, tier. "", "standard", "default", "global" mean list price.
            context_tokens: Whole input of the call, which chooses the long-context band; None means that *usage* is one
                call. Give 0 when *usage* adds up many calls: the band is then the lowest.

        Returns:
            None when the table has no rate for the model, for the model under these traits, or for a kind that the usage
            used. 0 for a known model with nothing used, whatever the traits.
        Source:
            The override file, genai-prices, ``rules.py``, in this order; see docs/reference/prices.md.
        """
        found = self.rates(model, at_ms, traits)
        return None if found is None else found.cost(usage, context_tokens)

    def rates(self, model: str, at_ms: int | None, traits: Mapping[str, str] = _NO_TRAITS) -> Rates | None:
        """The rates that ``price`` uses.

        Returns:
            None for an unknown model; rates without any figure for a known one whose traits have no known price.
        """
        moment = min(max(0, self._now_ms() if at_ms is None else at_ms), _LAST_MS)
        key = model, moment - moment % _DAY_MS, tuple(traits.items())
        if key in self._daily:
            return self._daily[key]
        if self._hourly(model):
            return self._resolved(model, moment, _telling(traits))
        rates = self._resolved(*key[:2], _telling(traits))
        if len(self._daily) < _CACHED:
            self._daily[key] = rates
        return rates

    def models(self) -> Iterator[str]:
        """Names for a listing: the override file's patterns in its order, then every "provider/model" of the library.

        ``rates`` takes each of them, but a pattern with wildcards only where some model has that very name.
        """
        from spendmeter.prices import library

        yield from dict.fromkeys(entry.match for entry in self._entries)
        yield from library.listed()

    def near(self, model: str) -> list[str]:
        """Up to three names that *model* may be meant for, without their providers."""
        names = list(dict.fromkeys(name.rpartition("/")[2] for name in self.models()))
        return [n for n in names if model.lower() in n][:3] or get_close_matches(model.lower(), names, 3, 0.6)

    def _resolve(self, model: str, at_ms: int, traits: Traits) -> Rates | None:
        found = self._find(model)
        entry = self._entry(model, at_ms)
        standard = _standard(found, at_ms)
        base = entry.over(standard) if entry else standard
        if base is None:
            return None
        if {name for name, _ in traits} >= rules.EXCLUSIVE:
            return rates.unknown(base)
        for trait in traits:
            base = _under(base, entry, found, at_ms, trait) or rates.unknown(base)
        return base

    def _entry(self, model: str, at_ms: int) -> Entry | None:
        if not self._entries:
            return None
        from spendmeter.prices.library import bare

        day = datetime.fromtimestamp(at_ms / 1000, tz=UTC).date()
        return next((entry for entry in self._entries if entry.covers((model, bare(model)), day)), None)


def _find(model: str) -> Found | None:
    from spendmeter.prices import library  # 0.16 s: only when a price is really asked for

    return library.find(model)


def _standard(found: Found | None, at_ms: int) -> Rates | None:
    from spendmeter.prices import library

    return None if found is None else library.standard(found, at_ms)


def _telling(traits: Mapping[str, str]) -> Traits:
    """The traits that are not list price, in one order."""
    cleaned = ((trait, value.strip().lower()) for trait, value in traits.items())
    return tuple(sorted((trait, value) for trait, value in cleaned if value not in rules.NEUTRAL))


def _under(base: Rates, entry: Entry | None, found: Found | None, at_ms: int, trait: tuple[str, str]) -> Rates | None:
    """*base* under one trait: by the entry's own factor, the library's rates, or a published rule; None when none is known."""
    own = entry.premiums.get(trait) if entry else None
    if own is not None:
        return rates.times(base, own)
    if found is None:
        return None
    from spendmeter.prices import library

    premium = library.variant(found, at_ms, *trait)
    if premium is not None:
        return rates.with_premium(base, premium, library.standard(found, at_ms))
    day = datetime.fromtimestamp(at_ms / 1000, tz=UTC).date()
    factor = rules.premium(found.provider.id, found.model.id, *trait, day)
    return None if factor is None else rates.times(base, factor)
