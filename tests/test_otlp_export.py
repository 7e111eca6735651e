"""Export: nothing is lost, nothing is sent twice, whatever the endpoint does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spendmeter import metrics as m
from spendmeter.errors import ConfigError
from spendmeter.ledger import Ledger, liveness, now_ms
from spendmeter.ledger.exposition import exposition
from spendmeter.projections import export, otlp, spool
from spendmeter.projections.export import Exporter
from spendmeter.projections.otlp import Signal
from tests.feed import make_ledger, use
from tests.otlp_receiver import Receiver, attributes, grpc_, http

PROTOCOLS: dict[str, Callable[[Receiver], Iterator[str]]] = {"http/protobuf": http, "grpc": grpc_}


class Clock:
    """Milliseconds that the test moves."""

    def __init__(self) -> None:
        self.ms = now_ms() + 100_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with five runs that wait."""
    made = make_ledger(f"sqlite:///{tmp_path / 'x.db'}", zero_first_s=0)
    at = now_ms() + 10_000
    for i in range(5):
        use(made, f"s{i}", 100 + i, at + i, task=f"T-{i}")
    yield made
    made.close()


@pytest.fixture(params=PROTOCOLS)
def receiver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver that the environment names, by each protocol."""
    made = Receiver()
    for endpoint in PROTOCOLS[request.param](made):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        yield made


@pytest.fixture
def exporter(runs: Ledger, receiver: Receiver, clock: Clock) -> Iterator[Exporter]:
    made = Exporter(runs, clock=clock)
    yield made
    made.close()


def sent_once(receiver: Receiver, sessions: int) -> None:
    """Each run's span, its call's span and its log record arrived exactly once."""
    assert {*Counter(s.span_id for s in receiver.spans()).values()} <= {1}
    assert {*Counter(x.span_id for x in receiver.logs()).values()} <= {1}
    assert (len(receiver.spans()), len(receiver.logs())) == (2 * sessions, sessions)


def test_once_sends_everything_that_waits_and_nothing_twice(exporter: Exporter, receiver: Receiver, runs: Ledger) -> None:
    """Metrics each time, spans and events once; the gauges tell."""
    report = exporter.once()
    assert [(s, x.items > 0, x.refused, x.failure) for s, x in report.signals.items()] == [(s, True, 0, "") for s in otlp.SIGNALS]
    sent_once(receiver, 5)
    assert [*exporter.once().signals] == ["metrics"]
    sent_once(receiver, 5)
    use(runs, "s9", 1, now_ms() + 20_000)
    exporter.once()
    sent_once(receiver, 6)
    page = exposition(runs, "scrape")
    assert page.gauge(m.EXPORT_PENDING) == [(("logs",), 0), (("traces",), 0)]
    assert page.gauge(m.EXPORT_FAILURES) == [(("logs",), 0), (("metrics",), 0), (("traces",), 0)]
    assert {signal for (signal,), _ in page.gauge(m.EXPORT_LAST_SUCCESS)} == {"logs", "metrics", "traces"}


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_refusing_endpoint_loses_nothing(exporter: Exporter, receiver: Receiver, runs: Ledger, clock: Clock, status: int) -> None:
    """Whatever it answers, once it takes data again each span has arrived once."""
    receiver.status = status
    for _ in range(2):
        start = time.monotonic()
        report = exporter.once()
        assert time.monotonic() - start < 10
        assert all(x.failure for x in report.signals.values())
        assert [x.items for x in report.signals.values()] == [0, 0, 0]
    gauges = exposition(runs, "scrape").gauge(m.EXPORT_FAILURES)
    assert gauges == [(("logs",), 2), (("metrics",), 2), (("traces",), 2)]
    receiver.status = 200
    clock.ms += 3_600_000
    exporter.once()
    exporter.once()
    sent_once(receiver, 5)
    assert exposition(runs, "scrape").gauge(m.EXPORT_FAILURES) == [(("logs",), 0), (("metrics",), 0), (("traces",), 0)]


def test_runs_refused_with_everything_else_are_sent_soon_after_it_is_over(exporter: Exporter, receiver: Receiver, clock: Clock) -> None:
    """They need not wait as long as a run that alone is refused."""
    receiver.status = 400
    exporter.once()
    receiver.status = 200
    exporter.once()
    assert len(receiver.logs()) == 1  # four were tried alone and put off
    exporter.once()
    sent_once(receiver, 5)


def test_one_poison_run_does_not_block_the_rest(exporter: Exporter, receiver: Receiver, runs: Ledger, clock: Clock) -> None:
    """The refused run is found by halving, kept, and tried again later, less and less often."""
    receiver.poison = "T-2"
    report = exporter.once(["traces", "logs"])
    assert [(x.items, x.refused, x.failure) for x in report.signals.values()] == [(4, 1, ""), (4, 1, "")]
    sent_once(receiver, 4)
    assert exposition(runs, "scrape").gauge(m.EXPORT_PENDING) == [(("logs",), 1), (("traces",), 1)]
    before = receiver.requests
    assert exporter.once(["traces", "logs"]).signals == {}
    assert receiver.requests == before
    clock.ms += 61_000
    assert exporter.once(["traces", "logs"]).signals["traces"].refused == 1
    clock.ms += 61_000
    assert exporter.once(["traces", "logs"]).signals == {}
    receiver.poison = ""
    clock.ms += 61_000
    exporter.once(["traces", "logs"])
    sent_once(receiver, 5)


def test_a_slow_endpoint_gets_each_span_once(runs: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow but within the timeout."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10")
    receiver.delay_s = 0.7
    exporter = Exporter(runs)
    exporter.once()
    exporter.once()
    sent_once(receiver, 5)
    exporter.close()


@pytest.mark.alone
def test_an_endpoint_that_hangs_holds_a_pass_no_longer_than_its_timeout(
    runs: Ledger, monkeypatch: pytest.MonkeyPatch, clock: Clock, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It accepts the connection and never answers: bounded, kept, one line each, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{hanging.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        exporter = Exporter(runs, clock=clock)
        start = time.monotonic()
        report = exporter.once()
        assert time.monotonic() - start < 5
        assert all(x.failure for x in report.signals.values())
        exporter.close()
    assert len(spool.waiting(runs, "traces", 0, 100)) == 5
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 3
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_dead_endpoint_loses_nothing_across_restarts(runs: Ledger, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """Nobody listens; later exporters of new processes find everything still waiting."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    for _ in range(2):
        exporter = Exporter(runs)
        assert all(x.failure for x in exporter.once().signals.values())
        exporter.close()
    made = Receiver()
    for endpoint in PROTOCOLS[protocol](made):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        exporter = Exporter(runs)
        assert not exporter.once().failed
        exporter.close()
    sent_once(made, 5)


