"""Facts about token events: what is taken, that they are usage like any other, that nothing is counted twice."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, event, select, text

from spendmeter.config import Settings
from spendmeter.demo import SAMPLE
from spendmeter.errors import LedgerError
from spendmeter.ingest import ingest_paths
from spendmeter.ledger import Batch, Committed, Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.costing import Prices
from spendmeter.ledger.engine import ConnectionLostError
from spendmeter.ledger.exposition import exposition
from spendmeter.ledger.query import report, runs
from spendmeter.ledger.verify import verify
from spendmeter.projections.prometheus import render
from spendmeter.records import Call, Tags, Usage, iso, usd_text
from spendmeter.token_events import (
    SCOPES,
    Asked,
    ConflictError,
    Queue,
    Recorded,
    TokenEventError,
    find,
    page,
    read,
    read_all,
    record,
    summary,
    writing,
)
from spendmeter.token_events.fields import COUNT_MAX
from spendmeter.token_events.model import BATCH_MAX, FIELDS, schema
from spendmeter.token_events.queue import _Waiting
from spendmeter.token_events.writing import record_each

MODEL = "claude-sonnet-4-5"
AT = "2026-11-01T12:00:00Z"
AT_MS = int(datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp() * 1000)
FULL = {
    "agent": "dev", "task": "T-1", "workstream": "shop", "repo": "org/shop", "ref_type": "release", "ref_id": "1.2", "model": MODEL,
    "tokens_in": 1000, "tokens_out": 200, "cache_read": 5000, "cache_write": 300, "cost_usd": "0.012345678", "note": "one\nline more",
    "occurred_at": AT, "idempotency_key": "k-1",
}  # fmt: skip
SCHEMA = jsonschema.Draft202012Validator(schema())


def post(ledger: Ledger, *told: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of events that are recorded together; one without amounts has a token of input."""
    return record(ledger, read_all([{"tokens_in": 1} | one for one in told])).rows


def whole(ledger: Ledger) -> dict[str, list[Any]]:
    """Every row of every table."""
    with ledger.read() as conn:
        return {table.name: sorted(map(repr, conn.execute(select(table)))) for table in t.META.sorted_tables}


# -- what is taken -----------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"tokens_in": -1}, "tokens_in", "from 0 to"),
    ({"tokens_in": COUNT_MAX + 1}, "tokens_in", "from 0 to"),
    ({"tokens_in": 1.5}, "tokens_in", "an integer"),
    ({"tokens_in": True}, "tokens_in", "an integer"),
    ({"tokens_in": "5"}, "tokens_in", "an integer"),
    ({"tokens_out": [1]}, "tokens_out", "an integer"),
    ({"cost_usd": -0.1}, "cost_usd", "US dollars"),
    ({"cost_usd": "1e3"}, "cost_usd", "US dollars"),
    ({"cost_usd": "0.0123456789"}, "cost_usd", "US dollars"),
    ({"cost_usd": 1_000_001}, "cost_usd", "US dollars"),
    ({"cost_usd": True}, "cost_usd", "US dollars"),
    ({"tokens_in": 1, "agent": ""}, "agent", "is empty"),
    ({"tokens_in": 1, "agent": 7}, "agent", "must be a string"),
    ({"tokens_in": 1, "task": "x" * 129}, "task", "has 129 characters; the longest is 128"),
    ({"tokens_in": 1, "task": "a\x00b"}, "task", "control character"),
    ({"tokens_in": 1, "model": "a\nb"}, "model", "control character"),
    ({"tokens_in": 1, "note": "a\x1b[31m"}, "note", "control character"),
    ({"tokens_in": 1, "note": "x" * 2001}, "note", "the longest is 2000"),
    ({"tokens_in": 1, "repo": "\ud800"}, "repo", "half a character"),
    ({"tokens_in": 1, "ref_type": "branch", "ref_id": "main"}, "ref_type", "one of commit, release, session"),
    ({"tokens_in": 1, "ref_id": "abc"}, "ref_type", "ref_id needs it"),
    ({"tokens_in": 1, "ref_type": "commit"}, "ref_id", "ref_type needs it"),
    ({"tokens_in": 1, "ref_type": "commit", "ref_id": None}, "ref_id", "ref_type needs it"),
    ({"task": "T-1"}, "tokens_in", "one at least of tokens_in, tokens_out, cache_read"),
    ({"tokens_in": None}, "tokens_in", "one at least"),
    ({"token_in": 1}, "token_in", "did you mean tokens_in?"),
    ({"tokens_in": 1, "zzz": 1}, "zzz", "there are agent, task"),
]
TIMES = ["2026-11-01", "2026-11-01T12:00:00", "soon", "1969-12-31T23:59:59Z", "9999-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", 5, ""]


