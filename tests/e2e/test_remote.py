"""Many hosts and one ledger: real wrappers that post to a real daemon, and two daemons over one PostgreSQL ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from procs import Daemon, get, stopping, wait_for
from tests import otlp_receiver
from tests.fakecli.harness import CASES, CLAUDE, SRC
from tests.replay import clone

from spendmeter.config import Settings
from spendmeter.ingest import ingest_paths
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import report
from spendmeter.ledger.verify import verify
from spendmeter.records import Tags
from spendmeter.runner.spool import spool_dirs

pytestmark = pytest.mark.e2e
HOSTS = 6
on_postgres = pytest.mark.parametrize("new_url", ["postgresql"], indirect=True)


class Host:
    """A machine of its own, as far as files go: a home with no ledger."""

    def __init__(self, folder: Path, remote: str, seed: str, **env: str) -> None:
        self.home, self.case = folder / seed, clone(CASES / "json-subagent", folder / f"{seed}-case", seed)
        self.home.mkdir(parents=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPENDMETER_", "OTEL_", "CLAUDE"))}
        self.env = kept | {"HOME": str(self.home), "PYTHONPATH": str(SRC), "SPENDMETER_REMOTE": remote, "FAKE_CASE": str(self.case)} | env
        self.remote = remote

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "spendmeter", *words],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def run(self, agent: str, task: str) -> subprocess.CompletedProcess[str]:
        return self.call("run", "--agent", agent, "--task", task, "--", CLAUDE, "-p", "x")

    def waiting(self) -> int:
        return sum(len(list(folder.glob("*.json"))) for folder in spool_dirs(self.remote, self.env))


def counted(url: str, **headers: str) -> list[str]:
    """Every counter that a daemon shows, but what tells of itself."""
    return sorted(
        x for x in get(f"{url}/metrics", headers).splitlines() if "_total{" in x or x.startswith("spendmeter_run_duration_seconds")
    )


def serving(url: str, log: Path, *flags: str, **env: str) -> Daemon:
    """A daemon over the ledger at *url* that shows usage at once."""
    settings = {"SPENDMETER_LEDGER": url, "SPENDMETER_METRICS_ZERO_FIRST": "0", "SPENDMETER_METRICS_SETTLE": "0", "PYTHONPATH": str(SRC)}
    return Daemon(os.environ | settings | env, log, *flags)


@on_postgres
def test_hosts_that_post_while_the_daemon_is_killed_lose_and_double_nothing(tmp_path: Path, new_url: Callable[[], str]) -> None:
    """Five hosts run at once, the daemon is shot, a sixth runs: the central ledger is in the end as if it had read every host's files."""
    url = new_url()
    daemon = serving(url, tmp_path / "serve.log")
    hosts = [Host(tmp_path / "hosts", daemon.url, f"host{i}") for i in range(HOSTS)]
    with stopping(daemon), ThreadPoolExecutor(HOSTS) as pool:
        daemon.start()
        shot = threading.Timer(1.5, daemon.kill)
        shot.start()
        done = list(pool.map(lambda h: h.run("developer", "T-1"), hosts[1:]))
        shot.join()
        done.append(hosts[0].run("developer", "T-1"))
        assert "kept in" in done[-1].stderr
        assert {r.returncode for r in done} == {0}
        daemon.start()
        sent = list(pool.map(lambda h: json.loads(h.call("send", "--json").stdout), hosts))
        assert [(s["waiting"], s["problem"]) for s in sent] == [(0, None)] * HOSTS
        with closing(Ledger(Settings(url))) as ledger:
            got = report(ledger, ["agent", "task", "model"]).as_dict()
            assert verify(ledger) == []
        with closing(Ledger(Settings(f"sqlite:///{tmp_path}/expected.db", settle_s=0))) as expected:
            for host in hosts:
                ingest_paths(expected, [str(host.case)], tags=Tags("developer", "T-1"))
            want = report(expected, ["agent", "task", "model"]).as_dict()
    assert [host.waiting() for host in hosts] == [0] * HOSTS
    assert list((tmp_path / "hosts").rglob("*.db")) == []
    assert got == want


