"""Codex: totals of threads, forks, subagents, turns as runs."""

from __future__ import annotations

import io
import itertools
import json
from typing import Any

from spendmeter.parsers import read, read_file
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.rule import Rule
from spendmeter.reconcile.split import split
from spendmeter.records import Call, Finish, Level, Observation, Skip, total
from tests.runs import ROOT, amounts


def told(*rows: dict[str, Any]) -> list[Observation]:
    return read(io.BytesIO("\n".join(json.dumps(r) for r in rows).encode()), None, "x")[0]


def used(n: int) -> dict[str, int]:
    return {"input_tokens": 10 * n, "cached_input_tokens": 4 * n, "cache_write_input_tokens": n, "output_tokens": 3 * n}


def meta(thread: str, **more: Any) -> dict[str, Any]:
    return {"timestamp": "2026-11-21T23:30:45Z", "type": "session_meta", "payload": {"id": thread, "source": "exec", **more}}


def turn(second: int, name: str, **more: Any) -> dict[str, Any]:
    payload = {"type": "task_started", "turn_id": name, **more}
    return {"timestamp": f"2026-11-21T23:31:{second:02}Z", "type": "event_msg", "payload": payload}


def attributed(second: int, name: str, parent: str | None) -> dict[str, Any]:
    return turn(second, name, turn_attribution={"turn_trigger": "exec", "parent_turn_id": parent})


def record(second: int, thread: str, response: str, n: int, whole: int) -> dict[str, Any]:
    payload = {"thread_id": thread, "response_id": response, "usage": used(n), "thread_token_usage": used(whole)}
    return {"timestamp": f"2026-11-21T23:31:{second:02}Z", "type": "token_usage_record", "payload": payload}


def book_of(*observations: list[Observation]) -> Book:
    book = Book()
    for some in observations:
        book.add_all(some)
    return book


def spent(book: Book, session: str) -> int:
    return total(Rule(*book.gather(book.sessions["codex", session])).cells().values()).tokens


ONE = 10 + 3  # tokens of used(1)


def test_input_includes_what_was_cached() -> None:
    """Uncached input is what is left of the input after cache reads and writes."""
    call = next(o for o in told(meta("t"), record(1, "t", "r", 1, 1)) if isinstance(o, Call))
    assert (call.usage.tokens_in, call.usage.cache_read, call.usage.cache_write_5m, call.usage.tokens_out) == (5, 4, 1, 3)


def test_a_fork_counts_from_its_parents_total() -> None:
    """The first record less its call is what the thread inherited; stdout's total counts less that, whatever comes first."""
    file = told(meta("fork", forked_from_id="t"), record(1, "fork", "r", 2, 9), record(2, "fork", "s", 1, 10))
    printed = told({"type": "thread.started", "thread_id": "fork"}, {"type": "turn.completed", "usage": used(10)})
    assert spent(book_of(printed), "fork") == 10 * ONE
    assert spent(book_of(printed, file), "fork") == spent(book_of(file, printed), "fork") == 3 * ONE


def test_a_subagents_calls_belong_to_the_session_that_started_it() -> None:
    """A subagent's rollout adds to its parent's session, beside the parent's own total, which leaves it out."""
    parent = told(meta("root"), turn(0, "a"), record(1, "root", "r", 2, 2))
    spawn = {"subagent": {"thread_spawn": {"parent_thread_id": "root"}}}
    sub = told(meta("sub", source=spawn), turn(1, "b"), record(2, "sub", "s", 5, 5))
    deeper = told(meta("sub2", source="subagent", session_id="root", parent_thread_id="sub"), record(3, "sub2", "u", 1, 1))
    printed = told({"type": "thread.started", "thread_id": "root"}, {"type": "turn.completed", "usage": used(2)})
    for order in ((parent, sub, deeper, printed), (printed, deeper, sub, parent), (printed, sub, deeper)):
        book = book_of(*order)
        assert spent(book, "root") == 8 * ONE
        assert {key for key, facts in book.sessions.items() if facts.calls or facts.levels} == {("codex", "root")}
    run = split(book_of(parent, sub, deeper, printed).sessions["codex", "root"])
    assert [(r.outcome, total(p.usage for p in r.pieces).tokens) for r in run] == [("ok", 8 * ONE)]


def test_a_subagents_thread_that_is_taken_up_uses_tokens_of_its_own() -> None:
    """``resume --last`` may take up a subagent's thread: its turns that no other's turn began are its own runs, counted once."""
    spawn = {"subagent": {"thread_spawn": {"parent_thread_id": "root"}}}
    parent = told(meta("root"), turn(0, "a"), record(1, "root", "r", 2, 2))
    helped, own = attributed(2, "b", "a"), attributed(10, "c", None)
    again = attributed(20, "d", "a")  # its starter asks it for more
    thread = meta("sub", source=spawn)
    sub = told(thread, helped, record(3, "sub", "s", 5, 5), own, record(11, "sub", "u", 4, 9), again, record(21, "sub", "v", 1, 10))
    printed = told({"type": "thread.started", "thread_id": "sub"}, {"type": "turn.completed", "usage": used(9)})
    for order in itertools.permutations((parent, sub, printed)):
        book = book_of(*order)
        assert (spent(book, "root"), spent(book, "sub")) == (8 * ONE, 4 * ONE)
    runs = split(*book.gather(book.sessions["codex", "sub"]))
    assert [(r.outcome, total(p.usage for p in r.pieces).tokens) for r in runs] == [("ok", 4 * ONE)]