@pytest.mark.parametrize(("told", "field", "says"), WRONG, ids=[f"{f}-{i}" for i, (_, f, _s) in enumerate(WRONG)])
def test_what_is_wrong_is_named_by_its_field(told: dict[str, Any], field: str, says: str) -> None:
    """In words that say what was expected, never with the value; the schema of the API refuses it too."""
    with pytest.raises(TokenEventError) as e:
        read(told)
    assert [x.field for x in e.value.errors] == [field]
    assert says in e.value.errors[0].message
    assert not SCHEMA.is_valid(told)


@pytest.mark.parametrize("told", TIMES)
def test_times_have_a_zone_and_lie_in_the_past(told: object) -> None:
    """Or a day ahead at most, as clocks differ."""
    with pytest.raises(TokenEventError, match="occurred_at: "):
        read({"tokens_in": 1, "occurred_at": told})


@pytest.mark.parametrize("told", [None, 5, "x", [], [{}]])
def test_an_event_is_an_object(told: object) -> None:
    """Anything else is refused."""
    with pytest.raises(TokenEventError, match="must be a JSON object"):
        read(told)


def test_money_is_exact() -> None:
    """A string to the nano-USD; a number is rounded to that."""
    told = {"0.012345678": 12_345_678, "1000000": 10**15, 0.1: 10**8, Decimal("0.1"): 10**8, 0.30000000000000004: 3 * 10**8, 5: 5 * 10**9}
    assert {x: read({"cost_usd": x}).cost_nusd for x in told} == told


def test_a_batch_names_the_event_and_the_field() -> None:
    """By the index; no more than 50 faults are named, however many there are."""
    with pytest.raises(TokenEventError) as e:
        read_all([{"tokens_in": 1}, {"tokens_in": -1, "task": ""}, 5])
    assert [x.field for x in e.value.errors] == ["1.task", "1.tokens_in", "2"]
    for many in ([{"x": 1}] * BATCH_MAX, [{f"x{i}": 1 for i in range(10_000)}]):
        with pytest.raises(TokenEventError) as e:
            read_all(many)
        assert len(e.value.errors) == 50
    for count in (0, BATCH_MAX + 1):
        with pytest.raises(TokenEventError, match=f"a batch of {count} events; send from 1 to {BATCH_MAX}"):
            read_all([{"tokens_in": 1}] * count)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, COUNT_MAX + 2), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5),
    st.sampled_from(["commit", "0.5", "x" * 128, "x" * 129, "a\tb", "\x7f", "\n"]), st.just([]),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([f for f in FIELDS if f != "occurred_at"] + ["other"]), VALUES, max_size=6))
def test_the_schema_takes_what_is_taken(told: dict[str, Any]) -> None:
    """No more and no less, for every field but the time, which no schema can compare with the clock."""
    try:
        read(told)
        taken = True
    except TokenEventError:
        taken = False
    assert taken == SCHEMA.is_valid(told)


# -- usage like any other ----------------------------------------------------------------------------------------------


