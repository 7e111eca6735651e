"""Sessions that hold the same calls: a call belongs to the session that began first (docs/adr/003-shared-calls.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from spendmeter.reconcile.facts import ByModel, CallFact, SessionFacts
from spendmeter.records import NAMELESS, NOTHING, Level, Usage, tokens_only

UNDATED = 1 << 62
Age = tuple[int, str]
K = TypeVar("K")


def age(facts: SessionFacts) -> Age:
    """Order in which sessions began: the oldest made the calls that several hold, and one without a name none that another holds."""
    if facts.session.startswith(NAMELESS):
        return UNDATED + 1, facts.session
    if facts.own_ms is not None:
        return facts.own_ms, facts.session
    return min((c.at_ms for c in facts.calls.values() if c.at_ms is not None), default=UNDATED), facts.session


def marks(facts: SessionFacts) -> set[str]:
    """Rows of the session that its forks repeat, besides calls."""
    return {source for kind, source in facts.bases if kind == "mark"}


def models_at(facts: SessionFacts, run_key: str) -> ByModel:
    """What the result *run_key* shows, by model."""
    return tuple(sorted((v.model, v.usage) for v in facts.levels.values() if not v.epoch and v.reading == run_key and v.model))


def least_told(told: Iterable[tuple[Usage, ByModel]]) -> dict[Usage, ByModel]:
    """By total, what it was made of: of several words the same one in any order."""
    out: dict[Usage, ByModel] = {}
    for used, by_model in told:
        if by_model:
            out[used] = min(out.get(used, by_model), by_model, key=str)
    return out


def is_told_elsewhere(facts: SessionFacts, peer_totals: Iterable[Usage]) -> bool:
    """Whether files count what *facts* hold of exports in the session that started theirs, or a result of another shows just that."""
    if any(kind == "parent" for kind, _ in facts.bases):
        return True
    mine = tokens_only(facts.first_restored() or NOTHING) if facts.session.startswith(NAMELESS) else NOTHING
    return mine.known and any(tokens_only(p) == mine for p in peer_totals)


def without_exports(facts: SessionFacts) -> SessionFacts:
    """*facts* without the calls that only exports tell of."""
    return replace(facts, calls={key: c for key, c in facts.calls.items() if c.views != {"otlp"}})


def inherited(ancestors: Iterable[tuple[Age, Iterable[Level]]]) -> tuple[Level, ...]:
    """Readings that a fork may have started from, of *ancestors* with their ages: each one's up to when the next of them began.

    What an ancestor used after that went into no fork of the next one.
    """
    line = sorted(ancestors, key=lambda x: x[0])
    ends = [*(begun for (begun, _), _ in line[1:]), UNDATED]
    return tuple(v for (_, levels), end in zip(line, ends, strict=False) for v in levels if v.read_ms is None or v.read_ms <= end)


def disowned(
    me: K, facts: SessionFacts, holders: Mapping[str, Sequence[tuple[K, CallFact]]], age_of: Callable[[K], Age]
) -> tuple[SessionFacts, dict[str, CallFact], set[K]]:
    """*facts* of session *me* with the calls that are an older session's as copies, those calls, and whose they are.

    Args:
        holders: by call id, the other sessions that hold the call as their own, and how each saw it.
    """
    calls, copies = dict(facts.calls), set(facts.copies)
    copied: dict[str, CallFact] = {}
    owners: set[K] = set()
    for call_id, others in holders.items():
        owner = min([me, *(k for k, _ in others)], key=age_of)
        joined = calls[call_id]
        for _, fact in others:
            joined = joined.join(fact)
        if owner == me:
            calls[call_id] = joined
        else:
            del calls[call_id]
            copies.add(call_id)
            copied[call_id] = joined
            owners.add(owner)
    return replace(facts, calls=calls, copies=copies), copied, owners