def test_a_token_with_the_scope_write_is_what_it_takes(tmp_path: Path) -> None:
    """Without one, or with one for reading, the run waits and a line says what to do; with one it goes."""
    daemon = serving(f"sqlite:///{tmp_path}/ledger.db", tmp_path / "serve.log", "--require-token")
    host = Host(tmp_path, daemon.url, "host")

    def token(scope: str) -> str:
        words = [sys.executable, "-m", "spendmeter", "token", "create", scope, "--scope", scope]
        return subprocess.run(words, env=daemon.env, capture_output=True, text=True, check=True).stdout.strip()

    secrets = {scope: token(scope) for scope in ("read", "write")}
    with stopping(daemon):
        daemon.start()
        assert "answered 401" in (said := host.run("developer", "T-1").stderr)
        assert "SPENDMETER_TOKEN" in said
        host.env["SPENDMETER_TOKEN"] = secrets["read"]
        assert "scope write" in host.call("send").stderr
        assert host.waiting() == 1
        host.env["SPENDMETER_TOKEN"] = secrets["write"]
        assert host.call("send").stdout == "1 sent, 0 waiting\n"
        assert any('task="T-1"' in line for line in counted(daemon.url, authorization=f"Bearer {token('metrics')}"))
    assert not any(secret in (tmp_path / "serve.log").read_text() for secret in secrets.values())


@pytest.fixture
def receiver() -> Iterator[tuple[otlp_receiver.Receiver, str]]:
    made = otlp_receiver.Receiver()
    for url in otlp_receiver.http(made):
        yield made, url


def exporters(receiver: otlp_receiver.Receiver, since: int) -> set[str]:
    """Which daemons have sent anything after the first *since* requests."""
    with receiver.lock:
        return {found["x-daemon"] for found in receiver.metadata[since:]}


def exported(receiver: otlp_receiver.Receiver) -> dict[str, Any]:
    """The newest sums of what was sent, by name and labels."""
    out: dict[str, Any] = {}
    for metric in receiver.metrics():
        for point in metric.sum.data_points:
            labels = sorted((k, str(v)) for k, v in otlp_receiver.attributes(point).items())
            out[f"{metric.name} {labels}"] = point.as_int or point.as_double
    return out


def shown(lines: list[str]) -> dict[str, float]:
    """Samples of a scrape, by name and labels."""
    return {name: float(value) for name, value in (line.partition(" # ")[0].rsplit(" ", 1) for line in lines)}


def tokens_in(found: dict[str, Any]) -> float:
    """Their sum, whichever way the metric's name is written."""
    return sum(value for name, value in found.items() if name.startswith(("spendmeter.tokens_in ", "spendmeter_tokens_in_total")))


@on_postgres
def test_of_two_daemons_over_one_ledger_both_show_and_one_sends(
    tmp_path: Path, new_url: Callable[[], str], receiver: tuple[otlp_receiver.Receiver, str]
) -> None:
    """Equal counters on both; all OTLP comes from one; when that is shot the other goes on within the lease, from the same values."""
    took, endpoint = receiver
    url = new_url()
    otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
    daemons = {n: serving(url, tmp_path / f"{n}.log", OTEL_EXPORTER_OTLP_HEADERS=f"x-daemon={n}", **otlp) for n in ("a", "b")}
    with stopping(*daemons.values()):
        for daemon in daemons.values():
            daemon.start()
        for i, daemon in enumerate(daemons.values()):
            assert Host(tmp_path, daemon.url, f"host{i}").run("developer", f"T-{i}").stderr == ""
        a, b = (counted(daemon.url) for daemon in daemons.values())
        assert a == b
        assert {t for t in ("T-0", "T-1") if any(f'task="{t}"' in line for line in a)} == {"T-0", "T-1"}
        wait_for(lambda: len(took.spans()) > 1 and tokens_in(exported(took)) == tokens_in(shown(a)) > 0, "one of them sends all of it")
        (first,) = exporters(took, 0)
        before, since = exported(took), took.requests
        daemons[first].kill()
        (second,) = {"a", "b"} - {first}
        wait_for(lambda: len(exporters(took, since)) and took.requests > since + 2, "the other takes over")
        assert exporters(took, since + 1) == {second}
        assert exported(took) == before
        assert counted(daemons[second].url) == a
    spans = [bytes(s.span_id) for s in took.spans()]
    assert len(spans) == len(set(spans))
