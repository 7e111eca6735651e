"""``spendmeter run`` before its start: who is kept out, what is said, and what is left alone."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select

from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.runner.detect import Command
from spendmeter.runner.spool import pending_runs
from tests.fakecli.harness import CASES, CLAUDE, SRC, Env, Flags, Wrapper, until
from tests.made import Made

SECRET = "SECRET-PROMPT"
BUDGET = "budgets: [{name: all, period: total, limit_usd: 1, action: ACTION}]"
OVER = "over budget all: $1.50 of $1.00 spent in all"


class Guarded(Wrapper):
    """``spendmeter run`` whose ledger holds a run of agent dev that cost 1.50."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, real=True)
        with closing(Ledger(Settings(self.ledger))) as ledger:
            Made(ledger).run({"reported_nusd": 1_500_000_000}, agent="dev")

    def budgets(self, text: str) -> None:
        """What stands in budgets.yaml."""
        (self.folder / "budgets.yaml").write_text(text)
        self.env["SPENDMETER_BUDGETS"] = str(self.folder / "budgets.yaml")

    def touch(self, flags: Flags = (), env: Env = None) -> tuple[int, str, bool]:
        """(exit code, what was said, whether the child ran) of a run that has a prompt among its arguments."""
        mark = self.folder / "ran"
        mark.unlink(missing_ok=True)
        done = self.run("sh", "-c", f"touch {mark}; exit 7", SECRET, flags=flags, env=env)
        assert SECRET not in done.stderr.decode()
        return done.returncode, done.stderr.decode(), mark.exists()

    def held(self) -> list[str]:
        """Run ids that stand in the table of reservations, dead or alive."""
        with closing(Ledger(Settings(self.ledger))) as ledger, ledger.read() as conn:
            return [row.run_id for row in conn.execute(select(t.reservations))]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    return Guarded(tmp_path)


@pytest.mark.parametrize("action", ["block", "kill"])
def test_a_run_over_budget_is_not_started(guarded: Guarded, action: str) -> None:
    """Exit code 3 and one line that says which budget and how much."""
    guarded.budgets(BUDGET.replace("ACTION", action))
    assert guarded.touch() == (3, f"spendmeter: run not started: {OVER}\n", False)


def test_a_warning_starts_the_run(guarded: Guarded) -> None:
    """One line; all else is the command's own."""
    guarded.budgets(BUDGET.replace("ACTION", "warn"))
    assert guarded.touch() == (7, f"spendmeter: {OVER}\n", True)


@pytest.mark.parametrize("text", [BUDGET.replace("ACTION", "alert"), BUDGET.replace("ACTION", "block").replace("1,", "9,")])
def test_a_run_within_its_budgets_is_left_alone(guarded: Guarded, text: str) -> None:
    """Nothing is said and nothing stays set aside."""
    guarded.budgets(text)
    assert guarded.touch() == (7, "", True)
    assert guarded.held() == []


def test_switched_off_means_off(guarded: Guarded) -> None:
    """SPENDMETER_OFF leaves out the budgets too."""
    guarded.budgets(BUDGET.replace("ACTION", "block"))
    assert guarded.touch(env={"SPENDMETER_OFF": "1"}) == (7, "", True)


def test_budgets_come_from_the_settings_file_too(guarded: Guarded) -> None:
    """Their path is relative to it."""
    guarded.budgets(BUDGET.replace("ACTION", "block"))
    (guarded.folder / "spendmeter.toml").write_text('[budgets]\nfile = "budgets.yaml"\n')
    del guarded.env["SPENDMETER_BUDGETS"]
    assert guarded.touch(flags=("--config", str(guarded.folder / "spendmeter.toml")))[0] == 3
    assert guarded.touch(env={"SPENDMETER_CONFIG": str(guarded.folder / "spendmeter.toml")})[0] == 3
    assert guarded.touch()[0] == 7


