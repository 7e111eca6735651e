"""The whole way: runs, daemon, the shipped Collector configuration, a backend behind it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import otelcol
import procs
import pytest
from sqlalchemy import select
from tests.replay import clone
from tests.runs import ROOT

from spendmeter import metrics as m
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t

pytestmark = pytest.mark.e2e
FAKE = Path(__file__).parents[1] / "fakecli" / "claude"
RUNS, SILENT_S = 12, 40


def run(env: dict[str, str], case: Path, number: int) -> float:
    """One wrapped run; its wall time in seconds."""
    own = [
        sys.executable,
        "-m",
        "spendmeter",
        "run",
        "--agent",
        f"agent-{number % 2}",
        "--task",
        f"T-{number % 3}",
        "--",
        str(FAKE),
        "-p",
        "x",
    ]
    began = time.monotonic()
    extra = {"FAKE_CASE": str(case), "CLAUDE_CONFIG_DIR": str(case / "own"), "FAKE_LIVE_S": "0.3"}
    subprocess.run(own, env=env | extra, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def spans(folder: Path) -> list[dict[str, Any]]:
    path = folder / "got.json"
    lines = path.read_text().splitlines() if path.exists() else []
    return [s for x in lines for r in json.loads(x).get("resourceSpans", []) for sc in r["scopeSpans"] for s in sc["spans"]]


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "got.json"
    lines = path.read_text().splitlines() if path.exists() else []
    return [s for x in lines for r in json.loads(x).get("resourceLogs", []) for sc in r["scopeLogs"] for s in sc["logRecords"]]


def shown(collector: otelcol.Collector) -> dict[procs.Series, float]:
    page = collector.samples()
    names = {x.sample for x in m.DURABLE if x.kind == "counter"}
    return {
        (
            name,
            tuple(sorted((k, v) for k, v in labels.items() if k not in ("job", "instance", "otel_scope_name", "otel_scope_version"))),
        ): value
        for name in names & page.keys()
        for labels, value in page[name]
    }


def test_behind_a_collector_all_is_exact_and_arrives_once(tmp_path: Path) -> None:
    """With the Collector down for the first half, its metrics end equal to the ledger and each span and event arrives once.

    A run does not wait for an endpoint that takes connections and is silent.
    """
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    silent = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{silent.getsockname()[1]}"
    env = os.environ | {
        "SPENDMETER_LEDGER": url,
        "SPENDMETER_METRICS_ZERO_FIRST": "2",
        "SPENDMETER_METRICS_SETTLE": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_EXPORTER_OTLP_TIMEOUT": str(SILENT_S * 1000),
    }
    cases = [clone(ROOT / "claude" / ("json-subagent", "json-tool")[i % 2], tmp_path / "cases" / str(i), str(i)) for i in range(RUNS)]
    daemon = procs.Daemon(env, tmp_path / "serve.log")
    daemon.start()
    with procs.stopping(daemon), otelcol.backend(tmp_path) as sink:
        took_s = [run(env, case, i) for i, case in enumerate(cases[: RUNS // 2])]
        assert max(took_s) < SILENT_S / 2
        silent.close()
        assert not spans(tmp_path)
        ledger = Ledger(Settings(url))
        with otelcol.running(
            otelcol.CONFIG, {"COLLECTOR_OTLP_HTTP": address, "COLLECTOR_TRACES_ENDPOINT": sink.http, "COLLECTOR_LOGS_ENDPOINT": sink.http}
        ) as collector:
            for i, case in enumerate(cases[RUNS // 2 :], RUNS // 2):
                run(env, case, i)
            calls = sum(4 if i % 2 == 0 else 3 for i in range(RUNS))
            chats = lambda: [s for s in spans(tmp_path) if s["name"].startswith("chat ")]  # noqa: E731
            procs.wait_for(lambda: len(chats()) >= calls, "every call's span is at the backend")
            procs.wait_for(lambda: len(events(tmp_path)) >= RUNS, "every run's event is at the backend")
            procs.wait_for(lambda: shown(collector) == procs.counters(ledger), "the Collector shows what the ledger holds")
            time.sleep(3)
            assert shown(collector) == procs.counters(ledger)
        assert max(Counter(s["spanId"] for s in spans(tmp_path)).values()) == 1
        assert len(chats()) == calls
        assert len(events(tmp_path)) == RUNS
        check_tree(ledger, spans(tmp_path))
        ledger.close()


def check_tree(ledger: Ledger, found: list[dict[str, Any]]) -> None:
    """Each run is one trace: invoke_agent above its calls, ids as the ledger derived them."""
    with ledger.read() as conn:
        runs = {r.trace_id: r for r in conn.execute(select(t.runs))}
    roots = [s for s in found if s["name"].startswith("invoke_agent agent-")]
    assert {s["traceId"] for s in roots} == set(runs)
    ids = {s["spanId"] for s in found}
    for s in found:
        assert s["traceId"] in runs
        assert s in roots or s["parentSpanId"] in ids
