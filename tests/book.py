"""The facts of many sessions in memory, for tests of the rule alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from spendmeter.reconcile.facts import CallFact, Key, SessionFacts
from spendmeter.records import Alias, Base, Call, Claim, Context, Finish, Level, Moment, Observation, Part, Skip


class Book:
    """A small world: the facts of many sessions in memory, without a ledger."""

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
