"""The ledger's page as OTLP metrics: cumulative monotonic sums that started when the ledger was made.

``gen_ai.client.token.usage`` is left out: the convention has dropped it for ``gen_ai.client.inference.*``, and a histogram
per call would count usage a second time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import batched

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
from spendmeter.ledger.exposition import Page
from spendmeter.projections.otlp import SCOPE
from spendmeter.records import NANO

POINTS_MAX = 4000  # in one request: about 1 MB, gRPC servers take 4 by default
_MS = 1_000_000  # ns
