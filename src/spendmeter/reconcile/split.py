"""Cuts a session's totals into runs and dates them. Whatever the cut, the pieces add up to the totals.

A session is one line of usage; every run ends somewhere on it. Where files date it the line is time, where only
printed results are known it is the readings themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from spendmeter.reconcile.facts import CallFact, SessionFacts
from spendmeter.reconcile.rule import FOREVER, UNKNOWN, Cells, Foreign, Rule, apply
from spendmeter.records import NOTHING, Claim, Finish, Level, Tags, Usage, total


@dataclass(frozen=True, slots=True)
class Piece:
    """One run's usage of one cell. ``paid`` is the part that the CLI's own cost covers, that cost included."""

    model: str  # shown
    asked: str
    usage: Usage
    paid: Usage
    calls: tuple[CallFact, ...]
    guess: bool  # the CLI marks its cost as a guess


@dataclass(frozen=True, slots=True)
class RunSlice:
    """One run of a session, with what it used. ``implied``: no result and no wrapper told of it, only files."""

    run_key: str
    tags: Tags
    outcome: str
    implied: bool
    ended_ms: int | None
    duration_ms: int | None
    pieces: tuple[Piece, ...]
    unknown: tuple[str, ...] = ()  # what no source tells of this run, a line each


@dataclass(slots=True)
class _Run:
    key: str
    own: Usage = NOTHING
    outcome: str = UNKNOWN
    duration_ms: int | None = None
    ended_ms: int | None = None  # as told
    readings: tuple[str, ...] = ()
    level: Usage = NOTHING
    start_ms: int = -1  # exclusive; -1 = from the beginning
    end_ms: int | None = None  # on the session's line
    pinned: bool = False  # a claim says where it starts
    implied: bool = False
    claim: Claim | None = None


@dataclass(slots=True)
class _Cut:
    """Usage up to one point of the line."""

    cells: Cells
    paid: Cells
    order: tuple[int, int] = field(default=(0, 0))


def split(facts: SessionFacts, foreign: Foreign | None = None) -> list[RunSlice]:
    """The runs of a session, in order, with their shares of its totals."""
    rule = Rule(facts, foreign)
    runs = _runs(facts)
    whole = _Cut(rule.cells(), rule.cells(paid=True))
    dated = any(c.at_ms is not None and c.views != {"stdout"} for c in facts.calls.values()) or bool(rule.segments)
    shares = _by_time(rule, runs, whole) if dated else _by_level(rule, runs, whole)
    slices = [_slice(rule, run, cells, paid, after, until) for run, cells, paid, after, until in shares]
    return [replace(s, unknown=_unknown(rule, share[0], s, first=i == 0)) for i, (s, share) in enumerate(zip(slices, shares, strict=True))]


def _unknown(rule: Rule, run: _Run, made: RunSlice, *, first: bool) -> tuple[str, ...]:
    """What nothing tells, in the user's words."""
    if not any(p.usage.known for p in made.pieces):
        return () if run.readings or run.implied else ("usage: nothing printed and no session file tells it",)
    if not rule.stdout_only:
        return ()
    if not run.readings:
        return ("tokens_out: the stream ended without a result, what is counted is a lower bound",)
    asked = [b for (kind, _), b in rule.facts.bases.items() if kind == "restored"]
    based = any(rule.base_of(c.model).known for c in made.pieces)
    if first and not based and any(b is None for b in asked) and run.level.minus(run.own).tokens:
        return ("share: if this run resumed or forked a session, the result alone does not tell what that had used before",)
    return ()


def _runs(facts: SessionFacts) -> list[_Run]:
    """Runs that a result or a wrapper told of."""
    out: dict[str, _Run] = {}
    for f in sorted(facts.finishes.values(), key=lambda f: (f.total.tokens, f.run_key)):
        run = out.setdefault(f.leader or f.run_key, _Run(f.leader or f.run_key))
        _take(run, f)
    for claim in facts.claims.values():
        if claim.run_key:
            run = out.setdefault(claim.run_key, _Run(claim.run_key))
            run.claim, run.end_ms = claim, claim.end_ms
            if claim.start_ms is not None:
                run.start_ms, run.pinned = claim.start_ms, True
    return list(out.values())


def _take(run: _Run, f: Finish) -> None:
    """Adds one result of a process; several results of one process are one run."""
    run.own, run.level = run.own.plus(f.own), run.level.join(f.total)
    run.readings = (*run.readings, f.run_key)
    run.outcome = f.outcome
    if f.duration_ms is not None:
        run.duration_ms = max(f.duration_ms, run.duration_ms or 0)
    if f.ended_ms is not None:
        run.ended_ms = max(f.ended_ms, run.ended_ms or 0)


