"""``top`` and ``statusline``: spend on a screen that follows the ledger, and in one line."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_cli import RUNS, SINGLE, call, done

USED = {"input_tokens": 100_000, "output_tokens": 0}
TODAY = ["--since", "3650d"]


def test_top_shows_who_spent_what() -> None:
    """Agents, tasks and models with their cost, the latest runs with how they ended; in a pipe it prints once."""
    done("ingest", "--agent", "developer", "--task", "SHOP-1", str(SINGLE / "stdout"))
    done("ingest", "--agent", "reviewer", "--task", "SHOP-2", str(RUNS / "stream-json-tool" / "stdout"))
    shown = done("top", *TODAY)
    assert [shown.count(name) for name in ("developer", "reviewer", "SHOP-1", "SHOP-2")] == [2, 2, 2, 2]
    assert "done" in shown
    assert "$0.01" in shown


@pytest.mark.parametrize("flags", [["--since", "whenever"], ["--timezone", "Mars/Olympus"]])
def test_what_top_does_not_understand_is_bad_usage(flags: list[str]) -> None:
    """Exit code 2 with the flag and the remedy."""
    result = call("top", "--once", *flags)
    assert result.exit_code == 2
    assert flags[1] in result.stderr


def read_until(fd: int, text: bytes, seconds: float = 20) -> bytes:
    seen, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([fd], [], [], 0.2)[0]:
            seen += os.read(fd, 1 << 16)
        if text in seen:
            return seen
    pytest.fail(f"not seen within {seconds} s: {text!r}")


def test_top_follows_the_ledger_on_a_terminal(tmp_path: Path) -> None:
    """A run that lands appears without a key; ctrl-C ends it and gives the screen back."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    top = subprocess.Popen([sys.executable, "-m", "spendmeter", "top", *TODAY], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    read_until(ours, b"Ctrl-C ends")
    done("ingest", "--agent", "latecomer", "--task", "SHOP-3", str(SINGLE / "stdout"))
    read_until(ours, b"latecomer")
    top.send_signal(2)
    read_until(ours, b"\x1b[?1049l")
    assert top.wait(timeout=10) == 130
    os.close(ours)


def test_the_status_line_tells_of_session_day_and_month() -> None:
    """The CLI's figure for the session first, then the ledger's own; unknown ones are left out."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    row = {"type": "assistant", "uuid": "u", "sessionId": "s", "timestamp": now, "cwd": "/w", "version": "2",
           "message": {"id": "msg_1", "role": "assistant", "model": "claude-sonnet-4-5", "usage": USED},
           "requestId": "req_1"}  # fmt: skip
    assert done("statusline", given="") == "no spend yet\n"
    done("ingest", "-", given=json.dumps(row) + "\n")
    told = json.dumps({"session_id": "s", "cost": {"total_cost_usd": 0.4213}})
    assert done("statusline", given=told) == "$0.42 this session · $0.30 today · $0.30 this month\n"


@pytest.mark.parametrize("given", ["", "null", "[1]", "{", '{"cost": 3}', '{"cost": {"total_cost_usd": "much"}}', "\x00\xff"])
def test_whatever_a_cli_hands_over_the_status_line_stands(given: str) -> None:
    """One line, exit code 0."""
    assert done("statusline", given=given) == "no spend yet\n"
