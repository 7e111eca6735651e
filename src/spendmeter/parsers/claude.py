"""Claude Code: what ``claude -p`` prints and what it writes to ``~/.claude/projects``.

Source: measured on claude-code 2.1.330; docs/reference/clis.md has the table of what each form can tell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spendmeter.parsers.claude_rows import NAME, SYNTHETIC, Row, call_id, model_usage, traits, usage_of
from spendmeter.parsers.claude_stdout import StdoutReader
from spendmeter.parsers.fields import mapping, text, when_ms
from spendmeter.records import Base, Call, Context, Level, Moment, Observation, Skip, to_nusd

__all__ = ["MARKS", "NAME", "ROW", "TYPES", "FileReader", "StdoutReader", "is_file", "is_stdout"]
MARKS = (
    b'"assistant"',
    b'"result"',
    b'"stream_event"',
    b'"init"',
    b'"cost-state"',
    b'"queue-operation"',
    b'"api-request"',
    b'"modelUsage"',
    b'"compact_boundary"',
)
ROW = Row
TYPES = frozenset({"assistant", "system", "cost-state", "queue-operation", "api-request", "result", "stream_event"})
_STDOUT_TYPES = {"result", "assistant", "stream_event", "system"}
_FILE_TYPES = {"assistant", "cost-state", "queue-operation", "api-request"}
_OF_CALL = (  # keys of its rows
    "requestId", "requestSessionId", "requestRef", "requestedModel", "isSidechain", "agentId", "attributionAgent", "costUSD"
)  # fmt: skip


def is_stdout(row: dict[str, Any]) -> bool:
    """Whether *row* is an event that claude prints. Qwen's look-alikes: answers bear their row's id, streams no usage."""
    if row.get("type") not in _STDOUT_TYPES or not isinstance(row.get("session_id"), str):
        return False
    if {"modelUsage", "request_id", "claude_code_version", "api_message_id"} & row.keys():
        return True
    if row["type"] == "assistant" and "parent_tool_use_id" in row:
        return mapping(row.get("message")).get("id") != row.get("uuid")
    event = mapping(row.get("event")) if row["type"] == "stream_event" and "parent_tool_use_id" in row else {}
    return "usage" in event or "usage" in mapping(event.get("message"))


def is_file(row: dict[str, Any]) -> bool:
    """Whether *row* stands in a claude transcript; the messages of qwen's look-alikes have parts."""
    known = row.get("type") in _FILE_TYPES or row.get("subtype") == "compact_boundary"
    if not known or not isinstance(row.get("sessionId"), str) or "payload" in row:
        return False
    return "parts" not in mapping(row.get("message"))