def test_a_subagents_role_is_its_calls_type() -> None:
    """Where the thread was spawned in a role its calls tell it; the main agent's have none."""
    spawn = {"subagent": {"thread_spawn": {"parent_thread_id": "root", "agent_role": "explorer"}}}
    rows = (told(meta("root"), record(1, "root", "r", 2, 2)), told(meta("sub", source=spawn), record(2, "sub", "s", 5, 5)))
    assert [(c.subagent, c.subagent_type) for some in rows for c in some if isinstance(c, Call)] == [(None, None), ("sub", "explorer")]


def test_a_killed_run_between_two_others_keeps_its_own() -> None:
    """A turn without a printed end is a run of its own: its calls are not the next run's."""
    one, two, three = record(1, "t", "r", 1, 1), record(11, "t", "s", 2, 3), record(21, "t", "u", 4, 7)
    file = told(meta("t"), turn(0, "a"), one, turn(10, "b"), two, turn(20, "c"), three)
    first = told({"type": "thread.started", "thread_id": "t"}, {"type": "turn.completed", "usage": used(1)})
    third = told({"type": "thread.started", "thread_id": "t"}, {"type": "turn.completed", "usage": used(7)})
    runs = split(book_of(file, first, third).sessions["codex", "t"])
    assert [(r.implied, total(p.usage for p in r.pieces).tokens // ONE) for r in runs] == [(False, 1), (True, 2), (False, 4)]


def test_turns_that_a_person_types_are_one_run() -> None:
    """In the terminal many turns are one process, and nothing tells where one ends: the thread is one run."""
    typed = {"turn_attribution": {"turn_trigger": "user"}}
    file = told(
        meta("t", source="cli"), turn(0, "a", **typed), record(1, "t", "r", 1, 1), turn(9, "b", **typed), record(10, "t", "s", 1, 2)
    )
    assert [total(p.usage for p in r.pieces).tokens // ONE for r in split(book_of(file).sessions["codex", "t"])] == [2]


def test_a_copied_row_is_its_threads() -> None:
    """A rollout that repeats another thread's records adds nothing to itself."""
    file = told(meta("fork"), record(1, "t", "r", 3, 3), record(2, "fork", "s", 1, 4))
    book = book_of(file, told(meta("t"), record(1, "t", "r", 3, 3)))
    assert (spent(book, "t"), spent(book, "fork")) == (3 * ONE, ONE)


def test_a_failed_run_is_told_and_its_usage_is_unknown() -> None:
    """``turn.failed`` prints no usage: the run is an error, and says that its usage is in the files alone."""
    seen = told({"type": "thread.started", "thread_id": "t"}, {"type": "turn.failed", "error": {"message": "private"}})
    assert [o.outcome for o in seen if isinstance(o, Finish)] == ["error"]
    assert "private" not in repr(seen)
    (run,) = split(book_of(seen).sessions["codex", "t"])
    assert run.unknown == ("usage: nothing printed and no session file tells it",)


def test_usage_without_a_session_or_count_is_a_skip() -> None:
    """A turn before any thread, and a record whose counts are none, are named as skips."""
    bad = {"type": "token_usage_record", "payload": {"thread_id": "t", "response_id": "r", "usage": {"input_tokens": "7"}}}
    seen = told({"type": "turn.completed", "usage": used(1)}, bad)
    assert sorted(o.reason for o in seen if isinstance(o, Skip)) == ["bad usage", "no session"]
    assert not any(isinstance(o, Call | Level) for o in seen)


def test_the_model_is_the_turns() -> None:
    """A captured run: every call names the model of its turn, and none has a cost, for Codex reports none."""
    path = next((ROOT / "codex" / "json-tool-known-model" / "home").rglob("*.jsonl"))
    calls = [o for o in read_file(path)[0] if isinstance(o, Call)]
    assert {c.answered for c in calls} == set(json.loads((path.parents[6] / "truth.json").read_text())["totals_by_model"])
    assert {c.usage.cost_nusd for c in calls} == {None}
    assert amounts(total(c.usage for c in calls))["tokens_out"] > 0


def counted(second: int, whole: int) -> dict[str, Any]:
    info = {"total_token_usage": used(whole), "last_token_usage": used(1)}
    return {"timestamp": f"2026-11-21T23:31:{second:02}Z", "type": "event_msg", "payload": {"type": "token_count", "info": info}}


def test_older_versions_tell_a_threads_total() -> None:
    """Without records the running total, which an abort repeats, is the thread's; with them it says nothing more."""
    assert spent(book_of(told(meta("t"), counted(1, 2), counted(2, 5), counted(3, 5))), "t") == 5 * ONE
    assert spent(book_of(told(meta("t"), record(1, "t", "r", 2, 2), counted(1, 2))), "t") == 2 * ONE
    upgraded = told(meta("t"), counted(1, 3), record(5, "t", "r", 2, 5), counted(5, 5))
    assert spent(book_of(upgraded), "t") == 5 * ONE
    sub = told(meta("sub", parent_thread_id="t"), counted(1, 4))
    assert spent(book_of(upgraded, sub), "t") == 9 * ONE


def test_an_older_versions_fork_is_a_skip() -> None:
    """Without records nothing tells what a fork inherited: it counts nothing, and says so if it used anything."""
    seen = told(meta("f", forked_from_id="t"), counted(1, 7), counted(2, 9))
    assert [o.reason for o in seen if isinstance(o, Skip)] == ["fork without records"]
    assert not any(isinstance(o, Level | Call) for o in seen)
