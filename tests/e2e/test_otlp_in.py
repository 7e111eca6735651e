"""Telemetry to a real ``spendmeter serve``: captured exports, the OpenTelemetry SDK's own exporters, and the real Claude Code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anthropic_stub
import httpx
import otelcol
import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from procs import Daemon, get, wait_for
from tests.otlp_dumps import JSON, dumped, dumps_of, send_all, used
from tests.runs import Chain

from spendmeter import ingest
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import RunLine, runs

pytestmark = pytest.mark.e2e
CHAINS = dumped()
TOKENS = ("tokens_in", "tokens_out", "cache_read", "cache_write_5m", "cache_write_1h")


class World:
    """A ledger, a daemon over it, and the command beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder / 'ledger.db'}"
        self.env = os.environ | {"SPENDMETER_LEDGER": self.url, "SPENDMETER_METRICS_SETTLE": "0", "SPENDMETER_METRICS_ZERO_FIRST": "0"}
        self.daemon = Daemon(self.env, folder / "serve.log")
        self.daemon.start()
        self.ledger = Ledger(Settings(self.url))

    def command(self, *args: str) -> None:
        subprocess.run([sys.executable, "-m", "spendmeter", *args], env=self.env, check=True, capture_output=True)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.daemon.url, timeout=30)

    def used(self) -> dict[str, int]:
        return used(self.ledger)

    def runs(self) -> list[RunLine]:
        return runs(self.ledger)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.ledger.close()
    made.daemon.stop()
    assert "Traceback" not in made.daemon.log.read_text()


@pytest.mark.parametrize("chain", CHAINS, ids=[c.name for c in CHAINS])
def test_captured_exports_are_what_was_billed_alone_and_with_all_else(chain: Chain, world: World) -> None:
    """Sent twice to a running daemon they are the truth; files and printed results that come then change no token."""
    with world.client() as client:
        send_all(client, dumps_of(chain))
        send_all(client, dumps_of(chain), JSON, packed=True)
    chain.check(world.used())
    world.command("ingest", *[str(p) for p in chain.stdouts()], *[str(p) for p in chain.files()])
    chain.check(world.used())


def test_a_daemon_that_is_killed_between_requests_loses_and_doubles_nothing(world: World) -> None:
    """kill -9 after any request, a new daemon, and all of them again, as exporters send what was not answered."""
    chain = next(c for c in CHAINS if c.name == "claude/otel-cumulative-multi-export")
    dumps = dumps_of(chain)
    for at in (3, 8):
        with world.client() as client:
            send_all(client, dumps[:at])
        world.daemon.kill()
        world.daemon.start()
    with world.client() as client:
        send_all(client, dumps)
    chain.check(world.used())
    page = get(f"{world.daemon.url}/metrics")
    assert 'spendmeter_tokens_out_total{agent="developer",cli="claude",model="claude-sonnet-4-5-20250929"} 366' in page


RESOURCE = Resource({"service.name": "claude-code", "agent": "developer", "task": "T-1"})


