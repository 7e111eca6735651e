"""What is asked of the ledger, and the sums that answer it: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spendmeter.records import usd_text

SUMS = (
    "tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out", "reasoning", "web_searches",
    "reported_nusd", "estimated_nusd", "listed_nusd", "unpriced_tokens", "calls",
)  # fmt: skip


class Amounts(NamedTuple):
    """Sums over entries; None where no entry tells. ``runs`` is exact: each run once, however many entries it has."""

    tokens_in: int | None = None
    cache_read: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    tokens_out: int | None = None
    reasoning: int | None = None
    web_searches: int | None = None
    reported_nusd: int | None = None
    estimated_nusd: int | None = None
    listed_nusd: int | None = None
    unpriced_tokens: int | None = None
    calls: int | None = None
    runs: int = 0

    def plus(self, other: Amounts) -> Amounts:
        """Field by field; unknown plus unknown stays unknown."""
        return Amounts(*[_plus(a, b) for a, b in zip(self, other, strict=True)])  # type: ignore[arg-type]

    @property
    def cache_write(self) -> int | None:
        """Cache writes of both lifetimes."""
        return _plus(self.cache_write_5m, self.cache_write_1h)

    @property
    def cached(self) -> int | None:
        """Cache reads and writes."""
        return _plus(self.cache_read, self.cache_write)

    @property
    def prompt_tokens(self) -> int | None:
        """All input, cached too."""
        return _plus(self.tokens_in, self.cached)

    @property
    def total_tokens(self) -> int | None:
        """Input and output; None where no entry tells of either."""
        return _plus(self.prompt_tokens, self.tokens_out)

    @property
    def cost_nusd(self) -> int | None:
        """Reported plus estimated cost, nano-USD."""
        return _plus(self.reported_nusd, self.estimated_nusd)

    @property
    def tokens(self) -> int:
        """All billed tokens; unknown adds nothing."""
        return sum(x or 0 for x in self[:5])

    def as_dict(self) -> dict[str, Any]:
        """The row of design.md section 6, and what it is made of."""
        return {
            "tokens_in": self.tokens_in, "tokens_out": self.tokens_out, "cache_read": self.cache_read, "cache_write": self.cache_write,
            "reasoning": self.reasoning, "cost_usd": usd_text(self.cost_nusd), "runs": self.runs, "calls": self.calls,
            "cache_write_5m": self.cache_write_5m, "cache_write_1h": self.cache_write_1h, "cost_reported_usd": usd_text(self.reported_nusd),
            "cost_estimated_usd": usd_text(self.estimated_nusd), "cost_listed_usd": usd_text(self.listed_nusd),
            "unpriced_tokens": self.unpriced_tokens, "web_searches": self.web_searches,
        }  # fmt: skip


NOTHING = Amounts()


def _plus(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else a + b


@dataclass(frozen=True, slots=True)
class Where:
    """What to look at; None is everything. ``since_ms`` is within the window, ``until_ms`` no longer."""

    since_ms: int | None = None
    until_ms: int | None = None
    agent: str | None = None
    task: str | None = None
    cli: str | None = None
    model: str | None = None
    repo: str | None = None
    session: str | None = None
    outcome: str | None = None
    attrs: Mapping[str, str] = field(default_factory=dict)

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Where()
