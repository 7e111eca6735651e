"""Qwen Code: what ``qwen -p`` prints and what it writes to ``~/.qwen``.

Source: measured on qwen-code 0.24.4; docs/reference/clis.md has the table of what each form can tell.
"""

from __future__ import annotations

from typing import Any

from spendmeter.parsers.fields import count, counts, less, mapping, text, when_ms
from spendmeter.records import NOTHING, Call, Context, Finish, Level, Moment, Observation, Skip, Usage, total

NAME = "qwen"
MARKS = (b'"assistant"', b'"result"', b'"qwen_code_version"', b'"ui_telemetry"', b'"real_user"', b'"thoughtsTokens"', b'"inputTokens"')
API_RESPONSE = "qwen-code.api_response"


def is_stdout(row: dict[str, Any]) -> bool:
    """Whether *row* is an event that qwen prints; claude's look alike, but its answers have ids of their own and its results modelUsage."""
    if not isinstance(row.get("session_id"), str) or "uuid" not in row:
        return False
    if row.get("type") == "system":
        return "qwen_code_version" in row
    if row.get("type") == "assistant":
        return mapping(row.get("message")).get("id") == row["uuid"] and "request_id" not in row
    return row.get("type") == "result" and isinstance(row.get("usage"), dict) and not {"modelUsage", "total_cost_usd"} & row.keys()


def is_file(row: dict[str, Any]) -> bool:
    """Whether *row* is a chat's prompt or telemetry, or a row of ``usage_record.jsonl``."""
    if not isinstance(row.get("sessionId"), str):
        return False
    if row.get("type") == "system":
        return row.get("subtype") == "ui_telemetry"
    if row.get("type") == "user":
        return row.get("provenance") == "real_user"
    return "type" not in row and isinstance(row.get("models"), dict) and "durationMs" in row


def _usage(row: dict[str, Any], whole: str, cached: str, out: str, thoughts: str) -> Usage | None:
    """Input includes what was cached, output includes thoughts."""
    told = counts(row, whole, cached, out, thoughts)
    if told is None or (told[0] is None and told[2] is None):
        return None
    return Usage(less(told[0], told[1]), told[1], None, None, told[2], told[3])


def printed_usage(u: dict[str, Any]) -> Usage | None:
    """Usage of a printed answer or result."""
    return _usage(u, "input_tokens", "cache_read_input_tokens", "output_tokens", "")


def response_usage(e: dict[str, Any]) -> Usage | None:
    """Usage of a telemetry event of one call."""
    return _usage(e, "input_token_count", "cached_content_token_count", "output_token_count", "thoughts_token_count")


