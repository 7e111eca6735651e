"""The rule: a session's totals as a pure function of its facts (docs/explanation/exactness.md).

Every source gives lower bounds. Per cell (asked-for model) and field, the total is the largest of them; cells add up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from spendmeter.reconcile.facts import ByModel, CallFact, SessionFacts
from spendmeter.reconcile.kin import is_told_elsewhere, without_exports
from spendmeter.reconcile.lines import running, with_parts, with_unsplit, with_whole
from spendmeter.reconcile.names import UNKNOWN, Names, plain
from spendmeter.records import NAMELESS, NOTHING, Level, Part, Usage, tokens_only, total

ONE_ID_SPACE = frozenset({"claude", "opencode", "copilot"})  # their call ids are the same in every source
ID_SPACES = (frozenset({"file"}), frozenset({"otlp"}), frozenset({"stdout"}))  # of the others: each is a view of its own
SHARED_IDS = {"qwen": (frozenset({"file", "otlp"}), frozenset({"stdout"}))}
RUN_PARTS = frozenset({"run", "utility"})  # kinds of parts that tell what one run alone used; their part id is the run's key
RESTORES_CALLS = frozenset({"qwen", "codex"})  # totals of all models start at the calls that the session's file repeats
UNSPLIT = frozenset({"otlp.delta", "otlp.cumulative"})  # kinds of parts that tell both lifetimes of cache writes as one
FOREVER = 1 << 62
Cells = dict[str, Usage]


@dataclass(frozen=True, slots=True)
class Foreign:
    """What other sessions know that matters here: copied calls, ancestors' dated readings, peers' run totals, as one and by model."""

    copied: Mapping[str, CallFact] = field(default_factory=dict)
    ancestor_levels: tuple[Level, ...] = ()
    peer_totals: frozenset[Usage] = frozenset()
    peer_models: Mapping[Usage, ByModel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a session between two starts; ``epoch`` is "" where no reading closes it."""

    start_ms: int
    epoch: str