Share = tuple[_Run, Cells, Cells, int, int]  # run, cells, paid cells, dated after, dated until


def _by_level(rule: Rule, runs: list[_Run], whole: _Cut) -> list[Share]:
    """Printed results only: each reading less the one before; what is left over is the last run's."""
    if not runs:
        runs = [_implied(rule, -1)]
    cuts = []
    for run in runs:
        mine = [v for v in rule.facts.levels.values() if v.reading in run.readings and v.model]
        cells = {n: used.minus(rule.base_of(n)) for n, used in _highest(rule, mine).items()}
        paid = {n: used for n, used in cells.items() if used.cost_nusd is not None}
        order = (total(cells.values()).tokens if run.readings else FOREVER, -run.own.tokens)
        cuts.append((run, _Cut(cells, paid, order)))
    cuts.sort(key=lambda x: (x[1].order, x[0].key))
    cuts[-1] = cuts[-1][0], whole
    alone = len(cuts) == 1  # nothing printed says which of several runs a call was in
    return _differences(cuts, whole, lambda i: (-1, FOREVER if alone else -1))


def _highest(rule: Rule, levels: list[Level]) -> Cells:
    """The highest reading per cell."""
    out: Cells = {}
    for v in levels:
        name = rule.cell_named(v.model)
        out[name] = out.get(name, NOTHING).join(v.usage)
    return out


def _by_time(rule: Rule, runs: list[_Run], whole: _Cut) -> list[Share]:
    """Files date the session: runs end at their claims' times, at their readings' times or at their segments' ends."""
    _date(rule, runs)
    ends = _segment_ends(rule)
    points = {_snap(rule, r.end_ms) for r in runs if r.end_ms is not None} | {r.start_ms for r in runs if r.pinned} | set(ends) | {FOREVER}
    for claim in rule.facts.claims.values():
        if claim.end_ms is not None and not claim.run_key:
            points.add(_snap(rule, claim.end_ms))
    points.discard(-1)
    line = sorted(points)
    owners: dict[str, _Run] = {r.key: r for r in runs}
    cuts: list[tuple[_Run, _Cut]] = []
    before = -1
    windows = []
    for point in line:
        run = _owner(rule, runs, before, point) or _implied(rule, before)
        run = owners.setdefault(run.key, run)
        cuts.append((run, whole if point == FOREVER else _Cut(rule.cells(point), rule.cells(point, paid=True))))
        windows.append((before, point))
        before = point
    shares = _differences(cuts, whole, lambda i: windows[i])
    told = {s[0].key for s in shares}
    return _merged(shares) + [(r, {}, {}, -1, -1) for r in runs if r.key not in told]


def _date(rule: Rule, runs: list[_Run]) -> None:
    """Gives each run its end and start on the line, by equal readings, by its own times, else by order."""
    ends = _segment_ends(rule)
    taken: set[int] = set()
    for run in sorted(runs, key=lambda r: (-r.own.tokens, r.key)):
        if run.end_ms is None:
            run.end_ms = _equal_reading(rule, run, taken)
        if run.end_ms is None and run.ended_ms is not None:
            run.end_ms = run.ended_ms
        if run.end_ms is not None:
            taken.add(_snap(rule, run.end_ms))
    for run in sorted((r for r in runs if r.end_ms is None), key=lambda r: (r.level.tokens, r.key)):
        for end in ends:
            if end not in taken and total(rule.cells(end).values()).tokens >= run.level.tokens:
                run.end_ms = end
                taken.add(end)
                break
        else:
            run.end_ms = FOREVER
    for run in runs:
        if not run.pinned and run.end_ms is not None:
            i = rule.segment_at(min(run.end_ms, FOREVER - 1))
            run.start_ms = rule.segments[i].start_ms - 1 if i is not None and i > 0 else -1


def _equal_reading(rule: Rule, run: _Run, taken: set[int]) -> int | None:
    """Time of the dated reading that shows just what the run's last result shows."""
    printed = {v.model: v.usage[:5] for v in rule.facts.levels.values() if run.readings and v.reading == run.readings[-1]}
    written: dict[tuple[str, str], dict[str, tuple[int | None, ...]]] = {}
    times: dict[tuple[str, str], int] = {}
    for v in rule.facts.levels.values():
        if v.epoch and v.read_ms is not None:
            written.setdefault((v.epoch, v.reading), {})[v.model] = v.usage[:5]
            times[v.epoch, v.reading] = v.read_ms
    equal = sorted(times[k] for k, models in written.items() if models == printed and printed)
    return next((t for t in equal if _snap(rule, t) not in taken), None)