def test_an_event_is_usage_like_any_other(both: Ledger) -> None:
    """Reports, runs and the counters tell it exactly; verify is clean."""
    (row,) = post(both, FULL)
    got = report(both, ["agent", "task", "cli", "model", "repo", "attr:workstream", "attr:release"])
    assert [r.keys for r in got.rows] == [("dev", "T-1", "api", MODEL, "org/shop", "shop", "1.2")]
    used = got.total
    assert (used.tokens_in, used.tokens_out, used.cache_read, used.cache_write_5m) == (1000, 200, 5000, 300)
    assert (used.reported_nusd, used.estimated_nusd, used.calls, used.runs) == (12_345_678, None, 1, 1)
    (run,) = runs(both)
    assert (run.run_key, run.outcome, run.ended_ms, run.duration_ms, run.notes) == (row["id"], "unknown", AT_MS, None, ())
    with both.read() as conn:
        counted = {(r.family, r.labels): r.value for r in conn.execute(select(t.series))}
    assert counted["spendmeter.tokens_in", f'["dev","api","{MODEL}"]'] == 1000
    assert counted["spendmeter.task.cost_usd", '["dev","T-1"]'] == 12_345_678
    assert verify(both) == []


def test_what_no_one_paid_is_priced_by_the_list(both: Ledger) -> None:
    """As of the day of use, where the model is known; else its tokens are counted as without a price."""
    post(both, {"model": MODEL, "tokens_in": 1000, "tokens_out": 200, "occurred_at": AT}, {"model": "nobody's", "tokens_in": 7})
    listed = both.prices.price(MODEL, Usage(tokens_in=1000, tokens_out=200), AT_MS)
    assert listed
    by_model = {r.keys[0]: r.amounts for r in report(both, ["model"]).rows}
    assert (by_model[MODEL].estimated_nusd, by_model[MODEL].reported_nusd) == (listed, None)
    assert (by_model["nobody's"].cost_nusd, by_model["nobody's"].unpriced_tokens) == (None, 7)
    assert verify(both) == []


def test_unknown_stays_unknown(both: Ledger) -> None:
    """In the row, in the summary and in the report; a zero that was told is a zero."""
    rows = post(both, {"task": "A", "tokens_in": None, "cost_usd": "0.5"}, {"task": "B", "tokens_in": 0})
    cost_only = find(both, rows[0]["id"])
    assert cost_only is not None
    assert {cost_only[n] for n in ("tokens_in", "tokens_out", "tokens_total", "model", "repo", "note", "ref_type")} == {None}
    assert (cost_only["agent"], cost_only["cost_usd"]) == ("unknown", "0.500000")
    a, b = (summary(both, "task", x).as_dict() for x in "AB")
    assert (a["tokens_total"], a["cost_usd"], a["by_model"]) == (None, "0.500000", {"unknown": None})
    assert (b["tokens_in"], b["tokens_out"], b["tokens_total"], b["cost_usd"], b["event_count"]) == (0, None, 0, None, 1)
    assert verify(both) == []


def test_an_event_too_dear_to_be_true_is_refused(both: Ledger) -> None:
    """A price beyond any would no longer fit into sums."""
    with pytest.raises(TokenEventError, match=r"1\.tokens_in: at list price the event costs more than 1000000 USD"):
        post(both, {}, {"model": MODEL, "tokens_in": COUNT_MAX})
    assert whole(both)["token_events"] == whole(both)["calls"] == []


def test_the_note_goes_nowhere(both: Ledger) -> None:
    """It stands in the event's own row; neither facts nor exports hold it, nor the idempotency key."""
    post(both, FULL | {"note": "SECRET note", "idempotency_key": "SECRET key"})
    rows = whole(both)
    assert "SECRET note" in rows.pop("token_events")[0]
    assert "SECRET" not in repr(rows)
    assert "SECRET" not in str(render(exposition(both, "scrape", AT_MS)))


# -- once --------------------------------------------------------------------------------------------------------------


def test_a_known_key_is_the_first_event(both: Ledger) -> None:
    """Sending it again changes nothing at all, also in a batch, also where the time was left out."""
    first = record(both, [read(FULL), read({"tokens_in": 5, "idempotency_key": "k-2"})])
    before = whole(both)
    again = record(both, [read({"tokens_in": 5, "idempotency_key": "k-2"}), read(FULL)])
    assert (first.new, again.new) == (True, False)
    assert again.rows == first.rows[::-1]
    assert whole(both) == before
    mixed = record(both, [read(FULL), read({"tokens_in": 6}), read(FULL)])
    assert (mixed.new, mixed.rows[0], mixed.rows[2]) == (True, first.rows[0], first.rows[0])
    assert len(whole(both)["token_events"]) == 3


