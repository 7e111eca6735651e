"""Whose a run's usage is: the user's word, and what the rules that its session goes by say where he said nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, literal_column, select, update

from spendmeter.attribution import TAGS, Rules, Subject, read
from spendmeter.attribution.model import ATTR
from spendmeter.ledger import schema as t
from spendmeter.ledger.bulk import among, batches, upsert
from spendmeter.ledger.costing import Share
from spendmeter.reconcile.facts import CallFact
from spendmeter.records import Tags

UNKNOWN = Tags().agent


@dataclass(slots=True)
class Trial:
    """Rules that sessions are looked at under, whatever they go by; ``why``: session, run, key, value -> number of the rule that set it."""

    rules: Rules
    why: dict[tuple[int, str, str, str], int] = field(default_factory=dict)


def shared(conn: Connection) -> bool:
    """Whether any run's usage may belong to several."""
    return conn.execute(select(t.rulesets.c.id).where(t.rulesets.c.splits.is_(True)).limit(1)).first() is not None


def of_entry(name: str) -> ColumnElement[Any]:
    """The agent or task of an entry, in a query that joins its run; texts and not parameters, so that it can be grouped by."""
    own = t.entries.c[name]
    return case((own != literal_column("''"), own), else_=t.runs.c[name])


def rulesets(conn: Connection) -> dict[str, Rules]:
    """All rules that any session goes by."""
    return {r.id: read(r.body) for r in conn.execute(select(t.rulesets))}


class Whose:
    """One run under the rules of its session. ``tags`` are the run's own.

    Args:
        head: its session's row.
        run: its own row.
        said: the user's word.
        trial: is told which rule set what.
    """

    def __init__(self, rules: Rules, head: Any, run: Mapping[str, Any], said: Tags, trial: Trial | None = None) -> None:
        self._rules, self._said, self._trial = rules, said, trial
        self._run = int(head.id), str(run["run_key"])
        self._subject = _subject(head, run, said)
        self._shares: dict[tuple[str, str | None], Share] = {}
        agent, task, attrs = self._given(self._subject)
        self.tags = Tags(agent, task, {**attrs, **said.attrs})

    def share_of(self, model: str) -> Callable[[CallFact | None], Share] | None:
        """Gives the share of a call, or of usage in no call, that *model* answered; None where no part of a run is ever given away."""
        return (lambda call: self._share(model, _kind(call))) if self._rules.splits else None

    def _share(self, model: str, subagent: str | None) -> Share:
        found = self._shares.get((model, subagent))
        if found is None:
            part = {"model": (model,), **({"subagent": (subagent,)} if subagent else {})}
            agent, task, _ = self._given({**self._subject, **part})
            found = "" if agent == self.tags.agent else agent, "" if task == self.tags.task else task
            self._shares[model, subagent] = found
        return found

    def _given(self, subject: Subject) -> tuple[str, str, Mapping[str, str]]:
        """Agent, task and attributes, the user's word first."""
        given, said = self._rules.given(subject), self._said
        told = {"agent": given.agent, "task": given.task, **given.attrs}
        if self._trial:
            self._trial.why.update({(*self._run, key, told[key] or ""): number for key, number in given.by.items()})
        agent = said.agent if said.agent != UNKNOWN else given.agent or UNKNOWN
        return agent, said.task if said.task != UNKNOWN else given.task or UNKNOWN, given.attrs


def join(run: dict[str, Any], entries: Iterable[dict[str, Any]]) -> None:
    """Gives the run to whom all that it used was given, if that is one."""
    parts = list(entries)
    if len({(e["agent"], e["task"]) for e in parts}) == 1:
        for key in TAGS:
            run[key] = parts[0][key] or run[key]
            for e in parts:
                e[key] = ""


def adopt(conn: Connection, rules: Rules | None, sids: Collection[int]) -> set[int]:
    """Has those of the sessions *sids* that go by no rules yet go by *rules*; which these are."""
    if not rules or not rules.name:
        return set()
    s = t.sessions.c
    new = {int(r.id) for r in among(conn, select(s.id).where(s.ruleset.is_(None)), s.id, sids)}
    go_by(conn, rules, new)
    return new


def go_by(conn: Connection, rules: Rules, sids: Collection[int]) -> None:
    """Has the sessions *sids* go by *rules* from now on; where these are none, by none."""
    for some in batches(sids):
        conn.execute(update(t.sessions).where(t.sessions.c.id.in_(some)).values(ruleset=rules.name))
    if sids and rules.name:
        upsert(conn, t.rulesets, [{"id": rules.name, "body": rules.body, "splits": rules.splits}])


def _kind(call: CallFact | None) -> str | None:
    """The type of the subagent that made a call; where no source tells the type, its id."""
    return None if call is None else call.subagent_type or call.subagent


def _subject(head: Any, run: Mapping[str, Any], said: Tags) -> Subject:
    url = run["repo"]  # of an origin, such as https://host/acme/shop.git or git@host:acme/shop.git, else a folder's name
    short = _last(url.rpartition(":")[2]).removesuffix(".git") if url else _last(head.cwd or "")
    told = {"cwd": (head.cwd,), "branch": (run["branch"],), "cli": (run["cli"],), "session": (run["session"],), "repo": (url, short)}
    known = {name: tuple(value for value in values if value) for name, values in told.items()}
    return {**known, **{f"{ATTR}{key}": (value,) for key, value in said.attrs.items()}}


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
