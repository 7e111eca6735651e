"""The daemon as a process: start, end, and what happens to others meanwhile."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sqlalchemy import select

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report
from tests.fakecli.harness import until
from tests.replay import clone
from tests.runs import FIELDS, ROOT, Chain

CASE = ROOT / "claude" / "json-tool"
WRITER = """
import sys
from spendmeter.config import load
from spendmeter.ingest import ingest_paths
from spendmeter.ledger import Ledger
from spendmeter.records import Tags
ledger = Ledger(load())
for path in sys.argv[1:]:
    ingest_paths(ledger, [path], tags=Tags("writer-" + str(hash(path) % 3), "T-" + str(hash(path) % 5)))
"""


class Daemon:
    """``spendmeter serve`` on a port that it chose itself."""

    def __init__(self, url: str, *args: str, **env: str) -> None:
        settings = {"SPENDMETER_LEDGER": url, "SPENDMETER_METRICS_ZERO_FIRST": "1", "SPENDMETER_METRICS_SETTLE": "0"}
        self._log = Path(url.removeprefix("sqlite:///")).with_name("serve.log")
        self._command = [sys.executable, "-m", "spendmeter", "serve", "--port", "0", *args]
        self._env = os.environ | settings | env
        self.start()

    @property
    def said(self) -> list[str]:
        """What it wrote on standard error."""
        return self._log.read_text().splitlines()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        before = len(self.said) if self._log.exists() else 0
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, env=self._env, stderr=log)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.05)
            if found := re.search(r"metrics +(http://\S+)/metrics", "\n".join(self.said[before:])):
                self.url = found[1]
                with contextlib.suppress(urllib.error.URLError):
                    if get(f"{self.url}/healthz") == "ok\n":
                        return
        pytest.fail(f"it does not answer: {self.said}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def get(url: str, headers: Mapping[str, str] | None = None) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=60) as r:
        return str(r.read().decode())


def counters(page: str) -> dict[str, float]:
    """Samples of counters by name and labels."""
    return {k: float(v) for k, v in (x.rsplit(" ", 1) for x in page.splitlines() if re.match(r"\w+_total\{", x))}


def tokens(page: str) -> dict[str, int]:
    """Sums of the token counters over all labels."""
    out = dict.fromkeys(("tokens_in", "cache_read", "tokens_out"), 0)
    for name, value in counters(page).items():
        if (short := name.partition("{")[0].removeprefix("spendmeter_").removesuffix("_total")) in out:
            out[short] += int(value)
    return out


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@contextlib.contextmanager
def running(url: str, *args: str, **env: str) -> Iterator[Daemon]:
    daemon = Daemon(url, *args, **env)
    try:
        yield daemon
    finally:
        with contextlib.suppress(Exception):
            daemon.process.kill()
            daemon.process.wait()


def ingest(url: str, *paths: Path) -> None:
    """Takes *paths* in, for the counters at once."""
    env = os.environ | {"SPENDMETER_LEDGER": url, "SPENDMETER_METRICS_SETTLE": "0"}
    command = [sys.executable, "-m", "spendmeter", "ingest", "--agent", "a", "--task", "t", *map(str, paths)]
    subprocess.run(command, env=env, check=True, capture_output=True)


def serve(url: str, *args: str) -> tuple[int, list[str]]:
    """(exit code, lines on standard error) of a daemon that cannot start."""
    env = os.environ | {"SPENDMETER_LEDGER": url}
    done = subprocess.run(
        [sys.executable, "-m", "spendmeter", "serve", *args], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.alone
def test_it_says_where_it_is_and_ends_cleanly(url: str, number: int) -> None:
    """Addresses at the start, code 0 and not a word at the end, no line for any request in between."""
    with running(url) as daemon:
        for path in ("/", "/metrics", "/api/v1/report", "/runs"):
            get(daemon.url + path)
        hello = len(daemon.said)
        with socket.create_connection(("127.0.0.1", int(daemon.url.rpartition(":")[2]))):  # an idle connection does not hold it up
            began = time.monotonic()
            assert daemon.end(number) == 0
            assert time.monotonic() - began < 8
        text = "\n".join(daemon.said) + "\n"
        assert f"page     {daemon.url}/\n" in text
        assert "shown at 0 for 1 s" in text
        assert daemon.said[hello:] == []


def test_a_taken_port_is_one_line(url: str) -> None:
    """And exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = serve(url, "--port", str(port))
    why = "Address already in use; stop what listens there, or choose another port with --port"
    assert (code, said) == (1, [f"spendmeter: cannot listen on 127.0.0.1 port {port}: {why}"])


@pytest.mark.parametrize(
    ("flag", "value", "why"),
    [
        ("--ledger", "sqlite:////proc/none/ledger.db", "ledger sqlite:////proc/none/ledger.db"),
        ("--ledger", "postgresql://127.0.0.1:1/none", "ledger postgresql://127.0.0.1:1/none"),
        ("--host", "no.such.host.invalid", "is not known"),
    ],
)
def test_what_hinders_the_start_is_one_line(url: str, flag: str, value: str, why: str) -> None:
    """And exit code 1."""
    code, said = serve(url, "--port", "0", "--insecure-no-token", flag, value)
    assert (code, len(said)) == (1, 1)
    assert why in said[0]


