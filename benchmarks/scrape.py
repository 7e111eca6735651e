"""How long a /metrics page takes: ours from the ledger, prometheus_client's Counter and generate_latest, same label sets.

    python benchmarks/scrape.py [SERIES...]

Ours reads SQLite each time (its counters are durable); the peer's values are in memory. Best of five, one process.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from sqlalchemy import insert

from spendmeter import metrics as m
from spendmeter.config import Settings
from spendmeter.ledger import Ledger, now_ms, schema
from spendmeter.ledger.exposition import exposition
from spendmeter.projections.prometheus import OPENMETRICS, render

ROUNDS = 5


def label_sets(series: int) -> list[tuple[str, str, str]]:
    """As many (agent, cli, model) as are asked for."""
    return [(f"agent-{i // 20}", ("claude", "codex", "gemini", "qwen")[i % 4], f"model-{i % 20}-sonnet-4-5") for i in range(series)]


def filled(path: Path, sets: list[tuple[str, str, str]]) -> Ledger:
    """A ledger that shows one series per label set, all of them past their zero phase."""
    ledger = Ledger(Settings(f"sqlite:///{path}"))
    at = now_ms()
    exemplar = json.dumps({"trace_id": "ab" * 16, "task": "SHOP-1", "at_ms": at, "value": 7})
    rows = [
        {
            "family": m.TOKENS_IN.name, "labels": json.dumps(labels, separators=(",", ":")), "target": i * 997, "value": i * 997, "held": 0,
            "shown_ms": at - 100_000, "moved_ms": at, "exemplar": exemplar,
        }
        for i, labels in enumerate(sets)
    ]  # fmt: skip
    with ledger.write() as conn:
        conn.execute(insert(schema.series), rows)
    return ledger


def peer(sets: list[tuple[str, str, str]]) -> CollectorRegistry:
    """The same counters in prometheus_client."""
    registry = CollectorRegistry()
    counter = Counter(m.TOKENS_IN.prometheus, m.TOKENS_IN.help, m.TOKENS_IN.labels, registry=registry)
    for i, labels in enumerate(sets):
        counter.labels(*labels).inc(i * 997, {"trace_id": "ab" * 16, "task": "SHOP-1"})
    return registry


def best(work: Callable[[], object]) -> float:
    """Seconds of the quickest of ROUNDS."""
    times = []
    for _ in range(ROUNDS):
        gc.collect()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints the table."""
    print(f"{'series':>8}  {'format':<12} {'first page s':>12} {'page s':>8} {'client s':>9} {'ratio':>6} {'MB':>6}")
    for series in [int(x) for x in sys.argv[1:]] or [10_000, 100_000]:
        sets = label_sets(series)
        registry = peer(sets)
        for name, accept, encode in (("classic", "", generate_latest), ("openmetrics", OPENMETRICS, openmetrics.generate_latest)):
            with tempfile.TemporaryDirectory() as folder:
                ledger = filled(Path(folder) / "ledger.db", sets)
                start = time.perf_counter()
                _, body = render(exposition(ledger, "scrape"), accept)
                first = time.perf_counter() - start
                ours = best(lambda: render(exposition(ledger, "scrape"), accept))  # noqa: B023 - called at once
                theirs = best(lambda: encode(registry))  # noqa: B023 - called at once
                ledger.close()
            print(f"{series:>8}  {name:<12} {first:>12.3f} {ours:>8.3f} {theirs:>9.3f} {theirs / ours:>5.1f}x {len(body) / 1e6:>6.1f}")


if __name__ == "__main__":
    main()
