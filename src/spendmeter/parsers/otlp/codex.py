"""Codex's telemetry: each call as a ``codex.sse_event``, without an id; subagents are not told from their thread.

Source: measured on codex-cli 0.169.0.
"""

from __future__ import annotations

from spendmeter.parsers.codex import NAME, usage_of
from spendmeter.parsers.otlp.model import BAD_USAGE, NO_SESSION, NO_USAGE, TOLD_ELSEWHERE, Read, Record
from spendmeter.records import Call

MARKS = ("codex_otel", "codex.", "codex")
_COUNTS = "input_token_count"
_SUMS = {"codex.turn.token_usage", "handle_responses", "session_task.turn"}  # of calls that events tell, in part without a thread


def read(r: Record) -> Read:
    """What the record tells of usage. The end of an answer comes twice, once without counts."""
    if r.name in _SUMS:
        return TOLD_ELSEWHERE
    if r.name != "codex.sse_event" or r.attrs.get("event.kind") != "response.completed" or _COUNTS not in r.attrs:
        return NO_USAGE
    told = r.counts(
        input_tokens=_COUNTS, cached_input_tokens="cached_token_count", cache_write_input_tokens="cache_write_token_count",
        output_tokens="output_token_count", reasoning_output_tokens="reasoning_token_count",
    )  # fmt: skip
    used, session, model = usage_of(told), r.word("conversation.id"), r.word("model")
    if used is None:
        return BAD_USAGE
    if session is None:
        return NO_SESSION
    return Call(NAME, r.own_id(session, used), session, used, model, model, r.ended_ms, "otlp", role="any")
