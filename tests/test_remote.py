"""Runs that go to a central daemon: what is on the wire, what the daemon takes, and what a host does when it does not answer."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from starlette.testclient import TestClient

from spendmeter.cli import main
from spendmeter.config import Settings
from spendmeter.ingest import batch_of, run_batch
from spendmeter.ledger import Batch, Ledger, Process
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report, runs
from spendmeter.ledger.verify import verify
from spendmeter.parsers import read_file
from spendmeter.records import Call, Claim, Skip, Tags, Usage, total
from spendmeter.runner import remote, wire
from spendmeter.runner.args import UsageError, daemon_url, parse
from spendmeter.runner.finished import FinishedRun
from spendmeter.runner.spool import spool_dirs, write_pending
from spendmeter.server import app
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers
from tests.fakecli.harness import CASES, CLAUDE, TESTS, Wrapper, until
from tests.runs import Chain, all_chains, amounts, observe

SECRET = "SECRET-PROMPT"
RUNAWAY = TESTS / "fakecli" / "runaway"
HOME = "http://127.0.0.1:9464"
RUN = "0123456789abcdef" * 2
CALL = Call("claude", "req_1", "s1", Usage(tokens_in=5, tokens_out=7), "claude-sonnet-4-5", "claude-sonnet-4-5", 1_763_800_000_000)
CLAIM = Claim("claude", "s1", "run:r1", Tags("developer", "T-1", {"plan": "book"}), "r1")
PROCESS = Process(
    "claude", "s1", "r1", RUN, 0, None, 1_763_800_000_000, 1_763_800_001_000, RUN, RUN[:16], None, "shop", "main", "abc", ["n"]
)
CALL_DOC = {"cli": "claude", "session": "s1", "asked": "claude-opus-4-1"}
BASE = {"cli": "claude", "session": "s1", "kind": "stated", "source": "", "by_model": [["m", [10**13]]]}
BATCH = Batch([CALL], [CLAIM], [PROCESS], settled=True, seen_ms=1_763_800_001_000)
NewUrl = Callable[[], str]


def document(**changes: Any) -> dict[str, Any]:
    """What is on the wire of BATCH, with *changes*."""
    return json.loads(wire.unzipped(wire.pack(BATCH))) | changes


def changed(part: str, **changes: Any) -> dict[str, Any]:
    """The same with changes to the one item of *part*."""
    doc = document()
    (item,) = doc[part]
    (item[1] if part == "observations" else item).update(changes)
    return doc


def dump(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    """Every row of what the ledger knows of usage."""
    with ledger.read() as conn:
        tables = [x for x in t.META.sorted_tables if x.name not in ("meta", "series", "tasks", "tokens", "stale_hours")]
        return {x.name: sorted((tuple(r) for r in conn.execute(select(x))), key=repr) for x in tables}


@pytest.fixture
def central(new_url: NewUrl) -> Iterator[tuple[TestClient, Ledger]]:
    """A daemon's application over an empty ledger on each database, and that ledger."""
    book = Book(Settings(new_url(), zero_first_s=0, settle_s=0))
    with closing(book), TestClient(app.create_app(book, Workers(book)), base_url=HOME) as client:
        yield client, book.ledger()


def send(client: TestClient, body: bytes, **headers: str) -> Any:
    return client.post(wire.PATH, content=body, headers={"content-type": "application/json"} | headers)


@pytest.mark.parametrize("chain", all_chains(), ids=lambda c: c.name)
def test_everything_that_a_parser_tells_survives_the_wire(chain: Chain) -> None:
    """Every captured run of every CLI comes out as it went in, but for the folders of skipped files."""
    told = observe([*chain.stdouts(), *chain.files()])
    batch = wire.unpack(wire.unzipped(wire.pack(Batch(told, [CLAIM], [PROCESS], settled=True, seen_ms=5))))
    assert batch == Batch([replace(o, source=Path(o.source).name) if isinstance(o, Skip) else o for o in told], [CLAIM], [PROCESS], True, 5)


