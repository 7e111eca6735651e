"""Batches of other hosts: what is on the wire, what the daemon takes, and what its ledger then holds."""

from __future__ import annotations

import gzip
import json
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from starlette.testclient import TestClient

from spendmeter.config import Settings
from spendmeter.ingest import batch_of, run_batch
from spendmeter.ledger import Batch, Ledger, Process
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report, runs
from spendmeter.ledger.verify import verify
from spendmeter.parsers import read_file
from spendmeter.records import Call, Claim, Skip, Tags, Usage
from spendmeter.runner import wire
from spendmeter.runner.finished import FinishedRun
from spendmeter.server import app
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers
from tests.fakecli.harness import CASES
from tests.remotes import SECRET
from tests.runs import Chain, all_chains, observe

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
    (wire.pack(BATCH) * 2, {"content-encoding": "gzip"}, 422),
], ids=["text", "br", "empty", "bytes", "deep", "no gzip", "cut", "bomb", "two"])  # fmt: skip
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


def test_zlib_and_gzip_are_told_apart() -> None:
    """What is compressed otherwise than gzip is an error of its own."""
    with pytest.raises(wire.WireError, match="is not gzip"):
        wire.unzipped(zlib.compress(b"{}"))
