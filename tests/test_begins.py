"""Whose a stretch is: tags of a log or an export hold from where that begins, not for what was used before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spendmeter import ingest
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import report
from spendmeter.records import Tags
from tests.test_parsers_gemini import ONE, answer, header

Rows = list[dict[str, Any]]


def lines(path: Path, rows: Rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def begun(second: int) -> dict[str, Any]:
    return {"type": "init", "session_id": "s", "model": "m", "timestamp": f"2026-11-21T23:31:{second:02}Z"}


def exported(second: int, task: str, n: int) -> dict[str, Any]:
    """A request with one call, as the CLI of *task* exports it."""
    at = f"2026-11-21T23:31:{second:02}Z"
    told = {
        "event.name": "gemini_cli.api_response", "event.timestamp": at, "session.id": "s", "model": "m", "role": "main",
        "input_token_count": 10 * n, "cached_content_token_count": 4 * n, "tool_token_count": n, "output_token_count": 3 * n,
        "thoughts_token_count": 2 * n,
    }  # fmt: skip
    attributes = [{"key": k, "value": {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}} for k, v in told.items()]
    resource = {"attributes": [{"key": k, "value": {"stringValue": v}} for k, v in (("service.name", "gemini-cli"), ("task", task))]}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [{"attributes": attributes}]}]}]}


def by_task(ledger: Ledger) -> dict[str, int]:
    """Calls' worth by task."""
    rows = report(ledger, ["task"]).as_dict()["rows"]
    return {r["task"]: (r["tokens_in"] + r["cache_read"] + r["tokens_out"]) // ONE for r in rows}


CHAT = [header(0), answer(1, "a", 2), header(10), answer(11, "b", 5), header(20), answer(21, "c", 1)]


def test_tags_of_a_stream_that_was_cut_short_are_of_its_own_run(ledger: Ledger, tmp_path: Path) -> None:
    """Two runs of one session were killed before; the third one's log, which has no result either, says nothing of them."""
    lines(tmp_path / ".gemini/tmp/p/chats/session-1-s.jsonl", CHAT)
    ingest.sync(ledger, home=tmp_path)
    ingest.ingest_paths(ledger, [lines(tmp_path / "log", [begun(20)])], tags=Tags("a", "third"))
    assert by_task(ledger) == {"unknown": 7, "third": 1}
    ingest.ingest_paths(ledger, [lines(tmp_path / "other", [begun(10)])], tags=Tags("a", "second"))
    assert by_task(ledger) == {"unknown": 2, "second": 5, "third": 1}


def test_tags_of_exports_hold_from_the_first_of_them(ledger: Ledger, tmp_path: Path) -> None:
    """A killed run exports nothing: what it used is not the next run's, and a repeated or earlier record moves the begin back."""
    lines(tmp_path / ".gemini/tmp/p/chats/session-1-s.jsonl", CHAT)
    for first in ([exported(21, "third", 1)], [exported(1, "first", 2)]):
        ingest.ingest_paths(ledger, [lines(tmp_path / f"{len(str(first))}.jsonl", first)])
        ingest.sync(ledger, home=tmp_path)
    assert by_task(ledger) == {"first": 2, "unknown": 5, "third": 1}


def test_exports_alone_tell_whose_each_run_is(ledger: Ledger, tmp_path: Path) -> None:
    """A session was resumed for other tasks and no file tells of it: each call is of the tags that came with it."""
    for second, task, n in ((21, "third", 1), (1, "first", 2), (11, "second", 5), (12, "second", 3), (1, "first", 2)):
        ingest.ingest_paths(ledger, [lines(tmp_path / f"{second}.jsonl", [exported(second, task, n)])])
    assert by_task(ledger) == {"first": 2, "second": 8, "third": 1}
