"""One trace per run: ``invoke_agent {agent}`` with a ``chat {model}`` child per known call, subagents nested.

Ids follow from the run and call keys, so sending again changes nothing. When a call ended is not known: its span starts and
ends at the time of its request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from spendmeter.ledger.derive import ids
from spendmeter.projections.otlp import GENAI_SCOPE
from spendmeter.projections.spool import FinishedRun
from spendmeter.reconcile.facts import CallFact
from spendmeter.records import Usage, total, usd

Attributes = dict[str, Any]

# The one place that knows the names of the GenAI conventions; the schema that they follow is otlp.GENAI_SCHEMA.
OPERATION, PROVIDER = "gen_ai.operation.name", "gen_ai.provider.name"
AGENT, CONVERSATION = "gen_ai.agent.name", "gen_ai.conversation.id"
ASKED, ANSWERED = "gen_ai.request.model", "gen_ai.response.model"
USAGE = {  # attribute -> the fields of ours that it adds up; input_tokens includes what came from or went to a cache
    "gen_ai.usage.input_tokens": ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h"),
    "gen_ai.usage.output_tokens": ("tokens_out",),
    "gen_ai.usage.cache_read.input_tokens": ("cache_read",),
    "gen_ai.usage.cache_creation.input_tokens": ("cache_write_5m", "cache_write_1h"),
    "gen_ai.usage.reasoning.output_tokens": ("reasoning",),
}
PROVIDERS = {  # beginning of a model's name -> well-known provider
    "claude": "anthropic", "gpt": "openai", "o1": "openai", "o3": "openai", "o4": "openai", "codex": "openai", "gemini": "gcp.gemini",
    "grok": "x_ai", "deepseek": "deepseek", "mistral": "mistral_ai", "codestral": "mistral_ai", "kimi": "moonshot_ai", "command": "cohere",
}  # fmt: skip
CLI_PROVIDERS = {"claude": "anthropic", "codex": "openai", "gemini": "gcp.gemini", "qwen": "alibaba_cloud"}
FINE = ("ok", "unknown")  # every other outcome is an error
_NS_PER_MS = 1_000_000


def usage_attributes(used: Usage) -> Attributes:
    """*used* under the convention's names; what is unknown is left out."""
    fields = used._asdict()
    sums = {name: [fields[f] for f in parts if fields[f] is not None] for name, parts in USAGE.items()}
    return {name: sum(known) for name, known in sums.items() if known}


def provider(cli: str, model: str) -> str | None:
    """Who serves *model*, by its name, else by the CLI that asked."""
    bare = model.rpartition("/")[2].lower()
    return next((p for start, p in PROVIDERS.items() if bare.startswith(start)), CLI_PROVIDERS.get(cli))


def spans(run: FinishedRun, resource: Resource) -> Iterator[ReadableSpan]:
    """The run's span first, then its subagents', then its calls'."""
    row = run.row
    start, end = _window(run)
    trace = int(row["trace_id"], 16)
    root = _context(trace, row["span_id"])
    parent = _context(trace, row["parent_span_id"], remote=True) if row["parent_span_id"] else None
    yield _span(f"invoke_agent {row['agent']}", root, parent, _run_attributes(run), (start, end), resource, status=_status(row["outcome"]))
    contexts: dict[str | None, SpanContext] = {None: root}
    for name in sorted({c.subagent for c in run.calls if c.subagent}):
        mine = [c for c in run.calls if c.subagent == name]
        contexts[name] = _context(trace, _child_id(row, "subagent", name))
        times = [c.at_ms for c in mine if c.at_ms is not None] or [end]
        said = _common(row, "invoke_agent", mine[0].asked or mine[0].answered) | usage_attributes(total(c.usage for c in mine))
        yield _span(f"invoke_agent {name}", contexts[name], root, said | {AGENT: name}, (min(times), max(times)), resource)
    for call in run.calls:
        at = call.at_ms if call.at_ms is not None else end
        name = f"chat {call.answered or call.asked or ''}".rstrip()
        context = _context(trace, _child_id(row, "call", call.call_id))
        yield _span(name, context, contexts[call.subagent or None], _call_attributes(row, call), (at, at), resource, kind=SpanKind.CLIENT)


def _window(run: FinishedRun) -> tuple[int, int]:
    """Start and end in ms; a start that nobody told is the first call's."""
    end = run.row["ended_ms"]
    start = run.row["started_ms"]
    if start is None:
        start = min((c.at_ms for c in run.calls if c.at_ms is not None), default=end)
    return min(start, end), end


def _child_id(row: Mapping[str, Any], kind: str, name: str) -> str:
    return ids(row["cli"], row["session"], f"{row['run_key']}\0{kind}\0{name}")[1]


def _context(trace: int, span: str, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace, int(span, 16), is_remote=remote, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _status(outcome: str) -> Status:
    return Status() if outcome in FINE else Status(StatusCode.ERROR, outcome)


def _span(
    name: str, context: SpanContext, parent: SpanContext | None, attributes: Attributes, window_ms: tuple[int, int], resource: Resource,
    *, kind: SpanKind = SpanKind.INTERNAL, status: Status | None = None,
) -> ReadableSpan:  # fmt: skip
    start, end = (ms * _NS_PER_MS for ms in window_ms)
    return ReadableSpan(
        name, context, parent, resource, attributes, kind=kind, status=status or Status(), start_time=start, end_time=end,
        instrumentation_scope=GENAI_SCOPE,
    )  # fmt: skip


def _common(row: Mapping[str, Any], operation: str, model: str | None) -> Attributes:
    """What every span of a run carries, so that each can be found and grouped by itself."""
    said: Attributes = {
        OPERATION: operation, CONVERSATION: row["session"], AGENT: row["agent"], PROVIDER: provider(row["cli"], model or ""), ASKED: model,
    }  # fmt: skip
    own = {f"spendmeter.{name}": row[name] for name in ("agent", "task", "cli", "run_key")}
    return own | {k: v for k, v in said.items() if v is not None}


def _run_attributes(run: FinishedRun) -> Attributes:
    """The run's own, with the usage of all its models."""
    row, used = run.row, run.usage
    said = _common(row, "invoke_agent", next(iter(run.by_model)) if len(run.by_model) == 1 else None) | usage_attributes(used)
    extra = {
        "error.type": None if row["outcome"] in FINE else row["outcome"], "spendmeter.cost_usd": _cost(used),
        "spendmeter.models": list(run.by_model) or None, "spendmeter.calls": run.call_count,
    } | {f"spendmeter.{name}": row[name] for name in ("outcome", "exit_code", "signal", "repo", "branch", "commit")}  # fmt: skip
    attrs = {f"spendmeter.attr.{k}": str(v) for k, v in json.loads(row["attrs"]).items()}
    return said | {k: v for k, v in extra.items() if v is not None} | attrs


def _cost(used: Usage) -> float | None:
    return None if used.cost_nusd is None else float(usd(used.cost_nusd))


def _call_attributes(row: Mapping[str, Any], call: CallFact) -> Attributes:
    said = _common(row, "chat", call.asked or call.answered) | usage_attributes(call.usage)
    extra = {
        ANSWERED: call.answered, AGENT: call.subagent or row["agent"], "spendmeter.role": call.role if call.role == "hidden" else None,
        "spendmeter.cost_usd": _cost(call.usage), "spendmeter.call_id": call.call_id,
    }  # fmt: skip
    return said | {k: v for k, v in extra.items() if v is not None}
