"""OTLP/HTTP in: what the CLIs' exporters send is counted, once, whatever else tells of the same run; anything else is answered as the
protocol says."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from spendmeter import ingest
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import runs
from spendmeter.ledger.verify import verify
from spendmeter.records import Tags, iso
from spendmeter.server import app
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers
from tests.otlp_dumps import CUMULATIVE, JSON, PROTOBUF, Dump, as_delta, attr, cost, dumped, dumps_of, only, send_all, skipped, sums, used
from tests.runs import Chain, chains
from tests.test_ledger import dump as tables
from tests.test_parsers_codex import meta, record, turn

CHAINS = dumped()
NAMES = [c.name for c in CHAINS]
BY_NAME = dict(zip(NAMES, CHAINS, strict=True))
RESUMED = next(c for c in chains("claude") if c.folders[0].name == "resume-1-base")
DEFAULT, MANY, WITHOUT_SESSION = (
    BY_NAME[f"claude/otel-{x}"] for x in ("protobuf-default", "cumulative-multi-export", "no-resource-in-metrics")
)
HOME = "http://127.0.0.1:9464"


@pytest.fixture
def book(settings: Settings) -> Iterator[Book]:
    made = Book(settings)
    yield made
    made.close()


@pytest.fixture
def client(book: Book) -> Iterator[TestClient]:
    with TestClient(app.create_app(book, Workers(book)), base_url=HOME) as made:
        yield made


def written(u: dict[str, int]) -> dict[str, int]:
    """*u* with cache writes of both lifetimes as one."""
    return {k: v for k, v in u.items() if not k.startswith("cache_write")} | {"cache_write": u["cache_write_5m"] + u["cache_write_1h"]}


# -- what is counted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
def test_telemetry_alone_is_what_was_billed(chain: Chain, client: TestClient, book: Book) -> None:
    """Every captured run's exports tell what the server billed, in either encoding, packed or not, once for all of them."""
    for kind, packed in itertools.product((PROTOBUF, JSON), (False, True)):
        send_all(client, dumps_of(chain), kind, packed=packed)
        chain.check(used(book.ledger()))
    assert verify(book.ledger()) == []


@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
def test_a_run_that_three_sources_tell_of_is_counted_once(chain: Chain, tmp_path: Path) -> None:
    """Telemetry, transcripts and the printed result, in every order: the ledger ends the same, and is what the server billed."""
    ends = []
    for i, order in enumerate(itertools.permutations(("otlp", "files", "stdout"))):
        book = Book(Settings(f"sqlite:///{tmp_path / f'{i}.db'}", zero_first_s=0, settle_s=0))
        with TestClient(app.create_app(book, Workers(book)), base_url=HOME) as client:
            for source in order:
                if source == "otlp":
                    send_all(client, dumps_of(chain))
                else:
                    paths = chain.files() if source == "files" else chain.stdouts()
                    ingest.ingest_paths(book.ledger(), [str(p) for p in paths])
                chain.check(used(book.ledger()), exact=False)  # never more, whatever has come so far
        chain.check(used(book.ledger()))
        ends.append(tables(book.ledger()))
        book.close()
    assert all(end == ends[0] for end in ends)


