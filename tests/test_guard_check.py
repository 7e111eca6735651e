"""``spendmeter budget check``: whether a run would be let in, without letting it in."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spendmeter.cli import main
from spendmeter.config import Settings
from spendmeter.ledger import Ledger, now_ms, reservations
from spendmeter.ledger.store import dump
from spendmeter.records import NANO, Call, Tags, Usage
from spendmeter.runner.finished import FinishedRun
from spendmeter.runner.spool import spool_dirs, write_pending
from tests.made import Made

MINUTE = 60_000
CENT = NANO // 100


def cost(cents: int, **more: Any) -> dict[str, Any]:
    """An entry that cost so much."""
    return {"reported_nusd": cents * CENT} | more


FILE = """
budgets:
  - {name: month, period: month, timezone: Europe/Berlin, limit_usd: 10, action: block}
  - {name: tight, match: {team: blue}, period: total, limit_usd: 4, action: block}
  - {name: told, match: {agent: "rev*"}, period: total, limit_usd: 1, action: alert}
  - {name: tasks, per: task, period: 1h, limit_runs: 20, action: warn}
"""


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs ``spendmeter budget check`` on a ledger in which agents developer and reviewer have spent 1.50 each, just now."""
    settings = Settings(f"sqlite:///{tmp_path / 'check.db'}")
    (tmp_path / "budgets.yaml").write_text(FILE)
    with closing(Ledger(settings)) as ledger:
        now = now_ms()
        for agent in ("developer", "reviewer"):
            Made(ledger, count=len(agent)).run(
                cost(150, minute_ms=now - now % MINUTE), agent=agent, ended_ms=now, attrs=dump({"team": "blue"})
            )
    monkeypatch.setenv("SPENDMETER_LEDGER", settings.ledger)
    monkeypatch.setenv("SPENDMETER_BUDGETS", str(tmp_path / "budgets.yaml"))
    monkeypatch.chdir(tmp_path)
    yield lambda *words: CliRunner().invoke(main, ["budget", "check", *words])
    with closing(Ledger(settings)) as ledger, ledger.read() as conn:
        assert reservations.held(conn, now_ms()) == []  # it sets nothing aside


def test_a_check_within_budget_tells_the_one_that_is_nearest(ask: Callable[..., Result]) -> None:
    """Exit code 0, one line; tags from the flags or the environment."""
    for words in (["--agent", "developer", "--task", "T-1"], ["--agent", "new"]):
        done = ask(*words)
        assert (done.exit_code, done.stderr, done.stdout.count("\n")) == (0, "", 1)
        assert done.stdout.startswith("within 2 budgets; nearest its limit is month, $7.00 of $10.00 left until 20")
        assert done.stdout.endswith(" Europe/Berlin\n")


def test_a_check_over_budget_says_which_and_how_much(ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3; a budget that only alerts counts when it is used up, one that blocks also when it has no room."""
    done = ask("--agent", "reviewer")
    assert (done.exit_code, done.stdout, done.stderr) == (3, "", "spendmeter: over budget told: $1.50 of $1.00 spent in all\n")
    monkeypatch.setenv("SPENDMETER_AGENT", "developer")
    done = ask("--attr", "team=blue")
    said = "spendmeter: budget tight has no room: $3.00 of $4.00 spent, a run of developer takes about $1.50\n"
    assert (done.exit_code, done.stdout, done.stderr) == (3, "", said)


def test_a_check_as_json_tells_all(ask: Callable[..., Result]) -> None:
    """Every budget that covers the run, in the file's order, and every refusal."""
    done = ask("--agent", "reviewer", "--json")
    document = json.loads(done.stdout)
    assert (done.exit_code, done.stderr, document["allowed"]) == (3, "", False)
    assert [b["name"] for b in document["budgets"]] == ["month", "told", "tasks"]
    assert document["refusals"] == ["over budget told: $1.50 of $1.00 spent in all"]
    assert json.loads(ask("--json").stdout)["allowed"] is True


def test_where_no_budget_covers_the_run_a_check_says_so(ask: Callable[..., Result], tmp_path: Path) -> None:
    """That is within budget."""
    (tmp_path / "budgets.yaml").write_text("budgets: [{name: b, match: {cli: codex, model: m, repo: shop}, period: day, limit_usd: 0}]")
    assert (ask().exit_code, ask().stdout) == (0, "within budget: no budget covers it\n")
    assert ask("--cli", "codex", "--model", "m", "--repo", "shop").exit_code == 3
    (tmp_path / "shop" / ".git").mkdir(parents=True)
    (tmp_path / "shop" / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    with contextlib.chdir(tmp_path / "shop"):
        assert ask("--cli", "codex", "--model", "m").exit_code == 3


def test_a_check_that_cannot_check_is_no_pass(ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Exit code 1 and what to do: no budgets, wrong ones, no ledger."""
    (tmp_path / "spool").write_text("")
    for name, value, said in (
        ("SPENDMETER_LEDGER", f"sqlite:///{tmp_path / 'spool' / 'x.db'}", "choose another place"),
        ("SPENDMETER_BUDGETS", str(tmp_path / "none.yaml"), "no such file"),
        ("SPENDMETER_BUDGETS", "", "no budgets are set up; write budgets.yaml"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            done = ask()
            assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
            assert said in done.stderr


def test_a_check_takes_in_the_runs_of_dead_wrappers(ask: Callable[..., Result], tmp_path: Path) -> None:
    """What they spent counts."""
    run = FinishedRun("e" * 32, Tags("developer"), "claude", 0, None, now_ms() - 1, now_ms(), "e" * 32, "e" * 16, sessions={"s"})
    run.observations = [Call("claude", "c", "s", Usage(tokens_in=1, cost_nusd=9 * NANO), "m", "m", now_ms(), "stdout")]
    write_pending(spool_dirs(f"sqlite:///{tmp_path / 'check.db'}", os.environ), run)
    assert "over budget month: $12.00 of $10.00" in ask("--agent", "developer").stderr