def test_neither_text_nor_folders_are_on_the_wire(tmp_path: Path) -> None:
    """Of a run whose transcript holds a secret and lies in a folder with a name, neither is sent; nor is a reservation's name."""
    folder = tmp_path / "customer-x" / "projects" / "p"
    folder.mkdir(parents=True)
    source = next((CASES / "json-single" / "home").rglob("*.jsonl"))
    path = folder / source.name
    path.write_text(source.read_text() + json.dumps({"type": "user", "message": {"content": SECRET}}) + '\n{"type":"assistant" ' + SECRET)
    run = FinishedRun(RUN, Tags(), "claude", 0, None, 1, 2, RUN, RUN[:16], sessions={path.stem}, files=[(path, 0)])
    sent = wire.unzipped(wire.pack(run_batch(run)[0])).decode()
    assert '"Skip"' in sent
    assert [word for word in (SECRET, "customer-x", "releases", "sources") if word in sent] == []


def test_a_batch_is_committed_once_however_often_it_comes(central: tuple[TestClient, Ledger]) -> None:
    """The answer names the run; the same batch again is answered likewise and changes no row."""
    client, ledger = central
    first = send(client, wire.pack(BATCH), **{"content-encoding": "gzip"})
    before = dump(ledger)
    again = send(client, wire.unzipped(wire.pack(BATCH)))
    assert (first.status_code, first.json()) == (200, {"run_key": "r1", "sessions": 1, "changed": 1})
    assert (again.status_code, again.json()) == (200, {"run_key": "r1", "sessions": 1, "changed": 0})
    assert dump(ledger) == before
    (line,) = runs(ledger)
    told = line.as_dict()
    assert [told[k] for k in ("agent", "task", "tokens_in", "tokens_out", "cost_usd")] == ["developer", "T-1", 5, 7, "0.000120"]


@pytest.mark.parametrize("chain", [c for c in all_chains() if "resume" in c.name], ids=lambda c: c.name)
def test_the_central_ledger_is_the_one_that_the_host_would_have(chain: Chain, tmp_path: Path) -> None:
    """Sent run by run, and the runs in the opposite order with repetitions, it holds what a ledger of the host's own holds."""
    batches = []
    for i, folder in enumerate(chain.folders):
        one = Chain(chain.cli, (folder,))
        files = [read_file(p, chain.cli) for p in [*one.stdouts(), *one.transcripts()]]
        sessions = {s for _, stream in files for s in stream.sessions}
        run = FinishedRun(f"{i:032x}", Tags("dev", f"T-{i}"), chain.cli, 0, None, i, i + 1, RUN, RUN[:16], sessions=sessions)
        run.observations = [o for found, _ in files for o in found]
        batches.append(batch_of(run, [])[0])
    ledgers = []
    for name, order in (("host", batches), ("central", [*reversed(batches), *batches])):
        with closing(Ledger(Settings(f"sqlite:///{tmp_path}/{name}.db", settle_s=0))) as ledger:
            for batch in order:
                ledger.commit(batch if name == "host" else wire.unpack(wire.unzipped(wire.pack(batch))))
            assert verify(ledger) == []
            ledgers.append(report(ledger, ["session", "task", "model"]).as_dict())
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize(("doc", "field"), [
    (document(version=2), "version"),
    (document(more=1), "body"),
    ([], "body"),
    (changed("observations", tokens_lost=1), "observations[0]"),
    (document(observations=[["Guess", {}]]), "observations[0]"),
    (changed("observations", usage=[-1]), "observations[0].usage"),
    (changed("observations", usage=[1 << 63]), "observations[0].usage"),
    (changed("observations", usage=[1.5]), "observations[0]"),
    (changed("observations", usage=[10**13]), "observations[0]"),
    (document(observations=[["Base", BASE]]), "observations[0]"),
    (changed("processes", exit_code=1 << 31), "processes[0]"),
    (changed("observations", usage=[1] * 9), "observations[0]"),
    (changed("observations", session=None), "observations[0]"),
    (changed("observations", session="a\0b"), "observations[0].session"),
    (changed("observations", session="x" * 3000), "observations[0].session"),
    (changed("observations", call_id=""), "observations[0].call_id"),
    (changed("observations", view="guess"), "observations[0].view"),
    (changed("observations", role="boss"), "observations[0].role"),
    (changed("observations", at_ms=-5), "observations[0].at_ms"),
    (changed("observations", at_ms=1 << 52), "observations[0].at_ms"),
    (document(observations=[["Call", {**CALL_DOC, "call_id": f"r{i}", "usage": [10**12]}] for i in range(9999)]), "observations"),
    (changed("claims", tags={"agent": "a", "task": "t", "attrs": {}, "boss": "b"}), "claims[0].tags"),
    (changed("claims", tags={"agent": "a", "task": "t", "attrs": {"k\0": "v"}}), "claims[0].tags.attrs"),
    (changed("processes", run_id="../../etc/passwd"), "processes[0].run_id"),
    (changed("processes", trace_id="zz" * 16), "processes[0].trace_id"),
    (changed("processes", password="x"), "processes[0]"),
    (document(seen_ms=-1), "seen_ms"),
])  # fmt: skip
def test_what_is_not_understood_is_refused_by_its_place(settings: Settings, doc: Any, field: str) -> None:
    """Unknown kinds and fields, numbers below 0 and texts that no database takes: 422, the field, and nothing is committed."""
    with closing(Book(settings)) as book, TestClient(app.create_app(book, Workers(book)), base_url=HOME) as client:
        answer = send(client, json.dumps(doc).encode())
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        assert [e["field"] for e in answer.json()["errors"]] == [field]
        assert book.ledger().facts_about()["sessions"] == 0


