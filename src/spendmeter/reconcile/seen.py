"""What one source alone has seen of a session: the rule over its facts, in the segments and less the bases that all facts give.

A call that several sources tell of is one fact with the larger of what they told. So sources are compared by the calls that they miss,
never by digits within one call; what a source is known not to tell of a call is taken out.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import NamedTuple

from spendmeter.reconcile.facts import CallFact
from spendmeter.reconcile.rule import UNSPLIT, Rule
from spendmeter.records import Level, Part, Usage, total

SOURCES = ("stdout", "file", "otlp")
PRINTED_PARTS = frozenset({"run", "utility", "since", "own"})  # kinds of parts; of the rest, those of metrics are exported
UNTOLD = {  # fields of a call that a source does not tell, so that another one of the call must have
    ("claude", "stdout"): ("tokens_out", "reasoning", "cost_nusd"),  # as of the message's start
    ("claude", "file"): ("cost_nusd",),
    ("claude", "otlp"): ("reasoning",),
    ("copilot", "otlp"): ("reasoning",),
}


class Seen(NamedTuple):
    """Calls (None where they are not told one by one) and usage, with the source's own cost; a field it told nothing of is None."""

    calls: int | None
    usage: Usage


def seen(rule: Rule, source: str) -> Seen | None:
    """What *source* has told of the session; None where there is nothing of it."""
    whole = rule.facts
    calls = {key: _own(whole.cli, source, c) for key, c in whole.calls.items() if source in c.views}
    levels = {key: v for key, v in whole.levels.items() if _of_level(v) == source}
    parts = {key: p for key, p in whole.parts.items() if _of_part(p) == source}
    if not (calls or levels or parts or (source == "stdout" and whole.finishes)):
        return None
    alone = copy(rule)
    alone.facts = replace(whole, calls=calls, levels=levels, parts=parts)
    used = total(alone.cells().values())
    return Seen(None if not calls and (source == "stdout" or used.known) else len(calls), used)


def _own(cli: str, source: str, call: CallFact) -> CallFact:
    names = UNTOLD.get((cli, source), ()) if len(call.views) > 1 else ()
    return replace(call, usage=call.usage._replace(**dict.fromkeys(names))) if names else call


def _of_level(v: Level) -> str:
    """Printed running totals bear the name of their result, those in files a date or nothing."""
    return "stdout" if v.reading and not v.epoch else "file"


def _of_part(p: Part) -> str:
    return "otlp" if p.kind in UNSPLIT else "stdout" if p.kind in PRINTED_PARTS else "file"
