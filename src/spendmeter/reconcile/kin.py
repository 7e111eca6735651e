"""Sessions that hold the same calls: a call belongs to the session that began first (docs/adr/003-shared-calls.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from spendmeter.reconcile.facts import CallFact, SessionFacts

UNDATED = 1 << 62
Age = tuple[int, str]
K = TypeVar("K")


def age(facts: SessionFacts) -> Age:
    """Order in which sessions began: the oldest made the calls that several hold."""
    if facts.own_ms is not None:
        return facts.own_ms, facts.session
    return min((c.at_ms for c in facts.calls.values() if c.at_ms is not None), default=UNDATED), facts.session


def marks(facts: SessionFacts) -> set[str]:
    """Rows of the session that its forks repeat, besides calls."""
    return {source for kind, source in facts.bases if kind == "mark"}


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