def test_the_sdks_own_exporters_are_understood(world: World) -> None:
    """Events, sums and spans from the OpenTelemetry SDK, gzipped protobuf, are taken and counted under their resource's tags."""
    event = {
        "event.name": "api_request", "session.id": "s-1", "request_id": "req_1", "model": "claude-sonnet-4-5", "input_tokens": 11,
        "output_tokens": 22, "cache_read_tokens": 33, "cache_creation_tokens": 9, "cache_creation_5m_tokens": 4,
        "cache_creation_1h_tokens": 5, "cost_usd": 0.25,
    }  # fmt: skip
    logs = LoggerProvider(RESOURCE)
    logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{world.daemon.url}/v1/logs", compression=Compression.Gzip)))
    logs.get_logger("com.anthropic.claude_code.events").emit(LogRecord(body="claude_code.api_request", attributes=event))
    exporter = OTLPMetricExporter(f"{world.daemon.url}/v1/metrics", compression=Compression.Gzip)
    metrics = MeterProvider([PeriodicExportingMetricReader(exporter)], RESOURCE)
    counter = metrics.get_meter("com.anthropic.claude_code").create_counter("claude_code.token.usage")
    for kind, n in (("input", 11), ("output", 22), ("cacheRead", 33), ("cacheCreation", 9)):
        counter.add(n, {"session.id": "s-1", "model": "claude-sonnet-4-5", "type": kind})
    for step in range(2):
        assert metrics.force_flush()
        counter.add(step and 7, {"session.id": "s-1", "model": "claude-sonnet-4-5", "type": "output"})  # 7 more after the last flush
    spans = TracerProvider(resource=Resource({"service.name": "github-copilot", "task": "T-2"}))
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{world.daemon.url}/v1/traces", compression=Compression.Gzip)))
    said = {"gen_ai.operation.name": "chat", "gen_ai.conversation.id": "c-1", "gen_ai.response.id": "r-1", "gen_ai.response.model": "gpt-5",
            "gen_ai.usage.input_tokens": 100, "gen_ai.usage.cache_read.input_tokens": 60, "gen_ai.usage.output_tokens": 5}  # fmt: skip
    with spans.get_tracer("github.copilot").start_as_current_span("chat gpt-5", attributes=said):
        pass
    for provider in (logs, metrics, spans):
        provider.shutdown()
    found = {r.cli: r for r in world.runs()}
    assert {(r.cli, r.agent, r.task) for r in world.runs()} == {("claude", "developer", "T-1"), ("copilot", "unknown", "T-2")}
    assert [getattr(found["claude"].amounts, name) for name in TOKENS] == [11, 29, 33, 4, 5]
    assert [getattr(found["copilot"].amounts, name) for name in TOKENS] == [40, 5, 60, None, None]


BETWEEN = """
receivers:
  otlp: {protocols: {http: {endpoint: "${env:COLLECTOR_OTLP_HTTP}"}, grpc: {endpoint: "${env:COLLECTOR_OTLP_GRPC}"}}}
exporters:
  otlp_http: {endpoint: "${env:DAEMON}", compression: gzip, retry_on_failure: {initial_interval: 200ms}}
  file: {path: "${env:KEPT}", append: true, flush_interval: 50ms}
extensions:
  health_check: {endpoint: "${env:COLLECTOR_HEALTH}"}
service:
  extensions: [health_check]
  telemetry: {metrics: {level: none}}
  pipelines:
    metrics: {receivers: [otlp], exporters: [otlp_http, file]}
    logs: {receivers: [otlp], exporters: [otlp_http, file]}
    traces: {receivers: [otlp], exporters: [otlp_http, file]}
"""


def test_a_collector_between_changes_nothing(world: World, tmp_path: Path) -> None:
    """What a real Collector passes on is what was billed, though the daemon was away at first; so is what it wrote to a file."""
    config, kept = tmp_path / "between.yaml", tmp_path / "kept.jsonl"
    config.write_text(BETWEEN)
    chains = [c for c in CHAINS if c.name in ("claude/otel-cumulative-multi-export", "codex/otel-json", "copilot/otel-protobuf")]
    world.daemon.kill()
    with otelcol.running(config, {"DAEMON": world.daemon.url, "KEPT": str(kept)}) as collector:
        with httpx.Client(base_url=collector.http, timeout=30) as client:
            for chain in chains:
                for dump in dumps_of(chain):
                    assert dump.send(client, dump.kind).status_code == 200
        world.daemon.start()
        want = [sum(c.truth(least=True)[name] for c in chains) for name in ("cache_read", "tokens_out")]
        wait_for(lambda: [world.used()[name] for name in ("cache_read", "tokens_out")] == want, "all of it has come through")
    other = Ledger(Settings(f"sqlite:///{tmp_path / 'other.db'}"))
    ingest.ingest_paths(other, [str(kept)])
    assert used(other) == world.used()
    other.close()


