"""Names of one model: chats of Gemini tell the one that was asked for, its stats and exports the one that answered.

No row tells both, so names are joined where a run's usage under one of them is just what its chat has under the other. Without
that they would be two models, and their usage would be counted twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from spendmeter.reconcile.facts import CallFact, SessionFacts
from spendmeter.records import NOTHING, Usage, tokens_only, total

RENAMING = frozenset({"gemini"})
ByName = Mapping[str, Usage]


def renamed(facts: SessionFacts) -> dict[str, str]:
    """Name -> the one that stands for it: of a model with several, one that was asked for. Names that stand for themselves are left out."""
    if facts.cli not in RENAMING:
        return {}
    written = [c for c in facts.calls.values() if "file" in c.views and c.asked]
    asked = {c.asked or "" for c in written}
    told = {p.model for p in facts.parts.values()} | {c.asked for c in facts.calls.values() if "file" not in c.views}
    if not asked or len(asked | told) == 1:
        return {}
    return _roots([*_exported(facts, written), *_printed(facts, written)], asked)


def _roots(pairs: Iterable[tuple[str, str]], asked: set[str]) -> dict[str, str]:
    """Names that hang together under one of them."""
    groups: dict[str, set[str]] = {}
    for a, b in pairs:
        joined = groups.get(a, {a}) | groups.get(b, {b})
        groups.update(dict.fromkeys(joined, joined))
    return {name: root for name, group in groups.items() if (root := min(group & asked or group)) != name}


def _exported(facts: SessionFacts, written: list[CallFact]) -> Iterator[tuple[str, str]]:
    """Names of one call in both sources: it used the same."""
    names: dict[Usage, set[str]] = defaultdict(set)
    for c in written:
        names[tokens_only(c.usage)].add(c.asked or "")
    for c in facts.calls.values():
        found = names.get(tokens_only(c.usage), set())
        if "file" not in c.views and c.role == "main" and c.asked and len(found) == 1 and c.usage.tokens:
            yield c.asked, min(found)


def _printed(facts: SessionFacts, written: list[CallFact]) -> Iterator[tuple[str, str]]:
    """Names of what a run printed and of what its process wrote."""
    starts = sorted(facts.prompts)
    stretches: dict[int, dict[str, Usage]] = defaultdict(lambda: defaultdict(lambda: NOTHING))
    for c in written:
        if c.at_ms is not None:
            at = stretches[bisect_right(starts, c.at_ms)]
            at[c.asked or ""] = at[c.asked or ""].plus(c.usage)
    runs: dict[str, dict[str, Usage]] = defaultdict(dict)
    dates = {key: f.ended_ms for key, f in facts.finishes.items()}
    for p in facts.parts.values():
        if p.kind == "run" and p.model:
            runs[p.part_id][p.model] = p.usage
    for key, used in runs.items():
        ended = dates.get(key)
        if ended is not None:
            yield from _covered(used, stretches.get(bisect_right(starts, ended), {}))
        elif same := [s for s in stretches.values() if tokens_only(total(s.values())) == tokens_only(total(used.values()))]:
            yield from _equal(used, same[0])


def _equal(printed: ByName, wrote: ByName) -> Iterator[tuple[str, str]]:
    """Pairs of two maps with one sum: names with equal usage, else all that differ."""
    left = {n for n, used in printed.items() if n not in wrote or tokens_only(used) != tokens_only(wrote[n])}
    right = {m for m, used in wrote.items() if m not in printed or tokens_only(used) != tokens_only(printed[m])}
    for n in sorted(left):
        for m in sorted(right):
            if tokens_only(printed[n]) == tokens_only(wrote[m]):
                yield n, m
                left, right = left - {n}, right - {m}
    yield from ((n, m) for n in left for m in right)


def _covered(printed: ByName, wrote: ByName) -> Iterator[tuple[str, str]]:
    """Pairs where *printed* holds all of *wrote*, and more: a name that was not printed is one that used as much, or at least so much."""
    loose = {n: shown(used) for n, used in printed.items() if n not in wrote}
    for m in wrote.keys() - printed.keys():
        mine = shown(wrote[m])
        same = [n for n, used in loose.items() if used == mine]
        yield from ((n, m) for n in same or [n for n, used in loose.items() if all(a >= b for a, b in zip(used, mine, strict=True))])


def shown(used: Usage) -> tuple[int, int]:
    """What every form tells alike: what was read from the cache, and output without thoughts."""
    return used.cache_read or 0, (used.tokens_out or 0) - (used.reasoning or 0)
