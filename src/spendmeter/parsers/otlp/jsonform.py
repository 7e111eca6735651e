"""OTLP in its JSON encoding: a request's body, or a line that the Collector's ``file`` exporter wrote.

Source: https://opentelemetry.io/docs/specs/otlp/ (JSON Protobuf Encoding)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spendmeter.parsers.otlp.model import Attrs, MalformedError, Record

_GROUPS = {
    "metrics": ("resourceMetrics", "scopeMetrics", "metrics"),
    "logs": ("resourceLogs", "scopeLogs", "logRecords"),
    "traces": ("resourceSpans", "scopeSpans", "spans"),
}
MARKS = tuple(f'"{names[0]}"'.encode() for names in _GROUPS.values())
_DELTA = (1, "1", "AGGREGATION_TEMPORALITY_DELTA")
_NUMBERS: dict[str, Any] = {"asInt": int, "asDouble": float, "intValue": int, "doubleValue": float}
Row = dict[str, Any]


def request_in(row: Row) -> Row | None:
    """The request that *row* is, or that it holds amid what was received (``{"path": ..., "request": {...}}``), if any."""
    inner = row.get("request", row)
    return inner if isinstance(inner, dict) and any(names[0] in inner for names in _GROUPS.values()) else None


def records(request: Row, signals: tuple[str, ...] = tuple(_GROUPS)) -> Iterator[Record]:
    """What *request* holds of *signals*.

    Raises:
        MalformedError: something in it has not the form that OTLP gives it.
    """
    for signal in signals:
        groups, scopes, items = _GROUPS[signal]
        for group in _objects(request, groups):
            resource = _attrs(_object(group, "resource"))
            for scope in _objects(group, scopes):
                name = _text(_object(scope, "scope"), "name")
                for item in _objects(scope, items):
                    yield from _READ[signal](name, resource, item)


def _log(scope: str, resource: Attrs, item: Row) -> Iterator[Record]:
    attrs = _attrs(item)
    named = attrs.get("event.name") or item.get("eventName")
    at = _number(item, "timeUnixNano") or _number(item, "observedTimeUnixNano")
    yield Record("logs", scope, named if isinstance(named, str) else "", attrs, resource, 0, at)


def _span(scope: str, resource: Attrs, item: Row) -> Iterator[Record]:
    start, end = _number(item, "startTimeUnixNano"), _number(item, "endTimeUnixNano")
    yield Record("traces", scope, _text(item, "name"), _attrs(item), resource, start, end)


def _metric(scope: str, resource: Attrs, item: Row) -> Iterator[Record]:
    name = _text(item, "name")
    if "sum" not in item:
        yield Record("metrics", scope, name, {}, resource)
        return
    told = _object(item, "sum")
    is_delta = told.get("aggregationTemporality") in _DELTA
    for point in _objects(told, "dataPoints"):
        value = next((_value(key, point[key]) for key in ("asInt", "asDouble") if key in point), None)
        start, end = _number(point, "startTimeUnixNano"), _number(point, "timeUnixNano")
        yield Record("metrics", scope, name, _attrs(point), resource, start, end, value, is_delta)


_READ = {"metrics": _metric, "logs": _log, "traces": _span}


def _attrs(item: Row) -> Attrs:
    """The attributes that are texts, numbers or booleans; others hold no usage."""
    out: Attrs = {}
    for pair in _objects(item, "attributes"):
        for kind, value in _object(pair, "value").items():
            if kind in _NUMBERS:
                out[_text(pair, "key")] = _value(kind, value)
            elif kind in ("stringValue", "boolValue") and isinstance(value, str | bool):
                out[_text(pair, "key")] = value
    return out


def _value(kind: str, value: object) -> int | float:
    """A number, which JSON gives as one or as text."""
    try:
        found: int | float = _NUMBERS[kind](value)
    except (TypeError, ValueError, OverflowError):
        raise MalformedError(f"{kind} is no number") from None
    return found


def _number(item: Row, key: str) -> int:
    value = item.get(key)
    return 0 if value is None else int(_value("asInt", value))


def _text(item: Row, key: str) -> str:
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise MalformedError(f"{key} is no text")
    return value or ""


def _object(item: Row, key: str) -> Row:
    value = item.get(key)
    if value is not None and not isinstance(value, dict):
        raise MalformedError(f"{key} is no object")
    return value or {}


def _objects(item: Row, key: str) -> list[Row]:
    value = item.get(key)
    if value is not None and not (isinstance(value, list) and all(isinstance(x, dict) for x in value)):
        raise MalformedError(f"{key} is no list of objects")
    return value or []
