"""Gemini CLI: what ``gemini -p`` prints and the chats it writes to ``~/.gemini/tmp``.

Source: measured on gemini-cli 0.61.0; docs/reference/clis.md has the table of what each form can tell.
"""

from __future__ import annotations

from typing import Any

from spendmeter.parsers.fields import count, counts, digest, less, mapping, text, when_ms
from spendmeter.records import NOTHING, Call, Finish, Level, Moment, Observation, Part, Skip, Usage, total

NAME = "gemini"
MARKS = (b'"stats"', b'"init"', b'"tokens"', b'"projectHash"')


def is_stdout(row: dict[str, Any]) -> bool:
    """Whether *row* is the result of the json form, or the first or last event of the stream-json form."""
    if isinstance(row.get("stats"), dict) and ("response" in row or "error" in row) and "type" not in row:
        return isinstance(row.get("session_id"), str)
    if row.get("type") == "init":
        return isinstance(row.get("session_id"), str) and "model" in row and "timestamp" in row
    return row.get("type") == "result" and "status" in row and isinstance(row.get("stats"), dict)


def is_file(row: dict[str, Any]) -> bool:
    """Whether *row* is a line of a chat: its header, an answer, or a rewritten history."""
    if isinstance(row.get("sessionId"), str) and "projectHash" in row:
        return True
    if row.get("type") == "gemini":
        return isinstance(row.get("id"), str) and isinstance(row.get("tokens"), dict)
    return isinstance(mapping(row.get("$set")).get("messages"), list)


def _usage(whole: int | None, read: int | None, tool: int | None, out: int | None, thoughts: int | None) -> Usage:
    tokens_in = less(whole, read)
    return Usage(
        None if tokens_in is None else tokens_in + (tool or 0), read, None, None, None if out is None else out + (thoughts or 0), thoughts
    )


def message_usage(t: dict[str, Any]) -> Usage | None:
    """Usage of a chat's answer: input includes what was cached, output leaves out thoughts."""
    told = counts(t, "input", "cached", "tool", "output", "thoughts")
    return None if told is None or (told[0] is None and told[3] is None) else _usage(*told)


def stats_usage(t: dict[str, Any]) -> Usage | None:
    """Usage of ``stats.models[m].tokens`` and of each of its roles."""
    told = counts(t, "prompt", "cached", "tool", "candidates", "thoughts")
    return None if told is None or (told[0] is None and told[3] is None) else _usage(*told)


def stream_usage(t: dict[str, Any]) -> Usage | None:
    """Usage of a stream's last event, which leaves out thoughts and the tools' input."""
    told = counts(t, "input_tokens", "cached", "output_tokens")
    if told is None or (told[0] is None and told[2] is None):
        return None
    return Usage(less(told[0], told[1]), told[1], None, None, told[2])


class FileReader:
    """Reads one chat. *session* is the parent's, for the chat of a subagent."""

    def __init__(self, source: str, session: str = "") -> None:
        self._source, self._parent = source, session
        self._session = ""
        self._sub: str | None = None
        self.out: list[Observation] = []
        self.last_ms: dict[str, int] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the row at *line*."""
        if "projectHash" in r:
            self._header(r)
        messages = mapping(r.get("$set")).get("messages") or r.get("messages")
        for message in messages if isinstance(messages, list) else [r]:
            if isinstance(message, dict) and message.get("type") == "gemini" and isinstance(message.get("tokens"), dict):
                self._answer(line, message)

    def _header(self, r: dict[str, Any]) -> None:
        """Every process begins with one, also in the file of the session that it resumes."""
        session, started = text(r.get("sessionId")) or "", when_ms(r.get("startTime"))
        is_sub = r.get("kind") == "subagent" and bool(self._parent)
        self._sub, self._session = (session, self._parent) if is_sub else (None, session)
        if started is not None and not is_sub and session:
            self.out.append(Moment(NAME, session, "own", started))
            self.out.append(Moment(NAME, session, "prompt", started))
            self.out.append(Level(NAME, session, "", NOTHING, "processes", str(started), started, started))

    def _answer(self, line: int, r: dict[str, Any]) -> None:
        used, cid = message_usage(mapping(r.get("tokens"))), text(r.get("id"))
        if used is None or cid is None or not self._session:
            self.out.append(Skip(self._source, "bad usage" if used is None else "no id" if cid is None else "no session", line))
            return
        at, model = when_ms(r.get("timestamp")), text(r.get("model"))
        self.out.append(Call(NAME, cid, self._session, used, model, model, at, subagent=self._sub))
        if at is not None:
            self.last_ms[self._session] = max(at, self.last_ms.get(self._session, at))

    def finish(self) -> list[Observation]:
        """All that the chat told."""
        return self.out


class StdoutReader:
    """Reads what ``gemini -p`` printed: what one run alone used, by model and, in the json form, by role."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._session, self._key = "", ""
        self.out: list[Observation] = []
        self.first_ms: dict[str, int] = {}
        self.last_ms: dict[str, int | None] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the result or event at *line*."""
        if r.get("type") == "init":
            self._session, at = text(r.get("session_id")) or "", when_ms(r.get("timestamp"))
            self._key = f"{self._session}:{at}"
            self.last_ms[self._session] = at
            if at is not None:
                self.first_ms.setdefault(self._session, at)
        elif r.get("type") == "result":
            self._stream_result(line, r)
        else:
            self._json_result(line, r)

    def _json_result(self, line: int, r: dict[str, Any]) -> None:
        session, stats = text(r["session_id"]) or "?", mapping(r.get("stats"))
        key, used = f"{session}:{digest(stats)}", NOTHING
        for model, v in mapping(stats.get("models")).items():
            for kind, role, part in self._roles(line, mapping(v)):
                self.out.append(Part(NAME, session, kind, key, text(model) or "unknown", part, role))
                used = used.plus(part)
        self.last_ms[session] = None
        self.out.append(Finish(NAME, session, key, key, "error" if "error" in r else "ok", used, used))

    def _roles(self, line: int, v: dict[str, Any]) -> list[tuple[str, str, Usage]]:
        """(kind, role, usage): what the chats show, and what none shows (the router and other helpers of the CLI)."""
        shown: dict[str, list[Usage]] = {"run": [], "utility": []}
        for name, x in (mapping(v.get("roles")) or {"main": v}).items():
            used = stats_usage(mapping(mapping(x).get("tokens")))
            if used is None:
                self.out.append(Skip(self._source, "bad usage", line))
            else:
                shown["utility" if name.startswith("utility") else "run"].append(used)
        return [(kind, "main" if kind == "run" else "hidden", total(parts)) for kind, parts in shown.items() if parts]

    def _stream_result(self, line: int, r: dict[str, Any]) -> None:
        if not self._session:
            self.out.append(Skip(self._source, "no session", line))
            return
        stats, used = mapping(r.get("stats")), NOTHING
        for model, v in mapping(stats.get("models")).items():
            part = stream_usage(mapping(v))
            if part is None:
                self.out.append(Skip(self._source, "bad usage", line))
                continue
            self.out.append(Part(NAME, self._session, "run", self._key, text(model) or "unknown", part, "any"))
            used = used.plus(part)
        at, outcome = when_ms(r.get("timestamp")), "ok" if r.get("status") == "success" else "error"
        self.last_ms[self._session] = at
        self.out.append(Finish(NAME, self._session, self._key, self._key, outcome, used, used, count(stats.get("duration_ms")), at))

    def finish(self) -> list[Observation]:
        """All that was printed."""
        return self.out
