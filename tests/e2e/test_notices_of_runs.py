"""Wrapped runs on a host without a daemon tell of thresholds themselves, and are held up by that no longer than promised."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hooks import Receiver
from tests.replay import clone
from tests.runs import ROOT

from spendmeter.notices import AFTER_RUN_S

pytestmark = pytest.mark.e2e
FAKE = Path(__file__).parents[1] / "fakecli"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Host:
    """Runs a replayed ``claude`` wrapped, each time another run."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.count = folder, 0
        budgets = (
            f"budgets: [{{name: all, period: total, limit_usd: 0.03, thresholds: [0.3, 1]}}]\nnotify: [{{name: ops, webhook: '{url}'}}]\n"
        )
        (folder / "budgets.yaml").write_text(budgets)
        self.env = os.environ | {"PATH": f"{FAKE}:{os.environ['PATH']}", "SPENDMETER_BUDGETS": str(folder / "budgets.yaml")}
        self.env |= {"SPENDMETER_LEDGER": f"sqlite:///{folder / 'ledger.db'}"}

    def run(self) -> tuple[subprocess.CompletedProcess[str], float]:
        """The finished process and how long it took."""
        self.count += 1
        case = clone(ROOT / "claude" / "json-single", self.folder / f"case{self.count}", str(self.count))
        command = [sys.executable, "-m", "spendmeter", "run", "--agent", "a", "--task", "T", "--", "claude", "-p", "x"]
        begun = time.monotonic()
        done = subprocess.run(command, env=self.env | {"FAKE_CASE": str(case)}, capture_output=True, text=True, check=False)
        return done, time.monotonic() - begun


def test_each_threshold_is_told_by_the_run_that_crosses_it(receiver: Receiver, tmp_path: Path) -> None:
    """Once each, and the run is as it would be without: its output, its exit code, nothing on standard error."""
    host = Host(tmp_path, receiver.url("/hook"))
    for _ in range(4):
        done, _ = host.run()
        assert (done.returncode, done.stderr) == (0, "")
        assert '"total_cost_usd"' in done.stdout
    assert [p.told["threshold"] for p in receiver.posts] == ["0.3", "1"]


@pytest.mark.alone
def test_a_receiver_that_never_answers_holds_a_run_up_only_so_long(receiver: Receiver, tmp_path: Path) -> None:
    """The run is recorded first, ends within the promised time, says what could not be delivered and not to whom; a later one is told."""
    host = Host(tmp_path, receiver.url("/T0KEN"))
    receiver.delay_s = 30
    done, took_s = host.run()
    assert (done.returncode, len(receiver.posts)) == (0, 1)
    assert "budget all at 30%: 127.0.0.1: no answer within" in done.stderr
    assert took_s < AFTER_RUN_S + 6  # starting and recording a run on a busy machine
    assert "T0KEN" not in done.stderr
    listed = subprocess.run([sys.executable, "-m", "spendmeter", "report"], env=host.env, capture_output=True, text=True, check=True)
    assert " T " in listed.stdout
