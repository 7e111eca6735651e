"""What a piece of a run cost, and when: pure functions of the piece and the price table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from spendmeter.reconcile.facts import CallFact
from spendmeter.reconcile.split import Piece
from spendmeter.records import NOTHING, Usage, total

MINUTE_MS = 60_000


class Prices(Protocol):
    """What costing needs of a price table."""

    version: str

    def price(
        self, model: str, usage: Usage, at_ms: int | None, traits: Mapping[str, str] = ..., *, context_tokens: int | None = None
    ) -> int | None:
        """List price in nano-USD, or None when the table has no rate; *context_tokens* chooses the tier, by default the usage's input."""


@dataclass(frozen=True, slots=True)
class Money:
    """Cost of one piece, nano-USD. ``reported`` is the CLI's own figure, ``estimated`` list price beyond it or a CLI's guess.

    ``listed`` prices everything by the table and stands beside for drift. None is unknown; ``unpriced`` counts the tokens
    that neither covers.
    """

    reported: int | None
    estimated: int | None
    listed: int | None
    unpriced: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A piece's usage and cost within one minute. ``calls`` None: the source does not tell calls."""

    model: str
    minute_ms: int
    usage: Usage
    money: Money
    calls: int | None


def cost(piece: Piece, prices: Prices, at_ms: int | None) -> Money:
    """Cost of *piece*: the CLI's figure where it has one, list price for what that leaves out.

    A figure that the CLI marks as a guess gives way to a list price, and is an estimate in any case. List prices are those of
    the model that answered, which is the one that is billed; the CLI prices what it asked for, so where the two differ the
    figures do, and that shows as drift.
    """
    listed, missing = _listed(piece.usage, piece.calls, (piece.model, piece.asked), prices, at_ms)
    if piece.paid.cost_nusd is None or (piece.guess and not missing):
        return Money(None, listed, listed, missing)
    rest = _beyond(piece.usage, piece.paid)
    extra, lost = (
        _listed(rest, _suffix(piece.calls, rest), (piece.model, piece.asked), prices, at_ms)
        if rest.tokens or rest.web_searches
        else (None, 0)
    )
    if piece.guess:
        return Money(None, piece.paid.cost_nusd + (extra or 0), None if missing else listed, lost)
    return Money(piece.paid.cost_nusd, extra, None if missing else listed, lost)


def _listed(usage: Usage, calls: tuple[CallFact, ...], names: tuple[str, str], prices: Prices, at_ms: int | None) -> tuple[int | None, int]:
    """(price or None, tokens without one): each call at its own date and rate, the rest flat."""
    parts: list[tuple[Usage, int | None]] = []
    left = usage._replace(cost_nusd=None)
    for c in calls:
        part = _within(left, c.usage)
        left = left.minus(part)
        models = (c.answered, c.asked, *names)
        parts.append((part, _first(prices.price(m, part, c.at_ms, dict(c.traits)) for m in models if m)))
    if left.tokens or left.web_searches or not calls:  # a sum of calls says nothing of any call's length
        parts.append((left, _first(prices.price(m, left, at_ms, context_tokens=0) for m in names)))
    known = [p for _, p in parts if p is not None]
    return (sum(known) if known else None), sum(u.tokens for u, p in parts if p is None)


def _first(found: Iterable[int | None]) -> int | None:
    return next((x for x in found if x is not None), None)


def _within(top: Usage, used: Usage) -> Usage:
    """*used*, no field above *top*."""
    return Usage(*[None if u is None else min(u, t or 0) for u, t in zip(used[:7], top[:7], strict=True)])


def _beyond(usage: Usage, paid: Usage) -> Usage:
    return usage._replace(cost_nusd=None, reasoning=None).minus(paid)


def _suffix(calls: tuple[CallFact, ...], rest: Usage) -> tuple[CallFact, ...]:
    """The last calls, if they make up *rest* exactly (a run that was killed after the last figure)."""
    ordered = sorted(calls, key=lambda c: (c.at_ms or 0, c.call_id))
    sum_, chosen = NOTHING, []
    for c in reversed(ordered):
        chosen.append(c)
        sum_ = sum_.plus(c.usage)
        if [x or 0 for x in sum_[:5]] == [x or 0 for x in rest[:5]]:
            return tuple(chosen)
    return ()


def entries(piece: Piece, money: Money, ended_ms: int, prices: Prices) -> list[Entry]:
    """*piece* by minute: its calls at their own times, the rest at *ended_ms*; sums are exact."""
    buckets: dict[int, list[Usage]] = {}
    counts: dict[int, int] = {}
    left = piece.usage._replace(cost_nusd=None)
    for c in sorted(piece.calls, key=lambda c: (c.at_ms or 0, c.call_id)):
        minute = _minute(c.at_ms if c.at_ms is not None else ended_ms)
        part = _within(left, c.usage)
        left = left.minus(part)
        buckets.setdefault(minute, []).append(part)
        counts[minute] = counts.get(minute, 0) + 1
    if any(left) or not buckets:
        buckets.setdefault(_minute(ended_ms), []).append(left)
    return _spread(piece, money, {m: total(us) for m, us in sorted(buckets.items())}, counts, prices)


def _spread(piece: Piece, money: Money, sums: dict[int, Usage], counts: dict[int, int], prices: Prices) -> list[Entry]:
    """Shares the money by list price, or by tokens where there is none."""
    priced = [_first(prices.price(n, u, m, context_tokens=0) for n in (piece.model, piece.asked)) for m, u in sums.items()]
    weights = [u.tokens for u in sums.values()] if any(p is None for p in priced) else [p or 0 for p in priced]
    shares = [_shares(x, weights) for x in (money.reported, money.estimated, money.listed, money.unpriced)]
    return [
        Entry(piece.model, minute, used, Money(shares[0][i], shares[1][i], shares[2][i], shares[3][i] or 0), counts.get(minute))
        for i, (minute, used) in enumerate(sums.items())
    ]


def _shares(amount: int | None, weights: list[int]) -> list[int | None]:
    """*amount* cut by *weights* into integers that add up to it."""
    if amount is None:
        return [None] * len(weights)
    all_, out, done, given = sum(weights), [], 0, 0
    for i, w in enumerate(weights):
        done += w
        upto = amount if i == len(weights) - 1 else amount * done // all_ if all_ else 0
        out.append(upto - given)
        given = upto
    return list(out)


def _minute(at_ms: int) -> int:
    return at_ms - at_ms % MINUTE_MS