def test_failures_are_said_once_until_they_change(exporter: Exporter, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """One line when it breaks, one when it works again; nothing from the SDK."""
    receiver.status = 404
    for _ in range(3):
        exporter.once(["metrics"])
    receiver.status = 200
    for _ in range(2):
        exporter.once(["metrics"])
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("OTLP metrics: ")
    assert lines[0].endswith("; kept, and tried again")
    assert lines[1] == "OTLP metrics: sent again"
    assert {r.name for r in caplog.records} == {"spendmeter.export"}


def test_a_run_that_changes_while_it_is_sent_is_sent_again(exporter: Exporter, receiver: Receiver, runs: Ledger) -> None:
    """Row ids are used again by SQLite; the mark is of the content, so the new content is not taken for the old."""
    before = spool.waiting(runs, "traces", 0, 100)
    use(runs, "s4", 5000, now_ms() + 30_000, task="T-4", calls=2)
    spool.mark_sent(runs, "traces", before)
    assert [(w.session_id, w.run_key) for w in spool.waiting(runs, "traces", 0, 100)] == [(before[-1].session_id, "r")]
    exporter.once(["traces"])
    assert sum(attributes(s)["gen_ai.usage.input_tokens"] for s in receiver.spans() if s.name == "chat m") == 5000


def test_two_exporters_do_not_send_the_same(runs: Ledger, receiver: Receiver, clock: Clock) -> None:
    """One holds the lease; the other says busy, and takes over once it is given back, has expired or its holder is dead."""
    first, second = Exporter(runs, clock=clock), Exporter(runs, clock=clock)
    assert first.hold()
    assert second.once().busy
    assert receiver.requests == 0
    clock.ms += export.LEASE_MS + 1
    assert not second.once().busy
    sent_once(receiver, 5)
    assert first.hold()
    first.close()
    assert not second.once().busy
    with runs.write() as conn:
        gone = {"until_ms": clock.ms + 10**9, "host": liveness.here(), "pid": 2**22 - 3, "born": "1", "token": "x"}
        spool.put(conn, spool.LEASE, json.dumps(gone))
    assert not second.once().busy
    with runs.write() as conn:
        spool.put(conn, spool.LEASE, json.dumps(gone | {"host": "another.example"}))
    assert second.once().busy
    second.close()


def test_containers_of_one_name_are_told_apart(runs: Ledger) -> None:
    """One whose pids mean something else does not take the holder's for dead: two would send at once."""
    take = f"from spendmeter.config import Settings; from spendmeter.ledger import Ledger; from spendmeter.projections import spool; \
print(spool.Lease(Ledger(Settings({runs.settings.ledger!r}))).take({now_ms()}, 1000))"
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no pid namespace can be made here")
    lease = spool.Lease(runs)
    assert lease.take(now_ms(), 60_000)
    said = subprocess.run([*apart, sys.executable, "-c", take], capture_output=True, text=True, check=True).stdout
    assert said == "False\n"
    lease.drop()
    said = subprocess.run([*apart, sys.executable, "-c", take], capture_output=True, text=True, check=True).stdout
    assert said == "True\n"


def test_many_runs_go_in_bounded_requests(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches by number of runs and of spans; metrics by number of points; all of it arrives once."""
    ledger = make_ledger(f"sqlite:///{tmp_path / 'many.db'}", zero_first_s=0)
    at = now_ms() + 10_000
    for i in range(9):
        use(ledger, f"s{i}", 100, at, calls=1 + i, agent=f"a{i}")
    monkeypatch.setattr(export, "RUNS_MAX", 4)
    monkeypatch.setattr(export, "ITEMS_MAX", 6)
    exporter = Exporter(ledger)
    exporter.once(["traces"])
    sizes = [sum(len(sc.spans) for r in x.resource_spans for sc in r.scope_spans) for x in receiver.took["traces"]]
    assert max(sizes) <= 6
    spans = receiver.spans()
    assert len({s.span_id for s in spans}) == len(spans) == 9 + sum(range(1, 10))
    exporter.close()
    ledger.close()


def test_the_loop_exports_until_it_is_stopped(runs: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics by OTEL_METRIC_EXPORT_INTERVAL, runs within seconds; the lease is free afterwards."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    monkeypatch.setattr(export, "POLL_S", 0.1)
    stop = threading.Event()
    exporter = Exporter(runs)
    thread = threading.Thread(target=exporter.loop, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 60
    while (len(receiver.took["metrics"]) < 3 or len(receiver.logs()) < 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    use(runs, "late", 1, now_ms() + 20_000)
    while len(receiver.logs()) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    sent_once(receiver, 6)
    other = Exporter(runs)
    assert other.hold()
    other.close()


@pytest.mark.alone
def test_a_failing_endpoint_does_not_slow_a_commit(exporter: Exporter, receiver: Receiver, runs: Ledger) -> None:
    """While an export hangs, runs are committed as ever."""
    receiver.delay_s = 3
    thread = threading.Thread(target=exporter.once)
    thread.start()
    time.sleep(0.2)
    start = time.monotonic()
    use(runs, "meanwhile", 1, now_ms() + 20_000)
    assert time.monotonic() - start < 2
    assert thread.is_alive()
    thread.join()


@pytest.mark.parametrize(
    ("env", "on"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, ["metrics", "traces", "logs"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318", "OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}, ["metrics"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318/v1/traces"}, ["traces"]),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, ["metrics"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318", "OTEL_METRICS_EXPORTER": "prometheus"}, ["traces", "logs"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318", "OTEL_SDK_DISABLED": "true"}, []),
    ],
)
def test_the_environment_switches_signals(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], on: list[Signal]) -> None:
    """Nothing configured is off; none switches off; otlp without an endpoint means the default one."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert [s for s in otlp.SIGNALS if otlp.configured(s)] == on


def test_protocols_by_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """http/protobuf unless said otherwise, for all or for one."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    made: dict[str, Any] = {s: otlp.make_exporter(s) for s in otlp.SIGNALS}
    assert [".grpc." in type(made[s]).__module__ for s in otlp.SIGNALS] == [False, True, False]
    for exporter in made.values():
        exporter.shutdown()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", 'OTEL_EXPORTER_OTLP_PROTOCOL "http/json" is not one of grpc, http/protobuf'),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "x", 'OTEL_EXPORTER_OTLP_METRICS_PROTOCOL "x" is not one of grpc, http/protobuf'),
    ],
)
def test_a_variable_without_meaning_is_named(runs: Ledger, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    """A ConfigError names it, before anything is sent."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as e:
        Exporter(runs)
    assert str(e.value) == said


def test_an_interval_without_meaning_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds above 0."""
    assert export.interval_s() == 60
    for bad in ("0", "1s", "-5"):
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", bad)
        with pytest.raises(ConfigError, match=f'OTEL_METRIC_EXPORT_INTERVAL "{bad}"'):
            export.interval_s()


def test_without_configuration_nothing_is_sent_or_shown(runs: Ledger) -> None:
    """No exporter, no lease, no gauges, and the loop ends at once."""
    exporter = Exporter(runs)
    assert not exporter.on
    exporter.loop(threading.Event())
    assert exporter.once().signals == {}
    assert exposition(runs, "scrape").gauge(m.EXPORT_FAILURES) == []
