"""``spendmeter attribute``: what it prints, and what it says where nothing can be done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spendmeter.cli import main
from spendmeter.config import Settings
from spendmeter.ledger import Batch, Ledger
from spendmeter.ledger.query import report
from spendmeter.records import Call, Context, Usage
from tests.feed import FlatPrice
from tests.made import NOON

RULES = """
[[attribution]]
match = {subagent = "rev*"}
set = {agent = "reviewer"}

[[attribution]]
match = {cwd = "*/shop", branch = "feat/(?P<key>[A-Z]+-[0-9]+)"}
set = {agent = "developer", task = "{key}", project = "{cwd}"}
"""


@pytest.fixture
def filled(settings: Settings) -> Iterator[Ledger]:
    """Two sessions in the shop, one with a subagent, and one elsewhere."""
    ledger = Ledger(settings, FlatPrice())
    facts: list[Any] = []
    for session, cwd, role in (("a", "/home/dev/shop", "reviewer"), ("b", "/home/dev/shop", None), ("c", "/home/dev/web", None)):
        facts.append(Context("claude", session, cwd, "feat/ABC-1"))
        for n, sub in ((1, None), (2, role)):
            used = Usage(tokens_in=100 * n, cost_nusd=n * 1_000_000)
            made = Call("claude", f"r:{session}{n}", session, used, "m", "m", NOON + n)
            facts.append(replace(made, subagent="an id", subagent_type=sub) if sub else made)
    ledger.commit(Batch(facts, settled=True))
    yield ledger
    ledger.close()


def call(ledger: Ledger, tmp_path: Path, text: str | None, *args: str) -> Result:
    config = []
    if text is not None:
        path = tmp_path / "spendmeter.toml"
        path.write_text(text)
        config = ["--config", str(path)]
    return CliRunner().invoke(main, ["--ledger", ledger.settings.ledger, *config, "attribute", *args])


def whose(ledger: Ledger) -> dict[Any, int]:
    return {r.keys: r.amounts.tokens for r in report(ledger, ["agent", "task"]).rows}


def test_a_dry_run_tells_what_would_move_and_moves_nothing(filled: Ledger, tmp_path: Path) -> None:
    """A line for each move: rule, its line in the file, sessions, runs, tokens, cost, from and to; nothing is written."""
    before = whose(filled)
    result = call(filled, tmp_path, RULES, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "rule  line  sessions  runs  tokens  cost_usd  from               to",
        "1+2   2+6          1     1     200  0.002000  unknown / unknown  reviewer / ABC-1 +project",
        "2     6            2     2     400  0.004000  unknown / unknown  developer / ABC-1 +project",
    ]
    assert result.stderr == "spendmeter: 2 of 3 sessions that went by other rules would move\n"
    assert whose(filled) == before


def test_json_holds_it_all_and_the_real_run_moves(filled: Ledger, tmp_path: Path) -> None:
    """The same moves as one document; afterwards reports are by the new owners, and a second run finds nothing to do."""
    dry = json.loads(call(filled, tmp_path, RULES, "--dry-run", "--json").stdout)
    real = json.loads(call(filled, tmp_path, RULES, "--json").stdout)
    assert (dry.pop("dry_run"), real.pop("dry_run")) == (True, False)
    assert dry == real
    assert {k: v for k, v in real.items() if k != "moves"} == {"sessions": 2, "looked_at": 3, "closed": 0}
    first = real["moves"][0]
    assert {k: first[k] for k in ("rules", "lines", "from", "to", "attrs", "sessions", "runs", "tokens_in", "cost_usd")} == {
        "rules": [1, 2], "lines": [2, 6], "from": {"agent": "unknown", "task": "unknown"}, "to": {"agent": "reviewer", "task": "ABC-1"},
        "attrs": ["project"], "sessions": 1, "runs": 1, "tokens_in": 200, "cost_usd": "0.002000",
    }  # fmt: skip
    assert whose(filled) == {("developer", "ABC-1"): 400, ("reviewer", "ABC-1"): 200, ("unknown", "unknown"): 300}
    again = json.loads(call(filled, tmp_path, RULES, "--json").stdout)
    assert (again["looked_at"], again["moves"]) == (0, [])


def test_a_task_that_was_given_parts_of_runs_alone_has_a_summary(filled: Ledger, tmp_path: Path) -> None:
    """Its usage and cost by agent; no run of its own, and so no outcome."""
    call(filled, tmp_path, '[[attribution]]\nmatch = {subagent = "*"}\nset = {task = "SUB-1"}\n')
    result = CliRunner().invoke(main, ["--ledger", filled.settings.ledger, "summary", "--task", "SUB-1"])
    assert result.exit_code == 0, result.stderr
    assert "| Run | 0 | 200 |" in result.stdout
    assert "0 runs:" not in result.stdout


def test_what_rules_gave_is_taken_back_by_an_empty_list(filled: Ledger, tmp_path: Path) -> None:
    """attribution = [] makes everything unknown again; moves that no rule gives have none."""
    call(filled, tmp_path, RULES)
    result = call(filled, tmp_path, "attribution = []\n")
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [["-", "-"], ["-", "-"]]
    assert whose(filled) == {("unknown", "unknown"): 900}


def test_since_looks_at_what_was_active(filled: Ledger, tmp_path: Path) -> None:
    """No session here is as young as tomorrow; a time that is none is a mistake of usage."""
    assert json.loads(call(filled, tmp_path, RULES, "--since", "2099-01-01", "--json").stdout)["looked_at"] == 0
    result = call(filled, tmp_path, RULES, "--since", "soon")
    assert result.exit_code == 2
    assert "--since" in result.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "spendmeter: settings: no file (--config): no attribution; write [[attribution]] rules into it, or attribution = []"),
        ("", "spendmeter.toml: no attribution; write [[attribution]] rules into it, or attribution = [] to take back what rules gave\n"),
        ("\n[[attribution]]\nmatch = {cwd = 1.5}\n", "spendmeter.toml:2: attribution rule 1: set is missing or empty; write set = {agent"),
    ],
)
def test_without_rules_that_hold_water_nothing_is_done(filled: Ledger, tmp_path: Path, text: str | None, told: str) -> None:
    """One line with place and remedy, exit code 1."""
    result = call(filled, tmp_path, text)
    assert (result.exit_code, told in result.stderr, result.stderr.count("\n")) == (1, True, 1)
    assert whose(filled) == {("unknown", "unknown"): 900}


def test_the_doctor_counts_rules_and_who_is_unknown(filled: Ledger, tmp_path: Path) -> None:
    """Before, without rules; with rules that were not applied; and after."""

    def told(*config: str) -> str:
        result = CliRunner().invoke(main, ["--ledger", filled.settings.ledger, *config, "doctor", "--json"])
        return next(c["detail"] for c in json.loads(result.stdout)["checks"] if c["name"] == "attribution")

    shift = "update runs set last_ms = 4070908800000"  # of late, whenever the test runs
    with filled.write() as conn:
        conn.exec_driver_sql(shift)
    assert told() == "0 rules; of 3 sessions of the last 7 days 3 have no agent, 3 no task"
    path = tmp_path / "spendmeter.toml"
    path.write_text(RULES)
    assert told("--config", str(path)) == "2 rules; of 3 sessions of the last 7 days 3 have no agent, 3 no task; 3 go by other rules"
    call(filled, tmp_path, RULES)
    with filled.write() as conn:
        conn.exec_driver_sql(shift)
    assert told("--config", str(path)) == "2 rules; of 3 sessions of the last 7 days 1 have no agent, 1 no task"
