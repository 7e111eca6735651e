"""Real processes for end-to-end tests: the daemon and Prometheus, on ports of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.ports import free_port

from spendmeter import metrics as m
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.records import usd

PATIENCE_S = 120  # how long a busy machine may take for anything


def get(url: str, headers: Mapping[str, str] | None = None) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=60) as r:
        return str(r.read().decode())


def wait_for(what: Callable[[], object], why: str) -> None:
    """Until *what* gives a true value."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if what():
                return
        time.sleep(0.1)
    pytest.fail(f"not within {PATIENCE_S} s: {why}")


def part(name: str) -> str:
    """The path of an installed program; missing, it fails in CI and skips by name elsewhere."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: CI runs the real part")
        pytest.skip(f"{name} is missing: make parts installs it")
    return found


class Daemon:
    """``spendmeter serve`` that can be killed and started again."""

    def __init__(self, env: Mapping[str, str], log: Path, *flags: str) -> None:
        self.env, self.log, self.port, self._flags = dict(env), log, free_port(), flags
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "spendmeter", "serve", "--port", str(self.port), *self._flags]
            self._process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        wait_for(lambda: get(f"{self.url}/healthz"), f"serve answers; see {self.log.read_text()[-500:]}")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=60)


class Prometheus:
    """Debian's Prometheus with one scrape target, and the rules of one file."""

    def __init__(self, folder: Path, target: str, path: str = "/metrics", rules: Path | None = None, more: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
            f"rule_files: {json.dumps([str(rules)] if rules else [])}\n"
            f"scrape_configs: [{{job_name: spendmeter, metrics_path: {path}, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{self.port}", *more]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen([part("prometheus"), *flags], stdout=log, stderr=log)
        wait_for(lambda: get(f"{self.url}/-/ready"), "Prometheus is ready")

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Instant query: labels (without job and instance) -> value."""
        body = json.loads(get(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
        assert body["status"] == "success"
        return {_labels(r["metric"]): float(r["value"][1]) for r in body["data"]["result"]}

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)


class AlertingPrometheus(Prometheus):
    """Prometheus that tells an Alertmanager of the alerts in *rules*."""

    def __init__(self, folder: Path, target: str, rules: Path, alertmanager: Alertmanager) -> None:
        super().__init__(folder, target, rules=rules)
        with (folder / "prometheus.yml").open("a") as config:
            config.write(f"alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager.address}']}}]}}]}}\n")
        self._process.send_signal(signal.SIGHUP)

    def evaluated(self) -> bool:
        """Whether each group of rules has been evaluated since it was loaded."""
        groups = json.loads(get(f"{self.url}/api/v1/rules"))["data"]["groups"]
        return bool(groups) and all(g["evaluationTime"] for g in groups)


class Alertmanager:
    """Debian's Alertmanager, with the configuration at *config*."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        flags = [f"--config.file={config}", f"--storage.path={folder / 'alertmanager'}", f"--web.listen-address={self.address}"]
        with (folder / "alertmanager.log").open("wb") as log:
            self._process = subprocess.Popen([part("prometheus-alertmanager"), *flags, "--cluster.listen-address="], stdout=log, stderr=log)
        wait_for(lambda: get(f"{self.url}/-/ready"), "Alertmanager is ready")

    def alerts(self) -> list[dict[str, Any]]:
        """What it holds now, inhibited ones too."""
        return list(json.loads(get(f"{self.url}/api/v2/alerts")))

    def post(self, alerts: list[dict[str, str]]) -> None:
        """Tells it of firing alerts, each given by its labels."""
        body = json.dumps([{"labels": labels} for labels in alerts]).encode()
        request = urllib.request.Request(f"{self.url}/api/v2/alerts", body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=60).close()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)


def _labels(metric: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, v) for k, v in metric.items() if k not in ("job", "instance", "__name__")))


@contextlib.contextmanager
def stopping(*things: Daemon | Prometheus | Alertmanager) -> Iterator[None]:
    """Stops everything at the end."""
    try:
        yield
    finally:
        for thing in things:
            with contextlib.suppress(Exception):
                thing.stop()


Series = tuple[str, tuple[tuple[str, str], ...]]  # sample name, labels


def counters(ledger: Ledger) -> dict[Series, float]:
    """Value of every counter, from the ledger itself."""
    out = {}
    with ledger.read() as conn:
        for r in conn.execute(select(t.series)):
            metric = m.ALL.get(r.family)
            if metric is not None and metric.kind == "counter":
                labels = tuple(sorted(zip(metric.labels, json.loads(r.labels), strict=True)))
                out[metric.sample, labels] = float(usd(r.value)) if metric.money else float(r.value)
    return out
