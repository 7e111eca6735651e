"""What is known of a session: facts that only grow. Adding is a join: any order, any number of times, the same facts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from spendmeter.records import NAMELESS, NOTHING, Base, Call, Claim, Context, Finish, Level, Moment, Part, Tags, Usage, total

Key = tuple[str, str]  # (cli, session)


def _least(a: str | None, b: str | None) -> str | None:
    return b if a is None else a if b is None else min(a, b)


def _first(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


@dataclass(frozen=True, slots=True)
class CallFact:
    """One call, joined over its sightings. ``shared``: several sessions hold it as their own (copies without a mark)."""

    call_id: str
    usage: Usage
    asked: str | None = None
    answered: str | None = None
    at_ms: int | None = None
    views: frozenset[str] = frozenset()
    role: str = "main"
    subagent: str | None = None
    traits: tuple[tuple[str, str], ...] = ()
    shared: bool = False
    subagent_type: str | None = None

    @classmethod
    def of(cls, c: Call) -> CallFact:
        """The fact that one sighting tells."""
        views = frozenset((c.view,))
        return cls(c.call_id, c.usage, c.asked, c.answered, c.at_ms, views, c.role, c.subagent, c.traits, subagent_type=c.subagent_type)

    def join(self, other: CallFact) -> CallFact:
        """Both sightings in one. A transcript's time beats a printed one, being that of the request."""
        mine, theirs = "file" in self.views, "file" in other.views
        at = _first(self.at_ms, other.at_ms) if mine == theirs else self.at_ms if mine else other.at_ms
        return CallFact(
            self.call_id, self.usage.join(other.usage), _least(self.asked, other.asked), _least(self.answered, other.answered),
            at if at is not None else _first(self.at_ms, other.at_ms), self.views | other.views, min(self.role, other.role),
            _least(self.subagent, other.subagent), max(self.traits, other.traits), self.shared or other.shared,
            _least(self.subagent_type, other.subagent_type),
        )  # fmt: skip


LevelKey = tuple[str, str, str]  # epoch, reading, model
PartKey = tuple[str, str, str]  # kind, part id, model
BaseKey = tuple[str, str]  # kind, source
ByModel = tuple[tuple[str, Usage], ...]


@dataclass(slots=True)
class SessionFacts:
    """All facts of one session. ``calls`` are its own, ``copies`` the ids of others' calls that its files repeat."""

    cli: str
    session: str
    calls: dict[str, CallFact] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)
    levels: dict[LevelKey, Level] = field(default_factory=dict)
    parts: dict[PartKey, Part] = field(default_factory=dict)
    bases: dict[BaseKey, ByModel | None] = field(default_factory=dict)
    own_ms: int | None = None
    prompts: set[int] = field(default_factory=set)
    finishes: dict[str, Finish] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    context: Context | None = None

    def add_call(self, fact: CallFact) -> bool:
        """Joins *fact* in; whether anything was new."""
        old = self.calls.get(fact.call_id)
        new = old.join(fact) if old else fact
        self.calls[fact.call_id] = new
        return new != old

    def add_level(self, o: Level) -> bool:
        """Joins a reading in; its start and its time are the earliest told."""
        key = o.epoch, o.reading, o.model
        old = self.levels.get(key)
        new = o
        if old:
            new = replace(
                old, usage=old.usage.join(o.usage), epoch_ms=_first(old.epoch_ms, o.epoch_ms), start_ms=_first(old.start_ms, o.start_ms),
                read_ms=_first(old.read_ms, o.read_ms), guess=old.guess or o.guess,
            )  # fmt: skip
        self.levels[key] = new
        return new != old

    def add_part(self, o: Part) -> bool:
        """Joins an increment in."""
        key = o.kind, o.part_id, o.model
        old = self.parts.get(key)
        new = replace(old, usage=old.usage.join(o.usage), guess=old.guess or o.guess) if old else o
        self.parts[key] = new
        return new != old

    def add_base(self, o: Base) -> bool:
        """Joins a base in; of two words for one source, the one that says more, then the smaller."""
        key = o.kind, o.source
        told = None if o.by_model is None else tuple(sorted(o.by_model))
        if key not in self.bases:
            self.bases[key] = told
            return True
        old = self.bases[key]
        new = told if old is None else old if told is None else _lower(old, told)
        self.bases[key] = new
        return new != old

    def add_moment(self, o: Moment) -> bool:
        """Joins a dated point in."""
        if o.kind == "prompt":
            known = o.at_ms in self.prompts
            self.prompts.add(o.at_ms)
            return not known
        old, self.own_ms = self.own_ms, _first(self.own_ms, o.at_ms)
        return old != self.own_ms

    def add_finish(self, o: Finish) -> bool:
        """Joins a run's end in."""
        old = self.finishes.get(o.run_key)
        new = o
        if old:
            leader = _least(old.leader, o.leader) if (old.leader != old.run_key) == (o.leader != o.run_key) else next(
                x.leader for x in (old, o) if x.leader != x.run_key
            )  # fmt: skip
            new = replace(
                old, leader=leader, outcome=old.outcome if old.outcome != "unknown" else o.outcome, total=old.total.join(o.total),
                own=old.own.join(o.own), duration_ms=old.duration_ms if old.duration_ms is not None else o.duration_ms,
                ended_ms=_first(old.ended_ms, o.ended_ms),
            )  # fmt: skip
        self.finishes[o.run_key] = new
        return new != old

    def first_restored(self) -> Usage | None:
        """What the first result's process had restored; None where no result tells its own usage apart.

        Of a session without a name, all of its calls: another session's result that shows just that is of the same run.
        """
        if self.session.startswith(NAMELESS):
            return total(c.usage for c in self.calls.values())
        first = min(self.finishes.values(), key=lambda x: (x.total.tokens, x.run_key), default=None)
        return None if first is None or first.own == NOTHING else first.total.minus(first.own)

    def add_claim(self, o: Claim) -> bool:
        """Takes the user's word; a later one wins where it says something."""
        old = self.claims.get(o.claim_id)
        new = o
        if old:
            tags = Tags(
                o.tags.agent if o.tags.agent != "unknown" else old.tags.agent,
                o.tags.task if o.tags.task != "unknown" else old.tags.task,
                {**old.tags.attrs, **o.tags.attrs},
            )
            new = replace(
                o, tags=tags, run_key=o.run_key or old.run_key,
                start_ms=_first(o.start_ms, old.start_ms) if o.run_key is None or o.start_ms is None else o.start_ms,
                end_ms=max((x for x in (o.end_ms, old.end_ms) if x is not None), default=None),
            )  # fmt: skip
        self.claims[o.claim_id] = new
        return new != old

    def add_context(self, o: Context) -> bool:
        """Joins where it ran; the first word stands."""
        old = self.context
        if old is None:
            self.context = o
        else:
            self.context = replace(old, cwd=old.cwd or o.cwd, branch=old.branch or o.branch, version=old.version or o.version)
        return self.context != old


def _lower(a: ByModel, b: ByModel) -> ByModel:
    """Per model and field the smaller base; a model that one side lacks has none there."""
    left, right = dict(a), dict(b)
    return tuple(sorted((m, left[m].meet(right[m])) for m in left.keys() & right.keys()))
