"""The ledger in any prometheus_client registry.

>>> from prometheus_client import REGISTRY
>>> from spendmeter.prometheus import LedgerCollector
>>> REGISTRY.register(LedgerCollector("sqlite:///ledger.db"))  # doctest: +SKIP
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from spendmeter import config
from spendmeter import metrics as m
from spendmeter.ledger import Ledger
from spendmeter.ledger.exposition import Page, exposition
from spendmeter.projections.prometheus import EXEMPLAR_MAX, created_samples
from spendmeter.records import NANO


class LedgerCollector(Collector):
    """The ledger's page as a custom collector: same samples, same names, new label sets at 0 first.

    A registry does not say when a page went out, so a page counts as sent once the next one is asked for. Register one
    collector per ledger and process.

    Args:
        ledger: an open ledger, its URL, or None for the ledger that settings and environment name.

    Raises:
        LedgerError: the ledger cannot be opened.
    """

    def __init__(self, ledger: Ledger | str | None = None) -> None:
        self._ledger = ledger if isinstance(ledger, Ledger) else Ledger(config.load(ledger=ledger))
        self._last: Page | None = None
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """The families without their values; touches no ledger."""
        return [_family(x) for x in (*m.DURABLE, *m.GAUGES)]

    def collect(self) -> Iterator[Metric]:
        """One page, a family at a time."""
        with self._lock:
            if self._last:
                self._last.sent()
            page = self._last = exposition(self._ledger, "scrape")
        created = page.created_ms / 1000 if created_samples() else None
        for metric in (*m.DURABLE, *m.GAUGES):
            yield _filled(metric, page, created)


def _family(metric: m.Metric) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    make = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}[metric.kind]
    return make(metric.prometheus, metric.help, labels=metric.labels)  # type: ignore[no-any-return]


def _filled(metric: m.Metric, page: Page, created: float | None) -> Metric:
    family = _family(metric)
    if isinstance(family, CounterMetricFamily):
        scale = NANO if metric.money else 1
        for _, labels, value, raw in page.counters[metric]:
            family.add_metric(json.loads(labels), value / scale, created=created, exemplar=_exemplar(raw, scale) if raw else None)
    elif isinstance(family, HistogramMetricFamily):
        for h in page.histograms:
            edges = [*zip(map(repr, m.DURATION_BUCKETS_S), h.buckets, strict=True), ("+Inf", h.count)]
            family.add_metric(h.labels, edges, h.sum_ms / 1000)
    else:
        for gauge_labels, number in page.gauge(metric):
            family.add_metric(gauge_labels, number)
    return family


def _exemplar(raw: str, scale: int) -> Exemplar:
    it = json.loads(raw)
    task = str(it["task"])[: EXEMPLAR_MAX - len("trace_id") - len(it["trace_id"]) - len("task")]
    return Exemplar({"trace_id": it["trace_id"], "task": task}, it.get("value", scale) / scale, it["at_ms"] / 1000)
