"""Claude Code's telemetry: each call as an ``api_request`` event, and sums by session as metrics.

Events name the model that answered, metrics the one that was asked for; both tell the CLI's own cost. Neither tells reasoning.
Source: measured on claude-code 2.1.330.
"""

from __future__ import annotations

from spendmeter.parsers.claude_rows import NAME, call_id, usage_of
from spendmeter.parsers.fields import digest, text
from spendmeter.parsers.otlp.model import BAD_USAGE, MOST_NUSD, NO_SESSION, NO_USAGE, TOLD_ELSEWHERE, Read, Record, whole
from spendmeter.records import NAMELESS, Call, Part, Usage, to_nusd

MARKS = ("com.anthropic.claude_code", "claude_code.", "claude-code")  # its scope, its names, its service
_EVENTS = {"api_request", "claude_code.api_request"}
_TOKENS, _COST = "claude_code.token.usage", "claude_code.cost.usage"
_KINDS = {"input": "tokens_in", "output": "tokens_out", "cacheRead": "cache_read", "cacheCreation": "cache_write_5m"}


def read(r: Record) -> Read:
    """What the record tells of usage."""
    if r.signal == "logs" and r.name in _EVENTS:
        return _call(r)
    if r.signal == "metrics" and r.name in (_TOKENS, _COST):
        return _part(r)
    return TOLD_ELSEWHERE if r.signal == "traces" and "input_tokens" in r.attrs else NO_USAGE


def _call(r: Record) -> Read:
    told = r.counts(
        input_tokens="input_tokens", output_tokens="output_tokens", cache_read_input_tokens="cache_read_tokens",
        cache_creation_input_tokens="cache_creation_tokens",
    )  # fmt: skip
    split = r.counts(ephemeral_5m_input_tokens="cache_creation_5m_tokens", ephemeral_1h_input_tokens="cache_creation_1h_tokens")
    used, cost = usage_of({**told, "cache_creation": split}), _cost(r)
    if used is None or (cost or 0) > MOST_NUSD:
        return BAD_USAGE
    used = used._replace(cost_nusd=cost)
    request = text(r.attrs.get("request_id"))
    session = r.word("session.id") or NAMELESS + (r.word("prompt.id") or request or digest(sorted(r.attrs.items())))
    cid = call_id(request, None, session, None) or r.own_id(session, used)
    sub, kind = text(r.attrs.get("agent_id")), text(r.attrs.get("agent.name"))
    return Call(NAME, cid, session, used, None, r.word("model"), r.begun_ms, "otlp", subagent=sub, subagent_type=kind)


def _cost(r: Record) -> int | None:
    """Nano-USD; ``cost_usd_micros`` is rounded, so that a sum of them is not the CLI's own sum."""
    exact, micros = to_nusd(r.attrs.get("cost_usd")), whole(r.attrs.get("cost_usd_micros"))
    return exact if exact is not None else None if micros is None else micros * 1000


def _part(r: Record) -> Read:
    """A point; those of one series and time are one part, so that what a cost covers is known."""
    session, model = r.word("session.id"), text(r.attrs.get("model"))
    used = _point(r)
    if used is None or model is None:
        return BAD_USAGE
    if session is None:
        return NO_SESSION
    series = sorted((k, str(v)) for k, v in r.attrs.items() if k != "type")
    if r.is_delta:
        return Part(NAME, session, "otlp.delta", digest([series, r.start_ns, r.time_ns]), model, used)
    return Part(NAME, session, "otlp.cumulative", digest([series, r.start_ns]), model, used)


def _point(r: Record) -> Usage | None:
    if r.name == _COST:
        cost = to_nusd(r.value)
        return None if cost is None or cost > MOST_NUSD else Usage(cost_nusd=cost)
    field, tokens = _KINDS.get(str(r.attrs.get("type"))), whole(r.value)
    return None if field is None or tokens is None else Usage(**{field: tokens})
