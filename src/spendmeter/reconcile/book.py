"""The facts of a few sessions in memory: of a run under way, before they are in a ledger."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import fields, replace

from spendmeter.reconcile.facts import CallFact, Key, SessionFacts
from spendmeter.reconcile.kin import age, disowned, inherited, least_told, marks, models_at
from spendmeter.reconcile.rule import Foreign
from spendmeter.records import NOTHING, Alias, Base, Call, Claim, Context, Finish, Level, Moment, Observation, Part, Skip, tokens_only


class Book:
    """A small world: what is known of some sessions, and what they know of each other."""

    def __init__(self) -> None:
        self.sessions: dict[Key, SessionFacts] = {}
        self.aliases: dict[Key, str] = {}
        self.skips: list[Skip] = []

    def at(self, cli: str, session: str) -> SessionFacts:
        """The facts of a session, made on first use."""
        name = self.aliases.get((cli, session), session)
        found = self.sessions.get((cli, name))
        if found is None:
            found = self.sessions[cli, name] = SessionFacts(cli, name)
        return found

    def copy(self) -> Book:
        """A book that can be added to without changing this one."""
        out = Book()
        out.sessions = {key: _copy(facts) for key, facts in self.sessions.items()}
        out.aliases, out.skips = dict(self.aliases), list(self.skips)
        return out

    def gather(self, facts: SessionFacts) -> tuple[SessionFacts, Foreign]:
        """The session's facts, with calls that others own taken out, and what its kin knows: as ``ledger.derive.gather``."""
        others = {key: other for key, other in self.sessions.items() if other is not facts}
        me = facts.cli, facts.session
        held = {c: [(k, o.calls[c]) for k, o in others.items() if c in o.calls] for c in facts.calls} if others else {}
        mine, copied, owners = disowned(me, facts, {c: h for c, h in held.items() if h}, lambda key: age(self.sessions[key]))
        for key, other in others.items():
            for call_id in facts.copies & other.calls.keys():
                fact = other.calls[call_id]
                copied[call_id] = copied[call_id].join(fact) if call_id in copied else fact
                owners.add(key)
        for mark in marks(facts):
            owners.add(min((k for k, o in self.sessions.items() if mark in marks(o)), key=lambda key: age(self.sessions[key])))
        owners.discard(me)
        kin = [self.sessions[key] for key in owners]
        levels = inherited((age(k), (v for v in k.levels.values() if v.epoch)) for k in kin)
        ends = [(f.run_key, f.total, other) for other in others.values() for f in other.finishes.values()]
        wanted = tokens_only(mine.first_restored() or NOTHING)
        told = least_told((used, models_at(other, key)) for key, used, other in ends if tokens_only(used) == wanted)
        return mine, Foreign(copied, levels, frozenset(used for _, used, _ in ends), told)

    def add_all(self, observations: Iterable[Observation | Claim]) -> None:
        """Adds every observation; aliases first, so that order does not matter."""
        rest = []
        for o in observations:
            if isinstance(o, Alias):
                self._alias(o)
            else:
                rest.append(o)
        for o in rest:
            self._add(o)

    def _alias(self, o: Alias) -> None:
        """From now on one session; what was filed under the alias before moves over."""
        self.aliases[o.cli, o.alias] = o.session
        stray = self.sessions.pop((o.cli, o.alias), None)
        if stray is None or o.alias == o.session:
            return
        home = self.at(o.cli, o.session)
        for level in stray.levels.values():
            home.add_level(replace(level, session=o.session))
        for finish in stray.finishes.values():
            home.add_finish(replace(finish, session=o.session))
        for claim in stray.claims.values():
            home.add_claim(replace(claim, session=o.session))

    def _add(self, o: Observation | Claim) -> None:
        if isinstance(o, Skip):
            self.skips.append(o)
            return
        if isinstance(o, Alias):
            return
        facts = self.at(o.cli, o.session)
        if facts.session != o.session:
            o = replace(o, session=facts.session)
        match o:
            case Call():
                facts.add_call(CallFact.of(o))
                if o.copied_to and o.copied_to != o.session:
                    self.at(o.cli, o.copied_to).copies.add(o.call_id)
            case Level():
                facts.add_level(o)
            case Part():
                facts.add_part(o)
            case Base():
                facts.add_base(o)
            case Moment():
                facts.add_moment(o)
            case Finish():
                facts.add_finish(o)
            case Claim():
                facts.add_claim(o)
            case Context():
                facts.add_context(o)


def _copy(facts: SessionFacts) -> SessionFacts:
    """What it holds in containers of its own; the facts in them never change."""
    out = copy(facts)
    for f in fields(facts):
        if isinstance(held := getattr(facts, f.name), dict | set):
            setattr(out, f.name, held.copy())
    return out
