"""OTLP in its binary encoding: a request's body, and the answer to it.

Source: https://github.com/open-telemetry/opentelemetry-proto
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA

from spendmeter.parsers.otlp.model import Attrs, MalformedError, Record

_REQUESTS: dict[str, Any] = {
    "metrics": ExportMetricsServiceRequest, "logs": ExportLogsServiceRequest, "traces": ExportTraceServiceRequest,
}  # fmt: skip
_RESPONSES: dict[str, Any] = {
    "metrics": ExportMetricsServiceResponse, "logs": ExportLogsServiceResponse, "traces": ExportTraceServiceResponse,
}  # fmt: skip
_SCALARS = frozenset({"string_value", "int_value", "double_value", "bool_value"})


def records(signal: str, body: bytes) -> Iterator[Record]:
    """What a request of *signal* holds.

    Raises:
        MalformedError: *body* is no such message.
    """
    try:
        request = _REQUESTS[signal].FromString(body)
    except DecodeError:
        raise MalformedError(f"the body is no {_REQUESTS[signal].DESCRIPTOR.full_name}") from None
    return _READ[signal](request)


def response(signal: str, document: dict[str, Any]) -> bytes:
    """The answer to a request of *signal*, *document* being its JSON form."""
    return bytes(ParseDict(document, _RESPONSES[signal]()).SerializeToString())


def _logs(request: Any) -> Iterator[Record]:
    for group in request.resource_logs:
        resource = _attrs(group.resource.attributes)
        for scope in group.scope_logs:
            for item in scope.log_records:
                attrs = _attrs(item.attributes)
                named = attrs.get("event.name") or item.event_name
                at = item.time_unix_nano or item.observed_time_unix_nano
                yield Record("logs", scope.scope.name, named if isinstance(named, str) else "", attrs, resource, 0, at)


def _spans(request: Any) -> Iterator[Record]:
    for group in request.resource_spans:
        resource = _attrs(group.resource.attributes)
        for scope in group.scope_spans:
            for item in scope.spans:
                attrs, start, end = _attrs(item.attributes), item.start_time_unix_nano, item.end_time_unix_nano
                yield Record("traces", scope.scope.name, item.name, attrs, resource, start, end)


def _metrics(request: Any) -> Iterator[Record]:
    for group in request.resource_metrics:
        resource = _attrs(group.resource.attributes)
        for scope in group.scope_metrics:
            for item in scope.metrics:
                yield from _points(scope.scope.name, resource, item)


def _points(scope: str, resource: Attrs, item: Any) -> Iterator[Record]:
    if item.WhichOneof("data") != "sum":
        yield Record("metrics", scope, item.name, {}, resource)
        return
    is_delta = item.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_DELTA
    for point in item.sum.data_points:
        kind = point.WhichOneof("value")
        value = getattr(point, kind) if kind else None
        attrs, start, end = _attrs(point.attributes), point.start_time_unix_nano, point.time_unix_nano
        yield Record("metrics", scope, item.name, attrs, resource, start, end, value, is_delta)


_READ = {"metrics": _metrics, "logs": _logs, "traces": _spans}


def _attrs(pairs: Iterable[Any]) -> Attrs:
    """The attributes that are texts, numbers or booleans; others hold no usage."""
    told = ((pair.key, pair.value, pair.value.WhichOneof("value")) for pair in pairs)
    return {key: getattr(value, kind) for key, value, kind in told if kind in _SCALARS}
