"""The ledger's page as OTLP metrics: cumulative monotonic sums that started when the ledger was made.

``gen_ai.client.token.usage`` is left out (docs/adr/010-no-token-usage-histogram.md): a histogram
per call would count usage a second time, and calls are not always known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource

from spendmeter import metrics as m
from spendmeter.ledger.exposition import Histogram as Durations
from spendmeter.ledger.exposition import Page, Row
from spendmeter.projections.otlp import SCOPE
from spendmeter.records import NANO

POINTS_MAX = 4000  # in one request: about 1 MB, where gRPC servers take 4 by default
NS_PER_MS = 1_000_000
CUMULATIVE = AggregationTemporality.CUMULATIVE  # whatever is preferred: a delta would lose what one restart loses


def metrics_data(page: Page, resource: Resource, points_max: int = POINTS_MAX) -> Iterator[MetricsData]:
    """*page* as requests of at most *points_max* points each."""
    held: list[Metric] = []
    room = points_max
    for metric, points in _families(page):
        done = 0
        while done < len(points):
            part = points[done : done + room]
            held.append(_metric(metric, part))
            done, room = done + len(part), room - len(part)
            if not room:
                yield _request(held, resource)
                held, room = [], points_max
    if held:
        yield _request(held, resource)


def _families(page: Page) -> Iterator[tuple[m.Metric, list[Any]]]:
    start, now = page.created_ms * NS_PER_MS, page.at_ms * NS_PER_MS
    for metric, rows in page.counters.items():
        yield metric, [_point(metric, row, start, now) for row in rows]
    yield m.RUN_DURATION, [_durations(h, start, now) for h in page.histograms]
    for metric in m.GAUGES:
        if metric is not m.SCRAPE_SECONDS:
            yield metric, [NumberDataPoint(_named(metric, labels), 0, now, value) for labels, value in page.gauge(metric)]


def _metric(metric: m.Metric, points: list[Any]) -> Metric:
    data: Sum | Gauge | Histogram
    if metric.kind == "counter":
        data = Sum(points, CUMULATIVE, is_monotonic=True)
    elif metric.kind == "histogram":
        data = Histogram(points, CUMULATIVE)
    else:
        data = Gauge(points)
    return Metric(metric.name, metric.help, metric.unit, data)


def _request(found: list[Metric], resource: Resource) -> MetricsData:
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(SCOPE, found, "")], "")])


def _named(metric: m.Metric, labels: Sequence[str]) -> dict[str, str]:
    return dict(zip(metric.labels, labels, strict=True))


def _point(metric: m.Metric, row: Row, start: int, now: int) -> NumberDataPoint:
    _, labels, value, raw = row
    exemplars = [_exemplar(raw, metric.money)] if raw else []
    return NumberDataPoint(_named(metric, json.loads(labels)), start, now, value / NANO if metric.money else value, exemplars)


def _exemplar(raw: str, money: bool) -> Exemplar:
    """The run that moved the counter last. The SDK's encoder takes a trace id only with a span id beside it."""
    it = json.loads(raw)
    value = it.get("value", 1)
    ids = {"span_id": int(it["span_id"], 16), "trace_id": int(it["trace_id"], 16)} if it.get("span_id") else {}
    said = {"task": it["task"]} if ids else {"task": it["task"], "trace_id": it["trace_id"]}
    return Exemplar(said, value / NANO if money else value, it["at_ms"] * NS_PER_MS, **ids)


def _durations(h: Durations, start: int, now: int) -> HistogramDataPoint:
    """OTLP's buckets are not cumulative, and have one more for what is above the last edge."""
    upto = [0, *h.buckets, h.count]
    counts = [b - a for a, b in pairwise(upto)]
    unknown: Any = None  # the least and the longest run are not kept
    return HistogramDataPoint(
        _named(m.RUN_DURATION, h.labels), start, now, h.count, h.sum_ms / 1000, counts, m.DURATION_BUCKETS_S, unknown, unknown
    )  # fmt: skip
