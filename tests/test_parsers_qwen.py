"""Qwen Code: telemetry rows are the calls, results and records are the session's running total."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

from spendmeter.parsers import read, read_file
from spendmeter.parsers.changes import Changes
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.rule import Rule
from spendmeter.reconcile.split import split
from spendmeter.records import Call, Finish, Level, Observation, total
from tests.runs import ROOT, world_total


def told(*rows: dict[str, Any]) -> list[Observation]:
    return read(io.BytesIO("\n".join(json.dumps(r) for r in rows).encode()), None, "x")[0]


ONE = 10 + 3


def row(second: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"uuid": f"u{second}", "sessionId": "s", "timestamp": f"2026-11-21T23:31:{second:02}Z", "type": kind, **more}


def prompt(second: int) -> dict[str, Any]:
    return row(second, "user", provenance="real_user", message={"role": "user", "parts": [{"text": "private"}]})


def call(second: int, n: int) -> dict[str, Any]:
    counts = {
        "input_token_count": 10 * n,
        "output_token_count": 3 * n,
        "cached_content_token_count": 4 * n,
        "thoughts_token_count": n,
    }
    at = f"2026-11-21T23:31:{second:02}Z"
    event = {"event.name": "qwen-code.api_response", "event.timestamp": at, "response_id": f"r{second}", "model": "m", **counts}
    return row(second, "system", subtype="ui_telemetry", systemPayload={"uiEvent": event})


def record(second: int, started: int, n: int) -> dict[str, Any]:
    models = {"m": {"inputTokens": 10 * n, "outputTokens": 3 * n, "cachedTokens": 4 * n, "thoughtsTokens": n}}
    base = 1795303860000  # 23:31:00
    return {
        "version": 1,
        "sessionId": "s",
        "timestamp": base + second * 1000,
        "startTime": base + started * 1000,
        "durationMs": 1,
        "models": models,
    }


def result(n: int, key: str, *, models: bool = True) -> dict[str, Any]:
    out = {"type": "result", "subtype": "success", "uuid": key, "session_id": "s", "is_error": False, "duration_ms": 7}
    out["usage"] = {"input_tokens": 10 * n, "output_tokens": 3 * n, "cache_read_input_tokens": 4 * n}
    if models:
        tokens = {"prompt": 10 * n, "candidates": 3 * n, "cached": 4 * n, "thoughts": n}
        out["stats"] = {"models": {"m": {"tokens": tokens}}}
    return out


def book_of(*observations: list[Observation]) -> Book:
    book = Book()
    for some in observations:
        book.add_all(some)
    return book


def runs(book: Book) -> list[tuple[str, int]]:
    return [(r.outcome, total(p.usage for p in r.pieces).tokens // ONE) for r in split(book.sessions["qwen", "s"])]


CHAT = told(prompt(1), call(2, 2), prompt(11), call(12, 3), prompt(21), call(22, 4))


def test_results_of_a_resumed_session_are_running_totals() -> None:
    """Each result less the one before it, in either form, in any order, twice the same as once."""
    for models in (True, False):
        first, second = told(result(2, "a", models=models)), told(result(5, "b", models=models))
        for book in (book_of(first, second), book_of(second, first, second)):
            assert runs(book) == [("ok", 2), ("ok", 3)]


def test_each_run_gets_its_calls_where_the_records_date_it() -> None:
    """usage_record.jsonl dates the ends: each result is matched by what it shows, a killed run keeps its own."""
    records = told(record(3, 0, 2), record(23, 20, 9))
    book = book_of(CHAT, records, told(result(2, "a")), told(result(9, "c")))
    assert runs(book) == [("ok", 2), ("unknown", 3), ("ok", 4)]


def test_records_and_calls_are_the_same_usage() -> None:
    """A record that starts anew or goes on from before the kill never counts a call twice."""
    for records in (
        told(record(3, 0, 2), record(23, 20, 9)),
        told(record(3, 0, 2), record(23, 0, 9)),
        told(record(3, 0, 2), record(23, 20, 4)),
    ):
        cells = Rule(book_of(CHAT, records).sessions["qwen", "s"]).cells()
        assert total(cells.values()).tokens == 9 * ONE


def test_printed_answers_are_a_lower_bound_of_a_killed_run() -> None:
    """Answers bear usage but no response id: they stand alone, and give way to the files."""
    usage = {"input_tokens": 10, "output_tokens": 3, "cache_read_input_tokens": 4}
    message = {"id": "x", "model": "m", "usage": usage}
    answer = {"type": "assistant", "uuid": "x", "session_id": "s", "parent_tool_use_id": None, "message": message}
    printed = told(answer)
    assert [(o.view, o.usage.tokens_in) for o in printed if isinstance(o, Call)] == [("stdout", 6)]
    for book, want in ((book_of(printed), 1), (book_of(printed, CHAT), 9)):
        assert total(Rule(book.sessions["qwen", "s"]).cells().values()).tokens == want * ONE
    pieces = [p for r in split(book_of(printed, CHAT).sessions["qwen", "s"]) for p in r.pieces]
    assert sum(len(p.calls) for p in pieces) == 3  # no call is shown twice


def test_subagents_and_hidden_helpers_are_calls() -> None:
    """A captured run: the memory extractor's call, which no answer shows, is a telemetry row and in the result."""
    run = ROOT / "qwen" / "json-single"
    chat = next((run / "home").rglob("chats/*.jsonl"))
    assert {o.subagent for o in read_file(chat)[0] if isinstance(o, Call)} == {None, "managed-auto-memory-extractor"}
    printed = read_file(run / "stdout")[0]
    assert [o.usage.tokens for o in printed if isinstance(o, Level) and o.model] == [10854]
    assert [(o.outcome, o.duration_ms) for o in printed if isinstance(o, Finish)] == [("ok", 1182)]


