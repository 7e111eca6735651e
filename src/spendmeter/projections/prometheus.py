"""The /metrics page: classic text 0.0.4 or OpenMetrics 1.0, written straight from the ledger's series.

prometheus_client's own writer takes ten times as long for 100 000 series; see benchmarks/scrape.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence

from spendmeter import metrics as m
from spendmeter.ledger.exposition import Histogram, Page, Row
from spendmeter.records import NANO

CLASSIC = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
EXEMPLAR_MAX = 128  # characters of an exemplar's label names and values together, by the OpenMetrics text format 1.0
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def render(page: Page, accept: str | None = None) -> tuple[str, bytes]:
    """*page* as (content type, body) in the format that the Accept header asks for."""
    open_ = wants_openmetrics(accept or "")
    out: list[str] = []
    for metric, rows in page.counters.items():
        out.append(_head(metric, open_))
        out += _counter(metric, rows, page, open_)
    out.append(_head(m.RUN_DURATION, open_))
    for histogram in page.histograms:
        out += _histogram(histogram, _created(page) if open_ else None)
    for metric in m.GAUGES:
        out.append(_head(metric, open_))
        out += [f"{metric.sample}{_labels(metric.labels, labels)} {value!r}\n" for labels, value in page.gauge(metric)]
    if open_:
        out.append("# EOF\n")
    return (OPENMETRICS if open_ else CLASSIC), "".join(out).encode()


def wants_openmetrics(accept: str) -> bool:
    """Whether the Accept header names OpenMetrics 1.x at least as high as text/plain."""
    best = {"open": 0.0, "plain": 0.0}
    for part in accept.split(","):
        kind, *params = (x.strip().lower() for x in part.split(";"))
        given = {k.strip(): v.strip() for k, _, v in (p.partition("=") for p in params)}
        try:
            quality = float(given.get("q", 1))
        except ValueError:
            continue
        version = given.get("version", "").strip('"')
        if kind == "application/openmetrics-text" and (not version or version.startswith("1.")):
            best["open"] = max(best["open"], quality)
        elif kind in ("text/plain", "text/*", "*/*"):
            best["plain"] = max(best["plain"], quality)
    return best["open"] > 0 and best["open"] >= best["plain"]


def usd(nusd: int) -> str:
    """Nano-USD as exact USD, without trailing zeros."""
    whole, rest = divmod(nusd, NANO)
    return f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)


def seconds(ms: int) -> str:
    """Milliseconds as exact seconds, without trailing zeros."""
    whole, rest = divmod(ms, 1000)
    return f"{whole}.{rest:03d}".rstrip("0") if rest else str(whole)


def created_samples() -> bool:
    """Whether OpenMetrics pages carry ``_created``; prometheus_client's own switch turns it off.

    Source:
        https://prometheus.github.io/client_python/instrumenting/#disabling-_created-metrics
    """
    return os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("true", "1", "t")


def _head(metric: m.Metric, open_: bool) -> str:
    name = metric.prometheus if open_ else metric.sample
    text = metric.help.translate(_ESCAPES if open_ else _HELP_ESCAPES)
    return f"# HELP {name} {text}\n# TYPE {name} {metric.kind}\n"


def _created(page: Page) -> str | None:
    return seconds(page.created_ms) if created_samples() else None


def _counter(metric: m.Metric, rows: list[Row], page: Page, open_: bool) -> Iterable[str]:
    """Lines of one family; text of labels and exemplars is kept from page to page."""
    known, name = page.memo.labels, metric.sample
    for series_id, labels, _, _ in rows:
        if series_id not in known:
            known[series_id] = _labels(metric.labels, json.loads(labels))
    if open_:
        return _open_counter(metric, rows, page.memo.exemplars, known, _created(page))
    if metric.money:
        return [f"{name}{known[i]} {usd(value)}\n" for i, _, value, _ in rows]
    return [f"{name}{known[i]} {value}\n" for i, _, value, _ in rows]


def _open_counter(
    metric: m.Metric, rows: list[Row], exemplars: dict[int, tuple[str, str]], known: dict[int, str], created: str | None
) -> Iterator[str]:
    name, money = metric.sample, metric.money
    since = "" if created is None else f"{metric.prometheus}_created"
    for i, _, value, raw in rows:
        text = known[i]
        exemplar = ""
        if raw:
            kept = exemplars.get(i)
            if kept is None or kept[0] != raw:
                kept = exemplars[i] = raw, _exemplar(raw, money)
            exemplar = kept[1]
        yield f"{name}{text} {usd(value) if money else value}{exemplar}\n"
        if since:
            yield f"{since}{text} {created}\n"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = ",".join(f'{n}="{v.translate(_ESCAPES)}"' for n, v in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _exemplar(raw: str, money: bool) -> str:
    """The run that moved the counter last, and by how much."""
    it = json.loads(raw)
    trace, value = str(it["trace_id"]), int(it.get("value", 1))
    task = str(it["task"])[: EXEMPLAR_MAX - len("trace_id") - len(trace) - len("task")]
    return f" # {_labels(('trace_id', 'task'), (trace, task))} {usd(value) if money else value} {seconds(it['at_ms'])}"


def _histogram(h: Histogram, created: str | None) -> Iterator[str]:
    metric = m.RUN_DURATION
    who = _labels(metric.labels, h.labels)
    for edge, count in zip((*map(repr, m.DURATION_BUCKETS_S), "+Inf"), (*h.buckets, h.count), strict=True):
        yield f"{metric.sample}_bucket{_labels((*metric.labels, 'le'), (*h.labels, edge))} {count}\n"
    yield f"{metric.sample}_sum{who} {seconds(h.sum_ms)}\n"
    yield f"{metric.sample}_count{who} {h.count}\n"
    if created is not None:
        yield f"{metric.sample}_created{who} {created}\n"
