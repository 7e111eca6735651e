"""OTLP/HTTP in: what is passed over, what is rejected and what is refused, and that whatever comes is no defect."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from spendmeter.config import Settings
from spendmeter.ledger.query import runs
from spendmeter.server import app, limits
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers
from tests.doors import bearer, made_tokens, serving
from tests.otlp_dumps import JSON, PROTOBUF, Dump, attr, dumped, dumps_of, only, send_all, skipped, sums, used
from tests.otlp_receiver import KINDS

BY_NAME = {c.name: c for c in dumped()}
DEFAULT, WITHOUT_SESSION = BY_NAME["claude/otel-protobuf-default"], BY_NAME["claude/otel-no-resource-in-metrics"]
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


# -- what is passed over and what is refused ---------------------------------------------------------------------------


def test_what_holds_no_usage_is_counted_once_by_kind(client: TestClient, book: Book) -> None:
    """Tool logs, sums that repeat the calls and what no CLI sent: each kind is one skip with its reason, however often it comes."""
    said = {"gen_ai.operation.name": "chat", "gen_ai.response.id": "r", "gen_ai.usage.input_tokens": "5"}
    spans = [{"name": "chat x", "attributes": [{"key": k, "value": {"stringValue": v}} for k, v in said.items()]}]
    service = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    foreign = Dump("traces", {"resourceSpans": [{"resource": service, "scopeSpans": [{"scope": {"name": "x"}, "spans": spans}]}]})
    for _ in range(3):
        send_all(client, [foreign, *dumps_of(BY_NAME["codex/otel-json"]), *dumps_of(WITHOUT_SESSION)])
    assert skipped(client) == {"unknown source": 1, "no usage": 4, "told by another stream": 2, "no session": 1}
    BY_NAME["codex/otel-json"].check({k: v - WITHOUT_SESSION.truth(least=True)[k] for k, v in used(book.ledger()).items()})


@pytest.mark.parametrize("kind", [JSON, PROTOBUF])
def test_a_broken_record_is_rejected_by_itself(kind: str, client: TestClient, book: Book) -> None:
    """A partial success says how many and why; the others are counted, and the same again is the same skip."""
    (dump,) = only(DEFAULT, "logs")
    spoilt = dump.calls()[0]
    lost = int(attr(spoilt, "input_tokens")["intValue"])
    attr(spoilt, "input_tokens")["intValue"] = "-5"
    for _ in range(2):
        answer = dump.send(client, kind)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        if kind == PROTOBUF:
            told = KINDS["logs"][1].FromString(answer.content).partial_success
            assert (told.rejected_log_records, told.error_message) == (1, "rejected: 1 x bad usage in claude's api_request")
        else:
            message = "rejected: 1 x bad usage in claude's api_request"
            assert answer.json() == {"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": message}}
    assert skipped(client)["bad usage"] == 1
    assert used(book.ledger())["tokens_in"] == DEFAULT.truth(least=True)["tokens_in"] - lost


SPOILT = [
    ("claude/otel-protobuf-default", "input_tokens", {"intValue": "9" * 18}),
    ("claude/otel-protobuf-default", "cost_usd", {"doubleValue": 5e8}),
    ("codex/otel-json", "input_token_count", {"stringValue": "many"}),
    ("gemini/otel-http-traces", "input_token_count", {"boolValue": True}),
    ("qwen/otel-http", "response_id", {"stringValue": ""}),
    ("qwen/otel-http", "output_token_count", {"doubleValue": 1.5}),
    ("copilot/otel-json", "gen_ai.response.id", {"stringValue": ""}),
    ("copilot/otel-json", "gen_ai.usage.input_tokens", {"intValue": "-1"}),
]


@pytest.mark.parametrize(("name", "key", "value"), SPOILT, ids=[f"{name}-{key}" for name, key, _ in SPOILT])
def test_no_cli_is_taken_at_a_word_that_is_no_count(name: str, key: str, value: dict[str, Any], client: TestClient) -> None:
    """Calls of every CLI whose counts or ids are none are rejected, each of them and nothing else."""
    told: list[dict[str, str]] = []
    for dump in dumps_of(BY_NAME[name]):
        for call in dump.calls():
            call["attributes"] = [a | {"value": value} if a["key"] == key else a for a in call["attributes"]]
        answer = dump.send(client, JSON)
        assert answer.status_code == 200
        told += [p] if (p := answer.json().get("partialSuccess")) else []
    assert sum(int(n) for p in told for field, n in p.items() if field.startswith("rejected")) == 3


@pytest.mark.parametrize(
    "change",
    [{"asDouble": "NaN"}, {"asDouble": -1.0}, {"asDouble": 0.5}, {"asInt": str(1 << 62)}, {"asInt": "9" * 400}, {"asDouble": 1e300}],
)
def test_a_point_that_is_no_count_is_rejected(change: dict[str, Any], client: TestClient, book: Book) -> None:
    """Not a number, a fall, a fraction, a sum that no ledger holds."""
    (dump,) = only(DEFAULT, "metrics")
    point = next(m for m in sums(dump) if "token" in m["name"])["sum"]["dataPoints"][0]
    del point["asDouble"]
    point |= change
    assert dump.send(client, JSON).json()["partialSuccess"]["rejectedDataPoints"] == "1"
    assert used(book.ledger())["tokens_out"] == DEFAULT.truth(least=True)["tokens_out"]


def refused(answer: httpx.Response, status: int, code: int, kind: str) -> str:
    """The message of a google.rpc.Status in *kind* of encoding."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, kind)
    if kind == JSON:
        told = answer.json()
        assert set(told) == {"code", "message"}
        assert told["code"] == code
        return str(told["message"])
    status_ = Status.FromString(answer.content)
    assert status_.code == code
    return str(status_.message)


