"""Random lives of real sessions: begun, resumed, forked, compacted, killed; every run's share and the sum against the truth."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anthropic_stub
import pytest
from sqlalchemy import select
from tests.runs import FIELDS

from spendmeter import ingest
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.verify import verify
from spendmeter.records import Tags

pytestmark = pytest.mark.e2e


def helper(**more: Any) -> tuple[str, dict[str, Any]]:
    return "Agent", {"description": "Help", "prompt": "CASE-SUB", "subagent_type": "general-purpose", **more}


BASH = ("Bash", {"command": "echo hi", "description": "Print"})
PLAN = {
    "CASE-TOOL": [BASH, "Done."],
    "CASE-AGENT": [helper(run_in_background=False), "All done."],
    "CASE-BACK": [helper(run_in_background=True), "Back done."],
    "CASE-OTHER": [helper(run_in_background=False, model="haiku"), "Other done."],
    "CASE-SUB": [BASH, "Sub done."],
    "CASE-STALL": [BASH, "stall"],
    "CASE-MORE": ["More."],
}
FORMS = (["--output-format", "json"], ["--output-format", "stream-json", "--verbose"], [])
Bounds = dict[str, tuple[int, int]]


class Life:
    """One home with its sessions, run by run."""

    def __init__(self, tmp: Path, claude: Path, url: str, truth: anthropic_stub.Truth, seed: int) -> None:
        self.tmp, self.claude, self.truth, self.choose = tmp, claude, truth, random.Random(seed)
        (tmp / "work").mkdir()
        self.home = Path(os.environ["HOME"])
        self.env = os.environ | {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "sk-ant-stub",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "IS_SANDBOX": "1",
            "DISABLE_AUTOUPDATER": "1",
            "SPENDMETER_LEDGER": f"sqlite:///{tmp / 'run.db'}",
        }
        self.runs: dict[str, Bounds] = {}
        self.printed: list[bytes] = []

    def step(self) -> None:
        """Runs the CLI once, some way or other."""
        files = sorted((self.home / ".claude" / "projects").glob("*/*.jsonl"), key=lambda p: p.stat().st_ctime_ns)
        sessions = [p.stem for p in files]  # in an order that follows from the seed, not from their ids
        how = self.choose.choice(["new", "resume", "resume", "fork"]) if sessions else "new"
        cases = [c for c in PLAN if c != "CASE-SUB"] + ([] if how == "new" else ["/compact"])
        case = self.choose.choice(cases)
        args = ["-p", case, *self.choose.choice(FORMS), "--model", "claude-sonnet-4-5-20250929", "--dangerously-skip-permissions"]
        if how != "new":
            args += ["--resume", self.choose.choice(sessions)]
        if how == "fork":
            args += ["--fork-session"]
        task = f"R{len(self.runs)} {how} {case}"
        calls, cut = len(self.truth.calls), len(self.truth.cut)
        self.printed.append(self._run(task, args))
        made, lost = self.truth.calls[calls:], self.truth.cut[cut:]
        self.runs[task] = {f: (sum(c[f] for c in made) - sum(c[f] for c in lost), sum(c[f] for c in made)) for f in FIELDS}

    def _run(self, task: str, args: list[str]) -> bytes:
        self.truth.stalled.clear()
        own = [sys.executable, "-m", "spendmeter", "run", "--agent", "a", "--task", task, "--", str(self.claude), *args]
        process = subprocess.Popen(own, cwd=self.tmp / "work", env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        while process.poll() is None and not self.truth.stalled.wait(0.2):
            pass
        if self.truth.stalled.is_set():
            time.sleep(0.5)
            number = self.choose.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
            if number == signal.SIGKILL:
                subprocess.run(["pkill", "-9", "-P", str(process.pid)], check=False)  # the child; its wrapper lives on
            else:
                process.send_signal(number)
        return process.communicate(timeout=120)[0]


def shares(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Usage by task."""
    out: dict[str, dict[str, int]] = {}
    with ledger.read() as conn:
        on = (t.entries.c.session_id == t.runs.c.session_id) & (t.entries.c.run_key == t.runs.c.run_key)
        for task, *values in conn.execute(select(t.runs.c.task, *[t.entries.c[f] for f in FIELDS]).join(t.entries, on)):
            row = out.setdefault(task, dict.fromkeys(FIELDS, 0))
            for name, value in zip(FIELDS, values, strict=True):
                row[name] += value or 0
    return out


def check(ledger: Ledger, life: Life, *, by_run: bool) -> None:
    got = shares(ledger)
    for name in FIELDS:
        low, high = (sum(b[name][i] for b in life.runs.values()) for i in (0, 1))
        assert low <= sum(row[name] for row in got.values()) <= high, (name, life.runs)
        for task, bounds in life.runs.items() if by_run else ():
            assert bounds[name][0] <= got.get(task, {}).get(name, 0) <= bounds[name][1], (task, name, life.runs)
    assert verify(ledger) == []


@pytest.mark.parametrize("seed", range(6))
def test_any_life_of_a_session_is_exact(tmp_path: Path, claude: Path, seed: int) -> None:
    """Wrapped runs each get their own calls; session files alone, and with what was printed, add up to the truth."""
    with anthropic_stub.serving(PLAN) as (url, truth):
        life = Life(tmp_path, claude, url, truth, seed)
        for _ in range(4):
            life.step()
    wrapped = Ledger(Settings(f"sqlite:///{tmp_path / 'run.db'}", settle_s=0))
    check(wrapped, life, by_run=True)
    wrapped.close()
    later = Ledger(Settings(f"sqlite:///{tmp_path / 'later.db'}", settle_s=0))
    ingest.sync(later, home=life.home)
    check(later, life, by_run=False)
    for i, printed in enumerate(life.printed):
        (tmp_path / f"out{i}").write_bytes(printed)
        ingest.ingest_paths(later, [str(tmp_path / f"out{i}")], tags=Tags("a", str(i)))
    check(later, life, by_run=False)
    later.close()
