"""Cuts a session's totals into runs and dates them. Whatever the cut, the pieces add up to the totals.

A session is one line of usage; every run ends somewhere on it. Where files date it the line is time, where only
printed results are known it is the readings themselves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

from spendmeter.reconcile.facts import CallFact, SessionFacts
from spendmeter.reconcile.helpers import unseen
from spendmeter.reconcile.names import POOL, UNKNOWN
from spendmeter.reconcile.rule import FOREVER, RUN_PARTS, Cells, Foreign, Rule, apply
from spendmeter.reconcile.views import View
from spendmeter.records import NOTHING, Claim, Finish, Level, Part, Tags, Usage, tokens_only, total

DATED_ON_STDOUT = frozenset({"opencode"})  # they print each call of the main agent, with its time
MAIN = frozenset({"main"})
SILENT = frozenset({"codex", "copilot"})  # they print the end of a run that used something, and not what
UNTOLD = {  # what a CLI prints of no run
    "codex": "subagents: codex does not print what they used, only its session files tell",
    "opencode": "model and subagents: opencode does not print them, only its database tells",
}


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
    order: tuple[int, int] = (0, 0)


def split(facts: SessionFacts, foreign: Foreign | None = None) -> list[RunSlice]:
    """The runs of a session, in order, with their shares of its totals."""
    rule = Rule(facts, foreign)
    runs = _runs(facts)
    whole = _Cut(rule.cells(), rule.cells(paid=True))
    if not (runs or whole.cells):
        return []  # all that it held is another session's
    shares = _by_time(rule, runs, whole) if _is_dated(rule) else _by_level(rule, runs, whole)
    pieces = _Pieces(rule)
    slices = [pieces.slice(*share) for share in shares]
    told = enumerate(zip(slices, shares, strict=True))
    return [replace(made, unknown=_unknown(rule, of[0], made, of[3:], first=i == 0)) for i, (made, of) in told]


def _is_dated(rule: Rule) -> bool:
    """Whether time is the session's line: exported calls make it so only where results bear times too."""
    told = {"file"} | ({"stdout"} if rule.facts.cli in DATED_ON_STDOUT else set())
    told |= {"otlp"} if all(f.ended_ms is not None for f in rule.facts.finishes.values()) else set()
    return bool(rule.segments) or any(c.at_ms is not None and c.views & told for c in rule.facts.calls.values())


def _unknown(rule: Rule, run: _Run, made: RunSlice, window: tuple[int, int], *, first: bool) -> tuple[str, ...]:
    """What nothing tells, in the user's words."""
    if not any(p.usage.known for p in made.pieces):
        if run.implied or (run.readings and not (rule.stdout_only and rule.facts.cli in SILENT)):
            return ()
        return ("usage: nothing printed and no session file tells it",)
    if not rule.stdout_only:
        return unseen(rule, run.readings, ((p.asked, p.calls) for p in made.pieces), *window)
    if not run.readings:
        return ("tokens_out: the stream ended without a result, what is counted is a lower bound",)
    untold = [UNTOLD[rule.facts.cli]] if rule.facts.cli in UNTOLD else []
    if any(p.role == "any" and p.part_id in run.readings for p in rule.facts.parts.values()):
        untold.append("reasoning: the stream leaves it and the tools' input out, what is counted is a lower bound")
    asked = [b for (kind, _), b in rule.facts.bases.items() if kind == "restored"]
    based = any(rule.base_of(c.model).known for c in made.pieces)
    if first and not based and (any(b is None for b in asked) or run.own == NOTHING) and run.level.minus(run.own).tokens:
        untold.append("share: if this run resumed or forked a session, the result alone does not tell what that had used before")
    return tuple(untold)


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
    runs = runs or [_implied(rule, -1)]
    cuts = []
    before: Cells = {}
    for run in runs:
        cells = _printed(rule, run, whole)
        if own := _own_parts(rule, run):
            cells = before = apply(before, own, Usage.plus)
        paid = {n: used for n, used in cells.items() if used.cost_nusd is not None}
        order = (total(cells.values()).tokens if run.readings else FOREVER, -run.own.tokens)
        cuts.append((run, _Cut(cells, paid, order)))
    cuts.sort(key=lambda x: (x[1].order, x[0].key))
    cuts[-1] = cuts[-1][0], whole
    alone = len(cuts) == 1  # nothing printed says which of several runs a call was in
    return _differences(cuts, whole, lambda i: (-1, FOREVER if alone else -1))


