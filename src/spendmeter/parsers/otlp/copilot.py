"""Copilot CLI's telemetry: each call as a ``chat`` span by the GenAI conventions, with the id that its events have too.

No span tells of a compaction's calls. Source: measured on copilot 1.0.102.
"""

from __future__ import annotations

from spendmeter.parsers.copilot import NAME, usage_of
from spendmeter.parsers.fields import text
from spendmeter.parsers.otlp.model import BAD_USAGE, NO_ID, NO_SESSION, NO_USAGE, TOLD_ELSEWHERE, Read, Record
from spendmeter.records import Call

MARKS = ("github.copilot", "github.copilot.", "github-copilot")
_INPUT = "gen_ai.usage.input_tokens"


def read(r: Record) -> Read:
    """What the record tells of usage. A span of an agent sums up its calls, metrics tell no session."""
    if r.signal != "traces" or r.attrs.get("gen_ai.operation.name") != "chat":
        return TOLD_ELSEWHERE if _INPUT in r.attrs or r.name.startswith("gen_ai.client.") else NO_USAGE
    if _INPUT not in r.attrs and "gen_ai.response.id" not in r.attrs:
        return NO_USAGE  # it was never answered
    told = r.counts(
        inputTokens=_INPUT, cacheReadTokens="gen_ai.usage.cache_read.input_tokens",
        cacheWriteTokens="gen_ai.usage.cache_write.input_tokens", outputTokens="gen_ai.usage.output_tokens",
        reasoningTokens="gen_ai.usage.reasoning.output_tokens",
    )  # fmt: skip
    used, cid, session = usage_of(told), text(r.attrs.get("gen_ai.response.id")), r.word("gen_ai.conversation.id")
    if used is None or cid is None:
        return BAD_USAGE if used is None else NO_ID
    if session is None:
        return NO_SESSION
    asked, answered = r.word("gen_ai.request.model"), r.word("gen_ai.response.model")
    return Call(NAME, cid, session, used, asked, answered, r.begun_ms, "otlp")
