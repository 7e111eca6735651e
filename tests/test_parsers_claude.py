"""Claude Code's transcripts of killed and resumed sessions: rows as the real CLI writes them."""

from __future__ import annotations

from typing import Any

from spendmeter.parsers.claude import FileReader, StdoutReader
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.rule import Rule
from spendmeter.records import total

Row = dict[str, Any]
EPOCH = 1795409100000  # 04:45:00


def at(second: int) -> str:
    return f"2026-11-23T04:45:{second:02}.000Z"


def prompt(second: int) -> Row:
    return {"type": "queue-operation", "operation": "enqueue", "sessionId": "s", "timestamp": at(second)}


def answer(second: int, out: int, **more: Any) -> Row:
    message = {"id": f"msg_{second}", "model": "m", "usage": {"input_tokens": 10, "output_tokens": out}}
    return {"type": "assistant", "sessionId": "s", "requestId": f"req_{second}", "timestamp": at(second), "message": message} | more


def note(second: int, *, error: bool) -> Row:
    """A row of the CLI's own: the restored conversation has no answer, or the API had an error."""
    message = {"id": f"note-{second}", "model": "<synthetic>", "usage": {"input_tokens": 0, "output_tokens": 0}}
    return {"type": "assistant", "sessionId": "s", "timestamp": at(second), "isApiErrorMessage": error, "message": message}


def state(tin: int, out: int, duration: int) -> Row:
    used = {"m": {"inputTokens": tin, "outputTokens": out}}
    return {"type": "cost-state", "sessionId": "s", "startTime": EPOCH, "totalDuration": duration, "modelUsage": used}


def spent(*rows: Row, printed: tuple[Row, ...] = ()) -> tuple[int | None, int | None]:
    """Input and output of the session that *rows* and what was *printed* tell of."""
    reader, stdout, book = FileReader("s.jsonl", "s"), StdoutReader("stdout"), Book()
    for line, row in enumerate(rows):
        reader.row(line, row)
    for line, row in enumerate(printed):
        stdout.row(line, row)
    book.add_all([*reader.finish(), *stdout.finish()])
    used = total(Rule(book.sessions["claude", "s"]).cells().values())
    return used.tokens_in, used.tokens_out


FIRST = [prompt(1), answer(2, 5), state(10, 5, 1)]
KILLED = [prompt(4), answer(5, 100), answer(6, 200)]  # SIGKILL: no cost-state


def test_a_call_that_only_the_reading_tells_is_not_lost_to_the_killed_run_before_it() -> None:
    """SIGKILL leaves a conversation without an answer, SIGINT the next run's call in its cost-state alone: both count."""
    broken_off = [prompt(10), note(9, error=False), state(20, 38, 2)]
    assert spent(*FIRST, *KILLED, *broken_off) == (10 + 20 + 10, 5 + 300 + 33)


def test_an_error_between_two_prompts_of_one_process_is_no_new_process() -> None:
    """The API's errors are such rows too; a reading after them covers the calls before them, which count once."""
    assert spent(*FIRST, *KILLED, note(7, error=True), prompt(8), note(7, error=True), answer(9, 7), state(40, 312, 2)) == (40, 312)
    assert spent(*FIRST, *KILLED, prompt(8), note(9, error=False), answer(10, 7), state(40, 312, 2)) == (40, 312)


def test_a_call_that_only_stdout_tells_does_not_hide_one_that_only_the_reading_tells() -> None:
    """SIGINT leaves the first run's last call in its cost-state alone, SIGKILL the second run's on stdout alone: both count."""
    interrupted = [prompt(1), answer(2, 5), state(30, 6, 1)]
    printed = answer(6, 1) | {"session_id": "s", "request_id": "req_6", "parent_tool_use_id": None}
    assert spent(*interrupted, prompt(4), answer(5, 100), printed=(printed,)) == (30 + 10 + 10, 6 + 100 + 1)