def _printed(rule: Rule, run: _Run, whole: _Cut) -> Cells:
    """What the run's readings show beyond what the session had inherited."""
    mine = [v for v in rule.facts.levels.values() if v.reading in run.readings]
    cells = {n: used.minus(rule.base_of(n)) for n, used in _highest(rule, [v for v in mine if v.model]).items()}
    if cells or not mine:
        return cells
    name = next(iter(whole.cells)) if len(whole.cells) == 1 else UNKNOWN
    top = NOTHING
    for v in mine:
        top = top.join(v.usage)
    return {name: top.minus(rule.base_of(""))}


def _own_parts(rule: Rule, run: _Run, roles: frozenset[str] = frozenset({"main", "hidden", "any"})) -> Cells:
    """What the run alone used by its own word, if its CLI says that."""
    out: Cells = {}
    for p in rule.facts.parts.values():
        if p.kind in RUN_PARTS and p.part_id in run.readings and p.role in roles:
            name = rule.cell_named(p.model)
            out[name] = out.get(name, NOTHING).plus(p.usage)
    return out


def _highest(rule: Rule, levels: list[Level]) -> Cells:
    """The highest reading per cell; a cell may have models of several names, such as one with and without long context."""
    names = {rule.cell_named(v.model) for v in levels}
    return {name: rule.peak(v for v in levels if rule.cell_named(v.model) == name) for name in names}


def _by_time(rule: Rule, runs: list[_Run], whole: _Cut) -> list[Share]:
    """Files date the session: runs end at their claims' times, at their readings' times or at their segments' ends."""
    _date(rule, runs)
    ends = _segment_ends(rule)
    points = {_snap(rule, r.end_ms) for r in runs if r.end_ms is not None} | {r.start_ms for r in runs if r.pinned} | set(ends) | {FOREVER}
    for claim in rule.facts.claims.values():
        if claim.end_ms is not None and not claim.run_key:
            points.add(_snap(rule, claim.end_ms))
    line = sorted(points - {-1})
    owner = _owners(rule, runs)
    known, cuts = {r.key: r for r in runs}, []
    windows = list(zip([-1, *line], line, strict=False))
    dates = {key: _snap(rule, r.end_ms) for r in runs if r.end_ms is not None for key in r.readings}
    for (before, point), cells, paid in zip(windows, rule.along(line, dates=dates), rule.along(line, paid=True, dates=dates), strict=True):
        run = owner(before, point) or _implied(rule, before)
        cuts.append((known.setdefault(run.key, run), whole if point == FOREVER else _Cut(cells, paid)))
    shares = _differences(cuts, whole, lambda i: windows[i])
    told = {s[0].key for s in shares}
    return _merged(shares) + [(r, {}, {}, -1, -1) for r in runs if r.key not in told]


def _date(rule: Rule, runs: list[_Run]) -> None:
    """Gives each run its end and start on the line, by equal readings, by its own times, else by order."""
    ends, readings = _segment_ends(rule), _Readings(rule)
    taken: set[int] = set()
    for run in sorted(runs, key=lambda r: (-r.own.tokens, r.key)):
        if run.end_ms is None:
            run.end_ms = readings.equal(run, taken)
        if run.end_ms is None and run.ended_ms is not None:
            run.end_ms = run.ended_ms
        if run.end_ms is not None:
            taken.add(_snap(rule, run.end_ms))
    _date_by_share(rule, [r for r in runs if r.end_ms is None], ends, taken)
    left = sorted((r for r in runs if r.end_ms is None), key=lambda r: (r.level.tokens, r.key))
    sums = [total(c.values()).tokens for c in rule.along(ends)] if left else []
    for run in left:
        for end, used in zip(ends, sums, strict=True):
            if end not in taken and used >= run.level.tokens:
                run.end_ms = end
                taken.add(end)
                break
        else:
            run.end_ms = FOREVER
    for run in runs:
        if rule.facts.cli in DATED_ON_STDOUT and not run.pinned and run.ended_ms is not None and run.duration_ms is not None:
            run.start_ms, run.pinned = _begun(rule, run.ended_ms - run.duration_ms, runs) - 1, True
        if not run.pinned and run.end_ms is not None:
            i = rule.segment_at(min(run.end_ms, FOREVER - 1))
            is_dated = rule.facts.cli in DATED_ON_STDOUT  # then a run that printed nothing starts where the one before it ended
            before = [_snap(rule, r.end_ms) for r in runs if is_dated and r.end_ms is not None and r.end_ms < run.end_ms]
            run.start_ms = rule.segments[i].start_ms - 1 if i is not None and i > 0 else max([-1, *before])


