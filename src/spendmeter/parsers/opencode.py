"""opencode: what ``opencode run --format json`` and ``opencode export`` print, and the database it writes.

Source: measured on opencode 1.18.33; docs/reference/clis.md has the table of what each form can tell.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from spendmeter.parsers.fields import counts, mapping, text, when_ms
from spendmeter.records import NOTHING, Call, Context, Finish, Moment, Observation, Part, Skip, Usage, to_nusd

NAME = "opencode"
MARKS = (b'"step_start"', b'"step_finish"', b'"step-finish"', b'"sessionID"')
ATTEMPTS = 3  # to read a database that changes meanwhile
BROKEN = (sqlite3.Error, UnicodeDecodeError)  # what a damaged file raises: its messages and names of columns need not be UTF-8
WAIT_S = 2.0
_STDOUT_TYPES = {"step_start", "step_finish", "error"}
_GOES_ON = {"tool-calls", "tool_calls"}
_LOOKS = ("select id from session", "select id, session_id, data from message", "select id, message_id, session_id, data from part")
_SUMS = ("tokens_input", "tokens_output", "tokens_reasoning", "tokens_cache_read", "tokens_cache_write", "cost")


def is_stdout(row: dict[str, Any]) -> bool:
    """Whether *row* is an event that ``opencode run --format json`` prints and this parser needs."""
    return row.get("type") in _STDOUT_TYPES and isinstance(row.get("sessionID"), str)


def is_file(row: dict[str, Any]) -> bool:
    """Whether *row* is what ``opencode export`` writes."""
    return isinstance(row.get("messages"), list) and isinstance(mapping(row.get("info")).get("id"), str)


def usage_of(t: dict[str, Any], cost: object) -> Usage | None:
    """Usage of a step: input leaves out what was cached, output leaves out reasoning; cost in USD is opencode's own."""
    cache = mapping(t.get("cache"))
    told, cached = counts(t, "input", "output", "reasoning"), counts(cache, "read", "write")
    if told is None or cached is None or (told[0] is None and told[1] is None):
        return None
    out = None if told[1] is None else told[1] + (told[2] or 0)
    return Usage(told[0], cached[0], cached[1], None, out, told[2], None, to_nusd(cost))


class StdoutReader:
    """Reads what ``opencode run --format json`` printed: the calls of the main agent, without their model."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._open: dict[str, tuple[int, Usage]] = {}  # session -> (start of the run, what it has used)
        self.out: list[Observation] = []
        self.last_ms: dict[str, int | None] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the event at *line*."""
        session, at = text(r["sessionID"]) or "?", when_ms(r.get("timestamp"))
        self.last_ms[session] = at if at is not None else self.last_ms.get(session)
        if session not in self._open:
            self._open[session] = at or 0, NOTHING
            if at is not None:
                self.out.append(Moment(NAME, session, "prompt", at))
        if r.get("type") == "step_finish":
            self._step(line, mapping(r.get("part")), session, at)
        elif r.get("type") == "error":
            self._end(session, f"{session}:error:{at}", "error", at)

    def _step(self, line: int, part: dict[str, Any], session: str, at: int | None) -> None:
        used, cid = usage_of(mapping(part.get("tokens")), part.get("cost")), text(part.get("id"))
        if used is None or cid is None:
            self.out.append(Skip(self._source, "bad usage" if used is None else "no id", line))
            return
        self.out.append(Call(NAME, cid, session, used, None, None, at, "stdout"))
        start, so_far = self._open[session]
        self._open[session] = start, so_far.plus(used)
        if part.get("reason") not in _GOES_ON:
            self._end(session, cid, "ok", at)

    def _end(self, session: str, key: str, outcome: str, at: int | None) -> None:
        start, used = self._open.pop(session)
        duration = at - start if at is not None and start and at >= start else None
        self.out.append(Finish(NAME, session, key, key, outcome, used, used, duration, at))

    def finish(self) -> list[Observation]:
        """All that was printed."""
        return self.out


