"""One OTLP log record per finished run, with the whole row: for warehouses behind a collector. It carries no content."""

from __future__ import annotations

import json
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from spendmeter.projections.otlp import SCOPE
from spendmeter.projections.spool import FinishedRun
from spendmeter.records import Usage, usd_text

NAME = "spendmeter.run"
_NS_PER_MS = 1_000_000
_ROW = (
    "cli", "session", "run_key", "agent", "task", "outcome", "implied", "started_ms", "ended_ms", "duration_ms", "exit_code", "signal",
    "repo", "branch", "commit",
)  # fmt: skip


def event(run: FinishedRun, resource: Resource) -> ReadableLogRecord:
    """*run* as a log record: totals as attributes, the same by model in the body. Unknown is left out, money is exact text."""
    row = run.row
    where = SpanContext(int(row["trace_id"], 16), int(row["span_id"], 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    at = row["ended_ms"] * _NS_PER_MS
    record = LogRecord(
        timestamp=at, observed_timestamp=at, context=set_span_in_context(NonRecordingSpan(where)), event_name=NAME,
        severity_number=SeverityNumber.INFO, severity_text="INFO", attributes=_attributes(run),
        body={"by_model": [{"model": model, **_amounts(used)} for model, used in run.by_model.items()]},
    )  # fmt: skip
    return ReadableLogRecord(record, resource, SCOPE)


def _attributes(run: FinishedRun) -> dict[str, Any]:
    said = {name: run.row[name] for name in _ROW} | _amounts(run.usage)
    said |= {"calls": run.call_count, "models": list(run.by_model), "notes": json.loads(run.row["notes"])}
    said |= {f"attr.{k}": str(v) for k, v in json.loads(run.row["attrs"]).items()}
    return {"event.name": NAME} | {f"spendmeter.{k}": v for k, v in said.items() if v is not None and v != []}


def _amounts(used: Usage) -> dict[str, Any]:
    """Token counts and cost; what nobody told is not there."""
    told = {k: v for k, v in used._asdict().items() if k != "cost_nusd"} | {"tokens": used.tokens, "cost_usd": usd_text(used.cost_nusd)}
    return {k: v for k, v in told.items() if v is not None}