def _begun(rule: Rule, shown_ms: int, runs: list[_Run]) -> int:
    """Time of the prompt of a run whose first printed event is of *shown_ms*: the last one before that, if a file tells prompts."""
    if not any("file" in c.views for c in rule.facts.calls.values()):
        return shown_ms
    before = max((r.ended_ms for r in runs if r.ended_ms is not None and r.ended_ms < shown_ms), default=-1)
    return max((p for p in rule.facts.prompts if before < p < shown_ms), default=shown_ms)


def _date_by_share(rule: Rule, runs: list[_Run], ends: list[int], taken: set[int]) -> None:
    """Dates runs that tell their own usage and no time: by the segment whose calls are just that, else by order."""
    told = [(total(own.values()), total(_own_parts(rule, r).values()), r) for r in runs if (own := _own_parts(rule, r, MAIN))]
    if not told:
        return
    sums = [total(c.values()) for c in rule.along(ends)]
    rises = [(end, tokens_only(b.minus(a))) for end, a, b in zip(ends, [NOTHING, *sums], sums, strict=False)]
    for exact in (True, False):
        for shown, used, run in sorted(told, key=lambda x: x[2].key):  # exports show helpers too, files do not
            alike = (tokens_only(shown), tokens_only(used))
            fits = (end for end, rise in rises if (rise in alike if exact else rise.tokens <= used.tokens))
            free = (end for end in fits if end not in taken)
            if run.end_ms is None and (end := next(free, None)) is not None:
                run.end_ms = end
                taken.add(end)


class _Readings:
    """The dated readings by what they show."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._printed: dict[str, dict[str, tuple[int | None, ...]]] = {}
        written: dict[tuple[str, str], dict[str, tuple[int | None, ...]]] = {}
        times: dict[tuple[str, str], int] = {}
        for v in rule.facts.levels.values():
            if not v.epoch:
                self._printed.setdefault(v.reading, {})[v.model] = v.usage[:5]
            elif v.read_ms is not None:
                written.setdefault((v.epoch, v.reading), {})[v.model] = v.usage[:5]
                times[v.epoch, v.reading] = v.read_ms
        self._times: dict[object, list[int]] = {}
        for key, models in written.items():
            self._times.setdefault(tuple(sorted(models.items(), key=str)), []).append(times[key])

    def equal(self, run: _Run, taken: set[int]) -> int | None:
        """Time of the first dated reading, not yet taken, that shows just what the run's last result shows."""
        shown = self._printed.get(run.readings[-1]) if run.readings else None
        if shown and "" in shown:  # the sum of all models says enough
            shown = {"": shown[""]}
        found = self._times.get(tuple(sorted(shown.items(), key=str)), []) if shown else []
        return next((t for t in sorted(found) if _snap(self._rule, t) not in taken), None)


def _segment_ends(rule: Rule) -> list[int]:
    """The last moment of each segment."""
    return sorted({s.start_ms - 1 for s in rule.segments[1:]} | {FOREVER})


def _snap(rule: Rule, at_ms: int) -> int:
    """*at_ms* moved to just before the next prompt: rows may be stamped a little after a run's last event."""
    after = rule.prompt_after(at_ms)
    return FOREVER if after is None else after - 1