@pytest.mark.parametrize("name", [n for n in FULL if n != "idempotency_key"])
def test_a_key_names_one_event(ledger: Ledger, name: str) -> None:
    """Another under it is refused, whatever differs, and so is all that was sent with it."""
    post(ledger, FULL)
    before = whole(ledger)
    other: dict[str, Any] = {"ref_type": "commit", "occurred_at": "2026-11-01T12:00:01Z", "cost_usd": "0.012345679"}
    changed = FULL | {name: other.get(name, FULL[name] + 1 if isinstance(FULL[name], int) else f"{FULL[name]}x")}
    with pytest.raises(ConflictError) as e:
        post(ledger, {"task": "new"}, changed)
    assert e.value.index == 1
    assert whole(ledger) == before


def test_many_at_once_under_one_key_are_one(both: Ledger) -> None:
    """Eight clients that send the same: one is first, the others get its row."""
    start, found = threading.Barrier(8), []

    def send() -> None:
        start.wait()
        found.append(record(both, [read(FULL)]))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(x.new for x in found) == [False] * 7 + [True]
    assert len({x.rows[0]["id"] for x in found}) == 1
    assert report(both, []).total.tokens_in == 1000
    assert verify(both) == []


def test_each_of_several_that_wait_gets_its_own_answer(both: Ledger) -> None:
    """In one transaction: what is refused is refused to its sender alone, brings nothing, and leaves nothing for those behind it."""
    dear = {"tokens_out": COUNT_MAX, "model": MODEL, "task": "T-9"}
    asked = [
        [FULL],
        [dear],
        [{"task": "T-2", "idempotency_key": "k-2", "tokens_in": 7}, FULL | {"tokens_in": 1}],
        [FULL],
        [{"tokens_in": 5}],
    ]
    asked.append([{"task": "T-2", "idempotency_key": "k-2", "tokens_in": 8}])
    first, second, third, fourth, fifth, sixth = record_each(both, [read_all(told) for told in asked])
    assert isinstance(second, TokenEventError)
    assert isinstance(third, ConflictError)
    assert isinstance(first, Recorded)
    assert fourth == Recorded(first.rows, new=False)
    assert [x.new for x in (first, fifth, sixth) if isinstance(x, Recorded)] == [True] * 3
    assert report(both, []).total.tokens_in == 1000 + 5 + 8
    assert len(whole(both)["sessions"]) == 3
    assert verify(both) == []


def test_what_comes_together_is_as_what_comes_one_after_the_other(both: Ledger) -> None:
    """A workstream comes from the latest that names one, also where that waits in front of it, and not from what was recorded last."""
    told = [
        {"task": "T-1", "workstream": "new", "occurred_at": AT},
        {"task": "T-1", "workstream": "old", "occurred_at": "2026-10-01T00:00:00Z"},
    ]
    done = record_each(both, [read_all([one | {"tokens_in": 1}]) for one in [*told, {"task": "T-1"}, {"task": "T-2"}]])
    assert [x.rows[0]["workstream"] for x in done if isinstance(x, Recorded)] == ["new", "old", "new", None]


