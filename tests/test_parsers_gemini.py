"""Gemini CLI: what a run alone used, by role; chats of processes, subagents and older versions."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from spendmeter.parsers import read, read_file
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.rule import Rule
from spendmeter.reconcile.split import split
from spendmeter.records import Call, Finish, Observation, Part, Skip, total
from tests.runs import ROOT


def told(*rows: dict[str, Any], session: str = "") -> list[Observation]:
    return read(io.BytesIO("\n".join(json.dumps(r) for r in rows).encode()), None, "x", session)[0]


def tokens(n: int) -> dict[str, int]:
    return {"prompt": 10 * n, "cached": 4 * n, "candidates": 3 * n, "thoughts": 2 * n, "tool": n}


ONE = 6 + 1 + 4 + 3 + 2  # uncached input, tools' input, cached, answer, thoughts of tokens(1)


def stats(**roles: int) -> dict[str, Any]:
    named = {role: {"tokens": tokens(n)} for role, n in roles.items()}
    return {"session_id": "s", "response": "r", "stats": {"models": {"m": {"tokens": tokens(sum(roles.values())), "roles": named}}}}


def header(second: int, session: str = "s", kind: str = "main") -> dict[str, Any]:
    return {"sessionId": session, "projectHash": "p", "startTime": f"2026-11-21T23:31:{second:02}Z", "kind": kind}


def answer(second: int, cid: str, n: int) -> dict[str, Any]:
    t = {"input": 10 * n, "cached": 4 * n, "output": 3 * n, "thoughts": 2 * n, "tool": n}
    return {"id": cid, "timestamp": f"2026-11-21T23:31:{second:02}Z", "type": "gemini", "tokens": t, "model": "m"}


def book_of(*observations: list[Observation]) -> Book:
    book = Book()
    for some in observations:
        book.add_all(some)
    return book


def runs(book: Book) -> list[tuple[str, int]]:
    return [(r.outcome, total(p.usage for p in r.pieces).tokens // ONE) for r in split(book.sessions["gemini", "s"])]


def test_the_router_is_beside_what_the_chat_shows() -> None:
    """Main and subagents are in the chats, the router is in the stats alone: it adds to the chat's calls."""
    printed, chat = told(stats(main=2, subagent=1, utility_router=4)), told(header(0), answer(1, "a", 2), answer(2, "b", 1))
    assert {(o.kind, o.role) for o in printed if isinstance(o, Part)} == {("run", "main"), ("utility", "hidden")}
    for book in (book_of(printed), book_of(printed, chat), book_of(chat, printed)):
        assert total(Rule(book.sessions["gemini", "s"]).cells().values()).tokens == 7 * ONE


def test_runs_of_a_session_add_up_and_once_is_twice() -> None:
    """Stats are of one run: two runs' stats add up, the same stats again add nothing."""
    first, second = told(stats(main=2)), told(stats(main=3, utility_router=1))
    assert sorted(runs(book_of(first, second, first))) == [("ok", 2), ("ok", 4)]


def test_a_killed_run_between_two_others_keeps_its_own() -> None:
    """Each process begins with a header: a process that printed nothing is a run of its own."""
    chat = told(header(0), answer(1, "a", 2), header(10), answer(11, "b", 5), header(20), answer(21, "c", 2), answer(22, "d", 1))
    third, first = told(stats(main=3, utility_router=4)), told(stats(main=2))
    book = book_of(chat, third, first)
    assert runs(book) == [("ok", 2), ("unknown", 5), ("ok", 7)]


def test_a_subagents_chat_belongs_to_the_session_whose_folder_it_is_in(tmp_path: Path) -> None:
    """``chats/<session>/<id>.jsonl`` names its own id; the folder names the session that is billed."""
    path = tmp_path / "tmp" / "p" / "chats" / "s" / "x.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(json.dumps(r) for r in (header(0, "x", "subagent"), answer(1, "a", 1))))
    (call,) = [o for o in read_file(path)[0] if isinstance(o, Call)]
    assert (call.session, call.subagent) == ("s", "x")


def test_a_chat_of_older_versions_is_read() -> None:
    """One object with all messages, and a history that was rewritten, tell the same calls as lines do."""
    lines = told(header(0), answer(1, "a", 2))
    whole = told(header(0) | {"messages": [answer(1, "a", 2), {"type": "user", "content": "private"}]})
    rewritten = told(header(0), {"$set": {"messages": [answer(1, "a", 2)]}})
    assert lines == whole == rewritten


def test_the_stream_says_that_it_leaves_something_out() -> None:
    """stream-json leaves out thoughts and tools: with the chat it is exact, alone it is a lower bound and says so."""
    run = ROOT / "gemini" / "stream-json-tool"
    printed = read_file(run / "stdout")[0]
    (finish,) = [o for o in printed if isinstance(o, Finish)]
    assert (finish.outcome, finish.duration_ms) == ("ok", 206)
    session = finish.session
    (alone,) = split(book_of(printed).sessions["gemini", session])
    assert [u.partition(":")[0] for u in alone.unknown] == ["reasoning"]
    chat = next((run / "home").rglob("*.jsonl"))
    (both,) = split(book_of(printed, read_file(chat)[0]).sessions["gemini", session])
    assert (both.unknown, total(p.usage for p in both.pieces).reasoning) == ((), 378)


def test_what_nothing_tells_of_helpers_is_said() -> None:
    """The router is in no chat: a run that printed no stats may have used more; printed or exported, it is known."""
    chat = told(header(0), answer(1, "a", 2), header(10), answer(11, "b", 1))
    words = [[u.partition(":")[0] for u in r.unknown] for r in split(book_of(chat, told(stats(main=2))).sessions["gemini", "s"])]
    assert words == [[], ["helpers"]]
    init = {"type": "init", "session_id": "s", "model": "m", "timestamp": "2026-11-21T23:31:00Z"}
    end = {"type": "result", "status": "success", "timestamp": "2026-11-21T23:31:09Z"}
    main = {"input_tokens": 20, "cached": 8, "output_tokens": 6}
    for models, word in (({"m": main}, []), ({"m": main, "lite": main}, ["helpers"]), ({"m": main | {"output_tokens": 7}}, ["helpers"])):
        book = book_of(told(header(0), answer(1, "a", 2)), told(init, end | {"stats": {"models": models}}))
        assert [[u.partition(":")[0] for u in r.unknown] for r in split(book.sessions["gemini", "s"])] == [word]


def test_json_and_stream_runs_of_one_session_add_up() -> None:
    """Runs printed in different forms are still different runs."""
    init = {"type": "init", "session_id": "s", "model": "m", "timestamp": "2026-11-21T23:31:00Z"}
    part = {"input_tokens": 10, "cached": 4, "output_tokens": 3}
    result = {"type": "result", "status": "success", "timestamp": "2026-11-21T23:31:09Z", "stats": {"models": {"m": part}}}
    book = book_of(told(stats(main=2)), told(init, result))
    assert total(Rule(book.sessions["gemini", "s"]).cells().values()).tokens == 2 * ONE + 13


def test_usage_without_a_session_is_a_skip() -> None:
    """A stream's end without its begin, and an answer without a header, are named as skips."""
    seen = told({"type": "result", "status": "success", "stats": {"models": {}}}, answer(1, "a", 1))
    assert [o.reason for o in seen if isinstance(o, Skip)] == ["no session", "no session"]
