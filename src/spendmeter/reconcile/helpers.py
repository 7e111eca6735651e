"""Calls of a CLI's own helpers that its session files leave out: who has not seen them says so."""

from __future__ import annotations

from collections.abc import Iterable

from spendmeter.reconcile.facts import CallFact
from spendmeter.reconcile.renamed import shown
from spendmeter.reconcile.rule import Rule
from spendmeter.records import total

UNSEEN = {"gemini": "helpers: its chat leaves out the router and the compression, and nothing else tells them; a lower bound"}
UNTOLD = "helpers: the stream leaves out their thoughts and tools' input, and no chat has them; a lower bound"


def unseen(
    rule: Rule, readings: Iterable[str], pieces: Iterable[tuple[str, tuple[CallFact, ...]]], after: int, until: int
) -> tuple[str, ...]:
    """What no source tells of the helpers of a run that files tell of, in the user's words.

    Args:
        readings: keys of what the run printed of itself.
        pieces: by cell, the run's calls.
        after: with *until*, when the run was.
    """
    calls = dict(pieces)
    if rule.facts.cli not in UNSEEN or any("otlp" in c.views and after < (c.at_ms or 0) <= until for c in rule.facts.calls.values()):
        return ()
    if not (keys := set(readings)):
        return (UNSEEN[rule.facts.cli],)
    for p in rule.facts.parts.values():
        wrote = total(c.usage for c in calls.get(rule.cell_named(p.model), ()))
        if p.part_id in keys and p.role == "any" and any(a > b for a, b in zip(shown(p.usage), shown(wrote), strict=True)):
            return (UNTOLD,)
    return ()