class FileReader:
    """Reads one transcript row by row. Its state is the context that a source needs when it is read in pieces.

    Args:
        source: what a skip names.
        session: session id for rows that name none (from the file's name).
    """

    def __init__(self, source: str, session: str = "") -> None:
        self._source, self._session = source, session
        self._named: object = None  # the session that the last row named, and which one that is
        self._named_session = session
        self._last_ms: int | None = None  # latest time seen
        self._request_ms: dict[str, int] = {}
        self._segment_ms: int | None = None
        self._prompt_ms: int | None = None  # the last prompt
        self._closed = False  # the last thing was a cost-state, the next prompt opens a segment
        self._told: set[tuple[str, str]] = set()
        self._words: tuple[Any, ...] = ()  # what the last row told of its call, and its usage
        self._raw: object = None
        self._call = 0  # where in ``out`` that call stands
        self.out: list[Observation] = []
        self.last_ms: dict[str, int] = {}  # session -> time of its last own row

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the row at *line*; what it tells is appended to ``out``."""
        at = when_ms(r.get("timestamp"))
        named = r.get("sessionId")
        if named != self._named:
            self._named, self._named_session = named, text(named) or self._session
        if not (session := self._named_session):
            return
        kind = r.get("type")
        if kind == "api-request" and at is not None:
            self._request_ms[str(r.get("id"))] = at
            self._words = ()
        if at is not None and kind in ("queue-operation", "api-request"):
            self._own(session, kind, r, at)
        if kind == "assistant":
            self._assistant(line, r, session, at)
        elif kind == "cost-state":
            self._cost_state(line, r, session)
        elif r.get("subtype") == "compact_boundary" and (mark := text(r.get("uuid"))):
            self.out.append(Base(NAME, session, "mark", mark, None))  # a fork of it may repeat nothing else of this session's own
        if at is not None:
            self._last_ms = at if self._last_ms is None else max(self._last_ms, at)
            if not r.get("requestSessionId"):
                self.last_ms[session] = max(at, self.last_ms.get(session, at))
        if (session, "cwd") not in self._told and r.get("cwd"):
            self._told.add((session, "cwd"))
            self.out.append(Context(NAME, session, text(r.get("cwd")), text(r.get("gitBranch")), text(r.get("version"))))

    def _own(self, session: str, kind: str, r: dict[str, Any], at: int) -> None:
        if (session, "own") not in self._told:
            self._told.add((session, "own"))
            self.out.append(Moment(NAME, session, "own", at))
        if kind == "queue-operation" and r.get("operation") == "enqueue":
            self.out.append(Moment(NAME, session, "prompt", at))
            self._prompt_ms = at
            if self._closed:
                self._segment_ms, self._closed = at, False

    def _assistant(self, line: int, r: dict[str, Any], session: str, at: int | None) -> None:
        message = mapping(r.get("message"))
        raw = message.get("usage")
        if message.get("model") == SYNTHETIC or raw is None:
            self._restored(r, at)
            return
        words = (session, at is None, message.get("id"), message.get("model"), *map(r.get, _OF_CALL))  # 2 and 4 are the call's ids
        if words == self._words and (words[2] or words[4]) and not self._earlier(at):  # the call's next content block
            if raw == self._raw:
                return
            self._raw = raw
            if self._grown(mapping(raw)):
                return
        self._words, self._raw = words, raw
        owner = text(r.get("requestSessionId")) or session
        cid = call_id(text(r.get("requestId")), text(message.get("id")), owner, text(r.get("uuid")))
        used = usage_of(mapping(raw))
        if used is None or cid is None:
            self._words = ()
            self.out.append(Skip(self._source, "bad usage" if cid else "no id", line))
            return
        at = self._request_ms.get(str(r.get("requestRef")), at)
        copied = session if owner != session else None
        asked = text(r.get("requestedModel"))
        agent, role = (text(r.get("agentId")), text(r.get("attributionAgent"))) if r.get("isSidechain") else (None, None)
        used = used._replace(cost_nusd=to_nusd(r.get("costUSD")))
        answered = text(message.get("model"))
        self.out.append(Call(NAME, cid, owner, used, asked, answered, at, "file", "main", agent, copied, traits(mapping(raw)), role))
        self._call = len(self.out) - 1
        steps = raw.get("iterations")
        for i, step in enumerate(steps if isinstance(steps, list) else []):
            if mapping(step).get("type") == "advisor_message" and (part := usage_of(step)):  # of another model, in no total of the row
                model, own = text(step.get("model")), f"i:{i}:{cid}"
                self.out.append(Call(NAME, own, owner, part, model, model, at, "file", "main", agent, copied, traits(step), role))

    def _restored(self, r: dict[str, Any], at: int | None) -> None:
        """A process that takes up an unanswered conversation notes so, as of before its first prompt: the run before was killed.

        That left no cost-state, so the next one is of the process that begins here.
        """
        if at is not None and self._prompt_ms is not None and at < self._prompt_ms and r.get("isApiErrorMessage") is False:
            self._segment_ms = self._prompt_ms

    def _grown(self, raw: dict[str, Any]) -> bool:
        """Joins what another row tells of the last call into it; False where that is more than its usage."""
        used, last = usage_of(raw), self.out[self._call]
        if used is None or raw.get("iterations") or not isinstance(last, Call) or traits(raw) != last.traits:
            return False
        joined = last.usage.join(used._replace(cost_nusd=last.usage.cost_nusd))
        if joined != last.usage:
            self.out[self._call] = replace(last, usage=joined)
        return True

    def _earlier(self, at: int | None) -> bool:
        """Whether *at* is before what was seen until now."""
        return at is not None and self._last_ms is not None and at < self._last_ms

    def _cost_state(self, line: int, r: dict[str, Any], session: str) -> None:
        started = when_ms(r.get("startTime"))
        for model, v in mapping(r.get("modelUsage")).items():
            used = model_usage(mapping(v))
            if used is None or started is None:
                self.out.append(Skip(self._source, "bad usage", line))
                continue
            self.out.append(
                Level(
                    NAME,
                    session,
                    model,
                    used,
                    str(started),
                    str(r.get("totalDuration")),
                    started,
                    self._segment_ms,
                    self._last_ms,
                    bool(r.get("hasUnknownModelCost")),
                )
            )
        self._closed = True

    def finish(self) -> list[Observation]:
        """All that the file told."""
        return self.out
