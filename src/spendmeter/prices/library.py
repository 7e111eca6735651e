"""The adapter of genai-prices: names to models, models to dated rates. Imported only when a price is first asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import NamedTuple

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, PriceVariant, Provider, StartDateConstraint, TieredPrices, TimeOfDateConstraint

from spendmeter.prices import rates, rules
from spendmeter.prices.rates import Band, Rates

SOURCE = "genai-prices"

_KEYS = {
    rates.INPUT: ("input_mtok",),
    rates.OUTPUT: ("output_mtok",),
    rates.CACHE_READ: ("cache_read_mtok",),
    rates.CACHE_WRITE_5M: ("cache_write_5m_mtok", "cache_write_mtok"),
    rates.CACHE_WRITE_1H: ("cache_write_1h_mtok",),
    rates.WEB_SEARCH: ("web_searches_kcount",),
}
_BEYOND_US = ("requests_kcount", "output_reasoning_mtok", "output_citation_mtok")  # a price by these needs more than a Usage
_LONG_CONTEXT = re.compile(r"\[1m\]$")
_BEDROCK = re.compile(r"(?:[a-z-]+\.)?[a-z0-9]+\.[a-z]")  # us.anthropic.claude-..., amazon.nova-...
_SPLIT = re.compile(r"[/ ]")


class Found(NamedTuple):
    """A model of the library and the provider whose price list it was found in."""

    provider: Provider
    model: ModelInfo

    @property
    def name(self) -> str:
        return f"{self.provider.id}/{self.model.id}"

    @property
    def hourly(self) -> bool:
        """Whether the price depends on the time of day."""
        prices = [] if isinstance(self.model.prices, ModelPrice) else self.model.prices
        return any(isinstance(p.constraint, TimeOfDateConstraint) for p in (*prices, *(self.model.price_variants or ())))


def bare(name: str) -> str:
    """*name* as the library spells names: lower case, without Claude Code's ``[1m]``, which has no price of its own."""
    return _LONG_CONTEXT.sub("", name.strip().lower())


def find(name: str) -> Found | None:
    """The library's model of *name*, by the library's own matching.

    Known spellings: a bare name, "provider/name", "provider/model" as ``listed`` gives it, Bedrock's "us.anthropic.claude-...",
    Vertex's "name@version", Gemini's "models/name". A prefix that names no provider is no match: what a gateway or a local
    server charges is not the maker's list price.
    """
    exact = _exact().get(bare(name))
    if exact is not None:
        return exact
    for provider_id, ref in _spellings(bare(name)):
        found = _lookup(provider_id, ref)
        if found is not None:
            return found
    return None


def _spellings(name: str) -> Iterator[tuple[str | None, str]]:
    prefix, *rest = _SPLIT.split(name, maxsplit=1)
    provider, ref = (prefix, rest[0]) if rest and prefix != "models" else (None, rest[0] if rest else name)
    yield provider, ref
    if "@" in ref:
        yield provider, ref.partition("@")[0]
    if provider is None and _BEDROCK.match(ref):
        yield "aws", ref


def _lookup(provider_id: str | None, ref: str) -> Found | None:
    try:
        found = Found(*get_snapshot().find_provider_model(ref, None, provider_id, None))
    except LookupError:
        return None
    if ref.endswith("-fast") and found.model.id.startswith("claude-") and not found.model.id.endswith("-fast"):
        return None  # matched by prefix: these would be the standard rates of a fast model
    return found


@cache
def _exact() -> dict[str, Found]:
    return {found.name.lower(): found for found in _all()}


def _all() -> Iterator[Found]:
    return (Found(provider, model) for provider in get_snapshot().providers for model in provider.models)


def listed() -> Iterator[str]:
    """Every model of the library as "provider/model", a name that ``find`` takes."""
    return (found.name for found in _all())


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC)


def standard(found: Found, at_ms: int) -> Rates:
    """List rates of a model at a moment."""
    return _rates(found, found.model.get_prices(_moment(at_ms)), _since(found.model, _moment(at_ms)))


def variant(found: Found, at_ms: int, trait: str, value: str) -> Rates | None:
    """Rates under a trait; None when the library has no rates for it at that moment."""
    context = rules.LIBRARY_BATCH if (trait, value) == ("tier", "batch") else (rules.LIBRARY_CONTEXT.get(trait, ""), value)
    if not any(_active(v, context, _moment(at_ms)) for v in _variants(found)):
        return None
    return _rates(found, found.model.get_prices(_moment(at_ms), dict([context])), None)


def _variants(found: Found) -> list[PriceVariant]:
    own = any(found.model is model for model in found.provider.models)  # a reseller's premiums are not its supplier's
    return (found.model.price_variants or []) if own else []


def _active(v: PriceVariant, context: tuple[str, str], at: datetime) -> bool:
    return v.when == dict([context]) and (v.constraint is None or v.constraint.active(at))


def _since(model: ModelInfo, at: datetime) -> date | None:
    for price in reversed([] if isinstance(model.prices, ModelPrice) else model.prices):
        if price.constraint is None:
            return None
        if price.constraint.active(at):
            return price.constraint.start_date if isinstance(price.constraint, StartDateConstraint) else None
    return None


def _rates(found: Found, price: ModelPrice, since: date | None) -> Rates:
    prices = {} if any(_price(price, (key,)) is not None for key in _BEYOND_US) else {k: _price(price, keys) for k, keys in _KEYS.items()}
    aboves = {0} | {tier.start for p in prices.values() if isinstance(p, TieredPrices) for tier in p.tiers}
    bands = (Band(a, _usd(found, {k: _at(p, a + 1) for k, p in prices.items() if p is not None})) for a in sorted(aboves))
    return Rates(found.name, SOURCE, since, tuple(bands))


def _usd(found: Found, usd: dict[str, Decimal]) -> dict[str, Decimal]:
    return rules.derived(found.provider.id, found.model.id, usd) if usd else usd


def _price(price: ModelPrice, keys: tuple[str, ...]) -> Decimal | TieredPrices | None:
    values = price.__dict__
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _at(price: Decimal | TieredPrices, context_tokens: int) -> Decimal:
    if isinstance(price, Decimal):
        return price
    return next((tier.price for tier in reversed(price.tiers) if context_tokens > tier.start), price.base)
