"""Qwen Code's telemetry: each call as a ``qwen-code.api_response`` event, with the id that its chats have too.

Source: measured on qwen-code 0.24.4.
"""

from __future__ import annotations

from spendmeter.parsers.fields import text
from spendmeter.parsers.otlp.model import BAD_USAGE, NO_ID, NO_SESSION, NO_USAGE, TOLD_ELSEWHERE, Read, Record
from spendmeter.parsers.qwen import API_RESPONSE, NAME, response_usage
from spendmeter.records import Call

MARKS = ("qwen-code", "qwen-code.", "qwen-code")


def read(r: Record) -> Read:
    """What the record tells of usage."""
    if r.name == "qwen-code.token.usage" or "gen_ai.usage.input_tokens" in r.attrs:
        return TOLD_ELSEWHERE
    if r.signal != "logs" or r.name != API_RESPONSE:
        return NO_USAGE
    names = ("input_token_count", "cached_content_token_count", "output_token_count", "thoughts_token_count")
    used, cid, session = response_usage(r.counts(**{n: n for n in names})), text(r.attrs.get("response_id")), r.word("session.id")
    if used is None or cid is None:
        return BAD_USAGE if used is None else NO_ID
    if session is None:
        return NO_SESSION
    model, sub = r.word("model"), text(r.attrs.get("subagent_name"))
    return Call(NAME, cid, session, used, model, model, r.ended_ms, "otlp", subagent=sub, subagent_type=sub)
