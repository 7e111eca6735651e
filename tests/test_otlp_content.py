"""What OTLP endpoints get: cumulative metrics under the ledger's identity, traces by the GenAI conventions, whole rows."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE as CUMULATIVE
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from spendmeter import ingest
from spendmeter import metrics as m
from spendmeter.ledger import Ledger, Process, now_ms
from spendmeter.ledger.exposition import exposition
from spendmeter.projections import otlp, otlp_metrics
from spendmeter.projections import spans as spans_module
from spendmeter.projections.export import Exporter
from spendmeter.records import Tags, usd
from tests.feed import make_ledger, use
from tests.otlp_receiver import Receiver, attributes, http
from tests.runs import chains

TRACE, SPAN, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    for endpoint in http(made):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        yield made


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Ledger]:
    made = make_ledger(f"sqlite:///{tmp_path / 'x.db'}")
    yield made
    made.close()


def push(ledger: Ledger, at_ms: int | None = None) -> None:
    """One export by a process of its own."""
    exporter = Exporter(ledger)
    report = exporter.once(at_ms=at_ms)
    assert not report.failed
    exporter.close()


def points(receiver: Receiver, name: str) -> list[Any]:
    """Data points of one metric over all pushes, in order."""
    found = [x for x in receiver.metrics() if x.name == name]
    return [p for x in found for p in getattr(x, x.WhichOneof("data")).data_points]


def test_counters_are_cumulative_sums_that_start_with_the_ledger(own: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever temporality is preferred; tokens are integers, money a double; new label sets at 0 first, across restarts."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    at = now_ms() + 10_000
    use(own, "s1", 1000, at, cost_nusd=1_500_000_001)
    for ms in (0, 30_000, 60_000):
        push(own, at + ms)
    created = exposition(own, "push", at).created_ms * 1_000_000
    tokens = points(receiver, "spendmeter.tokens_in")
    assert [(p.as_int, p.start_time_unix_nano, p.time_unix_nano) for p in tokens] == [
        (0, created, at * 10**6), (0, created, (at + 30_000) * 10**6), (1000, created, (at + 60_000) * 10**6)
    ]  # fmt: skip
    assert attributes(tokens[0]) == {"agent": "dev", "cli": "claude", "model": "m"}
    costs = [p for p in points(receiver, "spendmeter.cost_usd") if attributes(p)["cost_source"] == "reported"]
    assert [p.as_double for p in costs] == [0, 0, 1.500000001]
    for metric in receiver.metrics():
        declared = m.ALL[metric.name]
        assert (metric.unit, metric.description) == (declared.unit, declared.help)
        if declared.kind == "counter":
            assert (metric.sum.aggregation_temporality, metric.sum.is_monotonic) == (CUMULATIVE, True)


def test_durations_are_a_cumulative_histogram(own: Ledger, receiver: Receiver) -> None:
    """Bucket counts of their own each, one more above the last edge."""
    at = now_ms() + 10_000
    for i, ms in enumerate((900, 20_000, 20_000, 9_999_000)):
        use(own, f"s{i}", 1, at, duration_ms=ms)
    push(own, at)
    push(own, at + 60_000)
    (zero, point) = points(receiver, "spendmeter.run.duration")
    assert (zero.count, zero.sum, [*zero.bucket_counts]) == (0, 0, [0] * 11)
    assert (point.count, point.sum, [*point.bucket_counts]) == (4, 10_039.9, [1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1])
    assert tuple(point.explicit_bounds) == m.DURATION_BUCKETS_S
    assert {x.histogram.aggregation_temporality for x in receiver.metrics() if x.name == "spendmeter.run.duration"} == {CUMULATIVE}


def test_exemplars_name_the_run(own: Ledger, receiver: Receiver) -> None:
    """The task and the trace of the run that moved the counter, and by how much."""
    at = now_ms() + 10_000
    use(own, "s1", 1000, at)
    push(own, at)
    push(own, at + 60_000)
    (exemplar,) = points(receiver, "spendmeter.tokens_in")[-1].exemplars
    said = {a.key: a.value.string_value for a in exemplar.filtered_attributes}
    with own.read() as conn:
        trace = conn.exec_driver_sql("select trace_id from runs").scalar_one()
    assert (said["task"], exemplar.as_int) == ("T-1", 1000)
    assert trace in (said.get("trace_id"), exemplar.trace_id.hex())


def test_gauges_come_too(own: Ledger, receiver: Receiver) -> None:
    """All but the duration of a scrape."""
    use(own, "s1", 1000, now_ms() + 10_000)
    push(own)
    names = {x.name for x in receiver.metrics() if x.WhichOneof("data") == "gauge"}
    assert names >= {m.PENDING_DEBIT.name, m.LAST_RUN.name, m.LEDGER_CALLS.name, m.BUILD_INFO.name}
    assert m.SCRAPE_SECONDS.name not in names


def test_the_identity_is_the_ledgers(own: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """service.instance.id stays over restarts and whatever the environment says; the rest of it the user may set."""
    use(own, "s1", 1000, now_ms() + 10_000)
    push(own)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-spend")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.instance.id=mine,service.name=not-me")
    use(own, "s2", 1000, now_ms() + 10_000)
    push(own)
    found = [attributes(r.resource) for kind in ("metrics", "traces", "logs") for x in receiver.took[kind] for r in _resources(x)]
    ledger_id = exposition(own, "push").ledger_id
    assert {f["service.instance.id"] for f in found} == {ledger_id}
    assert {(f["service.name"], f.get("deployment.environment.name")) for f in found} == {("spendmeter", None), ("our-spend", "prod")}


def _resources(message: Any) -> Any:
    return next(getattr(message, f.name) for f in message.DESCRIPTOR.fields)


def test_requests_have_a_bounded_number_of_points(own: Ledger) -> None:
    """Every point is in one request, none has more than it may."""
    at = now_ms() + 10_000
    for i in range(10):
        use(own, f"s{i}", 10, at, agent=f"a{i}")
    page = exposition(own, "push", at)
    whole, split = ([*otlp_metrics.metrics_data(page, otlp.resource("x"), n)] for n in (10**6, 7))
    sizes = [sum(len(x.data.data_points) for x in r.resource_metrics[0].scope_metrics[0].metrics) for r in split]
    assert max(sizes) == 7
    assert sum(sizes) == sum(len(x.data.data_points) for x in whole[0].resource_metrics[0].scope_metrics[0].metrics)


def by_name(receiver: Receiver) -> dict[str, Any]:
    return {s.name: s for s in receiver.spans()}


def test_a_run_is_one_trace(own: Ledger, receiver: Receiver) -> None:
    """invoke_agent from start to end under the caller's span, chat per call at its time, subagents between."""
    at = now_ms()
    process = Process(
        "claude", "s1", "r", "id-1", exit_code=0, started_ms=at - 60_000, ended_ms=at, trace_id=TRACE, span_id=SPAN, parent_span_id=CALLER,
        repo="git.example/shop", branch="main",
    )  # fmt: skip
    use(own, "s1", 1000, at, calls=3, subagent="explore", process=process, cost_nusd=2_000_000)
    own.settle(at + 5_000)
    push(own)
    spans = by_name(receiver)
    assert {s.trace_id.hex() for s in receiver.spans()} == {TRACE}
    root, helper = spans["invoke_agent dev"], spans["invoke_agent explore"]
    assert (root.span_id.hex(), root.parent_span_id.hex(), helper.parent_span_id.hex()) == (SPAN, CALLER, SPAN)
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == ((at - 60_000) * 10**6, at * 10**6)
    assert (root.kind, root.status.code) == (Span.SPAN_KIND_INTERNAL, Status.STATUS_CODE_UNSET)
    calls = [s for s in receiver.spans() if s.name == "chat m"]
    assert [s.parent_span_id for s in calls] == [root.span_id, helper.span_id, helper.span_id]
    assert [s.start_time_unix_nano // 10**6 - at for s in calls] == [-3000, -2000, -1000]
    assert all(s.start_time_unix_nano == s.end_time_unix_nano and s.kind == Span.SPAN_KIND_CLIENT for s in calls)
    assert (helper.start_time_unix_nano, helper.end_time_unix_nano) == (calls[1].start_time_unix_nano, calls[2].end_time_unix_nano)
    said = attributes(root)
    assert said["spendmeter.cost_usd"] == 2_000_000 / 1e9 + (1003 * 3 - 335 * 3) / 1e9
    assert {k: v for k, v in said.items() if k not in ("spendmeter.cost_usd", "gen_ai.provider.name")} == {
        "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "dev", "gen_ai.conversation.id": "s1", "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 3, "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.cache_creation.input_tokens": 0, "gen_ai.usage.reasoning.output_tokens": 0, "spendmeter.agent": "dev",
        "spendmeter.task": "T-1", "spendmeter.cli": "claude", "spendmeter.run_key": "r", "spendmeter.outcome": "ok",
        "spendmeter.models": ["m"],
        "spendmeter.calls": 3, "spendmeter.exit_code": 0, "spendmeter.repo": "git.example/shop", "spendmeter.branch": "main",
        "spendmeter.attr.stage": "draft",
    }  # fmt: skip
    assert attributes(calls[1])["gen_ai.agent.name"] == "explore"
    assert attributes(calls[0])["gen_ai.response.model"] == "m"
    assert {sc.schema_url for x in receiver.took["traces"] for r in x.resource_spans for sc in r.scope_spans} == {otlp.GENAI_SCHEMA}


def test_an_outcome_that_is_not_ok_is_an_error(own: Ledger, receiver: Receiver) -> None:
    """Status and error.type say it."""
    use(own, "s1", 1000, now_ms() + 10_000, outcome="max_turns")
    push(own)
    root = by_name(receiver)["invoke_agent dev"]
    assert (root.status.code, root.status.message, attributes(root)["error.type"]) == (Status.STATUS_CODE_ERROR, "max_turns", "max_turns")


def test_ids_follow_from_the_keys(tmp_path: Path, receiver: Receiver) -> None:
    """Another ledger that learns of the same run sends the same trace."""
    found = []
    at = now_ms() + 10_000
    for name in ("a", "b"):
        ledger = make_ledger(f"sqlite:///{tmp_path / name}.db")
        use(ledger, "s1", 1000, at, calls=3)
        push(ledger)
        ledger.close()
        found.append({(s.trace_id, s.span_id, s.parent_span_id, s.name, s.start_time_unix_nano) for s in receiver.spans()})
        receiver.took["traces"].clear()
    assert found[0] == found[1]
    assert len(found[0]) == 4


CHAINS = chains()


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: c.name)
def test_captured_runs_add_up(ledger: Ledger, receiver: Receiver, chain: Any) -> None:
    """Over every captured run: the runs' spans and the events hold the ledger's sums, each call has one span, in its run's trace."""
    ingest.ingest_paths(ledger, [str(p) for p in [*chain.stdouts(), *chain.transcripts()]], tags=Tags("dev", "T-1"))
    ledger.settle(now_ms() + 120_000)
    push(ledger)
    with ledger.read() as conn:
        sums = conn.exec_driver_sql(
            "select sum(coalesce(tokens_in,0)+coalesce(cache_read,0)+coalesce(cache_write_5m,0)+coalesce(cache_write_1h,0)), "
            "sum(tokens_out), sum(coalesce(reported_nusd,0)+coalesce(estimated_nusd,0)), sum(calls) from entries"
        ).one()
        runs = conn.exec_driver_sql("select count(*) from runs").scalar_one()
    roots = [attributes(s) for s in receiver.spans() if s.name == "invoke_agent dev"]
    assert len(roots) == len(receiver.logs()) == runs
    assert sum(a.get("gen_ai.usage.input_tokens", 0) for a in roots) == (sums[0] or 0)
    assert sum(a.get("gen_ai.usage.output_tokens", 0) for a in roots) == (sums[1] or 0)
    events = [attributes(x) for x in receiver.logs()]
    assert sum(Decimal(e.get("spendmeter.cost_usd", "0")) for e in events) == usd(sums[2] or 0)
    assert sum(s.name.startswith("chat ") for s in receiver.spans()) == (sums[3] or 0)
    ids = [s.span_id for s in receiver.spans()]
    assert len(ids) == len({*ids})
    traces = {s.trace_id for s in receiver.spans() if s.name == "invoke_agent dev"}
    assert {s.trace_id for s in receiver.spans()} == traces