class FileReader:
    """Reads exported sessions."""

    def __init__(self, source: str, session: str = "") -> None:
        self._source = source
        self.out: list[Observation] = []
        self.last_ms: dict[str, int | None] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the session at *line*."""
        info = mapping(r.get("info"))
        session = text(info.get("parentID")) or text(info["id"]) or "?"
        sub = text(info["id"]) or "?" if info.get("parentID") else None
        self.last_ms.setdefault(session, None)
        born = when_ms(mapping(info.get("time")).get("created"))
        for message in r["messages"]:
            head = mapping(mapping(message).get("info"))
            parts = mapping(message).get("parts")
            at = when_ms(mapping(head.get("time")).get("created"))
            if _is_copy(at, born):
                continue
            if head.get("role") == "user" and at is not None and sub is None:
                self.out.append(Moment(NAME, session, "prompt", at))
            for part in parts if isinstance(parts, list) else []:
                if mapping(part).get("type") == "step-finish":
                    self._step(line, part, head, session, sub)

    def _step(self, line: int, part: dict[str, Any], head: dict[str, Any], session: str, sub: str | None) -> None:
        call = _call(part, text(part.get("id")), head, session, sub)
        if call is None:
            self.out.append(Skip(self._source, "bad usage", line))
            return
        self.out.append(call)
        if call.at_ms is not None:
            self.last_ms[session] = max(call.at_ms, self.last_ms.get(session) or 0)

    def finish(self) -> list[Observation]:
        """All that was exported."""
        return self.out


def _is_copy(at_ms: int | None, born_ms: int | None) -> bool:
    """Whether a message is older than its session: a fork holds its parent's messages again, under new ids and with their old times."""
    return at_ms is not None and born_ms is not None and at_ms < born_ms


def _call(part: dict[str, Any], part_id: str | None, head: dict[str, Any], session: str, sub: str | None) -> Call | None:
    """A step-finish *part* of the message *head* as a call at the time when the message began."""
    used = usage_of(mapping(part.get("tokens")), part.get("cost"))
    if used is None or part_id is None:
        return None
    model, at = text(head.get("modelID")), when_ms(mapping(head.get("time")).get("created"))
    return Call(NAME, part_id, session, used, model, model, at, subagent=sub, subagent_type=text(head.get("agent")) if sub else None)


# -- the database ------------------------------------------------------------------------------------------------------


def is_database(path: Path) -> bool:
    """Whether the SQLite file *path* is opencode's."""
    try:
        with closing(_open(path)) as db:
            for look in _LOOKS:
                db.execute(f"{look} limit 0")
            return True
    except BROKEN:
        return False


def read_database(path: Path, source: str) -> DatabaseReader:
    """Reads opencode's database, which may be in use; what cannot be read is a skip."""
    for _ in range(ATTEMPTS):
        before, reader = _state(path), DatabaseReader(source)
        try:
            with closing(_open(path)) as db:
                reader.read(db)
        except BROKEN as e:
            reader = DatabaseReader(source)
            reader.out.append(Skip(source, f"database cannot be read ({type(e).__name__})"))
            if before == _state(path):
                break
            continue
        if before == _state(path) or _has_wal(path):  # a reader of a WAL sees one moment of it
            break
    return reader


def _open(path: Path) -> sqlite3.Connection:
    """Opens *path* so that no writer ever waits: as a file that stands still, or as a reader of its write-ahead log."""
    mode = "mode=ro" if _has_wal(path) else "mode=ro&immutable=1"
    try:
        return _connect(path, mode)
    except BROKEN:
        return _connect(path, "mode=ro&immutable=1")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=WAIT_S)
    db.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        db.execute("pragma query_only = 1")
        db.execute("select 1 from sqlite_master limit 1")
    except BROKEN:
        db.close()
        raise
    return db


def _has_wal(path: Path) -> bool:
    return _size(path, "-wal") > 0


