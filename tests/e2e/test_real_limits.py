"""The real Claude Code, which a model server keeps calling tools without end, against ``spendmeter run --max-cost``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import anthropic_stub
import pytest
from test_real_claude import FIELDS, World

pytestmark = pytest.mark.e2e


@pytest.fixture
def world(tmp_path: Path, claude: Path) -> Iterator[World]:
    plan = {"CASE-RUNAWAY": [("Bash", {"command": "sleep 0.2; echo again", "description": "Print"})]}
    with anthropic_stub.serving(plan) as (url, truth):
        yield World(tmp_path, claude, url, truth)


@pytest.mark.parametrize(
    "form", [["--output-format", "stream-json", "--verbose"], ["--output-format", "json"], []], ids=["stream", "json", "text"]
)
@pytest.mark.alone
def test_a_runaway_is_ended_and_its_calls_are_in_the_ledger(world: World, form: list[str]) -> None:
    """The cap is passed by the calls of two seconds at most; every call that was answered to its end is counted."""
    world.env["SPENDMETER_MAX_COST"] = "0.15"
    process = world.start("T-1", "-p", "CASE-RUNAWAY", *form)
    err = process.communicate(timeout=120)[1]
    calls = len(world.truth.calls)
    assert process.returncode == 3, err[-500:]
    assert err.count("spendmeter: ") == 1
    assert "spendmeter: run ended: $0.1" in err
    assert world.report("outcome")["max_budget"]["runs"] == 1
    row = world.report("task")["T-1"]
    high, last = world.truth.totals(), world.truth.calls[-1]
    low = {k: n - last[k] for k, n in high.items()}  # it may have been in flight
    assert all(low[k] <= int(str(row[k])) <= high[k] for k in FIELDS), (row, low, high)
    assert float(str(row["cost_usd"])) < 0.15 + 10 * 0.013  # at 0.2 s and more a call
    time.sleep(2)
    assert len(world.truth.calls) == calls  # nobody goes on