def test_a_transaction_that_fails_is_tried_again_for_each(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the database refuses, or a defect, is the trouble of one sender; the others' events are recorded."""
    commit = ledger.commit_in

    def broken(conn: Connection, batch: Batch, prices: Prices) -> Committed:
        if any(isinstance(c, Call) and c.usage.tokens_in == 13 for c in batch.observations):
            raise ZeroDivisionError
        return commit(conn, batch, prices)

    monkeypatch.setattr(ledger, "commit_in", broken)
    done = record_each(ledger, [read_all([{"tokens_in": n}]) for n in (12, 13, 14)])
    assert [type(x) for x in done] == [Recorded, ZeroDivisionError, Recorded]
    assert report(ledger, []).total.tokens_in == 26
    assert verify(ledger) == []


def test_a_queue_records_what_waits_by_one_commit(both: Ledger) -> None:
    """While the first is written the others gather; each gets its own row, and all of them are one transaction then."""
    queue, commits, found = Queue(lambda: both), [], []
    event.listen(both._engine, "commit", lambda _conn: commits.append(len(found)))
    with both.write():  # the first waits for this
        threads = [threading.Thread(target=lambda n=n: found.append((n, queue.record([read({"tokens_in": n})])))) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while len(queue._waiting) < 7 and time.monotonic() < deadline:
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert [n for n, x in found if x.rows[0]["tokens_in"] == n and x.new] == [n for n, _ in found]
    assert len(found) == 8
    assert len(commits) <= 4  # ours, the first, the rest, and a reader's
    assert report(both, []).total.tokens_in == 36


def test_a_queue_tells_every_waiting_thread_that_there_is_no_ledger(ledger: Ledger) -> None:
    """None is left waiting, and the next is heard again."""
    here = [False, False, True]

    def found() -> Ledger:
        if not here.pop(0):
            raise LedgerError("gone")
        return ledger

    queue = Queue(found)
    for _ in range(2):
        with pytest.raises(LedgerError, match="gone"):
            queue.record([read({"tokens_in": 1})])
    assert queue.record([read({"tokens_in": 1})]).new


def test_a_batch_is_as_much_as_one_commit_takes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody waits for a transaction of any length: whole requests, up to the size of the largest."""
    sizes: list[list[int]] = []
    each = writing.record_each
    monkeypatch.setattr(
        "spendmeter.token_events.queue.record_each", lambda x, asked: sizes.append([len(a) for a in asked]) or each(x, asked)
    )
    queue = Queue(lambda: ledger)
    queue._waiting.extend(_Waiting([read({"tokens_in": 1})] * n) for n in (400, 500, 200, 1))
    while queue._waiting:
        queue._write(queue._group())
    assert sizes == [[400, 500], [200, 1]]


def test_what_is_asked_before_an_event_is_recorded_goes_by_an_index(ledger: Ledger) -> None:
    """No statement of a POST reads a table, or an index, from its beginning to its end."""
    post(ledger, FULL)
    told: list[tuple[str, Any]] = []
    event.listen(ledger._engine, "before_cursor_execute", lambda _c, _k, statement, values, *_: told.append((statement, values)))
    post(ledger, FULL | {"idempotency_key": "k-2"})
    asked = [x for x in told if x[0].startswith(("SELECT", "UPDATE"))]
    ways = set()
    with ledger.read() as conn:
        for statement, values in asked:
            one = values[0] if isinstance(values, list) else values
            ways |= {row[-1] for row in conn.exec_driver_sql(f"explain query plan {statement}", one)}
    assert len(asked) > 10
    assert {w for w in ways if w.startswith("SCAN")} <= {"SCAN rulesets"}  # of which there are as many as settings have ever differed


def test_a_connection_lost_after_the_commit_doubles_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows then whether it was committed: it is tried again, and events without a key are found to be there."""
    write, losses = ledger.write, [True]

    @contextmanager
    def cut() -> Iterator[Connection]:
        with write() as conn:
            yield conn
        if losses and losses.pop():
            raise ConnectionLostError("the server went away")

    monkeypatch.setattr(ledger, "write", cut)
    done = record(ledger, [read({"tokens_in": 5}), read({"tokens_in": 6})])
    monkeypatch.undo()
    assert (losses, done.new, len({r["id"] for r in done.rows})) == ([], True, 2)
    assert (report(ledger, []).total.tokens_in, report(ledger, []).total.runs) == (11, 2)


# -- workstreams -------------------------------------------------------------------------------------------------------


def test_a_workstream_is_filled_in_from_its_task(both: Ledger) -> None:
    """By the latest that names one; an event's own word stands, and a task that nobody knows has none."""
    post(both, {"task": "T-1", "workstream": "new", "occurred_at": AT})
    post(both, {"task": "T-1", "workstream": "old", "occurred_at": "2026-10-01T00:00:00Z"})
    post(both, {"workstream": "mine"})
    rows = post(both, {"task": "T-1"}, {"task": "T-1", "workstream": "own"}, {"task": "T-1"}, {"task": "T-2"}, {})
    assert [r["workstream"] for r in rows] == ["new", "own", "own", None, None]
    assert summary(both, "workstream", "new").events == 2


def test_a_metered_run_names_the_workstream_too(ledger: Ledger) -> None:
    """By its attribute, as ``spendmeter run --attr workstream=...`` gives it."""
    ingest_paths(ledger, [str(SAMPLE / "json-opus")], tags=Tags("dev", "T-1", {"workstream": "shop", "release": "1.2"}))
    (row,) = post(ledger, {"task": "T-1"})
    assert row["workstream"] == "shop"
    assert {s: summary(ledger, s, i).events for s, i in (("workstream", "shop"), ("release", "1.2"))} == {"workstream": 2, "release": 1}


# -- sums --------------------------------------------------------------------------------------------------------------


def test_a_summary_is_events_and_runs_each_once(both: Ledger) -> None:
    """Of a task that both a metered run and posted events name: what the report says, by model and by agent."""
    ingest_paths(both, [str(SAMPLE / "json-opus")], tags=Tags("reviewer", "T-1"))
    post(both, FULL, {"task": "T-1", "tokens_out": 3, "agent": "reviewer"}, {"task": "T-2"})
    got = summary(both, "task", "T-1").as_dict()
    total = report(both, [], task="T-1").total
    assert (got["tokens_in"], got["tokens_out"], got["cost_usd"]) == (total.tokens_in, total.tokens_out, usd_text(total.cost_nusd))
    assert (got["event_count"], got["tokens_total"]) == (3, (total.tokens_in or 0) + (total.tokens_out or 0))
    for by, dimension in (("by_model", "model"), ("by_agent", "agent")):
        found = {r.keys[0]: (r.amounts.tokens_in or 0) + (r.amounts.tokens_out or 0) for r in report(both, [dimension], task="T-1").rows}
        assert got[by] == found
        assert sum(got[by].values()) == got["tokens_total"]
        assert list(got[by].values()) == sorted(got[by].values(), reverse=True)


def test_every_scope_finds_its_own(both: Ledger) -> None:
    """And nothing where nothing is named so: no events, and no number that anyone knows."""
    refs = [{"ref_type": x, "ref_id": "here"} for x in ("commit", "release", "session")]
    post(both, *[{name: "here", "tokens_in": 10} for name in ("task", "workstream", "repo")], *[r | {"tokens_in": 10} for r in refs])
    for scope in SCOPES:
        assert (summary(both, scope, "here").events, summary(both, scope, "here").amounts.tokens_in) == (1, 10)
        assert summary(both, scope, "there").as_dict() == {
            "scope": scope, "scope_id": "there", "tokens_in": None, "tokens_out": None, "tokens_total": None, "cost_usd": None,
            "event_count": 0, "by_model": {}, "by_agent": {},
        }  # fmt: skip


def test_a_sessions_summary_has_its_runs_and_what_was_posted_of_it(both: Ledger) -> None:
    """Both know the session by the CLI's id."""
    ingest_paths(both, [str(SAMPLE / "json-opus")])
    (run,) = runs(both)
    post(both, {"ref_type": "session", "ref_id": run.session, "tokens_out": 7})
    got = summary(both, "session", run.session)
    assert (got.events, got.amounts.tokens_out) == (2, (run.amounts.tokens_out or 0) + 7)


def ways(ledger: Ledger, ask: Callable[[], object]) -> str:
    """How SQLite goes about all that *ask* asks the ledger."""
    asked: list[tuple[str, Any]] = []

    def note(_conn: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        asked.append((statement, values))

    event.listen(ledger._engine, "before_cursor_execute", note)
    ask()
    event.remove(ledger._engine, "before_cursor_execute", note)
    with ledger.read() as conn:
        return "\n".join(str(r[-1]) for s, v in asked if s.startswith("SELECT") for r in conn.exec_driver_sql(f"explain query plan {s}", v))


def test_questions_go_by_an_index(ledger: Ledger) -> None:
    """Whatever is asked for: no list sorts, no summary looks at every run."""
    for scope in SCOPES:
        way = ways(ledger, lambda scope=scope: summary(ledger, scope, "x"))
        assert way.count("SEARCH runs USING") == 2, scope
        assert not re.search("SCAN (runs|entries|token_events|aliases)", way), scope
    for name in ("agent", "task", "workstream", "repo", "ref_id", "model"):
        way = ways(ledger, lambda name=name: page(ledger, Asked(**{name: "x"}), 50, (AT_MS, "x")))
        assert f"SEARCH token_events USING INDEX ix_token_events_{name.removesuffix('_id')}" in way
        assert "TEMP B-TREE" not in way, name
    assert "USING INDEX ix_token_events_occurred" in ways(ledger, lambda: page(ledger, Asked(), 50))
    fill = ways(ledger, lambda: post(ledger, {"task": "T-1"}))
    assert "SEARCH runs USING INDEX ix_runs_task_workstream (task=?)" in fill


# -- lists -------------------------------------------------------------------------------------------------------------


def test_pages_give_every_event_once(both: Ledger) -> None:
    """The latest first, also where many are of one moment and more land meanwhile."""
    ids = {r["id"] for r in post(both, *[{"occurred_at": AT, "tokens_in": i} for i in range(7)], {"occurred_at": "2026-10-01T00:00:00Z"})}
    found, place = page(both, Asked(), 3)
    post(both, {"note": "later"})
    while place is not None:
        more, place = page(both, Asked(), 3, place)
        found += more
    assert len(found) == len(ids)
    assert {r["id"] for r in found} == ids
    assert [r["occurred_at"] for r in found] == sorted((r["occurred_at"] for r in found), reverse=True)


def test_filters_narrow_the_list(both: Ledger) -> None:
    """Each of them, and the window: its start belongs to it, its end does not."""
    row = find(both, post(both, FULL, {"task": "T-2", "occurred_at": "2026-10-01T00:00:00Z"})[0]["id"])
    assert row is not None
    assert row == FULL | {
        "id": row["id"], "tokens_total": 1200, "created_at": row["created_at"], "occurred_at": iso(AT_MS), "cost_usd": "0.012345678",
    }  # fmt: skip
    for name in ("agent", "task", "workstream", "repo", "ref_type", "ref_id", "model"):
        assert page(both, Asked(**{name: FULL[name]}), 9) == ([row], None)
    assert page(both, Asked(since_ms=AT_MS), 9) == ([row], None)
    assert page(both, Asked(since_ms=AT_MS - 1, until_ms=AT_MS), 9) == ([], None)
    assert page(both, Asked(task="T-1", agent="other"), 9) == ([], None)


# -- ledgers from before -----------------------------------------------------------------------------------------------


def test_runs_from_before_learn_what_they_are_summed_up_by(tmp_path: Path) -> None:
    """A ledger of the schema before: its runs' attributes become columns."""
    from alembic import command
    from alembic.config import Config

    import spendmeter.ledger

    url = f"sqlite:///{tmp_path / 'old.db'}"
    config = Config()
    config.set_main_option("script_location", str(Path(spendmeter.ledger.__file__).parent / "migrations"))
    engine = create_engine(url)
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "0003")
        conn.execute(text("insert into meta (key, value) values ('ledger_id', 'x'), ('created_ms', '0')"))
        names = "session_id, run_key, cli, session, agent, task, attrs, outcome, implied, trace_id, span_id, notes"
        attrs = '{"workstream":"shop","release":"1.2"}'
        conn.exec_driver_sql(f"insert into runs ({names}) values (1, 'r', 'claude', 's', 'dev', 'T', '{attrs}', 'ok', 0, '', '', '[]')")
    engine.dispose()
    ledger = Ledger(Settings(url))
    assert [summary(ledger, s, i).events for s, i in (("workstream", "shop"), ("release", "1.2"), ("workstream", "x"))] == [1, 1, 0]
    ledger.close()