class FileReader:
    """Reads a chat or ``usage_record.jsonl``. The calls are the telemetry rows: answers repeat them, subagents have no others."""

    def __init__(self, source: str, session: str = "") -> None:
        self._source = source
        self._told: set[str] = set()
        self.out: list[Observation] = []
        self.last_ms: dict[str, int] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the row at *line*."""
        session, at = text(r["sessionId"]) or "?", when_ms(r.get("timestamp"))
        if "type" not in r:
            self._record(line, r, session, at)
            return
        parent = text(mapping(r.get("forkedFrom")).get("sessionId"))
        if parent is not None and parent != session:  # a fork begins with its parent's rows: neither its prompts nor its calls
            if r.get("type") == "system":
                self._telemetry(line, r, parent, copied_to=session)
            return
        if session not in self._told:
            self._told.add(session)
            self.out.append(Context(NAME, session, text(r.get("cwd")), text(r.get("gitBranch")), text(r.get("version"))))
        if at is not None:
            self.last_ms[session] = max(at, self.last_ms.get(session, at))
        if r.get("type") == "user" and at is not None:
            self.out += [Moment(NAME, session, "own", at), Moment(NAME, session, "prompt", at)]
        elif r.get("type") == "system":
            self._telemetry(line, r, session)

    def _telemetry(self, line: int, r: dict[str, Any], session: str, copied_to: str | None = None) -> None:
        e = mapping(mapping(r.get("systemPayload")).get("uiEvent"))
        if e.get("event.name") != API_RESPONSE:
            return
        used = response_usage(e)
        cid = text(e.get("response_id"))
        if used is None or cid is None:
            self.out.append(Skip(self._source, "bad usage" if used is None else "no id", line))
            return
        model, at, sub = text(e.get("model")), when_ms(e.get("event.timestamp")), text(e.get("subagent_name"))
        self.out.append(Call(NAME, cid, session, used, model, model, at, subagent=sub, copied_to=copied_to, subagent_type=sub))

    def _record(self, line: int, r: dict[str, Any], session: str, at: int | None) -> None:
        """One row a run, written at its end: the session's running total."""
        whole = NOTHING
        for model, v in mapping(r.get("models")).items():
            used = _usage(mapping(v), "inputTokens", "cachedTokens", "outputTokens", "thoughtsTokens")
            if used is None:
                self.out.append(Skip(self._source, "bad usage", line))
                continue
            self.out.append(Level(NAME, session, text(model) or "unknown", used))
            whole = whole.plus(used)
        started = when_ms(r.get("startTime"))
        if started is not None and at is not None:
            self.out.append(Level(NAME, session, "", whole, "runs", str(at), started, started, at))
            self.last_ms[session] = max(at, self.last_ms.get(session, at))

    def finish(self) -> list[Observation]:
        """All that the file told."""
        return self.out


class StdoutReader:
    """Reads what ``qwen -p`` printed. A result is the session's running total, earlier runs and subagents included."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.out: list[Observation] = []
        self.last_ms: dict[str, int | None] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the event at *line*."""
        session = text(r["session_id"]) or "?"
        self.last_ms[session] = None  # its events bear no time
        if r.get("type") == "system":
            self.out.append(Context(NAME, session, text(r.get("cwd")), None, text(r.get("qwen_code_version"))))
        elif r.get("type") == "assistant":
            self._answer(line, r, session)
        else:
            self._result(line, r, session)

    def _answer(self, line: int, r: dict[str, Any], session: str) -> None:
        message, uuid = mapping(r.get("message")), text(r.get("uuid"))
        if "usage" not in message:
            return
        used = printed_usage(mapping(message.get("usage")))
        if used is None or uuid is None:
            self.out.append(Skip(self._source, "bad usage", line))
        elif used.known:  # of an answer's rows one bears its usage, the others zeros
            sub = text(r.get("parent_tool_use_id"))
            self.out.append(Call(NAME, uuid, session, used, None, text(message.get("model")), None, "stdout", subagent=sub))

    def _result(self, line: int, r: dict[str, Any], session: str) -> None:
        whole = printed_usage(mapping(r.get("usage")))
        if whole is None:
            self.out.append(Skip(self._source, "bad usage", line))
            whole = NOTHING
        key = text(r.get("uuid")) or f"{session}:{'-'.join(str(x) for x in whole)}"
        models = self._models(line, r, session, key)
        whole = total(models) if models else whole
        self.out.append(Level(NAME, session, "", whole, reading=key))
        outcome = "error" if r.get("is_error") or r.get("subtype") != "success" else "ok"
        self.out.append(Finish(NAME, session, key, key, outcome, whole, duration_ms=count(r.get("duration_ms"))))

    def _models(self, line: int, r: dict[str, Any], session: str, key: str) -> list[Usage]:
        """The models of ``stats``, which only the json form has."""
        out = []
        for model, v in mapping(mapping(r.get("stats")).get("models")).items():
            used = _usage(mapping(mapping(v).get("tokens")), "prompt", "cached", "candidates", "thoughts")
            if used is None:
                self.out.append(Skip(self._source, "bad usage", line))
                continue
            self.out.append(Level(NAME, session, text(model) or "unknown", used, reading=key))
            out.append(used)
        return out

    def finish(self) -> list[Observation]:
        """All that was printed."""
        return self.out