def test_an_event_holds_the_whole_row(own: Ledger, receiver: Receiver) -> None:
    """Tokens, exact cost, tags, outcome and models, in the run's trace; what is unknown is not there."""
    at = now_ms() + 10_000
    use(own, "s1", 1000, at, calls=2, cost_nusd=123_456_789, outcome="error", duration_ms=20_000)
    push(own)
    (record,) = receiver.logs()
    (root,) = [s for s in receiver.spans() if s.name == "invoke_agent dev"]
    assert (record.event_name, record.trace_id, record.span_id) == ("spendmeter.run", root.trace_id, root.span_id)
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (at * 10**6, at * 10**6)
    said = attributes(record)
    cost = f"0.{123_456_789 + (1002 - 501) * 3:09d}"
    assert said == {
        "event.name": "spendmeter.run", "spendmeter.cli": "claude", "spendmeter.session": "s1", "spendmeter.run_key": "r",
        "spendmeter.agent": "dev",
        "spendmeter.task": "T-1", "spendmeter.outcome": "error", "spendmeter.implied": False, "spendmeter.started_ms": at - 20_000,
        "spendmeter.ended_ms": at, "spendmeter.duration_ms": 20_000, "spendmeter.tokens_in": 1000, "spendmeter.cache_read": 0,
        "spendmeter.cache_write_5m": 0, "spendmeter.cache_write_1h": 0, "spendmeter.tokens_out": 2, "spendmeter.reasoning": 0,
        "spendmeter.web_searches": 0, "spendmeter.tokens": 1002, "spendmeter.cost_usd": cost, "spendmeter.calls": 2,
        "spendmeter.models": ["m"], "spendmeter.attr.stage": "draft",
    } | {k: v for k, v in said.items() if k == "spendmeter.notes"}  # fmt: skip
    (body,) = [x for x in record.body.kvlist_value.values if x.key == "by_model"]
    assert len(body.value.array_value.values) == 1


@pytest.mark.parametrize(
    ("cli", "model", "expected"),
    [
        ("claude", "claude-sonnet-4-5", "anthropic"),
        ("opencode", "anthropic/claude-sonnet-4-5", "anthropic"),
        ("copilot", "gpt-5", "openai"),
        ("copilot", "something", None),
        ("gemini", "auto", "gcp.gemini"),
        ("opencode", "openrouter/x-ai/grok-4", "x_ai"),
    ],
)
def test_providers(cli: str, model: str, expected: str | None) -> None:
    """By the model's name, else by the CLI; unknown is left out."""
    assert spans_module.provider(cli, model) == expected


def test_attribute_names_are_the_conventions() -> None:
    """What the SDK's own semantic conventions know under these names."""
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as known

    names = {v for k, v in vars(known).items() if k.startswith("GEN_AI_")}
    single = {v for k, v in vars(spans_module).items() if k.isupper() and isinstance(v, str) and v.startswith("gen_ai.")}
    assert len(single) == 6
    assert {*spans_module.USAGE} | single <= names
