"""Facts between memory and tables: loads a session when it is first touched, writes back what has grown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from spendmeter.ledger import schema as t
from spendmeter.ledger.bulk import among, batches, upsert
from spendmeter.reconcile.facts import CallFact, Key, SessionFacts
from spendmeter.records import Alias, Base, Call, Claim, Context, Finish, Level, Moment, Observation, Part, Skip, Tags, Usage, tokens_only

FIELDS = Usage._fields
_Told = Call | Level | Part | Base | Moment | Finish | Context | Claim


def fingerprint(used: Usage) -> str | None:
    """A short name of a total's five token kinds; None for nothing."""
    plain = tokens_only(used)
    return hashlib.sha256(repr(tuple(plain[:5])).encode()).hexdigest()[:24] if plain.known else None


def dump(value: object) -> str:
    """Compact JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def call_fact(row: Any) -> CallFact:
    """A call's row as a fact."""
    traits = tuple((k, v) for k, v in json.loads(row.traits)) if row.traits != "[]" else ()
    return CallFact(
        row.call_id, _used(row), row.asked, row.answered, row.at_ms, frozenset(row.views.split(",")),
        row.role, row.subagent, traits, subagent_type=row.subagent_type,
    )  # fmt: skip


class Store:
    """The sessions that one transaction touches. ``grown`` are the ids whose facts changed, ``fresh`` those that it made."""

    def __init__(self, conn: Connection, now_ms: int) -> None:
        self.conn, self._now_ms = conn, now_ms
        self.ids: dict[Key, int] = {}
        self.facts: dict[int, SessionFacts] = {}
        self.grown: set[int] = set()
        self.fresh: set[int] = set()
        self.late: list[Skip] = []  # what came for closed sessions and is in none of their rows
        self._with_file: set[int] = set()
        self._closed: dict[int, set[Any] | None] = {}  # by session, what it has counted; None: it is not closed
        self._dirty: dict[str, dict[tuple[int, Any], None]] = {}
        self._aliases: dict[Key, str] = {}

    def session_id(self, cli: str, session: str) -> int:
        """Id of the session, made when it is new."""
        key = cli, self._aliases.get((cli, session), session)
        if key not in self.ids:
            self.open([key])
            key = cli, self._aliases[key]
        return self.ids[key]

    def open(self, keys: Iterable[Key]) -> None:
        """Finds or makes all sessions of *keys*."""
        unknown = {key for key in keys if key not in self._aliases}
        if not unknown:
            return
        self._aliases |= {key: key[1] for key in unknown}
        for row in among(self.conn, select(t.aliases), t.aliases.c.alias, {session for _, session in unknown}):
            if (row.cli, row.alias) in unknown:
                self._aliases[row.cli, row.alias] = row.session
        wanted = {(cli, self._aliases[cli, session]): None for cli, session in sorted(unknown)}.keys() - self.ids.keys()
        s = t.sessions.c
        heads = select(s.id, s.cli, s.session, s.closed_ms).where(s.cli.in_({cli for cli, _ in wanted}))  # the index begins with it
        for row in among(self.conn, heads, s.session, {name for _, name in wanted}):
            if (row.cli, row.session) in wanted:
                self.ids[row.cli, row.session] = row.id
                if row.closed_ms is None:
                    self._closed[row.id] = None
        self._make(sorted(wanted - self.ids.keys()))

    def _make(self, keys: list[Key]) -> None:
        if not keys:
            return
        values = [{"cli": cli, "session": name, "seen_ms": self._now_ms, "has_file": False} for cli, name in keys]
        s = t.sessions.c
        for row in self.conn.execute(insert(t.sessions).returning(s.id, s.cli, s.session), values):
            self.ids[row.cli, row.session] = row.id
            self.facts[row.id] = SessionFacts(row.cli, row.session)
            self._closed[row.id] = None
            self.fresh.add(row.id)

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

    def load(self, session_id: int) -> SessionFacts:
        """All facts of a session."""
        if session_id not in self.facts:
            self.load_all([session_id])
        return self.facts[session_id]

    def load_all(self, session_ids: Iterable[int]) -> None:
        """Reads the facts of those sessions that are not here yet."""
        missing = set(session_ids) - self.facts.keys()
        if missing:
            self.facts |= read_facts(self.conn, missing)

    def add(self, observations: Iterable[Observation | Claim]) -> None:
        """Joins observations in; skips are not for here."""
        rest = []
        for o in observations:
            if isinstance(o, Alias):
                self._alias(o)
            elif not isinstance(o, Skip):
                rest.append(o)
        copying = {(o.cli, o.copied_to) for o in rest if isinstance(o, Call) and o.copied_to}
        self.open({(o.cli, o.session) for o in rest} | copying)
        self.load_all(sid for sid in self.ids.values() if not self.is_closed(sid))
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
        s, other = t.sessions.c, t.sessions.alias()
        rules = select(other.c.ruleset).where(other.c.id == stray).scalar_subquery()
        self.conn.execute(update(t.sessions).where(s.id == home, s.ruleset.is_(None)).values(ruleset=rules))
        self.facts[stray] = SessionFacts(old.cli, old.session)
        self.grown |= {stray, home}

    def _add(self, o: _Told) -> None:
        sid = self.session_id(o.cli, o.session)
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
            self._with_file.add(sid)

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
        self._dirty.setdefault(kind, {})[sid, key] = None
        self.grown.add(sid)

    def flush(self) -> None:
        """Writes what has grown."""
        for kind, keys in self._dirty.items():
            if kind == "head":
                self._write_heads({sid for sid, _ in keys})
            else:
                write = _WRITE[kind]
                upsert(self.conn, _TABLES[kind], [write(sid, self.facts[sid], key) for sid, key in keys])
        for some in batches(self._with_file):
            self.conn.execute(update(t.sessions).where(t.sessions.c.id.in_(some), t.sessions.c.has_file.is_(False)).values(has_file=True))
        self._dirty.clear()
        self._with_file.clear()

    def _write_heads(self, sids: Iterable[int]) -> None:
        rows = []
        for sid in sorted(sids):
            f = self.facts[sid]
            c = f.context or Context(f.cli, f.session)
            rows.append({"sid": sid, "to_own": f.own_ms, "to_cwd": c.cwd, "to_branch": c.branch, "to_version": c.version})
        self.conn.execute(_HEAD, rows)