@pytest.mark.parametrize("kind", [JSON, PROTOBUF])
def test_a_body_that_is_no_otlp_is_refused_in_its_own_encoding(kind: str, client: TestClient) -> None:
    """400 with a Status; so is what is not gzip and says so, and gzip that is cut short."""
    assert refused(client.post("/v1/logs", content=b"\xff{", headers={"content-type": kind}), 400, 3, kind)
    packed = {"content-type": kind, "content-encoding": "gzip"}
    assert "gzip" in refused(client.post("/v1/logs", content=b"plain", headers=packed), 400, 3, kind)
    assert "cut short" in refused(client.post("/v1/logs", content=gzip.compress(b"{}" * 99)[:-9], headers=packed), 400, 3, kind)


@pytest.mark.parametrize("document", ["[]", "1", '{"resourceLogs": 5}', '{"resourceLogs": [{"scopeLogs": [7]}]}',
    '{"resourceLogs": [{"resource": {"attributes": [{"key": 4, "value": {"stringValue": "x"}}]}}]}',
    '{"resourceLogs": [{"scopeLogs": [{"logRecords": [{"timeUnixNano": "soon"}]}]}]}', "[" * 100_000])  # fmt: skip
def test_json_of_another_form_is_refused_without_repeating_it(document: str, client: TestClient) -> None:
    """400 that says which part has the wrong form, and not what stands there."""
    message = refused(client.post("/v1/logs", content=document, headers={"content-type": JSON}), 400, 3, JSON)
    assert "soon" not in message


def test_an_empty_request_is_a_success(client: TestClient, book: Book) -> None:
    """No bytes are a message of nothing; a JSON body must be an object. Neither writes anything."""
    assert client.post("/v1/traces", content=b"", headers={"content-type": PROTOBUF}).status_code == 200
    assert client.post("/v1/traces", content=b"{}", headers={"content-type": f"{JSON}; charset=utf-8"}).json() == {}
    assert runs(book.ledger()) == []


def test_other_media_and_codings_are_refused(client: TestClient) -> None:
    """415 for what is neither of the two encodings, and for compressions other than gzip."""
    assert PROTOBUF in refused(client.post("/v1/logs", content=b"x", headers={"content-type": "text/plain"}), 415, 3, JSON)
    headers = {"content-type": PROTOBUF, "content-encoding": "zstd"}
    assert "gzip" in refused(client.post("/v1/logs", content=b"x", headers=headers), 415, 3, PROTOBUF)
    assert client.get("/v1/logs").status_code == 405


def test_what_is_too_large_is_refused_packed_or_not(client: TestClient) -> None:
    """413 for more than 20 MiB, before it is read where its length is told, and for little that unpacks to more."""
    headers = {"content-type": PROTOBUF}
    assert "20971520" in refused(client.post("/v1/logs", content=b" " * (limits.OTLP_MAX + 1), headers=headers), 413, 8, PROTOBUF)
    bomb = gzip.compress(bytes(limits.OTLP_MAX + 1))
    headers = {"content-type": JSON, "content-encoding": "gzip"}
    assert "unpacked" in refused(client.post("/v1/logs", content=bomb, headers=headers), 413, 8, JSON)
    assert client.post("/v1/logs", content=bytes(limits.BODY_MAX + 1), headers={"content-type": PROTOBUF}).status_code == 400


def test_who_sends_too_often_is_told_when_to_come_again(book: Book) -> None:
    """429 with Retry-After, which exporters heed."""
    buckets = limits.Buckets(0.5, 1)
    with TestClient(app.create_app(book, Workers(book), writes=buckets), base_url=HOME) as client:
        send_all(client, only(DEFAULT, "metrics"))
        answer = only(DEFAULT, "metrics")[0].send(client)
    assert refused(answer, 429, 8, PROTOBUF)
    assert int(answer.headers["retry-after"]) >= 1