@pytest.mark.parametrize(("body", "headers", "status"), [
    (b"{}", {"content-type": "text/plain"}, 415),
    (b"{}", {"content-encoding": "br"}, 415),
    (b"{}", {}, 422),
    (b"\xff{", {}, 422),
    (b"[" * 100_000, {}, 422),
    (b"{}", {"content-encoding": "gzip"}, 422),
    (wire.pack(BATCH)[:-9], {"content-encoding": "gzip"}, 422),
    (gzip.compress(b" " * (wire.MOST_BYTES + 1)), {"content-encoding": "gzip"}, 422),
], ids=["text", "br", "empty", "bytes", "deep", "no gzip", "cut", "bomb"])  # fmt: skip
def test_a_body_that_is_no_batch_is_refused(settings: Settings, body: bytes, headers: dict[str, str], status: int) -> None:
    """Another media type or coding is a 415; what is cut short, packed too well or no JSON is a 422."""
    with closing(Book(settings)) as book, TestClient(app.create_app(book, Workers(book)), base_url=HOME) as client:
        assert send(client, body, **headers).status_code == status


_MS = re.compile(r"\b1[67]\d{11}\b")
_ISO = re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")


def shifted(case: Path, out: Path, by_ms: int) -> Path:
    """A captured run as a host would have written it whose clock is ahead by *by_ms*."""

    def iso(m: re.Match[str]) -> str:
        at = datetime.fromisoformat(m[0]) + timedelta(milliseconds=by_ms)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    for path in [p for p in case.rglob("*") if p.is_file()]:
        target = out / path.relative_to(case)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_ISO.sub(iso, _MS.sub(lambda m: str(int(m[0]) + by_ms), path.read_text())))
    return out


@pytest.mark.parametrize("hours", [-30, 7])
def test_clocks_that_differ_change_no_total(hours: int, tmp_path: Path) -> None:
    """Hosts whose clocks are hours behind or ahead: totals over all time and every counter are those of hosts whose clocks are right."""
    found = []
    for name, by_ms in (("right", 0), ("wrong", hours * 3_600_000)):
        with closing(Book(Settings(f"sqlite:///{tmp_path}/{name}.db", zero_first_s=0, settle_s=0))) as book:
            client = TestClient(app.create_app(book, Workers(book)), base_url=HOME)
            for i, case in enumerate(["json-opus", "json-subagent", "stream-json-subagent-bg", "kill-sigkill-json", "max-turns-1"]):
                folder = shifted(CASES / case, tmp_path / name / case, by_ms * (1 if i else 0))  # one host's clock is right
                body = wire.pack(run_batch(finished(folder, f"{i:032x}", f"T-{i}", by_ms))[0])
                assert send(client, body, **{"content-encoding": "gzip"}).status_code == 200
            book.ledger().fold()
            assert verify(book.ledger()) == []
            page = client.get("/metrics").text.splitlines()
            counters = sorted(x for x in page if "_total{" in x and not x.startswith("spendmeter_export"))
            found.append((counters, report(book.ledger(), ["agent", "task", "model"]).as_dict(), client.get("/api/v1/report").json()))
    assert found[0] == found[1]
    assert len(found[0][0]) > 20