def test_a_failed_result_is_an_error() -> None:
    """``is_error`` and any other subtype than success is an error."""
    seen = read_file(ROOT / "qwen" / "err-401" / "stdout")[0]
    assert [o.outcome for o in seen if isinstance(o, Finish)] == ["error"]


def copied(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """*rows* of the session as a fork of it begins."""
    return [r | {"sessionId": "fork", "uuid": f"f-{r['uuid']}", "forkedFrom": {"sessionId": "s", "messageUuid": r["uuid"]}} for r in rows]


def test_a_fork_counts_neither_its_parents_calls_nor_its_parents_total() -> None:
    """A fork repeats its parent's rows, and its record and its result go on from the parent's total."""
    first = [prompt(1), call(2, 2)]
    chat = [*copied(first), *(r | {"sessionId": "fork"} for r in (prompt(11), call(12, 3)))]
    fork = told(*chat), told(record(13, 10, 5) | {"sessionId": "fork"}), told(result(5, "b") | {"session_id": "fork"})
    parent = told(*first), told(record(3, 0, 2)), told(result(2, "a"))
    for book in (book_of(*parent, *fork), book_of(*fork, *parent), book_of(*fork, *parent, *fork)):
        assert world_total(book).tokens == 5 * ONE
        mine, foreign = book.gather(book.sessions["qwen", "fork"])
        assert [(r.outcome, total(p.usage for p in r.pieces).tokens) for r in split(mine, foreign)] == [("ok", 3 * ONE)]
    assert world_total(book_of(*fork)).tokens == 5 * ONE  # the parent's calls count once even where its own file is gone


def test_a_run_without_output_is_found_by_what_it_added_to_the_log_of_all_runs(tmp_path: Path) -> None:
    """``usage_record.jsonl`` has the rows of earlier sessions too: those have not changed."""
    log, chats = tmp_path / "usage_record.jsonl", tmp_path / "projects" / "-repo" / "chats"
    chats.mkdir(parents=True)
    lines = [json.dumps(record(3, 0, 2) | {"sessionId": name}) + "\n" for name in ("old", "older", "new")]
    log.write_text("".join(lines[:2]))
    os.utime(log, (1, 1))
    watch = Changes("qwen", tmp_path, time.time_ns() + 10**10)
    watch.snapshot()
    with log.open("a") as file:
        file.write(lines[2])
    (chats / "new.jsonl").write_text(json.dumps(prompt(1) | {"sessionId": "new"}) + "\n")
    assert {p.name for p, _ in watch.after(())} == {"usage_record.jsonl", "new.jsonl"}
    assert (watch.found, watch.reason) == ({"new"}, None)
