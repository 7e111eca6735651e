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
from xml.etree import ElementTree

import pytest

from tests.commands import RUNS, SINGLE, call, done

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
    assert top.wait(timeout=60) == 130
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


def test_the_chart_is_a_picture_of_the_report(tmp_path: Path) -> None:
    """A well-formed SVG whose columns tell each day's sum; the whole sum is in its title and on standard error."""
    done("ingest", "--agent", "<b>&co", "--task", "SHOP-1", str(SINGLE / "stdout"))
    done("ingest", "--agent", "reviewer", "--task", "SHOP-2", str(RUNS / "stream-json-tool" / "stdout"))
    result = call("report", "--chart", str(tmp_path / "spend.svg"))
    assert result.exit_code == 0, result.stderr
    total = json.loads(done("report", "--json"))["total"]["cost_usd"]
    shown = f"${float(total):.2f}"
    assert shown in result.stderr
    picture = ElementTree.parse(tmp_path / "spend.svg").getroot()
    titles = [e.text or "" for e in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert titles[0] == f"Spend by day: {shown}"
    days = json.loads(done("report", "--by", "day", "--json"))["rows"]
    assert sorted(t.split(": ")[1] for t in titles[1:] if not t.endswith("–")) == sorted(f"${float(r['cost_usd']):.2f}" for r in days)
    assert "<b>&co" in [e.text for e in picture.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(("flags", "said"), [
    (["--chart", "spend.png"], "is no SVG file"), (["--chart", "x.svg", "--json"], "exclude each other"),
])  # fmt: skip
def test_a_chart_that_cannot_be_is_bad_usage(flags: list[str], said: str) -> None:
    """Exit code 2, and what to write."""
    result = call("report", *flags)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """One line, exit code 1."""
    result = call("report", "--chart", str(tmp_path / "none" / "x.svg"))
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
