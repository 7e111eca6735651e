"""The real Claude Code from npm, wrapped by the real ``spendmeter run``, against a model server whose answers are the truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anthropic_stub
import pytest

pytestmark = pytest.mark.e2e
FIELDS = ("tokens_in", "tokens_out", "cache_read")


@pytest.fixture
def world(tmp_path: Path, claude: Path) -> Iterator[World]:
    plan = {
        "CASE-TOOL": [("Bash", {"command": "echo hi", "description": "Print"}), "Done."],
        "CASE-AGENT": [
            ("Agent", {"description": "Help", "prompt": "CASE-SUB", "subagent_type": "general-purpose", "run_in_background": False}),
            "All done.",
        ],
        "CASE-SUB": [("Bash", {"command": "echo sub", "description": "Print"}), "Sub done."],
        "CASE-STALL": [("Bash", {"command": "echo hi", "description": "Print"}), "stall"],
        "CASE-MORE": ["More."],
    }
    with anthropic_stub.serving(plan) as (url, truth):
        yield World(tmp_path, claude, url, truth)


class World:
    """A home, a ledger, the CLI and the server behind it."""

    def __init__(self, tmp: Path, claude: Path, url: str, truth: anthropic_stub.Truth) -> None:
        self.truth, self.claude = truth, claude
        self.work = tmp / "work"
        self.work.mkdir()
        self.env = os.environ | {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "sk-ant-stub",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "IS_SANDBOX": "1",
            "SPENDMETER_LEDGER": f"sqlite:///{tmp / 'ledger.db'}",
            "SPENDMETER_METRICS_SETTLE": "0",
            "DISABLE_AUTOUPDATER": "1",
        }

    def start(self, task: str, *args: str) -> subprocess.Popen[str]:
        own = [sys.executable, "-m", "spendmeter", "run", "--agent", "developer", "--task", task, "--"]
        flags = ["--model", "claude-sonnet-4-5-20250929", "--dangerously-skip-permissions"]
        return subprocess.Popen(
            [*own, str(self.claude), *args, *flags],
            cwd=self.work,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, task: str, *args: str) -> str:
        process = self.start(task, *args)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-500:]
        assert "spendmeter:" not in err
        return out

    def report(self, by: str) -> dict[str, dict[str, object]]:
        done = subprocess.run(
            [sys.executable, "-m", "spendmeter", "report", "--by", by, "--json"], env=self.env, capture_output=True, text=True, check=True
        )
        return {row[by]: row for row in json.loads(done.stdout)["rows"]}

    def expect(self, task: str, want: dict[str, int]) -> None:
        row = self.report("task")[task]
        got = {k: row[k] for k in FIELDS} | {"cache_write": row["cache_write"]}
        assert got == {k: want[k] for k in FIELDS} | {"cache_write": want["cache_write_5m"] + want["cache_write_1h"]}


@pytest.mark.parametrize(
    "form", [["--output-format", "json"], ["--output-format", "stream-json", "--verbose"], []], ids=["json", "stream-json", "text"]
)
def test_a_run_with_a_subagent_is_exact(world: World, form: list[str]) -> None:
    """Main and subagent calls of a real run are in the ledger as the server answered them, whatever the run printed."""
    world.run("T-1", "-p", "CASE-AGENT please", *form)
    assert len(world.truth.calls) == 4
    world.expect("T-1", world.truth.totals())
    assert world.report("task")["T-1"]["calls"] == 4


def test_a_resumed_session_splits_by_task(world: World) -> None:
    """A session that is resumed for another task, then forked for a third, gives each task its own calls."""
    session = json.loads(world.run("T-1", "-p", "CASE-TOOL go", "--output-format", "json"))["session_id"]
    seen = [dict(world.truth.totals())]
    world.run("T-2", "-p", "CASE-MORE", "--resume", session, "--output-format", "json")
    seen.append(dict(world.truth.totals()))
    world.run("T-3", "-p", "CASE-MORE", "--resume", session, "--fork-session", "--output-format", "json")
    seen.append(dict(world.truth.totals()))
    world.expect("T-1", seen[0])
    for task, before, after in (("T-2", seen[0], seen[1]), ("T-3", seen[1], seen[2])):
        world.expect(task, {k: after[k] - before[k] for k in after})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_is_recovered(world: World, number: signal.Signals) -> None:
    """A run killed in the middle of an answer (with SIGKILL: wrapper and all) has its finished calls in the ledger."""
    process = world.start("T-9", "-p", "CASE-STALL now", "--output-format", "json")
    assert world.truth.stalled.wait(60)
    time.sleep(1.0)
    process.send_signal(number)
    process.communicate(timeout=60)
    if number == signal.SIGKILL:
        time.sleep(2.0)  # the child is told to end when its wrapper dies
    row = world.report("task")["T-9"]
    low, high = world.truth.totals(), world.truth.totals(finished=False)
    assert all(low[k] <= int(str(row[k])) <= high[k] for k in FIELDS), (row, low, high)