def _segment_ends(rule: Rule) -> list[int]:
    """The last moment of each segment."""
    return sorted({s.start_ms - 1 for s in rule.segments[1:]} | {FOREVER})


def _snap(rule: Rule, at_ms: int) -> int:
    """*at_ms* moved to just before the next prompt: rows may be stamped a little after a run's last event."""
    return min((p - 1 for p in rule.facts.prompts if p > at_ms), default=FOREVER)


def _owner(rule: Rule, runs: list[_Run], after: int, until: int) -> _Run | None:
    """The run that ends first of those that cover the stretch."""
    covering = [r for r in runs if r.end_ms is not None and _snap(rule, r.end_ms) >= until and r.start_ms < until and r.start_ms <= after]
    return min(covering, key=lambda r: (r.end_ms or 0, -r.own.tokens, r.key), default=None)


def _implied(rule: Rule, after: int) -> _Run:
    """The run that files alone tell of: a segment, or the whole session where there is none."""
    segment = rule.segment_at(after + 1)
    start = rule.segments[segment].start_ms if segment is not None and segment > 0 else 0
    return _Run(f"{rule.facts.session}@{start}", implied=True)


def _differences(cuts: list[tuple[_Run, _Cut]], whole: _Cut, window: Callable[[int], tuple[int, int]]) -> list[Share]:
    """Neighbouring cuts less each other, kept rising and within the whole."""
    out: list[Share] = []
    low = _Cut({}, {})
    for i, (run, cut) in enumerate(cuts):
        cells = apply(apply(cut.cells, low.cells, Usage.join), whole.cells, _cap)
        paid = apply(apply(cut.paid, low.paid, Usage.join), whole.paid, _cap)
        after, until = window(i)
        out.append((run, apply(cells, low.cells, Usage.minus), apply(paid, low.paid, Usage.minus), after, until))
        low = _Cut(cells, paid)
    return out


def _cap(a: Usage, top: Usage) -> Usage:
    """No field above *top*; unknown where *top* is."""
    return Usage(*[None if x is None or t is None else min(x, t) for x, t in zip(a, top, strict=True)])


def _merged(shares: Iterable[Share]) -> list[Share]:
    """One share per run, in order of first appearance; a run without usage is kept only if it was told of."""
    out: dict[str, Share] = {}
    for run, cells, paid, after, until in shares:
        if run.key in out:
            _, c, p, first, _ = out[run.key]
            out[run.key] = run, apply(c, cells, Usage.plus), apply(p, paid, Usage.plus), first, until
        elif not run.implied or any(u.known for u in cells.values()):
            out[run.key] = run, cells, paid, after, until
    return list(out.values())


def _slice(rule: Rule, run: _Run, cells: Cells, paid: Cells, after: int, until: int) -> RunSlice:
    facts = rule.facts
    calls = [c for c in facts.calls.values() if _within(c, after, until)]
    pieces = tuple(
        Piece(
            rule.shown(name), name, used, paid.get(name, NOTHING), tuple(c for c in calls if rule.cell_of(c) == name), _guessed(rule, name)
        )
        for name, used in sorted(cells.items())
        if used.known or any(rule.cell_of(c) == name for c in calls)
    )
    tags = run.claim.tags if run.claim else Tags()
    if tags == Tags() and (claim := _tag_claim(facts, until, rule)):
        tags = claim.tags
    ended = run.ended_ms if run.ended_ms is not None else max((c.at_ms for c in calls if c.at_ms is not None), default=None)
    return RunSlice(run.key, tags, run.outcome, run.implied, ended, run.duration_ms, pieces)


def _within(c: CallFact, after: int, until: int) -> bool:
    return until >= FOREVER and after < 0 if c.at_ms is None else after < c.at_ms <= until


def _tag_claim(facts: SessionFacts, until: int, rule: Rule) -> Claim | None:
    """The user's word on the stretch that ends at *until*: of claims without a run, the one that ends first after it."""
    words = [c for c in facts.claims.values() if not c.run_key]
    covering = [c for c in words if c.end_ms is None or _snap(rule, c.end_ms) >= until]
    return min(covering, key=lambda c: (FOREVER if c.end_ms is None else c.end_ms, c.claim_id), default=None)


def _guessed(rule: Rule, name: str) -> bool:
    return any(v.guess for v in rule.facts.levels.values() if v.model and rule.cell_named(v.model) == name) or any(
        p.guess for p in rule.facts.parts.values() if p.model and rule.cell_named(p.model) == name
    )