def _owners(rule: Rule, runs: list[_Run]) -> Callable[[int, int], _Run | None]:
    """A look-up: the run that ends first of those that cover a stretch."""
    ordered = sorted((_snap(rule, r.end_ms), r.end_ms, -r.own.tokens, r.key, r) for r in runs if r.end_ms is not None)
    ends = [x[0] for x in ordered]

    def owner(after: int, until: int) -> _Run | None:
        later = (x[-1] for x in islice(ordered, bisect_left(ends, until), None))
        return next((r for r in later if r.start_ms < until and r.start_ms <= after), None)

    return owner


def _implied(rule: Rule, after: int) -> _Run:
    """The run that files alone tell of: a segment, or the whole session where there is none."""
    segment = rule.segment_at(after + 1)
    begun = max((b for b in rule.begins if after >= 0 and b <= after + 1), default=0)
    start = rule.segments[segment].start_ms if segment is not None and segment > 0 else begun
    if rule.facts.cli in DATED_ON_STDOUT:  # a killed run has no result, but what it printed was tagged
        words = [_snap(rule, c.end_ms) for c in rule.facts.claims.values() if not c.run_key and c.end_ms is not None]
        start = max([start, *(end + 1 for end in words if end <= after)])
    return _Run(f"{rule.facts.session}@{start}", implied=True)


def _differences(cuts: list[tuple[_Run, _Cut]], whole: _Cut, window: Callable[[int], tuple[int, int]]) -> list[Share]:
    """Neighbouring cuts less each other, kept rising and within the whole."""
    out: list[Share] = []
    low = _Cut({}, {})
    for i, (run, cut) in enumerate(cuts):
        cells = apply(apply(cut.cells, low.cells, Usage.join), whole.cells, Usage.within)
        paid = apply(apply(cut.paid, low.paid, Usage.join), whole.paid, Usage.within)
        after, until = window(i)
        out.append((run, apply(cells, low.cells, Usage.minus), apply(paid, low.paid, Usage.minus), after, until))
        low = _Cut(cells, paid)
    return out


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


class _Pieces:
    """Makes slices; what all of them need is worked out once."""

    def __init__(self, rule: Rule) -> None:
        self._rule, self._shown = rule, rule.shown()
        self._views = [View(calls) for calls in rule.views()]
        f = rule.facts
        told: list[Level | Part] = [*f.levels.values(), *f.parts.values()]
        self._guessed = {rule.cell_named(x.model) for x in told if x.model and x.guess}

    def slice(self, run: _Run, cells: Cells, paid: Cells, after: int, until: int) -> RunSlice:
        """The run with its pieces, tags and dates."""
        calls = max((view.within(after, until) for view in self._views), key=lambda cs: total(c.usage for c in cs).tokens)
        by_cell: dict[str, list[CallFact]] = {}
        for c in calls:
            by_cell.setdefault(self._rule.cell_of(c), []).append(c)
        pieces = tuple(
            Piece(self._name(n), n, used, paid.get(n, NOTHING), tuple(by_cell.get(n, ())), n in self._guessed)
            for n, used in sorted(cells.items())
            if used.known or n in by_cell
        )
        tags = run.claim.tags if run.claim else Tags()
        if tags == Tags() and (claim := _tag_claim(self._rule.facts, until, self._rule)):
            tags = claim.tags
        ended = run.ended_ms if run.ended_ms is not None else max((c.at_ms for c in calls if c.at_ms is not None), default=None)
        return RunSlice(run.key, tags, run.outcome, run.implied, ended, run.duration_ms, pieces)

    def _name(self, cell: str) -> str:
        return self._shown.get(cell, UNKNOWN if cell == POOL else cell)


def _tag_claim(facts: SessionFacts, until: int, rule: Rule) -> Claim | None:
    """The user's word on the stretch that ends at *until*: of claims without a run, the one that ends first after it."""
    words = [c for c in facts.claims.values() if not c.run_key and (c.start_ms is None or c.start_ms <= until)]
    covering = [c for c in words if c.end_ms is None or _snap(rule, c.end_ms) >= until]
    return min(covering, key=lambda c: (FOREVER if c.end_ms is None else c.end_ms, c.claim_id), default=None)
