"""Token events over HTTP: what is answered, with which status, and how a mistake is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from spendmeter.config import Settings
from spendmeter.ledger import Batch
from spendmeter.ledger.query import report
from spendmeter.ledger.verify import verify
from spendmeter.records import Call, Claim, Tags, Usage
from spendmeter.server import events_api
from spendmeter.server.book import Book
from spendmeter.server.paging import encode
from spendmeter.token_events import SCOPES
from spendmeter.token_events.fields import COST_MAX_USD
from spendmeter.token_events.model import FIELDS, REF_TYPES
from tests.doors import EVENTS, problem
from tests.pg import Server
from tests.served import serve

DOCS = Path(__file__).parents[1] / "docs"
EVENT = {"agent": "dev", "task": "T-1", "model": "claude-sonnet-4-5", "tokens_in": 100, "tokens_out": 20}


def refused(answer: Any, status: int) -> list[str]:
    """The fields that a problem document names."""
    return [e["field"] for e in problem(answer, status)["errors"]]


def test_an_event_is_answered_with_its_row(served: TestClient, book: Book) -> None:
    """201, the fields that were posted, id, tokens_total and created_at; found again by its id and in the list."""
    answer = served.post(EVENTS, json=EVENT)
    row = answer.json()
    assert answer.status_code == 201
    assert row.keys() == {*FIELDS, "id", "tokens_total", "created_at"}
    assert {name: row[name] for name in EVENT} == EVENT
    assert (row["tokens_total"], row["cost_usd"], row["note"]) == (120, None, None)
    events_api.TokenEventRow.model_validate(row)
    assert served.get(f"{EVENTS}/{row['id']}").json() == row
    assert served.get(EVENTS).json() == {"token_events": [row], "next_cursor": None}
    assert served.get(f"/api/v1/runs/{row['id']}").json()["tokens_in"] == 100
    assert 'cli="api"' in served.get("/metrics").text
    assert verify(book.ledger()) == []


@pytest.mark.parametrize("in_header", [True, False])
def test_a_repeat_is_answered_with_the_first_row(served: TestClient, book: Book, in_header: bool) -> None:
    """200 for the same under one key, in the header or in the body; 409 for another."""

    def send(**told: Any) -> Any:
        key = {} if in_header else {"idempotency_key": "k"}
        return served.post(EVENTS, json=EVENT | told | key, headers={"Idempotency-Key": "k"} if in_header else {})

    first, again = send(), send()
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert first.json()["idempotency_key"] == "k"
    assert refused(send(tokens_in=101), 409) == ["idempotency_key"]
    assert report(book.ledger(), []).total.tokens_in == 100


def test_header_and_body_may_not_differ(served: TestClient) -> None:
    """Nor may the header name a list, or hold what no key holds."""
    headers = {"Idempotency-Key": "a"}
    assert refused(served.post(EVENTS, json=EVENT | {"idempotency_key": "b"}, headers=headers), 422) == ["idempotency_key"]
    assert served.post(EVENTS, json=EVENT | {"idempotency_key": "a"}, headers=headers).status_code == 201
    assert refused(served.post(EVENTS, json=[EVENT], headers=headers), 422) == ["Idempotency-Key"]
    assert refused(served.post(EVENTS, json=EVENT, headers={"Idempotency-Key": "x" * 129}), 422) == ["Idempotency-Key"]


def test_a_list_is_all_or_nothing(served: TestClient, book: Book) -> None:
    """Answered by a list of rows in its order; one fault and nothing is recorded."""
    told = [EVENT | {"task": f"T-{i}", "idempotency_key": f"k{i}"} for i in range(3)]
    answer = served.post(EVENTS, json=told)
    assert (answer.status_code, [r["task"] for r in answer.json()]) == (201, ["T-0", "T-1", "T-2"])
    assert served.post(EVENTS, json=told).status_code == 200
    assert served.post(EVENTS, json=[*told, EVENT]).status_code == 201
    assert refused(served.post(EVENTS, json=[EVENT, EVENT | {"tokens_in": -1}, {"ref_type": "x"}]), 422) == ["1.tokens_in", "2.ref_type"]
    assert refused(served.post(EVENTS, json=[EVENT, told[0] | {"tokens_in": 5}]), 409) == ["1.idempotency_key"]
    assert refused(served.post(EVENTS, json=[]), 422) == [""]
    assert refused(served.post(EVENTS, json=[EVENT] * 1001), 422) == [""]
    assert report(book.ledger(), []).total.runs == 4


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'"\xed\xa0\x80"', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"tokens_in": NaN}', "application/json", 400),
        (b"1" * 5000, "application/json", 400),
        (b'{"tokens_in": 1e999999999}', "application/json", 422),
        (b'{"tokens_in": 1e9999999999999999999}', "application/json", 422),
        (b'{"cost_usd": 1e9999999999999999999}', "application/json", 422),
        (b'[{"cost_usd": 1e-9999999999999999999}]', "application/json", 422),
        (b"null", "application/json", 422),
        (b'{"tokens_in":1}', "text/plain", 415),
        (b'{"tokens_in":1}', "application/x-www-form-urlencoded", 415),
        (b'{"tokens_in":1}', "application/json; charset=utf-8", 201),
    ],
)
def test_a_body_that_is_none_is_told_so(served: TestClient, body: bytes, kind: str, status: int) -> None:
    """As a problem; another content type, which any page could send here, is refused."""
    answer = served.post(EVENTS, content=body, headers={"content-type": kind})
    assert answer.status_code == status
    if status != 201:
        refused(answer, status)


def test_money_never_becomes_a_float(served: TestClient) -> None:
    """A number in JSON is read as it is written."""
    body = b'{"cost_usd": 123456.123456789}'
    assert served.post(EVENTS, content=body, headers={"content-type": "application/json"}).json()["cost_usd"] == "123456.123456789"


def test_the_list_is_filtered_and_paged(served: TestClient) -> None:
    """A cursor goes on where the page ended; what is not understood is named."""
    served.post(EVENTS, json=[EVENT | {"task": f"T-{i % 2}", "tokens_in": i, "ref_type": "commit", "ref_id": f"c{i}"} for i in range(6)])
    seen, cursor = [], None
    while True:
        page = served.get(EVENTS, params={"task": "T-1", "limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [e["tokens_in"] for e in page["token_events"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(seen) == [1, 3, 5]
    assert [e["tokens_in"] for e in served.get(EVENTS, params={"ref_type": "commit", "ref_id": "c4"}).json()["token_events"]] == [4]
    assert len(served.get(EVENTS, params={"since": "1h"}).json()["token_events"]) == 6
    assert served.get(EVENTS, params={"until": "1h"}).json()["token_events"] == []
    for params, field in (
        ({"since": "soon"}, "since"),
        ({"timezone": "Mars"}, "timezone"),
        ({"limit": 0}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "WzFlOTksIngiXQ"}, "cursor"),
        ({"colour": "red"}, "colour"),
        ({"ref_type": "branch"}, "ref_type"),
        ({"task": "a\0"}, "task"),
    ):
        assert refused(served.get(EVENTS, params=params), 422) == [field]


def test_the_summary_names_its_scope(served: TestClient) -> None:
    """As design.md says; a scope that there is not, or none, is named."""
    served.post(EVENTS, json=EVENT | {"cost_usd": 0.5})
    got = served.get(f"{EVENTS}/summary", params={"scope": "task", "id": "T-1"}).json()
    assert got == {
        "scope": "task", "scope_id": "T-1", "tokens_in": 100, "tokens_out": 20, "tokens_total": 120, "cost_usd": "0.500000",
        "event_count": 1, "by_model": {"claude-sonnet-4-5": 120}, "by_agent": {"dev": 120},
    }  # fmt: skip
    assert refused(served.get(f"{EVENTS}/summary", params={"scope": "planet", "id": "x"}), 422) == ["scope"]
    assert refused(served.get(f"{EVENTS}/summary"), 422) == ["scope", "id"]


def test_the_short_paths_answer_the_same(served: TestClient) -> None:
    """With problems too; the document lists each path once."""
    row = served.post("/token-events", json=EVENT).json()
    for path in ("", f"/{row['id']}", "/summary?scope=task&id=T-1", "?limit=1"):
        assert served.get(f"/token-events{path}").json() == served.get(f"{EVENTS}{path}").json()
    assert refused(served.get("/token-events/none"), 404) == refused(served.get(f"{EVENTS}/none"), 404) == []
    assert refused(served.delete("/token-events"), 405) == []
    assert refused(served.post("/token-events", json={}), 422) == ["tokens_in"]
    paths = served.get("/api/v1/openapi.json").json()["paths"]
    assert sorted(p for p in paths if "token-events" in p) == [EVENTS, f"{EVENTS}/summary", f"{EVENTS}/{{id}}"]


def test_the_document_says_what_is_taken_and_answered(served: TestClient) -> None:
    """The body's schema takes an event and a list, and what is answered fits the schema of answers."""
    document = served.get("/api/v1/openapi.json").json()
    post = document["paths"][EVENTS]["post"]
    body = jsonschema.Draft202012Validator(post["requestBody"]["content"]["application/json"]["schema"])
    assert [body.is_valid(x) for x in (EVENT, [EVENT], {}, [], [EVENT] * 1001)] == [True, True, False, False, False]
    answers = jsonschema.Draft202012Validator(document | post["responses"]["201"]["content"]["application/json"]["schema"])
    for told in (EVENT, [EVENT]):
        answers.validate(served.post(EVENTS, json=told).json())
    assert {"200", "201", "400", "409", "415", "422", "503"} <= post["responses"].keys()
    scope = next(p for p in document["paths"][f"{EVENTS}/summary"]["get"]["parameters"] if p["name"] == "scope")
    ref = next(p for p in document["paths"][EVENTS]["get"]["parameters"] if p["name"] == "ref_type")
    assert scope["schema"]["enum"] == list(SCOPES)
    assert ref["schema"]["anyOf"][0]["enum"] == list(REF_TYPES)


