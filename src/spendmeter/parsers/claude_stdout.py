"""What ``claude -p`` prints: results and streams.

Source: measured on claude-code 2.1.330; docs/reference/clis.md has the table of what each form can tell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spendmeter.parsers.claude_rows import NAME, SYNTHETIC, call_id, model_usage, traits, usage_of
from spendmeter.parsers.fields import count, mapping, text, when_ms
from spendmeter.records import NOTHING, Base, Call, Context, Finish, Level, Observation, Part, Skip, Usage

_OUTCOMES = {"success": "ok", "error_max_turns": "max_turns", "error_max_budget_usd": "max_budget"}
_ABORTS = {"aborted_streaming", "aborted_tools", "interrupted", "aborted"}


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
            NAME, mid, session, used, None, text(message.get("model")), at, "stdout", "main", sub, None, traits(mapping(raw))
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