_TABLES = {
    "calls": t.calls, "copies": t.copies, "levels": t.levels, "parts": t.parts, "bases": t.bases, "prompts": t.prompts,
    "finishes": t.finishes, "claims": t.claims,
}  # fmt: skip

_HEAD = update(t.sessions).where(t.sessions.c.id == bindparam("sid")).values(
    own_ms=bindparam("to_own"), cwd=bindparam("to_cwd"), branch=bindparam("to_branch"), version=bindparam("to_version")
)  # fmt: skip
_KEPT = (t.closed_calls, t.finishes, t.levels)  # their keys have one, one and three parts


def _call_row(sid: int, f: SessionFacts, key: str) -> dict[str, Any]:
    c = f.calls[key]
    return {
        "session_id": sid, "call_id": key, **c.usage._asdict(), "asked": c.asked, "answered": c.answered, "at_ms": c.at_ms,
        "views": ",".join(sorted(c.views)), "role": c.role, "subagent": c.subagent, "traits": dump(c.traits) if c.traits else "[]",
        "subagent_type": c.subagent_type,
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


def read_facts(conn: Connection, sids: Collection[int]) -> dict[int, SessionFacts]:
    """All facts of the sessions *sids*."""
    out: dict[int, SessionFacts] = {}
    for head in among(conn, select(t.sessions), t.sessions.c.id, sids):
        out[head.id] = f = SessionFacts(head.cli, head.session, own_ms=head.own_ms)
        if head.cwd or head.branch or head.version:
            f.context = Context(f.cli, f.session, head.cwd, head.branch, head.version)
    for name, read in _READ.items():
        table = _TABLES[name]
        for r in among(conn, select(table), table.c.session_id, out.keys()):
            read(out[r.session_id], r)
    return out


def _used(r: Any) -> Usage:
    return Usage(*[getattr(r, name) for name in FIELDS])


def _read_call(f: SessionFacts, r: Any) -> None:
    f.calls[r.call_id] = call_fact(r)


def _read_level(f: SessionFacts, r: Any) -> None:
    f.levels[r.epoch, r.reading, r.model] = level_fact(r, f.cli, f.session)


def level_fact(r: Any, cli: str, session: str) -> Level:
    """A reading's row as a fact."""
    return Level(cli, session, r.model, _used(r), r.epoch, r.reading, r.epoch_ms, r.start_ms, r.read_ms, r.guess)


def _read_part(f: SessionFacts, r: Any) -> None:
    f.parts[r.kind, r.part_id, r.model] = Part(f.cli, f.session, r.kind, r.part_id, r.model, _used(r), r.role, r.guess)


def _read_base(f: SessionFacts, r: Any) -> None:
    f.bases[r.kind, r.source] = None if r.by_model is None else tuple((m, Usage(*u)) for m, u in json.loads(r.by_model))


def _read_finish(f: SessionFacts, r: Any) -> None:
    total, own = Usage(*json.loads(r.total)), Usage(*json.loads(r.own))
    f.finishes[r.run_key] = Finish(f.cli, f.session, r.run_key, r.leader, r.outcome, total, own, r.duration_ms, r.ended_ms)


def _read_claim(f: SessionFacts, r: Any) -> None:
    tags = Tags(r.agent, r.task, json.loads(r.attrs))
    f.claims[r.claim_id] = Claim(f.cli, f.session, r.claim_id, tags, r.run_key, r.start_ms, r.end_ms)


_READ: dict[str, Callable[[SessionFacts, Any], None]] = {
    "calls": _read_call, "levels": _read_level, "parts": _read_part, "bases": _read_base, "finishes": _read_finish,
    "claims": _read_claim, "copies": lambda f, r: f.copies.add(r.call_id), "prompts": lambda f, r: f.prompts.add(r.at_ms),
}  # fmt: skip