def test_a_ledger_that_cannot_be_written_is_told(settings: Settings, tmp_path: Path) -> None:
    """503 and when to come again; nothing of the event is there."""
    import sqlite3

    file = tmp_path / "busy.db"
    told = replace(settings, ledger=f"sqlite:///{file}")
    with closing(Book(told)) as book, serve(book) as served:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answer = served.post(EVENTS, json=EVENT)
        assert refused(answer, 503) == []
        assert answer.headers["retry-after"]
        other.execute("ROLLBACK")
        other.close()
        assert served.get(EVENTS).json()["token_events"] == []
        assert served.post(EVENTS, json=EVENT).status_code == 201


def test_the_how_to_does_what_it_says(served: TestClient) -> None:
    """Its posts are recorded, sent again they are known, and its questions find them; the reference has every field and no other."""
    page = (DOCS / "how-to" / "token-events.md").read_text()
    bodies = re.findall(r"-d '(.*?)'", page, re.DOTALL)
    assert [served.post(EVENTS, json=json.loads(b)).status_code for b in [*bodies, *bodies]] == [201] * len(bodies) + [200] * len(bodies)
    asked = [served.get(url).json() for url in re.findall(r"curl -s 'http://127.0.0.1:9464([^']+)'", page)]
    assert [x.get("event_count", len(x.get("token_events", []))) for x in asked] == [2, 1, 2]
    table = (DOCS / "reference" / "api.md").read_text().split("| field | what |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `")))) == set(FIELDS)


