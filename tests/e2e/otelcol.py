"""A real OpenTelemetry Collector for tests: find or build it, run it on free ports, stop it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "collector-config.yaml"
OUTSIDE = dict(os.environ)  # as it was at import: fixtures give tests another HOME, where no Go cache is
START_S = 120.0
STOP_S = 60.0

# A backend: takes OTLP over HTTP and gRPC and writes what it got as JSON lines.
BACKEND = """
receivers:
  otlp: {protocols: {http: {endpoint: "${env:COLLECTOR_OTLP_HTTP}"}, grpc: {endpoint: "${env:COLLECTOR_OTLP_GRPC}"}}}
exporters:
  file: {path: "${env:BACKEND_FILE}", append: true, flush_interval: 50ms}
extensions:
  health_check: {endpoint: "${env:COLLECTOR_HEALTH}"}
service:
  extensions: [health_check]
  telemetry: {metrics: {level: none}}
  pipelines:
    traces: {receivers: [otlp], exporters: [file]}
    logs: {receivers: [otlp], exporters: [file]}
"""


@functools.cache
def _build() -> tuple[str, str]:
    """The binary's path, or "" and the reason."""
    done = subprocess.run([ROOT / "scripts" / "build_otelcol.sh"], env=OUTSIDE, capture_output=True, text=True, check=False)
    return (done.stdout.strip(), "") if done.returncode == 0 else ("", done.stderr.strip()[-2000:])


def binary() -> str:
    """The collector to test with; without one, an error in CI and a named skip elsewhere."""
    path, reason = _build()
    if not path and OUTSIDE.get("CI") == "true":
        pytest.fail(f"otelcol: no collector in CI: {reason}", pytrace=False)
    if not path:
        pytest.skip(f"otelcol: no collector on this machine: {reason}")
    return path


@dataclass(frozen=True, slots=True)
class Collector:
    """A running collector; ``env`` holds its addresses, enough to start the same one again."""

    process: subprocess.Popen[bytes]
    env: Mapping[str, str]
    log_path: Path

    @property
    def http(self) -> str:
        """Base URL of OTLP over HTTP."""
        return f"http://{self.env['COLLECTOR_OTLP_HTTP']}"

    @property
    def grpc(self) -> str:
        """URL of OTLP over gRPC."""
        return f"http://{self.env['COLLECTOR_OTLP_GRPC']}"

    def log(self) -> str:
        """What the collector itself printed."""
        return self.log_path.read_text(errors="replace")

    def page(self) -> str:
        """The text of its Prometheus endpoint."""
        with urllib.request.urlopen(f"http://{self.env['COLLECTOR_PROMETHEUS']}/metrics", timeout=60) as answer:
            return str(answer.read().decode())

    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Its Prometheus endpoint: sample name -> (labels, value) in page order."""
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(self.page()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def kill(self) -> None:
        """SIGKILL: no shutdown code runs."""
        self.process.kill()
        self.process.wait()


def _addresses(given: Mapping[str, str], state: str) -> dict[str, str]:
    names = ("OTLP_GRPC", "OTLP_HTTP", "PROMETHEUS", "HEALTH")
    free = {f"COLLECTOR_{name}": f"127.0.0.1:{free_port()}" for name in names}
    return {**free, "COLLECTOR_SELF_PORT": str(free_port()), "COLLECTOR_STATE_DIR": state, **given}


def _await_health(process: subprocess.Popen[bytes], address: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"otelcol ended with {process.returncode}:\n{log_path.read_text()[-4000:]}")
        try:
            urllib.request.urlopen(f"http://{address}", timeout=1).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"otelcol not healthy after {START_S} s:\n{log_path.read_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running(config: Path | Sequence[Path], env: Mapping[str, str] | None = None) -> Iterator[Collector]:
    """Run a collector until the block ends.

    Args:
        config: One config file, or several where later ones are merged over earlier ones.
        env: Values for ``${env:...}``; what is missing gets a free port or a temporary directory.
    """
    files = [config] if isinstance(config, Path) else list(config)
    flags = [flag for file in files for flag in ("--config", str(file))]
    clean = {name: value for name, value in OUTSIDE.items() if not name.startswith(("COLLECTOR_", "OTEL_"))}
    with tempfile.TemporaryDirectory(prefix="otelcol-") as directory:
        settings = _addresses(env or {}, f"{directory}/state")
        log_path = Path(directory) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen([binary(), *flags], env={**clean, **settings}, cwd=directory, stdout=log, stderr=log)
        try:
            _await_health(process, settings["COLLECTOR_HEALTH"], log_path)
            yield Collector(process, settings, log_path)
        finally:
            _stop(process)


@contextmanager
def backend(directory: Path, env: Mapping[str, str] | None = None) -> Iterator[Collector]:
    """Run a second collector as a traces and logs backend; it appends what it gets to ``directory/got.json``."""
    config = directory / "backend.yaml"
    config.write_text(BACKEND)
    with running(config, {"BACKEND_FILE": str(directory / "got.json"), **(env or {})}) as collector:
        yield collector
