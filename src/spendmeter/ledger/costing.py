"""What a piece of a run cost, and when: pure functions of the piece and the price table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from spendmeter.reconcile.facts import CallFact
from spendmeter.reconcile.split import Piece
from spendmeter.records import NOTHING, Usage, total

MINUTE_MS = 60_000
Share = tuple[str, str]  # agent and task of a part of a run's usage
WHOLE: Share = ("", "")  # the run's own


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
    """A piece's usage and cost within one minute, of one share. ``calls`` None: the source does not tell calls."""

    model: str
    minute_ms: int
    usage: Usage
    money: Money
    calls: int | None
    share: Share = WHOLE


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
    shares, left = _allotted(usage, calls)
    for c, part in zip(calls, shares, strict=True):
        found = prices.price(c.answered, part, c.at_ms, dict(c.traits)) if c.answered else None
        if found is None:
            found = _first(prices.price(m, part, c.at_ms, dict(c.traits)) for m in (c.asked, *names) if m)
        parts.append((part, found))
    if left.tokens or left.web_searches or not calls:  # a sum of calls says nothing of any call's length
        parts.append((left, _first(prices.price(m, left, at_ms, context_tokens=0) for m in names)))
    known = [p for _, p in parts if p is not None]
    return (sum(known) if known else None), sum(u.tokens for u, p in parts if p is None)


def _allotted(usage: Usage, calls: Sequence[CallFact]) -> tuple[list[Usage], Usage]:
    """What each of *calls*, in their order, takes of *usage*, and what is left: what there is no more of, no call gets."""
    left = usage._replace(cost_nusd=None)
    own = [c.usage if c.usage.cost_nusd is None else c.usage._replace(cost_nusd=None) for c in calls]
    whole = total(own)
    if all(n is None or n <= (top or 0) for n, top in zip(whole, left, strict=True)):
        return own, left.minus(whole)
    out = []
    for used in own:
        out.append(_within(left, used))
        left = left.minus(out[-1])
    return out, left


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


def entries(
    piece: Piece, money: Money, ended_ms: int, prices: Prices, whose: Callable[[CallFact | None], Share] | None = None
) -> list[Entry]:
    """*piece* by minute: its calls at their own times, the rest at *ended_ms*; sums are exact.

    Args:
        whose: the share of a call, or of what is in no call; a minute's sums are the same whatever it says.
    """
    buckets: dict[int, dict[Share, list[Usage]]] = {}
    counts: dict[int, dict[Share, int]] = {}
    calls = sorted(piece.calls, key=lambda c: (c.at_ms or 0, c.call_id))
    own, left = _allotted(piece.usage, calls)
    for c, part in zip(calls, own, strict=True):
        minute, share = _minute(c.at_ms if c.at_ms is not None else ended_ms), whose(c) if whose else WHOLE
        buckets.setdefault(minute, {}).setdefault(share, []).append(part)
        mine = counts.setdefault(minute, {})
        mine[share] = mine.get(share, 0) + 1
    if any(left) or not buckets:
        buckets.setdefault(_minute(ended_ms), {}).setdefault(whose(None) if whose else WHOLE, []).append(left)
    shares = {m: {share: total(us) for share, us in by.items()} for m, by in sorted(buckets.items())}
    sums = {m: total(by.values()) for m, by in shares.items()}
    whole = _spread(piece, money, sums, {m: sum(by.values()) for m, by in counts.items()}, prices)
    return [part for e in whole for part in _divided(piece, e, shares[e.minute_ms], counts.get(e.minute_ms, {}), prices)]


def _divided(piece: Piece, entry: Entry, shares: dict[Share, Usage], counts: dict[Share, int], prices: Prices) -> list[Entry]:
    """A minute's entry by share; its money is cut like that of a piece."""
    if len(shares) == 1:
        share = next(iter(shares))
        return [entry if share == WHOLE else replace(entry, share=share)]
    parts = _parted(piece, entry.money, [(entry.minute_ms, used) for used in shares.values()], prices)
    return [Entry(entry.model, entry.minute_ms, u, part, counts.get(s), s) for (s, u), part in zip(shares.items(), parts, strict=True)]


def _spread(piece: Piece, money: Money, sums: dict[int, Usage], counts: dict[int, int], prices: Prices) -> list[Entry]:
    parts = _parted(piece, money, list(sums.items()), prices)
    return [Entry(piece.model, minute, used, part, counts.get(minute)) for (minute, used), part in zip(sums.items(), parts, strict=True)]


def _parted(piece: Piece, money: Money, dated: list[tuple[int, Usage]], prices: Prices) -> list[Money]:
    """*money* by the list price of each of *dated*, or by tokens where one has none."""
    priced = [_first(prices.price(n, u, m, context_tokens=0) for n in (piece.model, piece.asked)) for m, u in dated]
    weights = [u.tokens for _, u in dated] if any(p is None for p in priced) else [p or 0 for p in priced]
    shares = [cut(x, weights) for x in (money.reported, money.estimated, money.listed, money.unpriced)]
    return [Money(shares[0][i], shares[1][i], shares[2][i], shares[3][i] or 0) for i in range(len(dated))]


def cut(amount: int | None, weights: list[int]) -> list[int | None]:
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