def test_what_no_database_takes_is_not_tried_again(new_url: Callable[[], str], settings: Settings) -> None:
    """422 on either database, for sums beyond 64 bits and for half a character in a cursor: a 503 would be sent again for ever."""
    with closing(Book(replace(settings, ledger=new_url()))) as book, serve(book) as client:
        dear = {"agent": "dev", "model": "m", "cost_usd": COST_MAX_USD}
        call = Call("api", "c", "s", Usage(cost_nusd=(1 << 63) - 1), "m", "m")
        book.ledger().commit(Batch([call], [Claim("api", "s", "c", Tags("dev"))], settled=True))
        assert "64 bits" in problem(client.post(EVENTS, json=dear), 422)["detail"]
        assert client.get(EVENTS).json()["token_events"] == []
        problem(client.get(EVENTS, params={"cursor": encode(0, "\ud800")}), 422)


def test_a_text_with_a_nul_is_nobodys(server: Server, settings: Settings) -> None:
    """A filter that PostgreSQL cannot even be asked for is a 422, and not a ledger that fails."""
    with closing(Book(replace(settings, ledger=server.database()))) as book, serve(book) as client:
        for path in ("/api/v1/report?task=%00", "/api/v1/runs?agent=a%00", f"{EVENTS}?cursor={encode(0, chr(0))}"):
            problem(client.get(path), 422)
        assert client.get("/runs?repo=%00").status_code == 422
