"""Claude Code's rows: what is read of them, and the usage that they tell.

Source: measured on claude-code 2.1.330.
"""

from __future__ import annotations

from typing import Any, TypedDict

import msgspec

from spendmeter.parsers.fields import count, mapping
from spendmeter.records import Usage, to_nusd

NAME = "claude"
SYNTHETIC = "<synthetic>"  # the model of rows that are notes on an error


class Message(TypedDict, total=False):
    """What is read of a row's message."""

    id: Any
    model: Any
    usage: Any
    parts: msgspec.Raw


class Row(TypedDict, total=False):
    """What is read of a row, printed or written; the rest of it, most of all what was said, is never decoded."""

    type: Any
    subtype: Any
    timestamp: Any
    uuid: Any
    id: Any
    message: Message | str | None
    payload: msgspec.Raw
    cwd: Any
    version: Any
    gitBranch: Any
    sessionId: Any
    requestId: Any
    requestRef: Any
    requestSessionId: Any
    requestedModel: Any
    isSidechain: Any
    agentId: Any
    attributionAgent: Any
    costUSD: Any
    isApiErrorMessage: Any
    operation: Any
    startTime: Any
    totalDuration: Any
    hasUnknownModelCost: Any
    modelUsage: Any
    session_id: Any
    request_id: Any
    claude_code_version: Any
    api_message_id: Any
    parent_tool_use_id: Any
    event: Any
    model_usage_since_last_result: Any
    usage: Any
    result_index: Any
    total_cost_usd: Any
    duration_ms: Any
    terminal_reason: Any
    is_error: Any


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


def traits(u: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What of a ``usage`` object changes the rate."""
    pairs = (("geo", u.get("inference_geo")), ("speed", u.get("speed")), ("tier", u.get("service_tier")))
    return tuple((k, v[:32]) for k, v in pairs if isinstance(v, str) and v not in ("", "standard", "global", "not_available"))
