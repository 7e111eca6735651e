"""Published pricing rules that genai-prices does not hold: the only prices written in this project.

Data, not logic. Every row says where it was read. Rows are tried in order and the first that matches wins, so an exception
stands before its rule. Days are UTC and half-open. The library wins over a row here, the override file wins over both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from spendmeter.prices.rates import CACHE_WRITE_1H, CACHE_WRITE_5M, INPUT, WEB_SEARCH

VERSION = "2026-11-21"
"""The day of the last change here; part of the price table's version."""

ANTHROPIC_PRICING = "https://platform.claude.com/docs/en/about-claude/pricing"
OPENAI_CACHING = "https://developers.openai.com/api/docs/guides/prompt-caching"

NEUTRAL = frozenset({"", "standard", "default", "global", "not_available"})
"""Trait values that mean list price."""

EXCLUSIVE = frozenset({"speed", "tier"})
"""Traits that replace the rates; together they have no published price (fast mode is not sold in batches)."""

LIBRARY_CONTEXT = {"speed": "speed", "tier": "service_tier"}
"""Our trait -> the library's name for it in a price variant."""

LIBRARY_BATCH = ("processing", "batch")
"""The library's name for our ``tier: batch``."""


@dataclass(frozen=True, slots=True)
class Premium:
    """A trait that multiplies every token rate of a model."""

    provider: str
    models: tuple[str, ...]  # globs over the library's model ids
    trait: str
    value: str
    factor: Decimal
    since: date
    until: date | None
    source: str


@dataclass(frozen=True, slots=True)
class Derived:
    """A kind that the library has no rate for: ``factor`` x another kind, or ``usd`` flat."""

    provider: str
    models: tuple[str, ...]
    kind: str
    of: str | None
    amount: Decimal
    source: str


_NOT_GEO = ("claude-2*", "claude-v1", "claude-3*", "claude-*-4-[0-5]*")

PREMIUMS = (
    # "always use standard pricing"
    Premium("anthropic", _NOT_GEO, "geo", "us", Decimal(1), date(2026, 2, 5), None, f"{ANTHROPIC_PRICING}#data-residency-pricing"),
    # "For Claude 4.6 and later models [...] a 1.1x multiplier on all token pricing categories"
    Premium("anthropic", ("claude-*",), "geo", "us", Decimal("1.1"), date(2026, 2, 5), None, f"{ANTHROPIC_PRICING}#data-residency-pricing"),
    # "50% of the standard rates", caching multipliers stack; the library knows it from 2026-10-14 on
    Premium("anthropic", ("claude-*",), "tier", "batch", Decimal("0.5"), date(2024, 10, 8), None, f"{ANTHROPIC_PRICING}#batch-processing"),
    # Opus 4.6: $30 / $150, 6x; from the day of flat long context. Its last day is not published: closed at the last day it was seen.
    Premium("anthropic", ("claude-opus-4-6",), "speed", "fast", Decimal(6), date(2026, 3, 13), date(2026, 5, 1), ANTHROPIC_PRICING),
    # Opus 4.7: $30 / $150, from its preview to its removal
    Premium("anthropic", ("claude-opus-4-7",), "speed", "fast", Decimal(6), date(2026, 5, 12), date(2026, 7, 24), ANTHROPIC_PRICING),
)

DERIVED = (
    Derived("anthropic", ("*",), CACHE_WRITE_5M, INPUT, Decimal("1.25"), f"{ANTHROPIC_PRICING}#prompt-caching"),
    Derived("anthropic", ("*",), CACHE_WRITE_1H, INPUT, Decimal(2), f"{ANTHROPIC_PRICING}#prompt-caching"),
    Derived("anthropic", ("*",), WEB_SEARCH, None, Decimal(10), f"{ANTHROPIC_PRICING}#web-search-tool"),
    # "Cache writes have no additional fee on models before the GPT-5.6 family": they cost what input costs
    Derived(
        "openai",
        ("gpt-4*", "gpt-5", "gpt-5-*", "gpt-5.[0-5]", "gpt-5.[0-5]-*", "o[134]*"),
        CACHE_WRITE_5M,
        INPUT,
        Decimal(1),
        OPENAI_CACHING,
    ),
)


class _Scoped(Protocol):
    @property
    def provider(self) -> str: ...
    @property
    def models(self) -> tuple[str, ...]: ...


_Row = TypeVar("_Row", bound=_Scoped)


def _for_model(rows: Iterable[_Row], provider: str, model: str) -> list[_Row]:
    return [row for row in rows if row.provider == provider and any(fnmatchcase(model, glob) for glob in row.models)]


def premium(provider: str, model: str, trait: str, value: str, day: date) -> Decimal | None:
    """Factor on the token rates of a library model for a trait on *day*; None when no rule is known."""
    for row in _for_model(PREMIUMS, provider, model):
        if (row.trait, row.value) == (trait, value) and row.since <= day and (row.until is None or day < row.until):
            return row.factor
    return None


def derived(provider: str, model: str, usd: dict[str, Decimal]) -> dict[str, Decimal]:
    """*usd* of a library model with the kinds that the library lacks, where the provider publishes a rule for them."""
    out = dict(usd)
    for row in _for_model(DERIVED, provider, model):
        if row.of is None:
            out.setdefault(row.kind, row.amount)
        elif row.of in out:
            out.setdefault(row.kind, out[row.of] * row.amount)
    return out
