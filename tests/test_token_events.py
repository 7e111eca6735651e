"""Facts about token events: that they are usage like any other, and that nothing is counted twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, select

from spendmeter.errors import LedgerError
from spendmeter.ledger import Batch, Committed, Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.costing import Prices
from spendmeter.ledger.engine import ConnectionLostError
from spendmeter.ledger.exposition import exposition
from spendmeter.ledger.query import report, runs
from spendmeter.ledger.verify import verify
from spendmeter.projections.prometheus import render
from spendmeter.records import Call, Usage
from spendmeter.token_events import ConflictError, Queue, Recorded, TokenEventError, find, read, read_all, record, summary, writing
from spendmeter.token_events.fields import COUNT_MAX
from spendmeter.token_events.queue import _Waiting
from spendmeter.token_events.writing import record_each
from tests.posted import AT, AT_MS, FULL, MODEL, post


def whole(ledger: Ledger) -> dict[str, list[Any]]:
    """Every row of every table."""
    with ledger.read() as conn:
        return {table.name: sorted(map(repr, conn.execute(select(table)))) for table in t.META.sorted_tables}


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
    start = threading.Barrier(8)

    def send(_: int) -> Recorded:
        start.wait()
        return record(both, [read(FULL)])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(send, range(8)))
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
    with ThreadPoolExecutor(8) as pool, both.write():  # the first waits for this
        for n in range(1, 9):
            pool.submit(lambda n=n: found.append((n, queue.record([read({"tokens_in": n})]))))
        deadline = time.monotonic() + 10
        while len(queue._waiting) < 7 and time.monotonic() < deadline:
            time.sleep(0.01)
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