@pytest.mark.alone
def test_scrapes_do_not_wait_for_writers(url: str, tmp_path: Path) -> None:
    """While four processes write, every scrape comes within a second and no counter falls; in the end the page is the ledger."""
    cases = [clone(CASE, tmp_path / "cases" / str(i), str(i)) for i in range(48)]
    env = os.environ | {"SPENDMETER_LEDGER": url, "SPENDMETER_METRICS_SETTLE": "0"}
    with running(url) as daemon:
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, *map(str, cases[w::4])], env=env) for w in range(4)]
        took, last = [], dict[str, float]()
        while any(w.poll() is None for w in writers):
            began = time.monotonic()
            now = counters(get(f"{daemon.url}/metrics", {"accept-encoding": "identity"}))
            took.append(time.monotonic() - began)
            assert all(now.get(k, 0) >= v for k, v in last.items())
            last = now
            time.sleep(0.02)
        assert [w.returncode for w in writers] == [0, 0, 0, 0]
        assert len(took) > 10
        assert sorted(took)[int(len(took) * 0.9)] < 1, took
        assert max(took) < 3, took
        get(f"{daemon.url}/metrics")
        time.sleep(1.1)
        page = get(f"{daemon.url}/metrics")
    truth = Chain("claude", (CASE,)).truth(least=False)
    assert tokens(page) == {k: v * len(cases) for k, v in truth.items() if k in ("tokens_in", "cache_read", "tokens_out")}


def was_shown(url: str) -> bool:
    """Whether the ledger has a note that a series was on a page."""
    with contextlib.closing(Ledger(Settings(url))) as ledger, ledger.read() as conn:
        return conn.execute(select(t.series).where(t.series.c.shown_ms.is_not(None))).first() is not None


def test_kill_minus_nine_keeps_totals_and_zero_first(url: str) -> None:
    """What had been shown stays at its value; what was shown at 0 before the kill need not wait again from the start."""
    ingest(url, CASE)
    with running(url) as daemon:
        first = counters(get(f"{daemon.url}/metrics"))
        assert set(first.values()) == {0.0}
        until(lambda: was_shown(url))  # the note of it is made once the page has gone
        daemon.process.kill()
        daemon.process.wait()
        time.sleep(1)
        daemon.start()
        second = counters(get(f"{daemon.url}/metrics"))
        truth = Chain("claude", (CASE,)).truth(least=False)
        assert sum(v for k, v in second.items() if k.startswith("spendmeter_tokens_out_total")) == truth["tokens_out"]
        daemon.process.kill()
        daemon.process.wait()
        daemon.start()
        assert counters(get(f"{daemon.url}/metrics")) == second
        assert daemon.end() == 0


def test_an_unsettled_run_is_counted_without_a_scrape(url: str) -> None:
    """The daemon settles what is due by itself."""
    env = {"SPENDMETER_METRICS_SETTLE": "1"}
    with running(url, **env) as daemon:
        case = [sys.executable, "-m", "spendmeter", "ingest", str(CASE / "stdout")]
        subprocess.run(case, env=os.environ | {"SPENDMETER_LEDGER": url} | env, check=True, capture_output=True)
        deadline = time.monotonic() + 60
        while json.loads(get(f"{daemon.url}/api/v1/ledger"))["unsettled"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    ledger = Ledger(Settings(url))
    assert report(ledger, []).total.runs == 1
    ledger.close()


@pytest.mark.alone
def test_slow_clients_hold_no_one_up(url: str) -> None:
    """Connections that say nothing, or never read, leave scrapes alone."""
    ingest(url, CASE)
    with running(url) as daemon, contextlib.ExitStack() as open_:
        port = int(daemon.url.rpartition(":")[2])
        for i in range(60):
            sock = open_.enter_context(socket.create_connection(("127.0.0.1", port)))
            if i % 2:
                sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        began = time.monotonic()
        assert "spendmeter_build_info" in get(f"{daemon.url}/metrics")
        assert time.monotonic() - began < 5
        assert daemon.end() == 0


def test_garbage_is_refused_and_not_logged(url: str) -> None:
    """No bytes of a request reach the log."""
    with running(url) as daemon:
        port = int(daemon.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"SECRET \xff\xfe nonsense\r\n\r\n")
            assert b"400" in sock.recv(1000)
        request = urllib.request.Request(f"{daemon.url}/api/v1/report?since=SECRET", data=b"SECRET", method="POST")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=5)
        assert daemon.end() == 0
        assert "SECRET" not in "\n".join(daemon.said)


@pytest.mark.alone
def test_a_dead_otlp_endpoint_does_not_keep_it_from_ending(url: str) -> None:
    """Nor from answering."""
    ingest(url, CASE)
    with running(url, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") as daemon:
        assert "OTLP is on" in "\n".join(daemon.said)
        get(f"{daemon.url}/metrics")
        time.sleep(1)
        began = time.monotonic()
        assert daemon.end() == 0
        assert time.monotonic() - began < 10


def test_it_sends_where_an_endpoint_is_set(url: str) -> None:
    """Metrics, spans and events reach a receiver without anyone asking."""
    got: set[str] = set()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            got.add(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    ingest(url, CASE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        with running(url, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{receiver.server_port}") as daemon:
            deadline = time.monotonic() + 60
            while got < {"/v1/metrics", "/v1/traces", "/v1/logs"}:
                assert time.monotonic() < deadline, (got, daemon.said)
                time.sleep(0.1)
            assert daemon.end() == 0
        receiver.shutdown()


def test_the_demo_is_one_command(tmp_path: Path) -> None:
    """It takes the sample into a ledger of its own and, with ``load``, does no more; twice changes nothing."""
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for said in ("taken in from 15 files", "was there already"):
        done = subprocess.run(
            [sys.executable, "-m", "spendmeter.demo", "load"], env=env, capture_output=True, text=True, timeout=60, check=True
        )
        assert said in done.stderr
    ledger = Ledger(Settings(f"sqlite:///{tmp_path}/cache/spendmeter/demo/ledger.db"))
    total = report(ledger, []).total
    assert {name: getattr(total, name) for name in FIELDS}["tokens_out"] == 1883
    ledger.close()