def _state(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, _size(path, "-wal"), _size(path, "-journal")


def _size(path: Path, end: str) -> int:
    try:
        return path.with_name(path.name + end).stat().st_size
    except OSError:
        return 0


class DatabaseReader:
    """What one database tells: calls by part, and the sum of each session. A child's usage belongs to its root."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._roots: dict[str, str] = {}
        self._born: dict[str, int | None] = {}  # session -> when it was made
        self._sums: dict[str, Usage] = {}  # session -> its own sum, what a fork copied included
        self._copied: dict[str, Usage] = {}  # session -> what it copied
        self.out: list[Observation] = []
        self.last_ms: dict[str, int | None] = {}

    def read(self, db: sqlite3.Connection) -> None:
        """Reads all sessions in one transaction.

        Raises:
            sqlite3.Error: it is damaged, or was changed by others.
        """
        db.execute("begin")
        self._sessions(db)
        heads = dict(self._messages(db))
        rows = db.execute("""select id, message_id, session_id, data from part where data like '%"step-finish"%'""")
        for part_id, message, session, data in rows:
            part = _object(data)
            if part.get("type") == "step-finish":
                self._step(part, str(part_id), heads.get(message, {}), str(session))
        self._removed(db)
        for session, used in self._sums.items():
            own = used.minus(self._copied.get(session, NOTHING))
            if own.known:
                self.out.append(Part(NAME, self._roots[session], "session", session, "", own))

    def _sessions(self, db: sqlite3.Connection) -> None:
        parents: dict[str, str | None] = {}
        rows = []
        cursor = db.execute("select * from session")
        names = [d[0] for d in cursor.description]
        for values in cursor:
            row = dict(zip(names, values, strict=True))
            parents[str(row["id"])] = text(row.get("parent_id"))
            rows.append(row)
        self._roots = {s: _root(s, parents) for s in parents}
        for row in rows:
            self._session(row, str(row["id"]))

    def _session(self, row: dict[str, Any], session: str) -> None:
        root = self._roots[session]
        self._born[session] = when_ms(row.get("time_created"))
        self.last_ms[root] = max(when_ms(row.get("time_updated")) or 0, self.last_ms.get(root) or 0) or None
        if root == session:
            self.out.append(Context(NAME, session, text(row.get("directory")), None, text(row.get("version"))))
        if not set(_SUMS) <= row.keys():
            return  # an older database has no sums
        tin, out, reasoning, read, write, cost = (row[n] for n in _SUMS)
        used = usage_of({"input": tin, "output": out, "reasoning": reasoning, "cache": {"read": read, "write": write}}, cost)
        if used is None:
            self.out.append(Skip(self._source, "bad usage"))
        else:
            self._sums[session] = used

    def _messages(self, db: sqlite3.Connection) -> Iterator[tuple[Any, dict[str, Any]]]:
        """(id, head) of each answer; prompts of main agents are noted."""
        for message, session, data in db.execute("select id, session_id, data from message"):
            head = _object(data)
            if head.get("role") == "assistant":
                at = when_ms(mapping(head.get("time")).get("created"))
                yield message, {"modelID": head.get("modelID"), "agent": head.get("agent"), "time": {"created": at}}
            self._prompt(head, str(session))

    def _prompt(self, head: dict[str, Any], session: str) -> None:
        """Notes the time of a prompt of a main agent, a parent's that a fork repeats left out."""
        at = when_ms(mapping(head.get("time")).get("created"))
        if head.get("role") == "user" and at is not None and self._roots.get(session) == session and not _is_copy(at, self._born[session]):
            self.out += [Moment(NAME, session, "own", at), Moment(NAME, session, "prompt", at)]

    def _removed(self, db: sqlite3.Connection) -> None:
        """Answers that were undone: gone from messages and from their session's sum, but the log of events keeps them."""
        if not db.execute("select 1 from sqlite_master where name = 'event'").fetchone():
            return  # an older database has no such log
        gone = {text(_object(row[0]).get("messageID")) for row in db.execute("select data from event where type like 'message.removed%'")}
        if not gone:
            return
        heads: dict[str | None, dict[str, Any]] = {}
        for (data,) in db.execute("select data from event where type like 'message.updated%' order by rowid"):
            info = mapping(_object(data).get("info"))
            if (key := text(info.get("id"))) in gone:
                heads[key] = info
        for info in heads.values():
            self._prompt(info, str(info.get("sessionID")))
        for (data,) in db.execute("""select data from event where type like 'message.part.updated%' and data like '%"step-finish"%'"""):
            part = mapping(_object(data).get("part"))
            head, session = heads.get(text(part.get("messageID"))), text(part.get("sessionID"))
            if head and session and part.get("type") == "step-finish":
                self._step(part, text(part.get("id")), head, session, is_held=False)

    def _step(self, part: dict[str, Any], part_id: str | None, head: dict[str, Any], session: str, *, is_held: bool = True) -> None:
        root = self._roots.get(session, session)
        call = _call(part, part_id, head, root, session if root != session else None)
        if call is None:
            self.out.append(Skip(self._source, "bad usage"))
        elif _is_copy(call.at_ms, self._born.get(session)):
            if is_held:
                self._copied[session] = self._copied.get(session, NOTHING).plus(call.usage)
        else:
            self.out.append(call)

    def finish(self) -> list[Observation]:
        """All that the database told."""
        return self.out


def _root(session: str, parents: dict[str, str | None]) -> str:
    seen: set[str] = set()
    while (up := parents.get(session)) and up not in seen:
        seen.add(session)
        session = up
    return session


def _object(data: object) -> dict[str, Any]:
    if not isinstance(data, str | bytes):
        return {}
    try:
        return mapping(json.loads(data))
    except (ValueError, RecursionError):
        return {}