class Rule:
    """Evaluates one session: ``cells`` is its total, ``along`` the same up to points in time; runs are differences of it."""

    def __init__(self, facts: SessionFacts, foreign: Foreign | None = None) -> None:
        self.foreign = foreign or Foreign()
        self.facts = facts = without_exports(facts) if is_told_elsewhere(facts, self.foreign.peer_totals) else facts
        self._is_nameless = any(c.startswith(NAMELESS) for c in facts.calls)
        wrapped = {c.start_ms + 1 for c in facts.claims.values() if c.start_ms is not None and c.run_key}
        begins = {c.start_ms for c in facts.claims.values() if c.start_ms is not None and not c.run_key}
        self.begins = [] if facts.prompts else sorted(begins)  # of what was told under one set of tags, where no file tells prompts
        self._prompts = sorted((facts.prompts or begins) | wrapped)  # a wrapper knows of runs that no prompt begins
        self._names = Names(facts)
        self.cell_of, self.cell_named = self._names.of, self._names.named
        self._starts: dict[tuple[str, str], int] = {}
        for v in facts.levels.values():
            if v.epoch:
                start = v.start_ms if v.start_ms is not None else v.epoch_ms or 0
                self._starts[v.epoch, v.reading] = min(start, self._starts.get((v.epoch, v.reading), start))
        self.segments = self._cut()
        self._edges = [s.start_ms for s in self.segments]
        self._bases = self._inherited()

    # -- segments --------------------------------------------------------------------------------------------------
    def _cut(self) -> list[Segment]:
        """Readings with one start close one segment; the first prompt after a reading opens the next, read or not."""
        closed = {Segment(start, epoch) for (epoch, _), start in self._starts.items()}
        starts = {s.start_ms for s in closed}
        for v in self.facts.levels.values():
            if v.epoch and v.read_ms is not None:
                after = self.prompt_after(v.read_ms)
                if after is not None and after not in starts:
                    starts.add(after)
                    closed.add(Segment(after, ""))
        return sorted(closed, key=lambda s: (s.start_ms, s.epoch))

    def segment_at(self, at_ms: int | None) -> int | None:
        """Index of the segment of a call: the last that starts no later; -1 before the first, None when undated."""
        if at_ms is None or not self.segments:
            return None
        return bisect_right(self._edges, at_ms) - 1

    def prompt_after(self, at_ms: int) -> int | None:
        """Time of the first prompt after *at_ms*."""
        i = bisect_right(self._prompts, at_ms)
        return self._prompts[i] if i < len(self._prompts) else None

    # -- bases -----------------------------------------------------------------------------------------------------
    def _inherited(self) -> dict[tuple[str | None, str], Usage]:
        """(epoch or None, cell) -> what the readings held before the session's own first usage."""
        out: dict[tuple[str | None, str], Usage] = defaultdict(lambda: NOTHING)
        epochs = sorted((v.epoch_ms or 0, v.epoch) for v in self.facts.levels.values() if v.epoch)
        for cid in self.facts.copies:
            call = self.foreign.copied.get(cid)
            if call is None:
                continue
            epoch = next((e for ms, e in reversed(epochs) if call.at_ms is not None and ms <= call.at_ms), None)
            for key in {epoch, None}:
                out[key, self.cell_of(call)] = out[key, self.cell_of(call)].plus(call.usage)
            if self.facts.cli in RESTORES_CALLS:
                out[None, ""] = out[None, ""].plus(call.usage)
        for at, read in self._ancestors({e for _, e in epochs}).items():
            out[at] = out[at].join(self.peak(read))
        for cell, used in self._restored().items():
            out[None, cell] = out[None, cell].join(used)
        for (kind, _), by_model in self.facts.bases.items():
            if kind == "stated" and by_model is not None:
                for model, used in by_model:
                    out[None, plain(model)] = used
        if not any(k[0] is None for k in out):
            self._matched(out)
        return out

    def _ancestors(self, epochs: set[str]) -> dict[tuple[str | None, str], list[Level]]:
        """(epoch or None, cell) -> the ancestors' readings that this session may have started from."""
        out: dict[tuple[str | None, str], list[Level]] = defaultdict(list)
        own_ms = self.facts.own_ms
        for v in self.foreign.ancestor_levels if own_ms is not None else ():
            if v.epoch in epochs and v.read_ms is not None and v.read_ms <= (own_ms or 0):
                for key in (v.epoch, None):
                    out[key, self.cell_named(v.model)].append(v)
        return out

    def _restored(self) -> Cells:
        """What every process of the session had restored at least, if each of them said so."""
        words = [v for (kind, _), v in self.facts.bases.items() if kind == "restored"]
        if not words or any(w is None for w in words):
            return {}
        maps: list[Cells] = []
        for word in words:
            cells: Cells = defaultdict(lambda: NOTHING)
            for model, used in word or ():
                cells[self.cell_named(model)] = cells[self.cell_named(model)].plus(used)
            maps.append(cells)
        shared = set(maps[0]).intersection(*maps[1:])
        out: Cells = {}
        for cell in shared:
            low = maps[0][cell]
            for m in maps[1:]:
                low = low.meet(m[cell])
            out[cell] = low
        return out

    def _matched(self, out: dict[tuple[str | None, str], Usage]) -> None:
        """A fork seen on stdout alone: what it had restored is exactly another session's total at some run's end."""
        if not self.without_files or not self.facts.finishes:
            return
        rest = tokens_only(self.facts.first_restored() or NOTHING)
        peer = max((p for p in self.foreign.peer_totals if tokens_only(p) == rest and rest.known), key=str, default=None)
        if peer is None:
            return
        cells = {self.cell_named(m) for m in self._names.told}
        for model, used in [(min(cells), peer)] if len(cells) == 1 else self.foreign.peer_models.get(peer, ()):
            out[None, self.cell_named(model)] = out[None, self.cell_named(model)].plus(used)

    @property
    def without_files(self) -> bool:
        """Whether nothing here comes from a file that the CLI wrote."""
        return not any(v.epoch for v in self.facts.levels.values()) and not any("file" in c.views for c in self.facts.calls.values())

    @property
    def stdout_only(self) -> bool:
        """Whether all of its calls were printed and no file tells of it."""
        return self.without_files and all(c.views == {"stdout"} for c in self.facts.calls.values())

    # -- totals ----------------------------------------------------------------------------------------------------
    def cells(self, paid: bool = False) -> Cells:
        """Totals by cell. With *paid*, only of facts that carry the CLI's own cost: what that cost covers."""
        calls, levels, parts = self._facts(paid)
        names = calls.keys() | levels.keys() | parts.keys()
        out = {n: self._cell(n, calls[n], levels[n], parts[n]) for n in names if n}
        return self._unnamed(out, levels[""], parts[""], self._aside(calls, parts))

    def _aside(self, calls: Mapping[str, list[CallFact]], parts: Mapping[str, list[Part]]) -> Usage:
        """What was used that no reading of the session covers."""
        out = total(p.usage for ps in parts.values() for p in ps if p.role == "hidden")
        for view in self._call_views([c for cs in calls.values() for c in cs if c.role == "hidden"]):
            out = out.join(total(c.usage for c in view))
        return out

    def _facts(self, paid: bool) -> tuple[dict[str, list[CallFact]], dict[str, list[Level]], dict[str, list[Part]]]:
        """Calls, readings and increments by cell ("" = of all models together)."""
        calls: dict[str, list[CallFact]] = defaultdict(list)
        levels: dict[str, list[Level]] = defaultdict(list)
        parts: dict[str, list[Part]] = defaultdict(list)
        for c in self.facts.calls.values():
            if not paid or c.usage.cost_nusd is not None:
                calls[self.cell_of(c)].append(c)
        for v in self.facts.levels.values():
            if not paid or v.usage.cost_nusd is not None:
                levels[self.cell_named(v.model) if v.model else ""].append(v)
        for p in self.facts.parts.values():
            if not paid or p.usage.cost_nusd is not None:
                parts[self.cell_named(p.model) if p.model else ""].append(p)
        return calls, levels, parts

    def along(self, points: Sequence[int], paid: bool = False, dates: Mapping[str, int] | None = None) -> list[Cells]:
        """Totals by cell of all facts dated up to each of *points* (ascending); they rise from point to point.

        Args:
            dates: when the runs ended whose own usage parts tell, by part id.
        """
        calls, levels, parts = self._facts(paid)
        own = {n: [p for p in ps if p.kind in RUN_PARTS and p.part_id in (dates or {})] for n, ps in parts.items()}
        out: list[Cells] = [{} for _ in points]
        for name in (calls.keys() | levels.keys() | {n for n, ps in own.items() if ps}) - {""}:
            lines = self._cell_along(name, calls[name], levels[name], points)
            if own.get(name):
                lines = with_parts(lines, own[name], dates or {}, points)
            if whole := [(c.at_ms, c.usage) for c in calls[name] if c.role == "any" and c.at_ms is not None]:
                lines = with_whole(lines, running(sorted(whole, key=lambda x: x[0]), points))
            for cells, used in zip(out, [main.plus(hidden) for main, hidden in lines], strict=True):
                if any(x is not None for x in used):
                    cells[name] = used
        return out

    def _cell_along(self, name: str, calls: list[CallFact], levels: list[Level], points: Sequence[int]) -> list[tuple[Usage, Usage]]:
        """(what readings cover, what they do not) at each of *points*."""
        dated = sorted((c for c in calls if c.at_ms is not None), key=lambda c: c.at_ms or 0)
        views = [
            [(c.at_ms or 0, c.usage) for c in v]
            for role in ("main", "hidden")
            for v in self._call_views([c for c in dated if c.role == role])
        ]
        half = len(views) // 2
        lines = [running(v, points) for v in views]
        for view in self._call_views([c for c in dated if c.role == "main" and self._has_segment(c)]):
            lines.insert(half, self._segments_along(name, view, levels, points))
            half += 1
        out = []
        for i in range(len(points)):
            main, hidden = NOTHING, NOTHING
            for line in lines[:half]:
                main = main.join(line[i])
            for line in lines[half:]:
                hidden = hidden.join(line[i])
            out.append((main, hidden))
        return out

    def _segments_along(self, name: str, calls: list[CallFact], levels: list[Level], points: Sequence[int]) -> list[Usage]:
        """As ``_by_segment``, at each of *points*: whole segments, and what is known of the last by then."""
        if not self.segments:
            return [NOTHING] * len(points)
        before: dict[str, Usage] = {}
        read = self._read(levels)
        out, done, now, at, n = [], NOTHING, NOTHING, -1, 0
        for point in points:
            while True:
                edge = self._edges[at + 1] if at + 1 < len(self._edges) else FOREVER
                while n < len(calls) and (calls[n].at_ms or 0) <= min(point, edge - 1):
                    now = now.plus(calls[n].usage)
                    n += 1
                if at + 1 >= len(self._edges) or point < edge:
                    break
                done = done.plus(now.join(self._rise(name, at, read, before, keep=True)))
                now, at = NOTHING, at + 1
            out.append(done.plus(now.join(self._rise(name, at, read, before, until_ms=point))))
        return out

    def _read(self, levels: list[Level]) -> dict[Segment, list[Level]]:
        read: dict[Segment, list[Level]] = defaultdict(list)
        for v in levels:
            if v.epoch:
                read[Segment(self._starts[v.epoch, v.reading], v.epoch)].append(v)
        return read

    def _rise(
        self,
        name: str,
        i: int,
        read: Mapping[Segment, list[Level]],
        before: dict[str, Usage],
        *,
        until_ms: int = FOREVER,
        keep: bool = False,
    ) -> Usage:
        """What the readings of segment *i* rose by over those before them; *keep* lets the next one start from there."""
        if i < 0 or self.segments[i] not in read:
            return NOTHING
        segment = self.segments[i]
        peak = self.peak(v for v in read[segment] if until_ms >= FOREVER or (v.read_ms is not None and v.read_ms <= until_ms))
        floor = before.get(segment.epoch, self._bases[segment.epoch, name])
        if keep:
            before[segment.epoch] = floor.join(peak)
        return peak.minus(floor)

    def _unnamed(self, out: Cells, levels: list[Level], parts: list[Part], aside: Usage) -> Cells:
        """Adds what views without a model saw beyond the cells' sum; they do not see calls *aside*."""
        top = NOTHING
        for v in levels:
            if not v.model:
                top = top.join(v.usage)
        base = self._bases[None, ""]
        top = top.minus(base).join(total(p.usage for p in parts if not p.model))
        extra = top.minus(total(out.values()).minus(aside))
        if any(extra[:7]):
            name = next(iter(out)) if len(out) == 1 else UNKNOWN
            out[name] = out.get(name, NOTHING).plus(extra)
        return out

    def _cell(self, name: str, calls: list[CallFact], levels: list[Level], parts: list[Part]) -> Usage:
        out = NOTHING
        for role in ("main", "hidden"):
            mine = [c for c in calls if c.role == role]
            best = NOTHING
            for view in self._call_views(mine):
                best = best.join(total(c.usage for c in view))
                if role == "main" and self._starts:
                    best = best.join(self._by_segment(name, view, levels))
            if role == "main":
                best = best.join(self.peak(v for v in levels if not v.epoch).minus(self._bases[None, name]))
            kinds = {p.kind for p in parts if p.role == role}
            for kind in sorted(kinds, key=lambda kind: (kind in UNSPLIT, kind)):
                told = total(p.usage for p in parts if p.role == role and p.kind == kind)
                best = with_unsplit(best, told) if kind in UNSPLIT else best.join(told)
            out = out.plus(best)
        if any(p.role == "any" for p in parts):  # some runs tell their roles apart and some do not: runs add up
            out = out.join(total(p.usage for p in parts if p.kind in RUN_PARTS))
        return out.join(total(c.usage for c in calls if c.role == "any"))

    def _call_views(self, calls: list[CallFact]) -> list[list[CallFact]]:
        """The calls by id space. A call that came without its id joins no other source's: all that its own source saw is a view."""
        if self.facts.cli not in ONE_ID_SPACE:
            return [[c for c in calls if space & c.views] for space in SHARED_IDS.get(self.facts.cli, ID_SPACES)]
        if not self._is_nameless:
            return [calls]
        return [[c for c in calls if not c.call_id.startswith(NAMELESS)], [c for c in calls if "otlp" in c.views]]

    def views(self) -> list[list[CallFact]]:
        """The calls, in each view once; views cannot be joined, and in each stretch one of them tells most."""
        return self._call_views(list(self.facts.calls.values()))

    def _by_segment(self, name: str, calls: list[CallFact], levels: list[Level]) -> Usage:
        """Segments add up; in each, the larger of its calls and of what its reading rose by."""
        seen: dict[int, Usage] = defaultdict(lambda: NOTHING)
        for c in calls:
            if self._has_segment(c) and (i := self.segment_at(c.at_ms)) is not None:
                seen[i] = seen[i].plus(c.usage)
        before: dict[str, Usage] = {}
        read, out = self._read(levels), seen[-1]
        for i in range(len(self.segments)):
            out = out.plus(seen[i].join(self._rise(name, i, read, before, keep=True)))
        return out

    def _has_segment(self, c: CallFact) -> bool:
        """Whether a dated call is one of its segment's: a printed one too, where its id would join it to its transcript row."""
        return c.views != {"stdout"} or self.facts.cli == "claude"

    @staticmethod
    def peak(levels: Iterable[Level]) -> Usage:
        """The highest reading per exact model name, added over the names of a cell."""
        peaks: Cells = defaultdict(lambda: NOTHING)
        for v in levels:
            peaks[v.model] = peaks[v.model].join(v.usage)
        return total(peaks.values())

    def base_of(self, cell: str) -> Usage:
        """What undated readings of *cell* held before the session's own first usage."""
        return self._bases[None, cell]

    def shown(self) -> dict[str, str]:
        """Cell -> the name to show: the model that answered, where there is one; else the one asked for."""
        answered: dict[str, set[str]] = defaultdict(set)
        for c in self.facts.calls.values():
            if c.answered:
                answered[self.cell_of(c)].add(plain(c.answered))
        return {cell: next(iter(names)) for cell, names in answered.items() if len(names) == 1}


def apply(cells: Cells, other: Cells, how: Callable[[Usage, Usage], Usage]) -> Cells:
    """*how* per cell over the cells of both."""
    return {k: how(cells.get(k, NOTHING), other.get(k, NOTHING)) for k in cells.keys() | other.keys()}
