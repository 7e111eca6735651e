"""collector-config.yaml on a real collector: exact numbers in, exact numbers out, and no content anywhere."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import otelcol
import pytest
import yaml
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from tests.ports import free_port

from spendmeter import metrics

pytestmark = pytest.mark.e2e

CANARY = "CANARY-d41d8cd9"
EMAIL = "someone.canary@example.org"
KEY = "sk-" + "ant-canary-" + "x" * 24  # in parts, so that no secret scanner trips over this file
RESOURCE = Resource({"service.name": "spendmeter", "service.instance.id": "ledger-1"})
CONTENT_KEYS = (
    "prompt", "input", "output", "body", "user_prompt", "tool_input", "tool_parameters", "response", "messages", "transcript",
    "gen_ai.prompt", "gen_ai.prompt.0.content", "gen_ai.completion", "gen_ai.completion.0.content", "gen_ai.input.messages",
    "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.tool.call.arguments", "gen_ai.tool.call.result",
    "gen_ai.tool.definitions", "gen_ai.retrieval.query.text", "gen_ai.agent.description", "traceloop.entity.input", "llm.prompts.0.content",
    "llm.input_messages.0.message.content", "input.value", "ai.response.text", "ai.toolCall.args", "mlflow.spanInputs",
    "exception.message", "exception.stacktrace", "process.command_line", "process.command_args", "full_command", "user.email", "user.name",
)  # fmt: skip
HARMLESS = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "claude-sonnet-4-5-20250929",
    "gen_ai.response.model": "claude-sonnet-4-5@20250929",
    "gen_ai.response.id": "msg_01XFDUDYJgAACzvnptvVoYEL",
    "gen_ai.output.type": "text",
    "gen_ai.conversation.id": "7b0c8f3a-58ec-4a0f-9a7d-1f0f7b3f2c11",
    "gen_ai.usage.input_tokens": 1234,
    "gen_ai.usage.output_tokens": 56,
    "prompt_tokens": 1234,
    "spendmeter.agent": "developer",
    "spendmeter.task": "SHOP-12",
    "spendmeter.cost_usd": "0.012345",
    "error.type": "timeout",
}


T = TypeVar("T")


def until(ready: Callable[[], T], timeout_s: float = 60.0) -> T:
    """The first true result of *ready*; fails with the last one after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while not (result := ready()):
        assert time.monotonic() < deadline, f"still {result!r} after {timeout_s} s"
        time.sleep(0.1)
    return result


# ---- senders and readers --------------------------------------------------------------------------------------------


@contextmanager
def meter_to(collector: otelcol.Collector, protocol: str) -> Iterator[MeterProvider]:
    """An SDK meter provider that pushes cumulative metrics to *collector* when flushed."""
    over_http = protocol == "http"
    exporter = HttpMetrics(endpoint=f"{collector.http}/v1/metrics") if over_http else GrpcMetrics(endpoint=collector.grpc, insecure=True)
    provider = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)], resource=RESOURCE)
    try:
        yield provider
    finally:
        provider.shutdown()