def test_beyond_loopback_exporters_need_a_token_that_may_write(book: Book) -> None:
    """401 without one, 403 with one that may only read, each with a Status; with the scope write it is taken."""
    known = made_tokens(book)
    (dump,) = only(DEFAULT, "logs")
    for client in serving(book):
        for kind in (JSON, PROTOBUF):
            headers = {"content-type": kind}
            answer = client.post("/v1/logs", content=dump.body(kind), headers=headers)
            assert "token" in refused(answer, 401, 16, kind)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            asked = client.head("/v1/logs", headers=headers)
            assert (asked.status_code, asked.content) == (401, b"")
            for scope in ("read", "metrics"):
                answer = client.post("/v1/logs", content=dump.body(kind), headers=headers | bearer(known[scope]))
                assert "write" in refused(answer, 403, 7, kind)
        assert used(book.ledger())["tokens_in"] == 0
        assert client.post("/v1/logs", content=dump.body(JSON), headers={"content-type": JSON} | bearer(known["write"])).json() == {}
    DEFAULT.check(used(book.ledger()))


def test_a_ledger_that_cannot_be_written_is_tried_again_later(client: TestClient, tmp_path: Path) -> None:
    """503 with Retry-After and a Status: exporters keep what they have."""
    (tmp_path / "ledger.db").rename(tmp_path / "away.db")
    answer = only(DEFAULT, "logs")[0].send(client)
    assert refused(answer, 503, 14, PROTOBUF)
    assert answer.headers["retry-after"] == "5"
    (tmp_path / "away.db").rename(tmp_path / "ledger.db")
    send_all(client, only(DEFAULT, "logs"))


def test_a_page_of_another_origin_cannot_send(client: TestClient) -> None:
    """What a browser is made to send is refused, with a Status."""
    answer = client.post("/v1/logs", content=b"{}", headers={"content-type": JSON, "origin": "https://evil.example"})
    assert "origin" in refused(answer, 403, 7, JSON)


BODIES = {(d.signal, kind): d.body(kind) for c in (DEFAULT, BY_NAME["copilot/otel-json"]) for d in dumps_of(c) for kind in (JSON, PROTOBUF)}


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    book = Book(Settings(f"sqlite:///{tmp_path_factory.mktemp('steady') / 'l.db'}", settle_s=0))
    with TestClient(app.create_app(book, Workers(book)), base_url=HOME) as made:
        yield made
    book.close()


@hypothesis_settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.sampled_from(sorted(BODIES)), cut=st.integers(0, 1 << 16), spoil=st.binary(max_size=8), whole=st.booleans())
def test_torn_and_spoilt_bodies_are_no_defect(which: tuple[str, str], cut: int, spoil: bytes, whole: bool, steady: TestClient) -> None:
    """Cut anywhere, or with bytes changed anywhere: taken or refused, never a defect."""
    body = BODIES[which]
    at = cut % len(body)
    made = body[:at] + spoil + (body[at + len(spoil) :] if whole else b"")
    answer = steady.post(f"/v1/{which[0]}", content=made, headers={"content-type": which[1]})
    assert answer.status_code in (200, 400), answer.text


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)


def shapes(keys: st.SearchStrategy[str], depth: int) -> st.SearchStrategy[object]:
    """JSON values of at most *depth* levels."""
    made: st.SearchStrategy[object] = LEAVES
    for _ in range(depth):
        made = LEAVES | st.lists(made, max_size=2) | st.dictionaries(keys, made, max_size=3)
    return made


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*way, key)
        if isinstance(item, dict | list):
            yield from _places(item, (*way, key))


@hypothesis_settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.sampled_from(sorted(k for k in BODIES if k[1] == JSON)), at=st.integers(0, 1 << 16), value=shapes(st.text(max_size=4), 2))
def test_json_with_any_value_anywhere_is_no_defect(which: tuple[str, str], at: int, value: object, steady: TestClient) -> None:
    """Any one value in a request replaced by any other: taken, taken in part or refused, never a defect."""
    document = json.loads(BODIES[which])
    places = list(_places(document))
    *way, last = places[at % len(places)]
    target = document
    for step in way:
        target = target[step]
    target[last] = value
    answer = steady.post(f"/v1/{which[0]}", content=json.dumps(document), headers={"content-type": JSON})
    assert answer.status_code in (200, 400), answer.text


KEYS = ("request", "resourceLogs", "resourceMetrics", "resource", "scopeLogs", "scopeMetrics", "metrics", "logRecords", "sum", "dataPoints",
        "attributes", "key", "value", "stringValue", "intValue", "name", "asInt", "timeUnixNano", "scope")  # fmt: skip
REQUESTS = st.dictionaries(st.sampled_from(KEYS), shapes(st.sampled_from(KEYS), 5), max_size=4)


@hypothesis_settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(signal=st.sampled_from(["logs", "metrics", "traces"]), document=REQUESTS)
def test_any_json_under_the_protocols_names_is_no_defect(signal: str, document: dict[str, object], steady: TestClient) -> None:
    """Objects of any shape whose keys are the protocol's: taken or refused."""
    answer = steady.post(f"/v1/{signal}", content=json.dumps(document), headers={"content-type": JSON})
    assert answer.status_code in (200, 400), answer.text