@pytest.mark.parametrize(("match", "code"), [
    ("{agent: dev, task: T-1, cli: claude, model: 'opus*', repo: shop, team: blue}", 3),
    *((f"{{{key}: other}}", 7) for key in ("agent", "task", "cli", "model", "repo", "team")),
])  # fmt: skip
def test_a_run_is_matched_by_all_that_is_known_of_it(guarded: Guarded, match: str, code: int) -> None:
    """Tags and attributes from the flags, CLI and model from the command, the repository from the folder."""
    guarded.budgets(f"budgets: [{{name: all, period: total, limit_usd: 0, action: block, match: {match}}}]")
    guarded.cwd = guarded.folder / "shop"
    (guarded.cwd / ".git").mkdir(parents=True)
    (guarded.cwd / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    flags = ("--agent", "dev", "--task", "T-1", "--attr", "team=blue")
    done = guarded.run(CLAUDE, "-p", SECRET, "--model", "opus-9", flags=flags, env={"FAKE_EXIT": "7"})
    assert done.returncode == code
    assert SECRET not in done.stderr.decode()


def test_the_runs_own_limit_is_what_it_takes(guarded: Guarded) -> None:
    """--max-cost gets a run in that would usually take more than there is."""
    guarded.budgets("budgets: [{name: all, period: total, limit_usd: 2, action: block}]")
    said = "budget all has no room: $1.50 of $2.00 spent, a run of dev takes about $1.50"
    assert guarded.touch(("--agent", "dev")) == (3, f"spendmeter: run not started: {said}\n", False)
    assert guarded.touch(("--agent", "dev", "--max-cost", "0.5"))[0] == 7


def test_a_run_holds_its_reservation_until_its_usage_stands_for_it(guarded: Guarded) -> None:
    """Under its own run id, which its child knows."""
    guarded.budgets(BUDGET.replace("ACTION", "block").replace("1,", "9,"))
    run = guarded.start(CLAUDE, env={"FAKE_LIVE_S": "1", "FAKE_CASE": str(CASES / "json-single")})
    held = until(guarded.held)
    assert run.communicate(timeout=60)[1] == b""
    assert guarded.held() == []
    with closing(Ledger(Settings(guarded.ledger))) as ledger, ledger.read() as conn:
        assert [row.run_id for row in conn.execute(select(t.processes))] == held


def test_a_command_that_cannot_be_executed_gives_back_what_it_had(guarded: Guarded) -> None:
    """It was let in before anybody could know."""
    guarded.budgets(BUDGET.replace("ACTION", "block").replace("1,", "9,"))
    script = guarded.folder / "broken"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(stat.S_IRWXU)
    assert guarded.run(str(script)).returncode == 127
    assert guarded.held() == []


def test_a_start_waits_for_a_dead_run_that_is_just_being_recorded(guarded: Guarded) -> None:
    """Whoever comes while another command takes it in: it has not spent nothing, so it may not be taken for gone."""
    guarded.budgets("budgets: [{name: all, period: total, limit_usd: 2.6, reserve_usd: 1, action: block}]")
    killed = guarded.start("sleep", "60")
    (path,) = until(guarded.pending)
    killed.kill()
    killed.communicate()
    (taken,) = until(lambda: list(pending_runs(path.parent)))
    next_one = guarded.start("sh", "-c", "exit 7")
    time.sleep(1)
    assert next_one.poll() is None
    taken.release()
    assert next_one.communicate(timeout=60)[1] == b""
    assert next_one.returncode == 7
    assert guarded.pending() == []


# -- budgets that cannot be checked ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["allow", "block"])
@pytest.mark.parametrize(("broken", "said"), [
    ("yaml", "budgets.yaml:1: "), ("file", "no such file"), ("settings", 'unknown section "metrisc"'), ("ledger", "file is not a database"),
])  # fmt: skip
def test_budgets_that_cannot_be_checked_stop_a_run_only_if_told_to(guarded: Guarded, broken: str, said: str, on_error: str) -> None:
    """One line says why; by default the run starts. Settings that are wrong elsewhere still say what is wanted."""
    guarded.budgets("budgets: [{action: block, SECRET: 1}]" if broken == "yaml" else BUDGET.replace("ACTION", "block"))
    section = "[metrisc]\n" if broken == "settings" else ""
    (guarded.folder / "spendmeter.toml").write_text(f'[budgets]\non_error = "{on_error}"\n{section}')
    if broken == "file":
        (guarded.folder / "budgets.yaml").unlink()
    if broken == "ledger":
        (guarded.folder / "data" / "ledger.db").write_bytes(b"not a database" * 1000)
    code, lines, ran = guarded.touch(env={"SPENDMETER_CONFIG": str(guarded.folder / "spendmeter.toml")})
    first = lines.splitlines()[0]
    assert said in first
    if on_error == "block":
        assert (code, ran, lines.count("\n")) == (3, False, 1)
        assert first.startswith("spendmeter: run not started: its budgets cannot be checked: ")
    else:
        assert (code, ran) == (7, True)
        assert first.startswith("spendmeter: run: its budgets are not checked: ")


def test_settings_without_budgets_are_none_of_the_gates_business(guarded: Guarded) -> None:
    """What is wrong with them is said once, when the run is to be recorded."""
    (guarded.folder / "spendmeter.toml").write_text("[metrisc]\n")
    code, lines, ran = guarded.touch(env={"SPENDMETER_CONFIG": str(guarded.folder / "spendmeter.toml")})
    assert (code, ran, lines.count("\n")) == (7, True, 1)
    assert "this run was not recorded yet" in lines


def test_a_database_server_that_does_not_answer_is_given_up() -> None:
    """After as long as the ledger is to wait, unless its URL says how long."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"postgresql://u@127.0.0.1:{deaf.getsockname()[1]}/x"
        begun_s = time.monotonic()
        for waiting, busy_ms in ((url, 1000), (f"{url}?connect_timeout=2", 60_000)):
            with pytest.raises(LedgerError, match="timeout expired; start the database server"):
                Ledger(Settings(waiting), busy_ms=busy_ms)
        assert 3 < time.monotonic() - begun_s < 20


# -- what it costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "budgets", "loaded"), [
    (None, None, set()),
    ("[metrics]\nsettle = 5\n", None, set()),
    ("[budgets]\nfile = 'budgets.yaml'\n", BUDGET.replace("ACTION", "alert"), {"config"}),
    ("[budgets]\nfile = 'budgets.yaml'\n", BUDGET.replace("ACTION", "block, match: {agent: other}"), {"config", "yamlfile", "budgets"}),
    ("[budgets]\nfile = 'budgets.yaml'\n", BUDGET.replace("ACTION", "block"), {"config", "yamlfile", "budgets", "ledger", "guard"}),
])  # fmt: skip
def test_what_is_loaded_before_the_child_starts(tmp_path: Path, config: str | None, budgets: str | None, loaded: set[str]) -> None:
    """Nothing where no budget can be in the way; the ledger only where one that warns, blocks or kills covers the run.

    No database is open when the process forks.
    """
    code = """
import os, sys
def fork():
    files = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')]
    os.write(1, ' '.join([*sys.modules, *files]).encode()); os._exit(0)
os.fork = fork
sys.argv = ['spendmeter', 'run', '--agent', 'a', '--', 'claude']
import spendmeter.__main__ as m
m.main()
"""
    env = {"PATH": f"{Path(CLAUDE).parent}:{os.environ['PATH']}", "PYTHONPATH": str(SRC), "HOME": str(tmp_path)}
    for name, text in (("spendmeter.toml", config), ("budgets.yaml", budgets)):
        if text is not None:
            (tmp_path / name).write_text(text)
            env["SPENDMETER_CONFIG"] = str(tmp_path / "spendmeter.toml")
    seen = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout.decode().split()
    parts = {name.split(".")[1] for name in seen if name.startswith("spendmeter.")}
    assert parts & {"config", "yamlfile", "budgets", "ledger", "guard"} == loaded
    assert not any("ledger.db" in name for name in seen)
    assert (tmp_path / ".local/share/spendmeter/ledger.db").exists() is ("ledger" in loaded)
    assert ("sqlalchemy" in seen, "yaml" in seen) == ("ledger" in loaded, "yamlfile" in loaded)


@pytest.mark.parametrize(("argv", "model"), [
    (["claude", "--model", "opus"], "opus"), (["claude", "--model=claude-opus-4-5[1m]", "-p", "x"], "claude-opus-4-5[1m]"),
    (["npx", "@openai/codex", "exec", "-m", "gpt-5", "fix -m x"], "gpt-5"), (["opencode", "run", "-m", "anthropic/claude-x"], "claude-x"),
    (["claude", "-m", "opus"], None), (["claude", "--", "--model", "opus"], None), (["claude", "--model", SECRET + " with blanks"], None),
    (["claude", "--model"], None), (["claude", "--model", "--print"], None), (["claude", "--model="], None), (["sh", "--model", "x"], None),
])  # fmt: skip
def test_the_model_is_told_from_the_clis_flags(argv: list[str], model: str | None) -> None:
    """Only what looks like one, after the CLI's own name; -m is not Claude Code's."""
    assert Command(argv).model == model
