"""The child's environment: its trace, its tags, its run id; nothing else is changed.

Source: W3C Trace Context 3.2 (traceparent); OpenTelemetry resource SDK, "Specifying resource information via an environment
variable" (comma and equals sign are percent-encoded; so is everything else but unreserved characters here).
"""

from __future__ import annotations

from collections.abc import Mapping

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HEX = frozenset("0123456789abcdef")


class Trace:
    """Ids of the run's span: ``trace_id`` (32 hex), ``span_id`` (16 hex), ``parent_span_id`` and W3C ``flags``."""

    __slots__ = ("flags", "parent_span_id", "span_id", "trace_id")

    def __init__(self, run_id: str, traceparent: str | None) -> None:
        """A child of *traceparent* where that is valid, else a trace of its own; ids follow from *run_id* (32 hex)."""
        parts = _parts(traceparent)
        self.span_id = run_id[16:] if int(run_id[16:], 16) else "1".zfill(16)
        self.trace_id = parts[0] if parts else run_id
        self.parent_span_id = parts[1] if parts else None
        self.flags = parts[2] if parts else "01"

    @property
    def traceparent(self) -> str:
        """What the child takes as its parent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def child_env(env: Mapping[str, str], run_id: str, trace: Trace, agent: str, task: str) -> dict[str, str]:
    """*env* with TRACEPARENT, OTEL_RESOURCE_ATTRIBUTES and SPENDMETER_RUN_ID set for the run."""
    out = dict(env)
    out["SPENDMETER_RUN_ID"] = run_id
    out["TRACEPARENT"] = trace.traceparent
    if trace.parent_span_id is None:
        out.pop("TRACESTATE", None)  # it belongs to the traceparent that was not valid
    out["OTEL_RESOURCE_ATTRIBUTES"] = _attributes(env.get("OTEL_RESOURCE_ATTRIBUTES", ""), agent, task)
    return out


def _attributes(given: str, agent: str, task: str) -> str:
    ours = {"spendmeter.agent": agent, "spendmeter.task": task}
    kept = [item.strip() for item in given.split(",") if item.strip() and item.partition("=")[0].strip() not in ours]
    names = {item.partition("=")[0].strip() for item in kept}
    ours |= {key: value for key, value in (("agent", agent), ("task.id", task)) if key not in names}
    return ",".join([*kept, *(f"{key}={_encoded(value)}" for key, value in ours.items())])


def _encoded(text: str) -> str:
    return "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in text.encode("utf-8", "surrogateescape"))


def _parts(traceparent: str | None) -> tuple[str, str, str] | None:
    """(trace id, span id, flags) of a valid traceparent; versions after 00 may have more fields."""
    fields = (traceparent or "").strip().split("-")
    if [len(f) for f in fields[:4]] != [2, 32, 16, 2] or not all(_HEX.issuperset(f) for f in fields[:4]):
        return None
    version, trace_id, span_id, flags = fields[:4]
    if version == "ff" or (version == "00" and len(fields) != 4) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return trace_id, span_id, flags
