"""Facts between memory and tables: loads a session when it is first touched, writes back what has grown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Insert, Table, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from spendmeter.ledger import schema as t
from spendmeter.reconcile.facts import CallFact, Key, SessionFacts
from spendmeter.reconcile.rule import tokens_only
from spendmeter.records import Alias, Base, Call, Claim, Context, Finish, Level, Moment, Observation, Part, Skip, Tags, Usage

FIELDS = Usage._fields


def upsert(conn: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts *rows* or replaces those with the same primary key."""
    if rows:
        conn.execute(_upsert(conn.dialect.name, table, frozenset(rows[0])), list(rows))


@cache
def _upsert(dialect: str, table: Table, told: frozenset[str]) -> Insert:
    """The statement for rows that have the columns *told*: making it costs more than running it."""
    stmt = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table)
    keys = [c.name for c in table.primary_key]
    values = {c.name: stmt.excluded[c.name] for c in table.columns if c.name not in keys and c.name in told}
    return stmt.on_conflict_do_update(index_elements=keys, set_=values) if values else stmt.on_conflict_do_nothing()


def fingerprint(used: Usage) -> str | None:
    """A short name of a total's five token kinds; None for nothing."""
    plain = tokens_only(used)
    return hashlib.sha256(repr(tuple(plain[:5])).encode()).hexdigest()[:24] if plain.known else None


def dump(value: object) -> str:
    """Compact JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def call_fact(row: Any) -> CallFact:
    """A call's row as a fact."""
    traits = tuple((k, v) for k, v in json.loads(row.traits))
    return CallFact(
        row.call_id, Usage(*[getattr(row, f) for f in FIELDS]), row.asked, row.answered, row.at_ms, frozenset(row.views.split(",")),
        row.role, row.subagent, traits,
    )  # fmt: skip


