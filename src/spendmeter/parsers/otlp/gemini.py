"""Gemini CLI's telemetry: each call as a ``gemini_cli.api_response`` event without an id, the router's too.

Source: measured on gemini-cli 0.61.0.
"""

from __future__ import annotations

from spendmeter.parsers.gemini import NAME, stats_usage
from spendmeter.parsers.otlp.model import BAD_USAGE, NO_SESSION, NO_USAGE, TOLD_ELSEWHERE, Read, Record
from spendmeter.records import Call

MARKS = ("gemini-cli", "gemini_cli.", "gemini-cli")
_SUMS = {"gemini_cli.token.usage", "gen_ai.client.token.usage"}


def read(r: Record) -> Read:
    """What the record tells of usage. What a helper of the CLI used is in no file."""
    if r.name in _SUMS or "gen_ai.usage.input_tokens" in r.attrs:
        return TOLD_ELSEWHERE
    if r.signal != "logs" or r.name != "gemini_cli.api_response":
        return NO_USAGE
    told = r.counts(
        prompt="input_token_count", cached="cached_content_token_count", tool="tool_token_count", candidates="output_token_count",
        thoughts="thoughts_token_count",
    )  # fmt: skip
    used, session, model = stats_usage(told), r.word("session.id"), r.word("model")
    if used is None:
        return BAD_USAGE
    if session is None:
        return NO_SESSION
    role = "hidden" if str(r.attrs.get("role", "")).startswith("utility") else "main"
    return Call(NAME, r.own_id(session, used), session, used, model, model, r.begun_ms, "otlp", role)