PLAN = {
    "CASE-AGENT": [
        ("Agent", {"description": "Help", "prompt": "CASE-SUB", "subagent_type": "general-purpose", "run_in_background": False}),
        "All done.",
    ],
    "CASE-SUB": [("Bash", {"command": "echo sub", "description": "Print"}), "Sub done."],
}
FLAGS = ["--model", "claude-sonnet-4-5-20250929", "--dangerously-skip-permissions", "--output-format", "json"]


class Real:
    """The real CLI that exports to the daemon."""

    def __init__(self, world: World, claude: Path, url: str) -> None:
        self.world, self.claude = world, claude
        self.env = world.env | {
            "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "sk-ant-stub", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "IS_SANDBOX": "1", "DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_ENABLE_TELEMETRY": "1", "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": world.daemon.url, "OTEL_RESOURCE_ATTRIBUTES": "agent=exported,task=T-env",
        }  # fmt: skip

    def run(self, *args: str, before: tuple[str, ...] = ()) -> str:
        done = subprocess.run(
            [*before, str(self.claude), *args, *FLAGS], env=self.env, cwd=self.world.folder, stdin=subprocess.DEVNULL, check=True,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return done.stdout


@pytest.fixture
def real(world: World, claude: Path) -> Iterator[tuple[Real, anthropic_stub.Truth]]:
    with anthropic_stub.serving(PLAN) as (url, truth):
        yield Real(world, claude, url), truth


@pytest.mark.parametrize("temporality", ["delta", "cumulative"])
def test_a_real_run_is_counted_once_with_its_transcript_and_result(
    real: tuple[Real, anthropic_stub.Truth], world: World, temporality: str
) -> None:
    """Exports alone are exact, subagents and a compaction too; transcripts and the result add what they lack and no token."""
    run, truth = real
    run.env["OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"] = temporality
    first = run.run("-p", "CASE-AGENT")
    second = run.run("-p", "/compact", "--continue")
    want = truth.totals()
    assert world.used() == want
    assert [(r.agent, r.task) for r in world.runs()] == [("exported", "T-env")]
    for i, printed in enumerate((first, second)):
        (world.folder / f"{i}.json").write_text(printed)
        world.command("ingest", str(world.folder / f"{i}.json"))
        assert world.used() == want
    world.command("sync")
    assert world.used() == want
    assert {(r.agent, r.task) for r in world.runs()} == {("exported", "T-env")}
    assert sum(r.amounts.cost_nusd or 0 for r in world.runs()) == round(json.loads(second)["total_cost_usd"] * 10**9)


def test_a_wrapped_run_that_exports_is_counted_once_under_its_own_tags(real: tuple[Real, anthropic_stub.Truth], world: World) -> None:
    """``spendmeter run`` around a CLI that exports to the daemon: one run, by the wrapper's tags."""
    run, truth = real
    run.run("-p", "CASE-AGENT", before=(sys.executable, "-m", "spendmeter", "run", "--agent", "developer", "--task", "T-1", "--"))
    assert world.used() == truth.totals()
    assert [(r.agent, r.task, r.outcome) for r in world.runs()] == [("developer", "T-1", "ok")]


def test_a_run_without_session_ids_is_counted_once_with_its_transcript(real: tuple[Real, anthropic_stub.Truth], world: World) -> None:
    """With OTEL_METRICS_INCLUDE_SESSION_ID=false events are joined by their request ids; metrics are passed over."""
    run, truth = real
    run.env["OTEL_METRICS_INCLUDE_SESSION_ID"] = "false"
    run.run("-p", "CASE-AGENT")
    assert world.used() == truth.totals()
    world.command("sync")
    assert world.used() == truth.totals()
    assert 'spendmeter_skipped_total{source="otlp",reason="no session"} 1' in get(f"{world.daemon.url}/metrics")