def post(collector: otelcol.Collector, signal: str, message: Any) -> None:
    request = urllib.request.Request(
        f"{collector.http}/v1/{signal}", message.SerializeToString(), {"Content-Type": "application/x-protobuf"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def value(raw: Any) -> AnyValue:
    """*raw* as an OTLP value; maps and lists nest."""
    if isinstance(raw, dict):
        result = AnyValue()
        result.kvlist_value.values.extend(pairs(raw))
        return result
    if isinstance(raw, list):
        result = AnyValue()
        result.array_value.values.extend(value(item) for item in raw)
        return result
    return AnyValue(int_value=raw) if isinstance(raw, int) else AnyValue(string_value=raw)


def pairs(raw: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value(item)) for key, item in raw.items()]


def plain(raw: dict[str, Any]) -> Any:
    """An OTLP/JSON value as a plain one."""
    if "kvlistValue" in raw:
        return attributes(raw["kvlistValue"]["values"])
    if "arrayValue" in raw:
        return [plain(item) for item in raw["arrayValue"].get("values", [])]
    return int(raw["intValue"]) if "intValue" in raw else next(iter(raw.values()), None)


def attributes(raw: list[dict[str, Any]]) -> dict[str, Any]:
    return {item["key"]: plain(item["value"]) for item in raw}


def got(directory: Path) -> list[dict[str, Any]]:
    """The OTLP requests that the backend of *directory* has written."""
    path = directory / "got.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spans(directory: Path) -> list[dict[str, Any]]:
    return [
        span
        for request in got(directory)
        for resource in request.get("resourceSpans", [])
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def records(directory: Path) -> list[dict[str, Any]]:
    return [
        record
        for request in got(directory)
        for resource in request.get("resourceLogs", [])
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
    ]


def send_span(collector: otelcol.Collector, name: str) -> None:
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{collector.http}/v1/traces")))
    provider.get_tracer("spendmeter").start_span(name, attributes=HARMLESS).end()
    provider.shutdown()


def record_everything(provider: MeterProvider, amount: int) -> None:
    """Move every metric that Spendmeter declares by *amount*, with all of its labels set."""
    meter = provider.get_meter("spendmeter")
    for metric in metrics.ALL.values():
        labels = {label: f"a-{label}" for label in metric.labels}
        if metric.kind == "counter":
            meter.create_counter(metric.name, metric.unit, metric.help).add(amount, labels)
        elif metric.kind == "gauge":
            meter.create_gauge(metric.name, metric.unit, metric.help).set(amount, labels)
        else:
            meter.create_histogram(metric.name, metric.unit, metric.help).record(amount, labels)


# ---- the file itself ------------------------------------------------------------------------------------------------


def test_validate_accepts_the_file() -> None:
    """`otelcol validate` takes the file without a word."""
    done = subprocess.run([otelcol.binary(), "validate", "--config", str(otelcol.CONFIG)], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stdout + done.stderr)


@pytest.mark.parametrize("env", [{}, {"COLLECTOR_METRICS_FROM": "prometheus", "COLLECTOR_TRACES_TO": "otlp_grpc/traces"}])
def test_every_component_has_its_current_name(env: dict[str, str]) -> None:
    """The collector warns of no deprecated alias when it starts."""
    with otelcol.running(otelcol.CONFIG, env) as collector:
        assert [] == [line for line in collector.log().splitlines() if "deprecated" in line]


def test_every_component_is_stock() -> None:
    """Every component in the file is in our build's manifest, and the manifest takes modules of core and contrib only."""
    manifest = yaml.safe_load((otelcol.ROOT / "deploy/otelcol/builder.yaml").read_text())
    modules = [entry["gomod"] for part in ("receivers", "processors", "exporters", "extensions") for entry in manifest[part]]
    stock = ("go.opentelemetry.io/collector/", "github.com/open-telemetry/opentelemetry-collector-contrib/")
    assert [] == [module for module in modules if not module.startswith(stock)]
    assert {manifest["dist"]["version"]} == {module.rpartition(" v")[2] for module in modules}


def test_everything_listens_on_loopback_by_default() -> None:
    """Without an environment no address in the file is reachable from another host."""
    endpoints = re.findall(r"\$\{env:COLLECTOR_\w+:-((?:http://)?[\w.]+:\d+)", otelcol.CONFIG.read_text())
    assert len(endpoints) >= 6
    assert [] == [endpoint for endpoint in endpoints if not endpoint.removeprefix("http://").startswith("127.0.0.1:")]


def test_the_head_lists_every_variable_with_its_default() -> None:
    """The table at the top of the file and the variables in use are the same."""
    text = otelcol.CONFIG.read_text()
    listed = dict(re.findall(r"^#   (COLLECTOR_\w+) +(\S+)", text, re.MULTILINE))
    assert listed == dict(re.findall(r"\$\{env:(COLLECTOR_\w+):-([^}]+)\}", text))


# ---- metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_cumulative_metrics_show_exact_numbers_under_their_own_names(protocol: str) -> None:
    """Every declared metric, pushed twice by the SDK, is on the page under the name and labels of metrics.py with its latest total."""
    with otelcol.running(otelcol.CONFIG) as collector, meter_to(collector, protocol) as provider:
        record_everything(provider, 100)
        assert provider.force_flush()
        record_everything(provider, 12345)
        assert provider.force_flush()
        shown = collector.samples()
    base = {"job": "spendmeter", "instance": "ledger-1"}
    for metric in metrics.ALL.values():
        labels = base | {label: f"a-{label}" for label in metric.labels}
        name = f"{metric.sample}_sum" if metric.kind == "histogram" else metric.sample
        assert [(labels, 12345.0 if metric.kind == "gauge" else 12445.0)] == shown.pop(name)
        if metric.kind == "histogram":
            assert [(labels, 2.0)] == shown.pop(f"{metric.sample}_count")
            assert all(labels.items() <= bucket.items() for bucket, _ in shown.pop(f"{metric.sample}_bucket"))
    assert {"target_info"} == set(shown)


def test_counter_and_gauge_stay_exact_to_the_nano_dollar() -> None:
    """A cost with nine decimals is shown as it was sent."""
    with otelcol.running(otelcol.CONFIG) as collector, meter_to(collector, "http") as provider:
        provider.get_meter("spendmeter").create_counter(metrics.COST_USD.name, metrics.COST_USD.unit).add(1234.567890123, {"agent": "a"})
        assert provider.force_flush()
        assert [1234.567890123] == [number for _, number in collector.samples()[metrics.COST_USD.sample]]


def test_other_programs_metrics_stay_off_the_page() -> None:
    """A CLI's own token counter, which counts the same tokens again, is not shown."""
    with otelcol.running(otelcol.CONFIG) as collector, meter_to(collector, "http") as provider:
        provider.get_meter("other").create_counter("claude_code.token.usage", "tokens").add(7, {"type": "input"})
        provider.get_meter("spendmeter").create_counter(metrics.TOKENS_IN.name, metrics.TOKENS_IN.unit).add(1)
        assert provider.force_flush()
        assert {metrics.TOKENS_IN.sample, "target_info"} == set(collector.samples())


def test_series_whose_names_are_masked_stay_apart() -> None:
    """Two agents named by e-mail address are hashed, not both starred out: each keeps its own number."""
    with otelcol.running(otelcol.CONFIG) as collector, meter_to(collector, "http") as provider:
        counter = provider.get_meter("spendmeter").create_counter(metrics.TOKENS_IN.name, metrics.TOKENS_IN.unit)
        for number, agent in enumerate((EMAIL, f"other.{EMAIL}"), start=1):
            counter.add(number, {"agent": agent})
        assert provider.force_flush()
        assert [1.0, 2.0] == sorted(number for _, number in collector.samples()[metrics.TOKENS_IN.sample])
        assert "canary" not in collector.page()


def test_scraping_the_daemon_instead_gives_the_same_names_and_never_both() -> None:
    """With COLLECTOR_METRICS_FROM=prometheus the scraped page comes through unchanged, and a push is refused, not added."""
    registry = CollectorRegistry()
    labels = {"agent": "developer", "cli": "claude", "model": "m"}
    Counter(metrics.TOKENS_IN.prometheus, "h", list(labels), registry=registry).labels(**labels).inc(4321)
    Histogram(metrics.RUN_DURATION.prometheus, "h", ["agent"], registry=registry).labels(agent="developer").observe(2)
    port = free_port()
    server, thread = start_http_server(port, "127.0.0.1", registry)
    env = {"COLLECTOR_METRICS_FROM": "prometheus", "COLLECTOR_DAEMON": f"127.0.0.1:{port}", "COLLECTOR_SCRAPE_INTERVAL": "1s"}
    try:
        with otelcol.running(otelcol.CONFIG, env) as collector:
            shown = until(lambda: (page := collector.samples()).get(metrics.TOKENS_IN.sample) and page)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                post(collector, "metrics", ExportMetricsServiceRequest())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    [(seen, total)] = shown[metrics.TOKENS_IN.sample]
    assert (labels | {"job": "spendmeter", "instance": f"127.0.0.1:{port}"}, 4321.0) == (seen, total)
    assert [2.0] == [number for _, number in shown[f"{metrics.RUN_DURATION.sample}_sum"]]
    assert [1.0] == [number for _, number in shown["up"]]


# ---- no content -----------------------------------------------------------------------------------------------------


def planted(where: str) -> dict[str, Any]:
    """Attributes with content under every name and in every shape, next to harmless ones; *where* tells them apart."""
    shapes: list[Any] = [CANARY, f"{CANARY}\nsecond line", {"deep": {"text": CANARY}}, [CANARY, CANARY], "x" * 300 + CANARY]
    by_key = {key: shapes[number % len(shapes)] for number, key in enumerate(CONTENT_KEYS)}
    by_value = {
        "note": f"ask {EMAIL} about it",
        "hint": f"key={KEY}",
        "long": CANARY + " word" * 60,
        "lines": f"{CANARY}\n{CANARY}",
        "json": json.dumps({"a": CANARY}),
        "map": {"deep": {"a": CANARY}},
        "maps": [{"a": CANARY}],
    }
    return by_key | by_value | HARMLESS | {"where": where, "gen_ai.response.finish_reasons": ["stop", "tool_use"]}


def planted_traces() -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.extend(pairs(planted("resource") | {"service.name": "spendmeter"}))
    scope = resource.scope_spans.add()
    scope.scope.attributes.extend(pairs(planted("scope")))
    for name in ("chat m", f"{CANARY}\n", f"chat {EMAIL}"):
        span = scope.spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name=name, start_time_unix_nano=1, end_time_unix_nano=2)
        span.attributes.extend(pairs(planted("span")))
        span.status.message = f"refused: {CANARY}"
        span.events.add(name="gen_ai.user.message").attributes.extend(pairs(planted("event")))
        span.events.add(name=f"{CANARY}\n")
    return request


def planted_logs() -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.extend(pairs(planted("resource")))
    scope = resource.scope_logs.add()
    scope.scope.attributes.extend(pairs(planted("scope")))
    # A body that is a map is walked through, not judged by its JSON: a row may nest.
    row = planted("body") | {"map": {"deep": {"prompt": CANARY, "tokens_in": 5}}, "maps": [{"tool_input": {"a": CANARY}}, {"ok": EMAIL}]}
    bodies = [("", CANARY), ("claude_code.user_prompt", {"a": CANARY}), ("spendmeter.run", row), ("spendmeter.run", f"x\n{CANARY}")]
    for event, body in bodies:
        record = scope.log_records.add(event_name=event, body=value(body))
        record.attributes.extend(pairs(planted("record")))
    return request


def planted_metrics() -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend(pairs(planted("resource") | {"service.name": "spendmeter", "service.instance.id": "ledger-1"}))
    scope = resource.scope_metrics.add()
    scope.scope.attributes.extend(pairs(planted("scope")))
    metric = scope.metrics.add(name=metrics.TOKENS_IN.name, unit=metrics.TOKENS_IN.unit)
    metric.sum.aggregation_temporality = 2
    metric.sum.is_monotonic = True
    point = metric.sum.data_points.add(as_int=17, start_time_unix_nano=1, time_unix_nano=time.time_ns())
    point.attributes.extend(pairs(planted("point")))
    point.exemplars.add(as_int=1, time_unix_nano=time.time_ns()).filtered_attributes.extend(pairs(planted("exemplar")))
    return request


def leaks(text: str) -> list[str]:
    """The planted strings that *text* holds; any case, as JSON or plain."""
    return [needle for needle in (CANARY, EMAIL, KEY, "canary") if needle.lower() in text.lower()]


def test_no_content_leaves_on_any_signal(tmp_path: Path) -> None:
    """Content planted under every known name and shape, in every place that has attributes, reaches no output; numbers and ids do."""
    with otelcol.backend(tmp_path) as sink:
        env = {"COLLECTOR_TRACES_ENDPOINT": sink.http, "COLLECTOR_LOGS_ENDPOINT": sink.http}
        with otelcol.running(otelcol.CONFIG, env) as collector:
            post(collector, "traces", planted_traces())
            post(collector, "logs", planted_logs())
            post(collector, "metrics", planted_metrics())
            until(lambda: len(spans(tmp_path)) == 3 and len(records(tmp_path)) == 4)
            page, log = collector.page(), collector.log()
            state = b"".join(file.read_bytes() for file in Path(collector.env["COLLECTOR_STATE_DIR"]).iterdir())
    written = (tmp_path / "got.json").read_text()
    assert {"page": [], "log": [], "backend": [], "disk": []} == {
        "page": leaks(page), "log": leaks(log), "backend": leaks(written), "disk": leaks(state.decode(errors="replace")),
    }  # fmt: skip
    kept = HARMLESS | {"gen_ai.response.finish_reasons": ["stop", "tool_use"]}
    for holder in (*spans(tmp_path), *(span["events"][0] for span in spans(tmp_path)), *records(tmp_path)):
        assert kept.items() <= attributes(holder["attributes"]).items()
    assert ["chat m", "****", "****"] == [span["name"] for span in spans(tmp_path)]
    row = plain(records(tmp_path)[2]["body"])
    assert (
        kept | {"map": {"deep": {"prompt": "****", "tokens_in": 5}}, "maps": [{"tool_input": "****"}, {"ok": "****"}]}
    ).items() <= row.items()
    assert [None, None, "****"] == [plain(records(tmp_path)[number].get("body", {})) or None for number in (0, 1, 3)]
    assert ["17"] == re.findall(rf"^{metrics.TOKENS_IN.sample}{{.*}} (\S+)$", page, re.MULTILINE)


def test_no_label_of_ours_is_taken_for_content() -> None:
    """Every label in metrics.py passes the masks: a masked label would make one series of several."""
    text = yaml.safe_load(otelcol.CONFIG.read_text())
    patterns = [re.compile(pattern.replace("$$", "$")) for pattern in text["processors"]["redaction/keys"]["blocked_key_patterns"]]
    labels = {label for metric in metrics.ALL.values() for label in metric.labels}
    assert [] == [label for label in labels for pattern in patterns if pattern.search(label)]


# ---- nothing is lost ------------------------------------------------------------------------------------------------


def test_traces_wait_for_a_dead_backend_and_survive_a_kill(tmp_path: Path) -> None:
    """Spans sent while the backend is down arrive exactly once when it comes up, over a kill -9 and a restart in between."""
    address = f"127.0.0.1:{free_port()}"
    env = {"COLLECTOR_TRACES_ENDPOINT": f"http://{address}", "COLLECTOR_STATE_DIR": str(tmp_path / "state")}
    with otelcol.running(otelcol.CONFIG, env) as collector:
        for number in range(5):
            send_span(collector, f"before the kill {number}")
        until(lambda: "connection refused" in collector.log())
        collector.kill()
    with otelcol.running(otelcol.CONFIG, env) as collector:
        send_span(collector, "after the kill")
        with otelcol.backend(tmp_path, {"COLLECTOR_OTLP_HTTP": address}):
            until(lambda: len(spans(tmp_path)) >= 6, 60)
            time.sleep(2)  # would a second copy come, it would come now
    assert [*(f"before the kill {number}" for number in range(5)), "after the kill"] == sorted(
        (span["name"] for span in spans(tmp_path)), key=lambda name: (name.startswith("after"), name)
    )
    with otelcol.running(otelcol.CONFIG, env), otelcol.backend(tmp_path, {"COLLECTOR_OTLP_HTTP": address}):
        time.sleep(2)
    assert len(spans(tmp_path)) == 6, "a delivered span came again after a restart"


def test_a_full_queue_is_told_to_the_sender() -> None:
    """When the disk queue is full the sender gets a 503, which it may retry; nothing is taken and then dropped."""
    env = {"COLLECTOR_QUEUE_SIZE": "2", "COLLECTOR_TRACES_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with otelcol.running(otelcol.CONFIG, env) as collector:
        post(collector, "traces", planted_traces())
        post(collector, "traces", planted_traces())
        with pytest.raises(urllib.error.HTTPError, match="503"):
            post(collector, "traces", planted_traces())


def test_traces_go_out_over_grpc_too(tmp_path: Path) -> None:
    """COLLECTOR_TRACES_TO=otlp_grpc/traces sends to the same variable's address by gRPC."""
    with otelcol.backend(tmp_path) as sink:
        env = {"COLLECTOR_TRACES_TO": "otlp_grpc/traces", "COLLECTOR_TRACES_ENDPOINT": sink.grpc}
        with otelcol.running(otelcol.CONFIG, env) as collector:
            send_span(collector, "invoke_agent developer")
            until(lambda: spans(tmp_path))
    assert ["invoke_agent developer"] == [span["name"] for span in spans(tmp_path)]


# ---- run logs -------------------------------------------------------------------------------------------------------


def test_run_logs_come_in_once_and_without_content(tmp_path: Path) -> None:
    """A run log line arrives with its numbers, time and level; free text, unknown fields and broken lines leave nothing behind."""
    log = tmp_path / "runs" / "today.jsonl"
    log.parent.mkdir()
    ours = {"time": "2026-01-02T03:04:05.5Z", "level": "error", "agent": "developer", "task": "SHOP-12", "cost_usd": "0.25"}
    usage = {"input_tokens": 12, "output_tokens": 3, "text": CANARY}
    theirs = {"msg": CANARY, "result": CANARY, "prompt": CANARY, "anything": CANARY, "model": {"nested": CANARY}, "cli": f"{CANARY}\n"}
    lines = [
        json.dumps(ours | theirs | {"usage": usage}),
        f"plain text with {CANARY}",
        f'{{"agent": "{CANARY}',
        json.dumps({"time": f"{CANARY}\n", "level": 30, "agent": "b"}),
    ]
    log.write_text("\n".join(lines) + "\n")
    with otelcol.backend(tmp_path) as sink:
        env = {
            "COLLECTOR_LOGS_ENDPOINT": sink.http,
            "COLLECTOR_RUN_LOGS": f"{log.parent}/*.jsonl",
            "COLLECTOR_STATE_DIR": str(tmp_path / "state"),
        }
        with otelcol.running(otelcol.CONFIG, env) as collector:
            until(lambda: len(records(tmp_path)) == 4)
            own_log = collector.log()
        with otelcol.running(otelcol.CONFIG, env) as collector, log.open("a") as more:
            more.write(json.dumps({"agent": "after the restart"}) + "\n")
            more.flush()
            until(lambda: len(records(tmp_path)) >= 5)
            own_log += collector.log()
    seen = [attributes(record.get("attributes", [])) for record in records(tmp_path)]
    kept = ours | {"usage.input_tokens": 12, "usage.output_tokens": 3, "cli": "****", "log.file.name": "today.jsonl"}
    assert kept == seen[0]
    first = records(tmp_path)[0]
    assert ("1767323045500000000", "error", "run_log") == (first["timeUnixNano"], first["severityText"], first["eventName"])
    assert [None, None, "b", "after the restart"] == [record.get("agent") for record in seen[1:]]
    assert [] == leaks((tmp_path / "got.json").read_text() + own_log)