class Store:
    """The sessions that one transaction touches. ``grown`` are the ids whose facts changed."""

    def __init__(self, conn: Connection, now_ms: int) -> None:
        self.conn, self._now_ms = conn, now_ms
        self.ids: dict[Key, int] = {}
        self.facts: dict[int, SessionFacts] = {}
        self.grown: set[int] = set()
        self.with_file: set[int] = set()
        self.late: list[Skip] = []  # what came for closed sessions and is in none of their rows
        self._closed: dict[int, set[Any] | None] = {}
        self._dirty: dict[tuple[int, str], set[Any]] = {}
        self._aliases: dict[Key, str] = {}

    def session_id(self, cli: str, session: str) -> int:
        """Id of the session, made when it is new."""
        name = self._canonical(cli, session)
        if (cli, name) not in self.ids:
            row = self.conn.execute(select(t.sessions.c.id).where(t.sessions.c.cli == cli, t.sessions.c.session == name)).first()
            if row is None:
                values = {"cli": cli, "session": name, "seen_ms": self._now_ms, "has_file": False}
                made = self.conn.execute(insert(t.sessions).values(**values).returning(t.sessions.c.id)).one()
                self.facts[made.id] = SessionFacts(cli, name)
                row = made
            self.ids[cli, name] = row.id
        return int(self.ids[cli, name])

    def is_closed(self, session_id: int) -> bool:
        """Whether the session's rows stand for ever, whatever else is told of it."""
        return self._kept(session_id) is not None

    def _kept(self, sid: int) -> set[Any] | None:
        """What a closed session has counted, by the keys of its facts; None for one that is not closed."""
        if sid not in self._closed:
            closed = self.conn.execute(select(t.sessions.c.closed_ms).where(t.sessions.c.id == sid)).scalar_one() is not None
            self._closed[sid] = {key for table in _KEPT for key in self._keys(table, sid)} if closed else None
        return self._closed[sid]

    def _keys(self, table: Table, sid: int) -> Iterable[Any]:
        columns = [c for c in table.primary_key if c.name != "session_id"]
        return (tuple(row) for row in self.conn.execute(select(*columns).where(table.c.session_id == sid)))

    def _canonical(self, cli: str, session: str) -> str:
        if (cli, session) not in self._aliases:
            found = self.conn.execute(select(t.aliases.c.session).where(t.aliases.c.cli == cli, t.aliases.c.alias == session)).first()
            self._aliases[cli, session] = found.session if found else session
        return self._aliases[cli, session]

    def load(self, session_id: int) -> SessionFacts:
        """All facts of a session."""
        if session_id not in self.facts:
            head = self.conn.execute(select(t.sessions).where(t.sessions.c.id == session_id)).one()
            self.facts[session_id] = _load(self.conn, session_id, head)
        return self.facts[session_id]

    def add(self, observations: Iterable[Observation | Claim]) -> None:
        """Joins observations in; skips are not for here."""
        rest = []
        for o in observations:
            if isinstance(o, Alias):
                self._alias(o)
            else:
                rest.append(o)
        for o in rest:
            self._add(o)

    def _alias(self, o: Alias) -> None:
        upsert(self.conn, t.aliases, [{"cli": o.cli, "alias": o.alias, "session": o.session}])
        self._aliases[o.cli, o.alias] = o.session
        stray = self.conn.execute(select(t.sessions.c.id).where(t.sessions.c.cli == o.cli, t.sessions.c.session == o.alias)).first()
        if stray:
            self._absorb(int(stray.id), self.session_id(o.cli, o.session))

    def _absorb(self, stray: int, home: int) -> None:
        """Moves what was filed under an alias before the alias was known."""
        old, new = self.load(stray), self.load(home)
        moves: tuple[tuple[str, dict[Any, Any], Any], ...] = (
            ("levels", old.levels, new.add_level),
            ("parts", old.parts, new.add_part),
            ("claims", old.claims, new.add_claim),
            ("finishes", old.finishes, new.add_finish),
        )
        for kind, items, add in moves:
            for key, item in items.items():
                add(item)
                self._mark(home, kind, key)
            self.conn.execute(delete(_TABLES[kind]).where(_TABLES[kind].c.session_id == stray))
        self.facts[stray] = SessionFacts(old.cli, old.session)
        self.grown |= {stray, home}

    def _add(self, o: Observation | Claim) -> None:
        sid = self.session_id(o.cli, o.session)  # type: ignore[union-attr]
        kept = self._kept(sid)
        if kept is not None and not self._is_for_another(o):
            self._pass_over(o, kept)
            return
        facts = self.load(sid)
        match o:
            case Call():
                if facts.add_call(CallFact.of(o)):
                    self._mark(sid, "calls", o.call_id)
                if o.copied_to and o.copied_to != o.session:
                    self._copy(self.session_id(o.cli, o.copied_to), o.call_id)
            case Level():
                self._if(facts.add_level(o), sid, "levels", (o.epoch, o.reading, o.model))
            case Part():
                self._if(facts.add_part(o), sid, "parts", (o.kind, o.part_id, o.model))
            case Base():
                self._if(facts.add_base(o), sid, "bases", (o.kind, o.source))
            case Moment():
                self._if(facts.add_moment(o), sid, "prompts" if o.kind == "prompt" else "head", o.at_ms)
            case Finish():
                self._if(facts.add_finish(o), sid, "finishes", o.run_key)
            case Claim():
                self._if(facts.add_claim(o), sid, "claims", o.claim_id)
            case Context():
                self._if(facts.add_context(o), sid, "head", 0)
        if (isinstance(o, Call) and o.view == "file") or (isinstance(o, Level) and o.epoch):
            self.with_file.add(sid)

    def _is_for_another(self, o: Observation | Claim) -> bool:
        """Whether a session that is not closed leans on this call of a closed one."""
        return isinstance(o, Call) and bool(o.copied_to) and not self.is_closed(self.session_id(o.cli, o.copied_to or ""))

    def _pass_over(self, o: Observation | Claim, kept: set[Any]) -> None:
        """Leaves a closed session as it is; usage that it has not counted becomes a skip, once for ever."""
        match o:
            case Call():
                key: tuple[str, ...] = (o.call_id,)
            case Finish():
                key = (o.run_key,)
            case Level(epoch=epoch) if epoch:
                key = (o.epoch, o.reading, o.model)
            case _:
                return
        if key not in kept:
            kept.add(key)
            self.late.append(Skip(f"{dump([o.session, *key])}/closed.{o.cli}", "session closed"))

    def _copy(self, sid: int, call_id: str) -> None:
        if self.is_closed(sid):
            return
        facts = self.load(sid)
        self._if(call_id not in facts.copies, sid, "copies", call_id)
        facts.copies.add(call_id)

    def _if(self, changed: bool, sid: int, kind: str, key: object) -> None:
        if changed:
            self._mark(sid, kind, key)

    def _mark(self, sid: int, kind: str, key: object) -> None:
        self._dirty.setdefault((sid, kind), set()).add(key)
        self.grown.add(sid)

    def flush(self) -> None:
        """Writes what has grown."""
        for (sid, kind), keys in self._dirty.items():
            f = self.facts[sid]
            if kind == "head":
                c = f.context
                values = {"own_ms": f.own_ms} | ({"cwd": c.cwd, "branch": c.branch, "version": c.version} if c else {})
                self.conn.execute(update(t.sessions).where(t.sessions.c.id == sid).values(**values))
            else:
                upsert(self.conn, _TABLES[kind], [_WRITE[kind](sid, f, k) for k in keys])
        self._dirty.clear()


_TABLES = {
    "calls": t.calls, "copies": t.copies, "levels": t.levels, "parts": t.parts, "bases": t.bases, "prompts": t.prompts,
    "finishes": t.finishes, "claims": t.claims,
}  # fmt: skip

