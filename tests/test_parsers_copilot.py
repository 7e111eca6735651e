"""Copilot: runs on stdout, usage in files, joined by when the session started and how long its calls took."""

from __future__ import annotations

import io
import json
from itertools import permutations
from typing import Any

import pytest

from spendmeter.parsers import read, read_file
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.rule import Rule
from spendmeter.reconcile.split import split
from spendmeter.records import Alias, Call, Claim, Finish, Level, Observation, Skip, Tags, total
from tests.runs import ROOT

CHAIN = [ROOT / "copilot" / name for name in ("resume-1-base", "resume-2-continue")]
ONE = 10 + 3


def told(*rows: dict[str, Any]) -> list[Observation]:
    return read(io.BytesIO("\n".join(json.dumps(r) for r in rows).encode()), None, "x")[0]


def event(second: int, kind: str, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": kind, "data": data, "id": f"e{second}", "timestamp": f"2026-11-21T23:31:{second:02}Z", **more}


def used(n: int) -> dict[str, int]:
    return {"inputTokens": 10 * n, "cacheReadTokens": 4 * n, "cacheWriteTokens": n, "outputTokens": 3 * n}


def begin(second: int) -> dict[str, Any]:
    at = f"2026-11-21T23:31:{second:02}Z"
    if second:
        return event(second, "session.resume", {"resumeTime": at})
    return event(second, "session.start", {"sessionId": "s", "startTime": at, "copilotVersion": "1"})


def call(second: int, n: int) -> dict[str, Any]:
    return event(second, "session.usage_record", {"usage": {"model": "m", "apiCallId": f"c{second}", **used(n)}})


def metrics(n: int) -> dict[str, Any]:
    return {"sessionStartTime": "2026-11-21T23:31:00Z", "totalApiDurationMs": n, "modelMetrics": {"m": {"usage": used(n)}}}


def end(second: int, n: int) -> dict[str, Any]:
    return event(second, "session.shutdown", {"accountingSnapshot": metrics(n)})


def result(second: int, spent_ms: int, code: int = 0) -> list[dict[str, Any]]:
    ok = event(second - 1, "model.call_final_result", {"result": "http_4xx" if code else "success"}, ephemeral=True)
    at = f"2026-11-21T23:31:{second:02}Z"
    return [ok, {"type": "result", "timestamp": at, "sessionId": "s", "exitCode": code, "usage": {"totalApiDurationMs": spent_ms}}]


EVENTS = told(begin(0), call(1, 2), end(3, 2), begin(10), call(11, 3), begin(20), call(21, 4), end(23, 9))  # the second was killed


def book_of(*observations: list[Observation]) -> Book:
    book = Book()
    for some in observations:
        book.add_all(some)
    return book


def runs(book: Book) -> list[tuple[str, int]]:
    return [(r.outcome, total(p.usage for p in r.pieces).tokens // ONE) for f in book.sessions.values() for r in split(f)]


def test_a_killed_run_between_two_others_keeps_its_own() -> None:
    """Every process begins with an event: what a killed one used is its own, though the next total holds it too."""
    assert runs(book_of(EVENTS, told(*result(2, 2)), told(*result(22, 9)))) == [("ok", 2), ("unknown", 3), ("ok", 4)]


def test_stdout_and_usage_file_are_one_run() -> None:
    """Both tell how long the session's calls took: a run that is told of three times is one run, in any order of the sources."""
    sources = [EVENTS, told(*result(2, 2)), told(*result(22, 9)), told(metrics(2)), told(metrics(9))]
    for order in permutations(sources):
        assert runs(book_of(*order)) == [("ok", 2), ("unknown", 3), ("ok", 4)]


def test_usage_files_alone_tell_each_runs_share() -> None:
    """Usage files name no session: what they show is filed by the session's start, each less the one before it."""
    book = book_of(told(metrics(9)), told(metrics(2)))
    assert runs(book) == [("unknown", 2), ("unknown", 7)]
    assert list(book.sessions) == [("copilot", "start:1795303860000")]


def test_a_usage_file_joins_its_session_when_that_is_known() -> None:
    """The first event of a session names its start; tags given to the usage file go with it."""
    (finish,) = [o for o in told(metrics(9)) if isinstance(o, Finish)]
    claim = Claim("copilot", finish.session, "run:x", Tags("dev", "T-1"), finish.run_key)
    book = Book()
    book.add_all([*told(metrics(9)), claim])
    book.add_all(told(begin(0), call(1, 9), end(3, 9)))
    assert list(book.sessions) == [("copilot", "s")]
    (run,) = split(book.sessions["copilot", "s"])
    assert (run.tags.task, total(p.usage for p in run.pieces).tokens) == ("T-1", 9 * ONE)


def test_a_failed_resume_does_not_take_the_run_before_it() -> None:
    """A process whose calls all failed shows the time of the one before: it is still a run of its own."""
    book = book_of(told(begin(0), call(1, 2), end(3, 2), begin(10), end(13, 2)), told(*result(2, 2)), told(*result(12, 2, code=1)))
    assert runs(book) == [("ok", 2), ("error", 0)]


def test_stdout_alone_says_that_usage_is_unknown() -> None:
    """Without files a run is known, and that what it used is not."""
    (run,) = split(book_of(told(*result(2, 2))).sessions["copilot", "s"])
    assert (run.outcome, run.pieces, len(run.unknown)) == ("ok", (), 1)


def test_subagents_and_totals_of_a_captured_run() -> None:
    """A subagent's calls stand in its session's events and in the total at its end."""
    run = ROOT / "copilot" / "json-subagent-anthropic"
    seen = read_file(next((run / "home").rglob("events.jsonl")))[0]
    calls = [o for o in seen if isinstance(o, Call)]
    assert sorted(c.subagent is None for c in calls) == [False, False, True, True]
    (whole,) = [o for o in seen if isinstance(o, Level) and o.model]
    assert whole.usage.tokens == total(c.usage for c in calls).tokens
    assert {o.session for o in seen if isinstance(o, Alias)} == {calls[0].session}


def test_pretty_printed_and_plain_usage_files_are_the_same() -> None:
    """The usage file is printed over many lines; on one line it says the same."""
    path = CHAIN[1] / "work" / "usage.json"
    assert read_file(path)[0] == told(json.loads(path.read_text()))
    (finish,) = [o for o in read_file(path)[0] if isinstance(o, Finish)]
    (printed,) = [o for o in read_file(CHAIN[1] / "stdout")[0] if isinstance(o, Finish)]
    assert finish.run_key == printed.run_key == "api:102"


def test_an_error_run_uses_nothing_and_is_an_error() -> None:
    """A captured run that was refused: exit code 1, no usage, no run key of an answered one."""
    (finish,) = [o for o in read_file(ROOT / "copilot" / "err-401" / "stdout")[0] if isinstance(o, Finish)]
    assert (finish.outcome, finish.run_key.partition(":")[0], finish.duration_ms) == ("error", "at", 2963)


def test_a_bad_count_is_a_skip() -> None:
    """A count that is none, and a record before its session is known, are named."""
    seen = told(call(1, 1), begin(0), event(2, "session.usage_record", {"usage": {"apiCallId": "x", "inputTokens": -1}}))
    assert [o.reason for o in seen if isinstance(o, Skip)] == ["no session", "bad usage"]


def test_totals_of_events_are_not_added_to_calls() -> None:
    """Calls and the totals at each process' end are two views of the same."""
    assert total(Rule(book_of(EVENTS).sessions["copilot", "s"]).cells().values()).tokens == 9 * ONE


@pytest.mark.parametrize("chain", ["killed", "agents", "troubled", "compaction"])
def test_events_give_each_run_of_a_chain_its_own(chain: str) -> None:
    """Runs of one session, killed, refused or with subagents between others: each process used what the server answered it."""
    folders = sorted((ROOT / "copilot").glob(f"{chain}-[0-9]*"))
    truth = [json.loads((f / "truth.json").read_text())["totals_by_model"] for f in folders]
    billed = [
        sum(v for t in models.values() for k, v in t.get("completed", {}).items() if k not in ("calls", "reasoning")) for models in truth
    ]
    (facts,) = book_of(read_file(next((folders[-1] / "home").rglob("events.jsonl")))[0]).sessions.values()
    got = [total(p.usage for p in r.pieces).tokens for r in split(facts)]
    assert [n for n in got if n] == [n for n in billed if n]


def test_a_compaction_is_beside_calls_and_totals() -> None:
    """The calls of a compaction are in no record and in no total: what it says of them is added to both, once."""
    told_of = {"compactionAttemptId": "k", "compactionTokensUsed": {"requestCount": 2, "model": "m", **used(5)}}
    seen = told(begin(0), call(1, 2), event(2, "session.compaction_complete", told_of), end(3, 2))
    assert runs(book_of(seen, told(metrics(2)), told(*result(3, 2)), seen)) == [("ok", 7)]


def test_a_compaction_without_counts() -> None:
    """One that was given up tells nothing; one with a bad count, or without an id, is a skip."""
    rows = [{}, {"compactionTokensUsed": used(1)}, {"compactionAttemptId": "k", "compactionTokensUsed": {"inputTokens": -1}}]
    seen = told(begin(0), *(event(i, "session.compaction_complete", row) for i, row in enumerate(rows, 1)))
    assert [o.reason for o in seen if isinstance(o, Skip)] == ["no id", "bad usage"]
