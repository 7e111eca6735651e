"""Claude Code: what ``claude -p`` prints and what it writes to ``~/.claude/projects``.

Source: measured on claude-code 2.1.330; docs/reference/clis.md has the table of what each form can tell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spendmeter.parsers.fields import count, mapping, text, when_ms
from spendmeter.records import (
    NOTHING,
    Base,
    Call,
    Context,
    Finish,
    Level,
    Moment,
    Observation,
    Part,
    Skip,
    Usage,
    to_nusd,
)

NAME = "claude"
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
SYNTHETIC = "<synthetic>"
_OUTCOMES = {"success": "ok", "error_max_turns": "max_turns", "error_max_budget_usd": "max_budget"}
_ABORTS = {"aborted_streaming", "aborted_tools", "interrupted", "aborted"}
_STDOUT_TYPES = {"result", "assistant", "stream_event", "system", "user"}
_FILE_TYPES = {"assistant", "user", "cost-state", "queue-operation", "api-request", "attachment", "summary"}


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


def usage_of(u: dict[str, Any]) -> Usage | None:
    """Usage of an API ``usage`` object; None when a count in it is no count.

    ``cache_creation`` splits the writes by lifetime; what it leaves over counts as 5m.
    """
    kinds = mapping(u.get("cache_creation"))
    written, hour, five = (
        u.get("cache_creation_input_tokens"),
        kinds.get("ephemeral_1h_input_tokens"),
        kinds.get("ephemeral_5m_input_tokens"),
    )
    thinking = mapping(u.get("output_tokens_details")).get("thinking_tokens")
    searches = mapping(u.get("server_tool_use")).get("web_search_requests")
    return _usage(
        u.get("input_tokens"), u.get("cache_read_input_tokens"), written, five, hour, u.get("output_tokens"), thinking, searches, None
    )


def model_usage(v: dict[str, Any]) -> Usage | None:
    """Usage of one entry of ``modelUsage``, its cost too; None when a count in it is no count."""
    return _usage(
        v.get("inputTokens"),
        v.get("cacheReadInputTokens"),
        v.get("cacheCreationInputTokens"),
        v.get("cacheCreationEphemeral5mInputTokens"),
        v.get("cacheCreationEphemeral1hInputTokens"),
        v.get("outputTokens"),
        v.get("thinkingTokens"),
        v.get("webSearchRequests"),
        v.get("costUSD"),
    )


def _usage(
    tin: object, read: object, written: object, five: object, hour: object, out: object, think: object, web: object, cost: object
) -> Usage | None:
    told = (tin, read, written, five, hour, out, think, web)
    values = [count(x) for x in told]
    if any(x is not None and v is None for x, v in zip(told, values, strict=True)) or (tin is None and out is None):
        return None
    c_in, c_read, c_written, c_five, c_hour, c_out, c_think, c_web = values
    if c_written is not None:
        c_hour = c_hour or 0
        c_five = max(c_five or 0, c_written - c_hour)
    return Usage(c_in, c_read, c_five, c_hour, c_out, c_think, c_web, to_nusd(cost))


def call_id(request: str | None, message: str | None, session: str, row: str | None) -> str | None:
    """The id that one model call has in every source, or None for a row without any."""
    if request:
        return f"r:{request}"
    if message:
        return f"m:{session}:{message}"
    return f"u:{row}" if row else None


def _traits(u: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs = (("geo", u.get("inference_geo")), ("speed", u.get("speed")), ("tier", u.get("service_tier")))
    return tuple((k, v[:32]) for k, v in pairs if isinstance(v, str) and v not in ("", "standard", "global", "not_available"))


class FileReader:
    """Reads one transcript row by row. Its state is the context that a source needs when it is read in pieces.

    Args:
        source: what a skip names.
        session: session id for rows that name none (from the file's name).
    """

    def __init__(self, source: str, session: str = "") -> None:
        self._source, self._session = source, session
        self._last_ms: int | None = None  # latest time seen
        self._request_ms: dict[str, int] = {}
        self._segment_ms: int | None = None
        self._closed = False  # the last thing was a cost-state, the next prompt opens a segment
        self._told: set[tuple[str, str]] = set()
        self.out: list[Observation] = []
        self.last_ms: dict[str, int] = {}  # session -> time of its last own row

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the row at *line*; what it tells is appended to ``out``."""
        at = when_ms(r.get("timestamp"))
        session = text(r.get("sessionId")) or self._session
        if not session:
            return
        kind = r.get("type")
        if kind == "api-request" and at is not None:
            self._request_ms[str(r.get("id"))] = at
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
        if r.get("cwd") and (session, "cwd") not in self._told:
            self._told.add((session, "cwd"))
            self.out.append(Context(NAME, session, text(r.get("cwd")), text(r.get("gitBranch")), text(r.get("version"))))

    def _own(self, session: str, kind: str, r: dict[str, Any], at: int) -> None:
        if (session, "own") not in self._told:
            self._told.add((session, "own"))
            self.out.append(Moment(NAME, session, "own", at))
        if kind == "queue-operation" and r.get("operation") == "enqueue":
            self.out.append(Moment(NAME, session, "prompt", at))
            if self._closed:
                self._segment_ms, self._closed = at, False

    def _assistant(self, line: int, r: dict[str, Any], session: str, at: int | None) -> None:
        message = mapping(r.get("message"))
        raw = message.get("usage")
        if message.get("model") == SYNTHETIC or raw is None:
            return
        owner = text(r.get("requestSessionId")) or session
        cid = call_id(text(r.get("requestId")), text(message.get("id")), owner, text(r.get("uuid")))
        used = usage_of(mapping(raw))
        if used is None or cid is None:
            self.out.append(Skip(self._source, "bad usage" if cid else "no id", line))
            return
        at = self._request_ms.get(str(r.get("requestRef")), at)
        copied = session if owner != session else None
        asked = text(r.get("requestedModel"))
        agent = text(r.get("agentId")) if r.get("isSidechain") else None
        used = used._replace(cost_nusd=to_nusd(r.get("costUSD")))
        answered = text(message.get("model"))
        self.out.append(Call(NAME, cid, owner, used, asked, answered, at, "file", "main", agent, copied, _traits(mapping(raw))))
        steps = raw.get("iterations")
        for i, step in enumerate(
            steps if isinstance(steps, list) else []
        ):  # an advisor's calls are of another model and in no total of the row
            if mapping(step).get("type") == "advisor_message" and (part := usage_of(step)):
                model = text(step.get("model"))
                self.out.append(Call(NAME, f"i:{i}:{cid}", owner, part, model, model, at, "file", "main", agent, copied, _traits(step)))

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


class StdoutReader:
    """Reads what claude printed, event by event, from one process or from a log of many."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._seen: dict[tuple[str, str], Call] = {}  # (session, message id)
        self._request: dict[tuple[str, str], str | None] = {}  # messages whose answer was printed -> request id, where it has one
        self._current: dict[tuple[str, str], str] = {}  # (session, parent tool use) -> message being streamed
        self._leader: dict[str, str] = {}
        self._told: set[str] = set()
        self.out: list[Observation] = []
        self.last_ms: dict[str, int] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the event at *line*."""
        session = text(r.get("session_id"))
        if not session:
            return
        at = when_ms(r.get("timestamp"))
        if at is not None:
            self.last_ms[session] = max(at, self.last_ms.get(session, at))
        kind = r.get("type")
        if kind == "assistant":
            message = mapping(r.get("message"))
            key = session, str(message.get("id"))
            self._request[key] = text(r.get("request_id")) or self._request.get(key)
            self._note(line, r, session, message, at)
        elif kind == "stream_event":
            self._stream(line, r, session)
        elif kind == "result":
            self._result(line, r, session)
        elif kind == "system" and r.get("subtype") == "init" and session not in self._told:
            self._told.add(session)
            self.out.append(Context(NAME, session, text(r.get("cwd")), None, text(r.get("claude_code_version"))))

    def _note(self, line: int, r: dict[str, Any], session: str, message: dict[str, Any], at: int | None) -> None:
        mid = text(message.get("id"))
        raw = message.get("usage")
        if message.get("model") == SYNTHETIC or raw is None or mid is None:
            return
        used = usage_of(mapping(raw))
        if used is None:
            self.out.append(Skip(self._source, "bad usage", line))
            return
        known = self._seen.get((session, mid))
        if known:
            used, at = used.join(known.usage), known.at_ms if known.at_ms is not None else at
        sub = text(r.get("parent_tool_use_id"))
        self._seen[session, mid] = Call(
            NAME, mid, session, used, None, text(message.get("model")), at, "stdout", "main", sub, None, _traits(mapping(raw))
        )

    def _stream(self, line: int, r: dict[str, Any], session: str) -> None:
        event = mapping(r.get("event"))
        key = session, str(r.get("parent_tool_use_id"))
        if event.get("type") == "message_start":
            message = mapping(event.get("message"))
            self._note(line, r, session, message, None)
            self._current[key] = str(message.get("id"))
        elif event.get("type") == "message_delta" and (known := self._seen.get((session, self._current.get(key, "")))):
            final = usage_of(mapping(event.get("usage")))
            if final:  # a delta does not split the cache writes by lifetime
                whole = known.usage.join(final._replace(cache_write_5m=None, cache_write_1h=None))
                self._seen[session, known.call_id] = Call(
                    NAME,
                    known.call_id,
                    session,
                    whole,
                    None,
                    known.answered,
                    known.at_ms,
                    "stdout",
                    "main",
                    known.subagent,
                    None,
                    known.traits,
                )

    def _result(self, line: int, r: dict[str, Any], session: str) -> None:
        key = text(r.get("uuid")) or f"{session}:{r.get('total_cost_usd')}:{r.get('duration_ms')}"
        whole = self._by_model(line, r.get("modelUsage"))
        for model, (used, guess) in whole.items():
            self.out.append(Level(NAME, session, model, used, reading=key, guess=guess))
        since_raw = r.get("model_usage_since_last_result")
        own = usage_of(mapping(r.get("usage"))) or NOTHING
        first = r.get("result_index") in (0, None)
        if isinstance(since_raw, dict):
            since = self._by_model(line, since_raw)
            for model, (used, guess) in since.items():
                self.out.append(Part(NAME, session, "since", key, model, used, guess=guess))
            if first:
                restored = tuple((m, u.minus(since[m][0]) if m in since else u) for m, (u, _) in whole.items())
                self.out.append(Base(NAME, session, "restored", key, restored))
        else:
            self.out.append(Part(NAME, session, "own", key, "", own))
            self.out.append(Base(NAME, session, "restored", key, None))
        self._finish(r, session, key, first, whole, own)

    def _finish(self, r: dict[str, Any], session: str, key: str, first: bool, whole: dict[str, tuple[Usage, bool]], own: Usage) -> None:
        if first:
            self._leader[session] = key
        every = NOTHING
        for used, _ in whole.values():
            every = every.plus(used)
        self.out.append(
            Finish(
                NAME,
                session,
                key,
                self._leader.get(session),
                outcome(r),
                every,
                own,
                count(r.get("duration_ms")),
                self.last_ms.get(session),
            )
        )

    def _by_model(self, line: int, raw: object) -> dict[str, tuple[Usage, bool]]:
        out: dict[str, tuple[Usage, bool]] = {}
        for model, v in mapping(raw).items():
            used = model_usage(mapping(v))
            if used is None:
                self.out.append(Skip(self._source, "bad usage", line))
            else:
                out[model[:256]] = used, mapping(v).get("costBasis") == "unknown"
        return out

    def finish(self) -> list[Observation]:
        """All that was printed; calls come last, when their request ids are known.

        A call that had only begun to stream is left out: it has shown no request id yet, and under another id it would count
        again once the stream, or the transcript, tells of it.
        """
        out = list(self.out)
        for (session, mid), c in self._seen.items():
            if (session, mid) in self._request and (cid := call_id(self._request[session, mid], mid, session, None)):
                out.append(replace(c, call_id=cid))
        return out


def outcome(r: dict[str, Any]) -> str:
    """How a run ended, of its ``result`` event."""
    if str(r.get("terminal_reason")) in _ABORTS:
        return "interrupted"
    known = _OUTCOMES.get(str(r.get("subtype")), "error")
    return "error" if known == "ok" and r.get("is_error") else known