def finished(folder: Path, run_id: str, task: str, by_ms: int) -> FinishedRun:
    """What a wrapper hands over of the captured run in *folder*."""
    files = sorted((folder / "home").rglob("*.jsonl"))
    told, stream = read_file(folder / "stdout", "claude")
    now = time.time_ns() // 1_000_000 + by_ms
    return FinishedRun(
        run_id, Tags("dev", task), "claude", 0, None, now - 9000, now, run_id, run_id[:16], sessions=set(stream.sessions),
        files=[(path, 0) for path in files], observations=told,
    )  # fmt: skip


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), lambda x: (
    st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["cli", "session", "usage", "tags", "kind", "at_ms"]), x, max_size=4)
), max_leaves=12)  # fmt: skip


FIELDS = sorted({*document()["claims"][0], *document()["processes"][0], *document()["observations"][0][1]})
NEARLY = st.tuples(st.sampled_from(["observations", "claims", "processes"]), st.sampled_from(FIELDS), JSON).map(
    lambda x: changed(x[0], **{x[1]: x[2]})
)


@given(st.binary(max_size=40) | (JSON | NEARLY).map(lambda v: json.dumps(v).encode()))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_a_batch_or_an_error_that_names_its_place(body: bytes) -> None:
    """Nothing else comes out of a document, whatever is in it."""
    place = ""
    try:
        found = wire.unpack(body)
    except wire.WireError as e:
        place, found = e.field, None
    assert (found is None) == bool(place)


# -- the host's side, against a server that says what a test wants ------------------------------------------------------


class Central(ThreadingHTTPServer):
    """Answers ``status`` with ``body`` after ``delay_s``; keeps each request's path, headers and body."""

    daemon_threads = True

    def __init__(self) -> None:
        self.status, self.body, self.delay_s = 200, b'{"run_key": "k", "sessions": 1, "changed": 1}', 0.0
        self.more: dict[str, str] = {}
        self.took: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Says nothing: who gave up on an answer has closed the connection."""

    def batches(self) -> list[Batch]:
        return [wire.unpack(wire.unzipped(body)) for _, _, body in self.took]


class _Handler(BaseHTTPRequestHandler):
    server: Central

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.took.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        time.sleep(self.server.delay_s)
        self.send_response(self.server.status)
        for name, value in self.server.more.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def daemon() -> Iterator[Central]:
    made = Central()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


class Host(Wrapper):
    """``spendmeter run`` of a fake claude whose runs go to the daemon at ``url``; no ledger is named."""

    url = ""

    def argv(self, *command: str, flags: tuple[str, ...] = ()) -> list[str]:
        tags = ("--agent", "dev", "--task", "T-1")
        return [sys.executable, "-m", "spendmeter", "run", *tags, "--remote", self.url, *flags, "--", *command]


@pytest.fixture
def host(tmp_path: Path, daemon: Central) -> Host:
    (tmp_path / "host").mkdir()
    made = Host(tmp_path / "host", real=True)
    made.url = daemon.url
    return made


def run(host: Host, case: str = "json-single", *flags: str, **env: str) -> Any:
    """A run of *host* that replays *case*."""
    return host.run(CLAUDE, "-p", SECRET, flags=flags, env={"FAKE_CASE": str(CASES / case)} | env)


def kept(host: Host, pattern: str = "*") -> list[Path]:
    """Files that wait for the host's daemon."""
    return [p for folder in spool_dirs(host.url, host.env) for p in folder.glob(pattern)]