def test_requests_in_any_order_and_again_make_the_same_ledger(tmp_path: Path) -> None:
    """All requests of all runs, shuffled, some of them twice, through two encodings: the same facts and totals."""
    every = [d for chain in CHAINS for d in dumps_of(chain)]
    ends = []
    for seed in range(3):
        chance = random.Random(seed)
        some = chance.sample(every, len(every)) + chance.sample(every, len(every) // 3)
        book = Book(Settings(f"sqlite:///{tmp_path / f'{seed}.db'}", settle_s=0))
        with TestClient(app.create_app(book, Workers(book)), base_url=HOME) as client:
            for dump in some:
                send_all(client, [dump], chance.choice((JSON, PROTOBUF)))
        ends.append(tables(book.ledger()))
        book.close()
    assert all(end == ends[0] for end in ends)


@pytest.mark.parametrize("chain", [c for c in CHAINS if c.cli == "claude"], ids=[n for n in NAMES if n.startswith("claude")])
def test_claude_metrics_alone_lose_the_lifetime_of_cache_writes_and_no_token(chain: Chain, client: TestClient, book: Book) -> None:
    """Where only metrics are exported their sums by session are counted, at the CLI's own cost; without a session id, nothing."""
    send_all(client, only(chain, "metrics"))
    got = used(book.ledger())
    if chain is WITHOUT_SESSION:
        assert (got, skipped(client)["no session"]) == (dict.fromkeys(got, 0), 1)
        return
    low, high = written(chain.truth(least=True)), written(chain.truth(least=False))
    assert all(low[k] <= n <= high[k] for k, n in written(got).items())
    ingest.ingest_paths(book.ledger(), [str(p) for p in chain.files()])
    chain.check(used(book.ledger()))


def test_metrics_that_say_more_cache_writes_than_calls_do_count_as_five_minute_ones(client: TestClient, book: Book) -> None:
    """What a metric tells beyond the calls is not lost, nor is what both tell counted twice."""
    logs, metrics = only(DEFAULT, "logs"), only(DEFAULT, "metrics")
    (group,) = logs[0].document["resourceLogs"]
    group["scopeLogs"][0]["logRecords"] = [r for r in logs[0].records() if "000003" not in json.dumps(r)]  # the last call's was lost
    send_all(client, [*logs, *metrics])
    want = DEFAULT.truth(least=True)
    assert written(used(book.ledger())) == written(want)
    assert used(book.ledger())["cache_write_1h"] < want["cache_write_1h"]


def test_cumulative_and_delta_say_the_same(client: TestClient, book: Book, tmp_path: Path) -> None:
    """Exports of a growing cumulative sum, and the same as deltas, in any order and again, are the same usage and cost."""
    grown = only(MANY, "metrics")
    assert len(grown) > 3
    send_all(client, [*reversed(grown), *grown])
    other = Book(Settings(f"sqlite:///{tmp_path / 'delta.db'}", settle_s=0))
    with TestClient(app.create_app(other, Workers(other)), base_url=HOME) as client:
        deltas = as_delta(grown)
        send_all(client, [*reversed(deltas), *deltas], JSON)
    assert used(other.ledger()) == used(book.ledger())
    assert written(used(book.ledger())) == written(MANY.truth(least=True))
    assert cost(other.ledger()) == pytest.approx(cost(book.ledger()), abs=10) == pytest.approx(36_999_900, abs=10)
    other.close()


def test_a_sum_that_starts_anew_adds_up(client: TestClient, book: Book) -> None:
    """A resumed session's process counts from 0 with a new start: both are counted; the same start again is not."""
    first = only(MANY, "metrics")[-1]
    again = copy.deepcopy(first)
    for metric in sums(again):
        assert metric["sum"]["aggregationTemporality"] in (CUMULATIVE, "AGGREGATION_TEMPORALITY_CUMULATIVE")
        for point in metric["sum"]["dataPoints"]:
            point["startTimeUnixNano"] = str(int(point["startTimeUnixNano"]) + 60 * 10**9)
            point["timeUnixNano"] = str(int(point["timeUnixNano"]) + 60 * 10**9)
    send_all(client, [first, again, first, again])
    once = written(MANY.truth(least=True))
    assert written(used(book.ledger())) == {k: 2 * n for k, n in once.items()}


def test_what_the_cli_says_that_it_cost_is_counted_with_it(client: TestClient, book: Book) -> None:
    """The cost of events is exact, not their rounded millionths; metrics and the printed result say the same and add nothing."""
    for step in (only(DEFAULT, "logs"), only(DEFAULT, "metrics")):
        send_all(client, step)
        assert cost(book.ledger()) == 36_999_900
    ingest.ingest_paths(book.ledger(), [str(p) for p in DEFAULT.stdouts() + DEFAULT.files()])
    assert cost(book.ledger()) == 36_999_900


def test_events_name_the_model_that_answered_and_metrics_the_one_asked_for(client: TestClient, book: Book) -> None:
    """A run that was answered by another model than it asked for is counted once, whichever of its names a source has."""
    logs, metrics = only(DEFAULT, "logs"), only(DEFAULT, "metrics")
    for call in logs[0].calls():
        attr(call, "model")["stringValue"] = "claude-sonnet-4-6"
    send_all(client, [*metrics, *logs])
    DEFAULT.check(used(book.ledger()))
    ingest.ingest_paths(book.ledger(), [str(p) for p in DEFAULT.stdouts()])
    DEFAULT.check(used(book.ledger()))


def test_calls_without_a_request_id_are_counted_once_beside_transcripts(client: TestClient, book: Book) -> None:
    """Behind a gateway that gives no ids, events and transcripts cannot be joined call by call: they are two views of one run."""
    logs = only(DEFAULT, "logs")
    for call in logs[0].calls():
        call["attributes"] = [a for a in call["attributes"] if a["key"] != "request_id"]
    send_all(client, [*logs, *logs])
    DEFAULT.check(used(book.ledger()))
    ingest.ingest_paths(book.ledger(), [str(p) for p in DEFAULT.files()])
    DEFAULT.check(used(book.ledger()))


def test_events_without_a_session_are_the_transcripts_once_it_is_read(client: TestClient, book: Book) -> None:
    """With OTEL_METRICS_INCLUDE_SESSION_ID=false calls stand by themselves until a transcript, or a result of just them, claims them."""
    send_all(client, dumps_of(WITHOUT_SESSION))
    assert [r.session[0] for r in runs(book.ledger())] == ["~"]
    ingest.ingest_paths(book.ledger(), [str(p) for p in WITHOUT_SESSION.stdouts()])
    (result,) = runs(book.ledger())
    assert result.session[0] != "~"
    ingest.ingest_paths(book.ledger(), [str(p) for p in WITHOUT_SESSION.files()])
    assert [r.session for r in runs(book.ledger())] == [result.session]
    WITHOUT_SESSION.check(used(book.ledger()))


# -- whose it is -------------------------------------------------------------------------------------------------------


def tagged(chain: Chain, **attributes: str) -> list[Dump]:
    """Its requests, with other resource attributes of the user's."""
    found = dumps_of(chain)
    for dump in found:
        for group in next(iter(dump.document.values())):
            rest = [a for a in group["resource"]["attributes"] if a["key"] not in ("agent", "task.id")]
            group["resource"]["attributes"] = rest + [{"key": k, "value": {"stringValue": v}} for k, v in attributes.items()]
    return found


@pytest.mark.parametrize("chain", [c for c in CHAINS if "err" not in c.name], ids=[n for n in NAMES if "err" not in n])
def test_resource_attributes_are_the_tags(chain: Chain, client: TestClient, book: Book) -> None:
    """Agent and task, and any other key of the user's own; nothing of the host, the process, the service or the account."""
    mine = {"spendmeter.agent": "dev", "task": "T-9", "team": "blue", "app": "shop", "spendmeter.plan": "book"}
    send_all(client, tagged(chain, **mine, **{"user.name": "me", "host": "pc", "owner": "me@example.org"}))
    found = [(r.agent, r.task, r.attrs) for r in runs(book.ledger())]
    assert found == [("dev", "T-9", {"team": "blue", "app": "shop", "plan": "book"})] * (len(found) or 1)


def test_each_run_of_a_session_has_its_own_tags(client: TestClient, book: Book) -> None:
    """A session that is resumed under another task: what it had exported until then is the first one's, and by its transcript's runs."""
    base, more = RESUMED.folders[:2]
    session = json.loads((base / "stdout").read_text())["session_id"]
    for folder, task in ((base, "T-1"), (more, "T-2")):
        calls = json.loads((folder / "truth.json").read_text())["calls"]
        records = [claude_call(session, c, i) for i, c in enumerate(calls)]
        for call, c in zip(records, calls, strict=True):
            attr(call, "event.timestamp")["stringValue"] = iso(int(c["ts"] * 1000) + 20)
        resource = {"attributes": [{"key": "task", "value": {"stringValue": task}}]}
        logs = [{"scope": {"name": "com.anthropic.claude_code.events"}, "logRecords": records}]
        send_all(client, [Dump("logs", {"resourceLogs": [{"resource": resource, "scopeLogs": logs}]})])
    assert {(r.task, r.amounts.tokens_out) for r in runs(book.ledger())} == {("T-1", 366), ("T-2", 221)}
    ingest.ingest_paths(book.ledger(), [str(p) for f in (base, more) for p in f.rglob("*.jsonl")])
    assert {(r.task, r.amounts.tokens_out) for r in runs(book.ledger())} == {("T-1", 366), ("T-2", 221)}


def test_a_wrapped_runs_own_tags_win(client: TestClient, book: Book) -> None:
    """What the wrapper was told stands against what the environment says; without a word of its own the environment's stands."""
    send_all(client, tagged(DEFAULT, agent="env", task="T-env"))
    assert [(r.agent, r.task) for r in runs(book.ledger())] == [("env", "T-env")]
    ingest.ingest_paths(book.ledger(), [str(p) for p in DEFAULT.stdouts()], tags=Tags("mine", "T-mine"))
    assert [(r.agent, r.task) for r in runs(book.ledger())] == [("mine", "T-mine")]


def test_nothing_that_was_said_reaches_the_ledger(client: TestClient, book: Book, tmp_path: Path) -> None:
    """Prompts, answers, arguments, people and machines that exports hold are in no table, page or metric."""
    for chain in CHAINS:
        send_all(client, tagged(chain, agent="dev", owner="me@example.org"))
    kept = b"".join(p.read_bytes() for p in tmp_path.glob("ledger.db*")) + client.get("/").content + client.get("/metrics").content
    for text in (b"MAIN-TASK", b"echo", b"REDACTED", b"elided", b"example.org", b"9b69de42ef2260d7", b"terminal", b"homepath", b"/home/"):
        assert text not in kept, text


# -- from files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
def test_what_a_collector_wrote_to_a_file_is_read_like_what_was_sent(chain: Chain, client: TestClient, book: Book, tmp_path: Path) -> None:
    """Lines of the Collector's file exporter, and captured requests, through ``ingest``: the same sessions, totals and tags."""
    lines = tmp_path / "telemetry.jsonl"
    lines.write_text("".join(json.dumps(d.document) + "\n" for d in dumps_of(chain)))
    ingest.ingest_paths(book.ledger(), [str(lines)])
    chain.check(used(book.ledger()))
    before = tables(book.ledger())
    ingest.ingest_paths(book.ledger(), [str(p) for p in sorted((chain.folders[-1] / "otlp").iterdir())])
    send_all(client, dumps_of(chain))
    assert tables(book.ledger()) == before
    assert {r.agent for r in runs(book.ledger())} <= {"developer"}


def test_both_databases_take_it(both: Ledger, tmp_path: Path) -> None:
    """All telemetry of all runs, without a session too, with long tags, into one ledger, twice: what all of them were billed."""
    lines = tmp_path / "telemetry.jsonl"
    long = {f"key{i}" + "x" * 50: "й" * 200 for i in range(20)}
    for i in range(2):
        lines.write_text("\n" * i + "".join(json.dumps(d.document) + "\n" for c in CHAINS for d in tagged(c, agent="dev", **long)))
        ingest.ingest_paths(both, [str(lines)])
        got = used(both)
        assert all(sum(c.truth(least=True)[k] for c in CHAINS if k in c.truth(least=True)) <= got[k] for k in ("cache_read", "tokens_out"))
        assert all(
            sum(c.truth(least=False)[k] for c in CHAINS if k in c.truth(least=False)) >= got[k] for k in ("cache_read", "tokens_out")
        )
    assert verify(both) == []


def test_a_line_of_telemetry_that_is_none_is_a_skip(book: Book, tmp_path: Path) -> None:
    """A line that looks like OTLP and is not costs itself and no other."""
    lines = tmp_path / "telemetry.jsonl"
    lines.write_text('{"resourceLogs": 5}\n' + json.dumps(only(DEFAULT, "logs")[0].document) + "\n")
    done = ingest.ingest_paths(book.ledger(), [str(lines)])
    assert done.skips["not understood (MalformedError)"] == 1
    DEFAULT.check(used(book.ledger()))


def test_a_tag_given_with_a_file_is_of_the_cli_whose_telemetry_it_holds(book: Book, tmp_path: Path) -> None:
    """``ingest --agent`` on a Collector's file tags the sessions that it tells of."""
    lines = tmp_path / "telemetry.jsonl"
    lines.write_text("".join(json.dumps(d.document) + "\n" for d in tagged(DEFAULT)))
    ingest.ingest_paths(book.ledger(), [str(lines)], tags=Tags("dev", "T-5"))
    assert [(r.agent, r.task) for r in runs(book.ledger())] == [("dev", "T-5")]


# -- what no captured run shows: by rows made by hand ------------------------------------------------------------------


def codex_call(thread: str, n: int) -> dict[str, Any]:
    """An event of a call of *thread* that used n times 5 + 4 + 1 + 3 tokens."""
    told = {"event.name": "codex.sse_event", "event.kind": "response.completed", "event.timestamp": f"2026-11-21T23:31:{n:02}Z",
            "conversation.id": thread, "model": "gpt-5", "input_token_count": 10 * n, "cached_token_count": 4 * n,
            "cache_write_token_count": n, "output_token_count": 3 * n}  # fmt: skip
    kinds = {str: "stringValue", int: "intValue"}
    return {"attributes": [{"key": k, "value": {kinds[type(v)]: v}} for k, v in told.items()]}


@pytest.mark.parametrize("thread", ["sub", "root"], ids=["under its own thread", "under its parent's"])
@pytest.mark.parametrize("first", ["files", "otlp"])
def test_codex_subagents_are_counted_once(thread: str, first: str, client: TestClient, book: Book, tmp_path: Path) -> None:
    """Whichever thread a subagent's exported calls name, its rollout puts them where they are counted: in the session that began it."""
    model = {"timestamp": "2026-11-21T23:31:00Z", "type": "turn_context", "payload": {"model": "gpt-5"}}
    parent = (meta("root"), turn(0, "a"), model, record(1, "root", "r", 2, 2))
    spawn = {"subagent": {"thread_spawn": {"parent_thread_id": "root"}}}
    sub = (meta("sub", source=spawn), turn(1, "b"), model, record(2, "sub", "s", 5, 5))
    for name, rows in (("root", parent), ("sub", sub)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [codex_call("root", 2), codex_call(thread, 5)]
    exported = Dump("logs", {"resourceLogs": [{"scopeLogs": [{"scope": {"name": "codex_otel.log_only"}, "logRecords": records}]}]})
    for source in (first, "otlp" if first == "files" else "files"):
        if source == "otlp":
            send_all(client, [exported])
        else:
            ingest.ingest_paths(book.ledger(), [str(tmp_path / "root.jsonl"), str(tmp_path / "sub.jsonl")])
        assert sum(used(book.ledger()).values()) == 7 * 13
    assert [r.session for r in runs(book.ledger())] == ["root"]


def test_shares_of_resumed_runs_stay_where_results_cut_them(client: TestClient, book: Book, tmp_path: Path) -> None:
    """Two results of one session, each ingested under its task, and exports of both runs: each task has its own run's usage."""
    base, more = RESUMED.folders[:2]
    for folder, task in ((base, "T-1"), (more, "T-2")):
        ingest.ingest_paths(book.ledger(), [str(folder / "stdout")], tags=Tags("dev", task))
    before = tables(book.ledger())
    calls = [c for f in (base, more) for c in json.loads((f / "truth.json").read_text())["calls"]]
    (session,) = {r.session for r in runs(book.ledger())}
    records = [claude_call(session, c, i) for i, c in enumerate(calls)]
    scope = {"name": "com.anthropic.claude_code.events"}
    send_all(client, [Dump("logs", {"resourceLogs": [{"scopeLogs": [{"scope": scope, "logRecords": records}]}]})])
    shares = {(r.task, r.amounts.tokens_in, r.amounts.tokens_out) for r in runs(book.ledger())}
    assert shares == {("T-1", 3042, 366), ("T-2", 1077, 221)}
    assert len(tables(book.ledger())["runs"]) == len(before["runs"])


def test_an_exported_call_that_no_file_has_is_its_own_runs(client: TestClient, book: Book, tmp_path: Path) -> None:
    """Of a thread's two turns the first lost a call on its way to the file: the exports give it back to that turn, not to the last."""
    model = {"timestamp": "2026-11-21T23:31:00Z", "type": "turn_context", "payload": {"model": "gpt-5"}}
    rows = (meta("t"), turn(0, "a"), model, record(1, "t", "r", 1, 1), turn(10, "b"), record(11, "t", "s", 11, 12))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingest.ingest_paths(book.ledger(), [str(tmp_path / "t.jsonl")])
    records = [codex_call("t", n) for n in (1, 2, 11)]
    send_all(client, [Dump("logs", {"resourceLogs": [{"scopeLogs": [{"scope": {"name": "codex_otel"}, "logRecords": records}]}]})])
    assert sorted(r.amounts.tokens_out for r in runs(book.ledger())) == [3 * 3, 11 * 3]


def test_events_without_a_session_never_take_calls_from_one_that_has_a_name(client: TestClient, book: Book) -> None:
    """Printed calls bear no time and exported ones do; the run is the session's that printed it all the same."""
    folder = next(c for c in chains("claude") if c.name == "claude/stream-json-tool").folders[0]
    records = [claude_call("", c, i) for i, c in enumerate(json.loads((folder / "truth.json").read_text())["calls"])]
    scope = {"name": "com.anthropic.claude_code.events"}
    for call in records:
        attr(call, "session.id")["stringValue"] = ""
        call["attributes"].append({"key": "prompt.id", "value": {"stringValue": "p-1"}})
    send_all(client, [Dump("logs", {"resourceLogs": [{"scopeLogs": [{"scope": scope, "logRecords": records}]}]})])
    before = used(book.ledger())
    ingest.ingest_paths(book.ledger(), [str(folder / "stdout")])
    assert used(book.ledger()) == before
    (run,) = runs(book.ledger())
    assert (run.session[0] != "~", run.outcome) == (True, "ok")


def claude_call(session: str, call: dict[str, Any], second: int) -> dict[str, Any]:
    """The event of *call* of the model server."""
    u = call["usage"]
    told = {"event.name": "api_request", "event.timestamp": f"2026-11-21T23:31:{second:02}Z", "session.id": session, "model": call["model"],
            "request_id": call["request_id"], "input_tokens": u["tokens_in"], "output_tokens": u["tokens_out"],
            "cache_read_tokens": u["cache_read"], "cache_creation_tokens": u["cache_write_5m"] + u["cache_write_1h"],
            "cache_creation_5m_tokens": u["cache_write_5m"], "cache_creation_1h_tokens": u["cache_write_1h"]}  # fmt: skip
    kinds = {str: "stringValue", int: "intValue"}
    return {"attributes": [{"key": k, "value": {kinds[type(v)]: v}} for k, v in told.items()]}