_KEPT = (t.closed_calls, t.finishes, t.levels)  # their keys have one, one and three parts


def _call_row(sid: int, f: SessionFacts, key: str) -> dict[str, Any]:
    c = f.calls[key]
    return {
        "session_id": sid, "call_id": key, **c.usage._asdict(), "asked": c.asked, "answered": c.answered, "at_ms": c.at_ms,
        "views": ",".join(sorted(c.views)), "role": c.role, "subagent": c.subagent, "traits": dump(c.traits),
    }  # fmt: skip


def _level_row(sid: int, f: SessionFacts, key: tuple[str, str, str]) -> dict[str, Any]:
    v = f.levels[key]
    return {
        "session_id": sid, "epoch": v.epoch, "reading": v.reading, "model": v.model, **v.usage._asdict(), "epoch_ms": v.epoch_ms,
        "start_ms": v.start_ms, "read_ms": v.read_ms, "guess": v.guess,
    }  # fmt: skip


def _part_row(sid: int, f: SessionFacts, key: tuple[str, str, str]) -> dict[str, Any]:
    p = f.parts[key]
    return {
        "session_id": sid,
        "kind": p.kind,
        "part_id": p.part_id,
        "model": p.model,
        **p.usage._asdict(),
        "role": p.role,
        "guess": p.guess,
    }


def _finish_row(sid: int, f: SessionFacts, key: str) -> dict[str, Any]:
    x = f.finishes[key]
    return {
        "session_id": sid, "run_key": key, "leader": x.leader, "outcome": x.outcome, "total": dump(x.total), "own": dump(x.own),
        "duration_ms": x.duration_ms, "ended_ms": x.ended_ms, "fingerprint": fingerprint(x.total),
    }  # fmt: skip


def _claim_row(sid: int, f: SessionFacts, key: str) -> dict[str, Any]:
    c = f.claims[key]
    return {
        "session_id": sid, "claim_id": key, "agent": c.tags.agent, "task": c.tags.task, "attrs": dump(dict(c.tags.attrs)),
        "run_key": c.run_key, "start_ms": c.start_ms, "end_ms": c.end_ms,
    }  # fmt: skip


_WRITE: dict[str, Any] = {
    "calls": _call_row, "levels": _level_row, "parts": _part_row, "finishes": _finish_row, "claims": _claim_row,
    "copies": lambda sid, f, key: {"session_id": sid, "call_id": key},
    "prompts": lambda sid, f, key: {"session_id": sid, "at_ms": key},
    "bases": lambda sid, f, key: {"session_id": sid, "kind": key[0], "source": key[1], "by_model": _by_model_text(f.bases[key])},
}  # fmt: skip


def _by_model_text(by_model: Iterable[tuple[str, Usage]] | None) -> str | None:
    return None if by_model is None else dump([[m, list(u)] for m, u in by_model])


def _load(conn: Connection, sid: int, head: Any) -> SessionFacts:
    cli, name = head.cli, head.session
    f = SessionFacts(cli, name, own_ms=head.own_ms)
    if head.cwd or head.branch or head.version:
        f.context = Context(cli, name, head.cwd, head.branch, head.version)

    def rows(table: Table) -> Iterable[Any]:
        return conn.execute(select(table).where(table.c.session_id == sid))

    f.calls = {r.call_id: call_fact(r) for r in rows(t.calls)}
    f.copies = {r.call_id for r in rows(t.copies)}
    f.prompts = {r.at_ms for r in rows(t.prompts)}
    for r in rows(t.levels):
        used = Usage(*[getattr(r, x) for x in FIELDS])
        f.levels[r.epoch, r.reading, r.model] = Level(
            cli, name, r.model, used, r.epoch, r.reading, r.epoch_ms, r.start_ms, r.read_ms, r.guess
        )
    for r in rows(t.parts):
        used = Usage(*[getattr(r, x) for x in FIELDS])
        f.parts[r.kind, r.part_id, r.model] = Part(cli, name, r.kind, r.part_id, r.model, used, r.role, r.guess)
    for r in rows(t.bases):
        f.bases[r.kind, r.source] = None if r.by_model is None else tuple((m, Usage(*u)) for m, u in json.loads(r.by_model))
    for r in rows(t.finishes):
        own = Usage(*json.loads(r.own))
        f.finishes[r.run_key] = Finish(
            cli, name, r.run_key, r.leader, r.outcome, Usage(*json.loads(r.total)), own, r.duration_ms, r.ended_ms
        )  # fmt: skip
    for r in rows(t.claims):
        tags = Tags(r.agent, r.task, json.loads(r.attrs))
        f.claims[r.claim_id] = Claim(cli, name, r.claim_id, tags, r.run_key, r.start_ms, r.end_ms)
    return f