def test_a_run_is_handed_over_and_nothing_of_it_stays(host: Host, daemon: Central) -> None:
    """One POST with the run's tags and its session's calls; no ledger, no spool, no prompt; output and exit code are the run's."""
    done = run(host, FAKE_EXIT="3", SPENDMETER_TOKEN="smt_x")
    assert (done.returncode, done.stdout, done.stderr) == (3, (CASES / "json-single" / "stdout").read_bytes(), b"")
    ((path, headers, body),) = daemon.took
    assert (path, headers["authorization"], headers["content-type"]) == (wire.PATH, "Bearer smt_x", "application/json")
    (batch,) = daemon.batches()
    assert ([c.tags for c in batch.claims], batch.processes[0].exit_code, batch.settled) == ([Tags("dev", "T-1", {})], 3, True)
    assert any(isinstance(o, Call) for o in batch.observations)
    assert SECRET.encode() not in wire.unzipped(body)
    assert kept(host) == []
    assert list(host.folder.rglob("*.db")) == []


@pytest.mark.parametrize("how", ["away", 500, 503, 429, 401, 403, 404, 302])
def test_a_run_that_is_not_taken_waits_and_goes_with_the_next(host: Host, daemon: Central, how: str | int) -> None:
    """Whatever may be mended: the run is kept, one line says why, and the next run that goes through takes it along."""
    if how == "away":
        daemon.server_close()
    else:
        daemon.status = int(how)
        daemon.more = {"location": "http://127.0.0.1:1/"} if how == 302 else {}
    done = run(host)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines)) == (0, 1)
    said = {"away": "Connection refused", 401: "SPENDMETER_TOKEN", 403: "scope write", 404: "as new as this one", 302: "redirect"}
    assert said.get(how, f"answered {how}") in lines[0]
    assert len(kept(host, "*.json")) == 1
    if how != "away":
        daemon.status, daemon.took = 200, []
        assert run(host, "json-tool").stderr == b""
        assert len({b.processes[0].run_id for b in daemon.batches()}) == 2
        assert kept(host, "*.json") == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_run_that_is_refused_for_good_is_set_aside(host: Host, daemon: Central, status: int) -> None:
    """It is told in one line with the daemon's own reason, is not tried again, and is still there."""
    daemon.status, daemon.body = status, b'{"detail": "version: 1 is not known"}'
    line = run(host).stderr.decode()
    assert f"answered {status}: version: 1 is not known" in line
    assert line.count("\n") == 1
    (aside,) = kept(host)
    assert aside.suffix == ".unreadable"
    assert str(aside) in line


def test_a_daemon_that_does_not_answer_holds_a_run_up_for_two_seconds(host: Host, daemon: Central) -> None:
    """Of 30 s that the answer would take, the end of the run waits 2; then the run is kept."""
    started_s = time.monotonic()
    run(host)
    quick_s = time.monotonic() - started_s
    daemon.delay_s = 30.0
    started_s = time.monotonic()
    done = run(host)
    assert time.monotonic() - started_s < quick_s + remote.LIMIT_S + 3  # the machine may be busy
    assert b"no answer within 2 s" in done.stderr
    assert len(kept(host, "*.json")) == 1


