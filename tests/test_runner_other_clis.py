"""Wrapped runs of the other CLIs: what they wrote counts as well as what they printed, also when they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.verify import verify
from tests.fakecli.harness import alive, until
from tests.runs import FIELDS, ROOT, Chain

FAKE = Path(__file__).parent / "fakecli" / "any"
WRITTEN = [  # the run's own session can be told from its files alone
    ("codex", "json-tool"), ("codex", "kill-sigterm"), ("gemini", "json-tool"), ("gemini", "kill-sigkill"), ("qwen", "json-tool"),
    ("qwen", "text-tool"), ("copilot", "json-tool-anthropic"), ("copilot", "kill-sigkill"),
]  # fmt: skip


class Wrapped:
    """A home with a CLI that replays."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.url = f"sqlite:///{tmp / 'l.db'}"

    def start(self, cli: str, case: str, **more: str) -> subprocess.Popen[bytes]:
        link = self.tmp / cli
        if not link.exists():
            link.symlink_to(FAKE)
        env = os.environ | {"FAKE_CASE": str(ROOT / cli / case), "SPENDMETER_LEDGER": self.url} | more
        own = [sys.executable, "-m", "spendmeter", "run", "--agent", "a", "--task", case, "--", str(link), "x"]
        return subprocess.Popen(own, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def usage(self, task: str) -> dict[str, int]:
        """What the ledger holds for *task*; it verifies too."""
        ledger = Ledger(Settings(self.url, settle_s=0))
        with ledger.read() as conn:
            on = (t.entries.c.session_id == t.runs.c.session_id) & (t.entries.c.run_key == t.runs.c.run_key)
            rows = conn.execute(select(*[t.entries.c[f] for f in FIELDS]).join(t.runs, on).where(t.runs.c.task == task)).all()
        assert verify(ledger) == []
        ledger.close()
        return {f: sum(r[i] or 0 for r in rows) for i, f in enumerate(FIELDS)}


def billed(used: dict[str, int]) -> tuple[int, int, int]:
    """Input with cache writes (one figure in most of them), cache reads, output."""
    return sum(used.get(k, 0) for k in ("tokens_in", "cache_write_5m", "cache_write_1h")), used["cache_read"], used["tokens_out"]


@pytest.mark.parametrize("quiet", ["", "1"])
@pytest.mark.parametrize("case", ["subagents-1-base", "nested-1"])
def test_subagents_with_files_of_their_own_are_the_runs(tmp_path: Path, case: str, quiet: str) -> None:
    """Codex gives each a thread, and does not print what it used; their rollouts name the session that they work for."""
    wrapped = Wrapped(tmp_path)
    assert wrapped.start("codex", case, FAKE_QUIET=quiet).communicate(timeout=60)[1] == b""
    assert billed(wrapped.usage(case)) == billed(Chain("codex", (ROOT / "codex" / case,)).truth(least=True))


@pytest.mark.parametrize(("cli", "case"), WRITTEN)
def test_a_run_that_prints_nothing_is_metered_from_its_files(tmp_path: Path, cli: str, case: str) -> None:
    """The only session that changed is this run's, and it is exact."""
    wrapped = Wrapped(tmp_path)
    err = wrapped.start(cli, case, FAKE_QUIET="1").communicate(timeout=60)[1]
    assert err == b""
    chain = Chain(cli, (ROOT / cli / case,))
    low, high = billed(chain.truth(least=True)), billed(chain.truth(least=False))
    got = billed(wrapped.usage(case))
    assert all(a <= x <= b for a, x, b in zip(low, got, high, strict=True)), (low, got, high)


@pytest.mark.parametrize(
    ("cli", "case"), [("codex", "json-tool"), ("gemini", "json-tool"), ("qwen", "json-tool"), ("opencode", "json-tool-anthropic")]
)
def test_what_is_printed_and_written_counts_once(tmp_path: Path, cli: str, case: str) -> None:
    """Output and files of one run together are the truth once."""
    wrapped = Wrapped(tmp_path)
    process = wrapped.start(cli, case)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out == (ROOT / cli / case / "stdout").read_bytes()
    chain = Chain(cli, (ROOT / cli / case,))
    low, high = billed(chain.truth(least=True)), billed(chain.truth(least=False))
    got = billed(wrapped.usage(case))
    assert all(a <= x <= b for a, x, b in zip(low, got, high, strict=True)), (low, got, high)


def test_a_killed_wrappers_run_is_recovered(tmp_path: Path) -> None:
    """Wrapper killed with SIGKILL: the next command takes the run from the files that codex wrote."""
    wrapped = Wrapped(tmp_path)
    process = wrapped.start("codex", "kill-sigterm", FAKE_QUIET="1", FAKE_STOP="1")
    child = until(lambda: [pid for p in tmp_path.glob("l.db.spool/*.json") if (pid := json.loads(p.read_text())["child_pid"])])[0]
    until(lambda: Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"sleep"))  # all is written
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not alive(child))
    subprocess.run(
        [sys.executable, "-m", "spendmeter", "report"], env=os.environ | {"SPENDMETER_LEDGER": wrapped.url}, check=True, capture_output=True
    )
    chain = Chain("codex", (ROOT / "codex" / "kill-sigterm",))
    low, high = billed(chain.truth(least=True)), billed(chain.truth(least=False))
    got = billed(wrapped.usage("kill-sigterm"))
    assert all(a <= x <= b for a, x, b in zip(low, got, high, strict=True)), (low, got, high)