def test_a_killed_wrappers_run_is_sent_later(host: Host, daemon: Central, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 while the CLI runs: the mark that is left lies in the daemon's spool, and ``send`` hands the run over."""
    process = host.start(CLAUDE, env={"FAKE_CASE": str(CASES / "json-single"), "FAKE_LIVE_S": "30", "FAKE_PID_FILE": "1"})
    end_s = time.monotonic() + 20
    while not kept(host, "*.json") and time.monotonic() < end_s:
        time.sleep(0.05)
    time.sleep(1.5)
    process.kill()
    process.communicate()
    monkeypatch.setenv("HOME", str(host.folder))
    end_s = time.monotonic() + 20
    while remote.send_waiting(daemon.url) != (1, None) and time.monotonic() < end_s:
        time.sleep(0.2)
    (batch,) = daemon.batches()
    assert any(isinstance(o, Call) for o in batch.observations)
    assert batch.processes[0].notes == ["its wrapper was killed; taken from its session files"]


def waits(url: str, number: int) -> FinishedRun:
    """A run that waits for the daemon at *url*."""
    found = FinishedRun(f"{number:032x}", Tags(), "claude", 0, None, 1, 2, RUN, RUN[:16], sessions={f"s{number}"}, observations=[CALL])
    write_pending(spool_dirs(url, os.environ), found)
    return found


def test_what_waits_for_one_daemon_is_sent_to_no_other(daemon: Central) -> None:
    """Each URL has a spool of its own, so neither runs nor a token get to a daemon that they are not for."""
    waits("http://127.0.0.1:1", 1)
    assert remote.send_waiting(daemon.url) == (0, None)
    assert (daemon.took, remote.waiting("http://127.0.0.1:1", os.environ)) == ([], 1)


def test_sending_stops_at_the_first_that_does_not_go_through(daemon: Central) -> None:
    """Of three runs that wait, one attempt is made at a daemon that is busy; the three still wait."""
    for number in range(3):
        waits(daemon.url, number)
    daemon.status = 503
    sent = remote.send_waiting(daemon.url)
    assert (sent.number, "answered 503" in str(sent.problem), len(daemon.took)) == (0, True, 1)
    assert remote.waiting(daemon.url, os.environ) == 3


def test_one_that_is_refused_does_not_keep_the_others(daemon: Central, capfd: pytest.CaptureFixture[str]) -> None:
    """It is set aside with a line; those behind it are tried."""
    for number in range(2):
        waits(daemon.url, number)
    daemon.status = 422
    assert remote.send_waiting(daemon.url) == (0, None)
    assert (len(daemon.took), remote.waiting(daemon.url, os.environ)) == (2, 0)
    assert capfd.readouterr().err.count("is set aside\n") == 2


def test_a_backlog_takes_no_more_time_than_it_is_given(daemon: Central) -> None:
    """With 0.1 s for an answer and 0.25 s in all, three of ten go."""
    for number in range(10):
        waits(daemon.url, number)
    daemon.delay_s = 0.1
    assert remote.send_waiting(daemon.url, 0.25).number <= 3
    assert remote.waiting(daemon.url, os.environ) >= 7


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>a captive portal</html>"), (200, b"{}"), (204, b""), (200, b"")])
def test_an_answer_that_is_not_the_daemons_is_no_receipt(daemon: Central, status: int, body: bytes) -> None:
    """A run is kept until a daemon has said that it has it."""
    daemon.status, daemon.body = status, body
    waits(daemon.url, 1)
    assert remote.send_waiting(daemon.url).number == 0
    assert remote.waiting(daemon.url, os.environ) == 1


def test_the_token_may_be_in_a_file(daemon: Central, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPENDMETER_TOKEN_FILE, without the line's end; a file that is missing is named and the run waits."""
    monkeypatch.setenv("SPENDMETER_TOKEN_FILE", str(tmp_path / "token"))
    waits(daemon.url, 1)
    assert f"SPENDMETER_TOKEN_FILE {tmp_path / 'token'}: cannot be read" in str(remote.send_waiting(daemon.url).problem)
    (tmp_path / "token").write_text("smt_file\n")
    assert remote.send_waiting(daemon.url) == (1, None)
    assert daemon.took[0][1]["authorization"] == "Bearer smt_file"


@pytest.mark.parametrize("token", ["a\r\nx-evil: 1", "smt_\u0434", "a\u2028b"])
def test_what_is_no_token_is_sent_to_no_one(daemon: Central, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """A header is one line of ASCII: anything else is named, not shown, and the run waits."""
    monkeypatch.setenv("SPENDMETER_TOKEN", token)
    waits(daemon.url, 1)
    problem = str(remote.send_waiting(daemon.url).problem)
    assert ("copy it again" in problem, token[-3:] in problem, daemon.took) == (True, False, [])
    assert remote.waiting(daemon.url, os.environ) == 1


# -- flags --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("argv", "env", "found"), [
    (["run", "--remote", "https://m.example/", "true"], {}, "https://m.example"),
    (["run", "true"], {"SPENDMETER_REMOTE": "http://10.0.0.1:9464"}, "http://10.0.0.1:9464"),
    (["run", "--remote=https://m.example/base", "true"], {"SPENDMETER_REMOTE": "http://x", "SPENDMETER_LEDGER": "y"}, "https://m.example/base"),
    (["--ledger", "L", "run", "true"], {"SPENDMETER_REMOTE": "http://x"}, None),
    (["run", "true"], {"SPENDMETER_REMOTE": ""}, None),
])  # fmt: skip
def test_where_a_run_goes(argv: list[str], env: dict[str, str], found: str | None) -> None:
    """A flag wins over the environment; a ledger that is named by a flag is meant."""
    assert parse(argv, env).remote == found


@pytest.mark.parametrize(
    "text", ["m.example", "ftp://m.example", "https://", "https://user:pw@m.example", "https://m example", "https://m/?x"]
)
def test_an_address_that_is_none_is_refused_without_being_shown(text: str) -> None:
    """It may hold a password."""
    with pytest.raises(UsageError) as e:
        daemon_url("--remote", text)
    assert "pw" not in str(e.value)
    assert "SPENDMETER_TOKEN" in str(e.value)


def test_one_run_has_one_place_to_go() -> None:
    """--ledger and --remote together are a mistake."""
    with pytest.raises(UsageError, match="leave one out"):
        parse(["run", "--ledger", "L", "--remote", "http://m", "true"], {})


@pytest.mark.parametrize(("words", "code"), [((), 2), (("--remote", "nonsense"), 2), (("--remote", "http://127.0.0.1:1"), 0)])
def test_send_needs_an_address(words: tuple[str, ...], code: int) -> None:
    """Without one, or with one that is none, its use is wrong; with nothing to send it is done."""
    assert CliRunner().invoke(main, ["send", *words]).exit_code == code


@pytest.mark.parametrize(("on_error", "code"), [("allow", 0), ("block", 3)])
def test_budgets_that_only_a_ledger_knows_are_not_passed_over_in_silence(
    host: Host, daemon: Central, tmp_path: Path, on_error: str, code: int
) -> None:
    """With --remote a blocking budget cannot be checked: a line says so, and where that is to block, nothing starts."""
    budgets = tmp_path / "budgets.yaml"
    budgets.write_text("budgets:\n  - {name: all, period: day, limit_usd: 1, action: block}\n")
    done = run(host, SPENDMETER_BUDGETS=str(budgets), SPENDMETER_BUDGETS_ON_ERROR=on_error)
    assert (done.returncode, b"there is no ledger here to ask" in done.stderr, len(daemon.took)) == (code, True, int(code == 0))
    assert list(host.folder.rglob("*.db")) == []


def test_a_runs_own_limit_holds_without_a_ledger(host: Host, daemon: Central) -> None:
    """--max-cost ends the run on this host; what it used is handed over."""
    (link := host.folder / "claude").symlink_to(RUNAWAY)
    env = {"RUNAWAY_CASE": str(CASES / "stream-json-tool"), "RUNAWAY_LOG": str(host.folder / "log")}
    done = host.run(str(link), flags=("--max-cost", "0.3"), env=env)
    assert (done.returncode, b"--max-cost" in done.stderr) == (3, True)
    (batch,) = daemon.batches()
    assert (batch.processes[0].stopped, any(isinstance(o, Call) for o in batch.observations)) == ("max-cost", True)


def test_a_hook_hands_its_session_to_the_daemon(host: Host, daemon: Central) -> None:
    """With SPENDMETER_REMOTE and no ledger named by a flag: the session's calls and its tags are posted, no ledger is made."""
    shutil.copytree(CASES / "json-subagent" / "home", host.folder, dirs_exist_ok=True)
    path = next(p for p in host.folder.rglob("*.jsonl") if "subagents" not in p.parts)
    told = json.dumps({"session_id": path.stem, "transcript_path": str(path), "hook_event_name": "Stop", "last_assistant_message": SECRET})
    env = host.env | {"SPENDMETER_REMOTE": daemon.url, "SPENDMETER_TASK": "T-1", "SPENDMETER_TOKEN": "smt_x"}
    command = [sys.executable, "-m", "spendmeter", "hook", "claude"]
    done = subprocess.run(command, input=told, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (batch,) = until(daemon.batches)
    Chain("claude", (CASES / "json-subagent",)).check(
        amounts(total(o.usage for o in set(batch.observations) if isinstance(o, Call))), exact=False
    )
    assert {c.tags.task for c in batch.claims} == {"T-1"}
    assert daemon.took[0][1]["authorization"] == "Bearer smt_x"
    assert list(host.folder.rglob("*.db")) == []


def test_zlib_and_gzip_are_told_apart() -> None:
    """What is compressed otherwise than gzip is an error of its own."""
    with pytest.raises(wire.WireError, match="is not gzip"):
        wire.unzipped(zlib.compress(b"{}"))
