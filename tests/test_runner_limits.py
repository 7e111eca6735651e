"""A run that passes its limit is ended within two seconds, and the ledger has all that it had used by then."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.verify import verify
from spendmeter.prices import PriceTable
from spendmeter.records import Usage
from spendmeter.runner.args import UsageError, parse
from tests.fakecli.harness import TESTS, Wrapper, python, until
from tests.runs import FIELDS, ROOT
from tests.test_runner_terminal import Terminal, terminal

RUNAWAY = TESTS / "fakecli" / "runaway"
PROMISE_S = 2.0
CASES = {
    "claude": "claude/stream-json-tool", "codex": "codex/json-tool-known-model", "gemini": "gemini/json-tool",
    "qwen": "qwen/json-tool", "copilot": "copilot/json-tool-anthropic",
}  # fmt: skip
MODELS = {
    "claude": "claude-sonnet-4-5", "codex": "gpt-5.5", "gemini": "gemini-2.5-pro", "qwen": "qwen3-coder-plus",
    "copilot": "claude-sonnet-4.5",
}  # fmt: skip
SESSION = "0b5e2d52-6a4b-4d3c-8b5a-6d2f7c1e9a10"
FLAGS = ("--agent", "dev", "--task", "T-1")
CAP_USD = 0.3
CAPPED = (*FLAGS, "--max-cost", str(CAP_USD))
COMMIT_S = 1.0  # that the wrapper takes besides
# Dies of what its child ignores: an npm launcher.
LAUNCHER = "import os, signal, subprocess, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); subprocess.Popen(sys.argv[1:]).wait()"


class Runs(Wrapper):
    """``spendmeter run`` around a CLI that calls its model without end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, real=True)
        self.log = folder / "log"
        (folder / "prices.yaml").write_text("- {match: qwen3-coder-plus, input: 1, cache_read: 0.1, output: 5}\n")
        self.env |= {"RUNAWAY_LOG": str(self.log), "SPENDMETER_PRICES_FILE": str(folder / "prices.yaml")}

    def cli(self, name: str) -> str:
        """A link to the runaway that bears the CLI's name."""
        link = self.folder / name
        if not link.exists():
            link.symlink_to(RUNAWAY)
        self.env["RUNAWAY_CASE"] = str(ROOT / CASES[name])
        return str(link)

    def told(self) -> list[dict[str, Any]]:
        """The calls, each with the time right before it was told, its usage, its cost and that of all so far."""
        prices = PriceTable.load(self.folder / "prices.yaml")
        model, sum_, out = MODELS[Path(self.env["RUNAWAY_CASE"]).parent.name], 0, []
        for line in self.log.read_text().splitlines():
            call = json.loads(line)
            nusd = prices.price(model, Usage(*call["used"]), None) or 0
            sum_ += nusd
            out.append(call | {"nusd": nusd, "cost_nusd": sum_})
        return out

    def before(self, cli: str, env: dict[str, str]) -> None:
        """A session that was there already, not run by us."""
        subprocess.run([self.cli(cli)], env=self.env | env, cwd=self.cwd, check=True)
        self.log.unlink()

    def row(self) -> dict[str, Any]:
        """The run in the ledger, what it used and cost; the ledger verifies too."""
        ledger = Ledger(Settings(self.ledger, settle_s=0, prices_file=self.folder / "prices.yaml"))
        with ledger.read() as conn:
            (run,) = conn.execute(select(t.runs).where(t.runs.c.task == "T-1")).all()
            of = (t.entries.c.session_id == run.session_id) & (t.entries.c.run_key == run.run_key)
            entries = conn.execute(select(t.entries).where(of)).all()
        assert verify(ledger) == []
        ledger.close()
        used = [sum(getattr(e, f) or 0 for e in entries) for f in FIELDS]
        cost = sum((e.reported_nusd or 0) + (e.estimated_nusd or 0) for e in entries)
        return dict(run._mapping) | {"used": used, "cost_nusd": cost, "notes": json.loads(run.notes)}

    def exact(self) -> dict[str, Any]:
        """The run in the ledger has exactly what was told."""
        row, told = self.row(), self.told()
        assert row["used"] == [sum(call["used"][i] for call in told) for i in range(5)]
        assert row["cost_nusd"] == told[-1]["cost_nusd"]
        return row

    def ended(self, done: subprocess.CompletedProcess[bytes], *, cap_usd: float = CAP_USD) -> dict[str, Any]:
        """What holds for every run that was ended by --max-cost; its row."""
        at_s, told = time.monotonic(), self.told()
        over = next(call for call in told if call["cost_nusd"] >= cap_usd * 10**9)
        assert told[-1]["at_s"] - over["at_s"] < PROMISE_S
        assert at_s - over["at_s"] < PROMISE_S + COMMIT_S
        assert done.returncode == 3
        assert re.fullmatch(rf"spendmeter: run ended: \$[0-9.]+ of --max-cost \${cap_usd:.2f} used\n", done.stderr.decode())
        row = self.exact()
        assert (row["outcome"], row["agent"]) == ("max_budget", "dev")
        assert done.stderr.decode().strip().removeprefix("spendmeter: ") in row["notes"]
        return row


__all__ = ["terminal"]  # a fixture


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_stream_is_ended_at_its_cap(runs: Runs) -> None:
    """stream-json alone: what was printed until then came through byte for byte, and is what the ledger has."""
    done = runs.run(runs.cli("claude"), flags=CAPPED, env={"RUNAWAY_FORM": "stream"})
    runs.ended(done)
    calls = [row for line in done.stdout.splitlines() if (row := json.loads(line))["type"] == "assistant"]
    assert [c["request_id"] for c in calls] == [c["id"] for c in runs.told()]


@pytest.mark.parametrize("cli", list(CASES))
def test_what_is_only_written_is_ended_at_its_cap_too(runs: Runs, cli: str) -> None:
    """Nothing is printed, as in the json and text forms: the growing session file tells."""
    done = runs.run(runs.cli(cli), flags=CAPPED)
    assert runs.ended(done)["cli"] == cli
    assert done.stdout == b""


def test_a_cli_that_ends_well_when_interrupted_was_ended_all_the_same(runs: Runs) -> None:
    """claude prints its result on SIGINT and exits with 0: that comes through, its own cost counts, and our code is 3."""
    done = runs.run(runs.cli("claude"), flags=CAPPED, env={"RUNAWAY_RESULT": "1"})
    row = runs.ended(done)
    assert (row["exit_code"], row["signal"]) == (0, None)
    assert json.loads(done.stdout)["total_cost_usd"] == row["cost_nusd"] / 10**9


@pytest.mark.parametrize(("deaf", "died_of"), [("INT", signal.SIGTERM), ("INT,TERM", signal.SIGKILL)])
@pytest.mark.parametrize("form", ["files", "stream"])
def test_who_does_not_listen_is_ended_by_more(runs: Runs, deaf: str, died_of: signal.Signals, form: str) -> None:
    """SIGTERM after SIGINT, SIGKILL after that, and all within the two seconds."""
    done = runs.run(runs.cli("claude"), flags=CAPPED, env={"RUNAWAY_DEAF": deaf, "RUNAWAY_FORM": form})
    row = runs.ended(done)
    assert (row["exit_code"], row["signal"]) == (None, died_of)


@pytest.mark.parametrize("deaf", ["", "INT", "INT,TERM"])
def test_a_launchers_real_child_is_ended_too(runs: Runs, deaf: str) -> None:
    """The launcher dies of the first signal; what its child goes on to use until its own end is in the ledger."""
    npx = runs.folder / "npx"
    npx.write_text(f"#!{sys.executable} -SEu\n{LAUNCHER}\n")
    npx.chmod(0o755)
    done = runs.run(str(npx), runs.cli("claude"), flags=CAPPED, env={"RUNAWAY_DEAF": deaf, "RUNAWAY_FORM": "stream"})
    assert runs.ended(done)["signal"] == signal.SIGINT


def test_who_has_left_the_group_is_ended_too(runs: Runs) -> None:
    """setsid: the real CLI is in a session of its own, and is found by the run id that it inherited."""
    command = python(LAUNCHER.replace("[1:])", "[1:], start_new_session=True)"), runs.cli("claude"))
    runs.ended(runs.run(*command, flags=CAPPED, env={"RUNAWAY_DEAF": "INT,TERM", "RUNAWAY_FORM": "stream"}))


def test_a_run_on_a_terminal_is_ended(runs: Runs, terminal: Terminal) -> None:
    """There the child shares the caller's process group, which is left alone; neither the output nor the tags are piped."""
    env = {"RUNAWAY_DEAF": "INT", "RUNAWAY_RESULT": "1"}
    shell = 'trap "" INT; "$@"; echo "code $?"'
    run = terminal.start(["sh", "-c", shell, "sh", *runs.argv(runs.cli("claude"), flags=CAPPED)], runs.env | env, runs.cwd)
    assert b"run ended: $" in terminal.expect(b"code 3", 30)
    assert run.wait(timeout=60) == 0
    assert runs.exact()["signal"] == signal.SIGTERM


def test_a_stopped_run_is_ended(runs: Runs) -> None:
    """SIGSTOP by a third party: the run is continued so that it can hear."""
    run = runs.start(runs.cli("claude"), flags=CAPPED, env={"RUNAWAY_EVERY_S": "0.3"})
    until(lambda: runs.log.exists() and runs.told()[-1]["cost_nusd"] >= CAP_USD * 10**9)
    os.kill(int(runs.told()[-1]["pid"]), signal.SIGSTOP)
    out, err = run.communicate(timeout=60)
    assert runs.ended(subprocess.CompletedProcess([], run.returncode, out, err))["signal"] == signal.SIGINT


def test_a_resumed_session_counts_only_its_new_calls(runs: Runs) -> None:
    """What it had used before, twice the cap, is no part of this run."""
    runs.before("claude", {"RUNAWAY_SESSION": SESSION, "RUNAWAY_CALLS": "80", "RUNAWAY_EVERY_S": "0"})
    done = runs.run(runs.cli("claude"), "--resume", SESSION, flags=CAPPED, env={"RUNAWAY_SESSION": SESSION})
    assert runs.ended(done)["session"] == SESSION


def test_a_resumed_rollout_counts_only_its_new_calls(runs: Runs) -> None:
    """Codex' totals go on from what the thread had used before, and nothing on the command line names it."""
    runs.before("codex", {"RUNAWAY_SESSION": SESSION, "RUNAWAY_CALLS": "80", "RUNAWAY_EVERY_S": "0"})
    done = runs.run(runs.cli("codex"), "exec", "resume", SESSION, flags=CAPPED, env={"RUNAWAY_SESSION": SESSION})
    assert runs.ended(done)["session"] == SESSION


def test_a_subagents_calls_count(runs: Runs) -> None:
    """Each goes to a file of the subagent's own, which comes to be while the run is under way."""
    done = runs.run(runs.cli("claude"), flags=CAPPED, env={"RUNAWAY_INTO": "subagent"})
    runs.ended(done)


def test_a_run_below_its_cap_is_as_it_would_be_without(runs: Runs) -> None:
    """Output, silence on standard error, code and outcome are its own."""
    env = {"RUNAWAY_FORM": "stream", "RUNAWAY_CALLS": "20"}
    done = runs.run(runs.cli("claude"), flags=(*FLAGS, "--max-cost", "100", "--max-tokens", "100000000"), env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    row = runs.exact()
    assert (row["outcome"], row["exit_code"]) == ("ok", 0)


@pytest.mark.parametrize("form", ["files", "stream"])
def test_a_run_that_passes_its_cap_at_its_very_end_keeps_its_code(runs: Runs, form: str) -> None:
    """It ended by itself: one line says that it is over, and nothing else is different."""
    env = {"RUNAWAY_FORM": form, "RUNAWAY_CALLS": "60", "RUNAWAY_EVERY_S": "0"}
    done = runs.run(runs.cli("claude"), flags=CAPPED, env=env)
    assert done.returncode == 0
    cost = runs.exact()["cost_nusd"]
    assert done.stderr.decode() == f"spendmeter: used ${cost / 10**9:.2f}, over --max-cost ${CAP_USD:.2f}\n"
    assert runs.row()["outcome"] == "ok"


def test_tokens_may_be_limited_instead(runs: Runs) -> None:
    """--max-tokens counts all that is billed, cached tokens too; the environment may say it."""
    done = runs.run(runs.cli("gemini"), flags=FLAGS, env={"SPENDMETER_MAX_TOKENS": "150000"})
    assert done.returncode == 3
    assert re.fullmatch(r"spendmeter: run ended: 1[5-9]\d,\d{3} tokens of --max-tokens 150,000 used\n", done.stderr.decode())
    assert runs.exact()["outcome"] == "max_budget"


@pytest.mark.parametrize("calls", ["40", "2"])
def test_usage_without_a_price_is_told_once(runs: Runs, calls: str) -> None:
    """Dollars cannot limit it; the run goes on. A run may be over before it is counted for the first time."""
    (runs.folder / "prices.yaml").write_text("[]\n")
    done = runs.run(runs.cli("qwen"), flags=CAPPED, env={"RUNAWAY_CALLS": calls})
    assert done.returncode == 0
    assert done.stderr.decode() == "spendmeter: run: --max-cost cannot see the cost of model qwen3-coder-plus: no price\n"


def test_limits_that_cannot_be_watched_leave_the_run_alone(runs: Runs) -> None:
    """A price file that is wrong: one line at once, and the run's own end."""
    (runs.folder / "prices.yaml").write_text("models: 3\n")
    done = runs.run(runs.cli("claude"), flags=CAPPED, env={"RUNAWAY_CALLS": "30", "RUNAWAY_FORM": "stream"})
    first, *rest = done.stderr.decode().splitlines()
    assert done.returncode == 0
    assert first.startswith("spendmeter: run: its limits are not watched: PriceError: ")
    assert ["this run was not recorded yet" in line for line in rest] == [True]


def test_a_limit_without_what_counting_needs_leaves_the_run_alone(tmp_path: Path) -> None:
    """A package is missing: said at once, while the run goes on to its own end."""
    done = Wrapper(tmp_path).run("sh", "-c", "sleep 2; exit 7", flags=CAPPED, env={"FAKE_INGEST": "import"})
    first, *rest = done.stderr.decode().splitlines()
    assert done.returncode == 7
    assert first == "spendmeter: run: its limits are not watched: ImportError: No module named 'sqlalchemy'"
    assert ["this run was not recorded yet" in line for line in rest] == [True]


def budget(runs: Runs, action: str) -> dict[str, str]:
    """Environment in which one budget holds for all runs together."""
    path = runs.folder / "budgets.yaml"
    path.write_text(f"budgets: [{{name: small, period: day, limit_usd: {CAP_USD}, action: {action}}}]\n")
    return {"SPENDMETER_BUDGETS": str(path)}


def reserved(runs: Runs) -> int:
    """How many runs have something set aside."""
    ledger = Ledger(Settings(runs.ledger))
    with ledger.read() as conn:
        found = len(conn.execute(select(t.reservations)).all())
    ledger.close()
    return found


def test_a_budget_that_kills_ends_its_runs(runs: Runs) -> None:
    """Two runs use it up together: both are ended by it, the ledger says which it was, and nothing stays set aside."""
    env, logs = budget(runs, "kill"), [runs.folder / f"log{i}" for i in range(2)]
    link = runs.cli("claude")
    both = [runs.start(link, flags=FLAGS, env=env | {"RUNAWAY_LOG": str(log), "RUNAWAY_FORM": "stream"}) for log in logs]
    done = [run.communicate(timeout=60) for run in both]
    assert [run.returncode for run in both] == [3, 3]
    for _, err in done:
        assert re.fullmatch(r"spendmeter: run ended: over budget small: \$[0-9.]+ of \$0\.30 spent since [^\n]*\n", err.decode())
    ledger = Ledger(Settings(runs.ledger))
    with ledger.read() as conn:
        rows = conn.execute(
            select(t.runs.c.outcome, t.processes.c.stopped).join(t.processes, t.processes.c.run_key == t.runs.c.run_key)
        ).all()
        spent = conn.execute(select(func.sum(t.entries.c.estimated_nusd))).scalar_one()
    ledger.close()
    assert [tuple(r) for r in rows] == [("max_budget", "budget small")] * 2
    runs.log.write_bytes(b"".join(log.read_bytes() for log in logs))
    told = sorted(runs.told(), key=lambda call: call["at_s"])
    assert spent == sum(call["nusd"] for call in told)
    over = next(c for c, sum_ in zip(told, accumulate(call["nusd"] for call in told), strict=True) if sum_ >= CAP_USD * 10**9)
    assert told[-1]["at_s"] - over["at_s"] < PROMISE_S
    assert reserved(runs) == 0


def test_a_run_whose_files_are_read_meanwhile_counts_once(runs: Runs) -> None:
    """By ``sync --watch`` into the same ledger: it is ended at the budget's limit, and not at half of it."""
    env = runs.env | budget(runs, "kill")
    with subprocess.Popen([sys.executable, "-m", "spendmeter", "--ledger", runs.ledger, "sync", "--watch"], env=env) as watch:
        done = runs.run(runs.cli("claude"), flags=FLAGS, env=env | {"RUNAWAY_EVERY_S": "0.4"})
        watch.send_signal(signal.SIGTERM)
    assert done.returncode == 3
    told = runs.told()
    over = next(i for i, call in enumerate(told) if call["cost_nusd"] >= CAP_USD * 10**9)
    assert told[-1]["at_s"] - told[over]["at_s"] < PROMISE_S
    assert runs.exact()["outcome"] == "max_budget"


def test_a_budget_that_only_blocks_ends_no_run(runs: Runs) -> None:
    """It hears what the run uses, and the next one is not let in."""
    env = budget(runs, "block") | {"RUNAWAY_CALLS": "60"}
    run = runs.start(runs.cli("claude"), flags=FLAGS, env=env)
    ledger = Ledger(Settings(runs.ledger))

    def used() -> bool:
        with ledger.read() as conn:
            return any(r.used_nusd for r in conn.execute(select(t.reservations)))

    until(used)
    ledger.close()
    assert run.communicate(timeout=60) == (b"", b"")
    assert run.returncode == 0
    assert (runs.exact()["outcome"], reserved(runs)) == ("ok", 0)
    assert runs.run(runs.cli("claude"), flags=FLAGS, env=env).returncode == 3


@pytest.mark.parametrize(("flag", "text"), [
    ("--max-cost", "abc"), ("--max-cost", "0"), ("--max-cost", "-1"), ("--max-cost", "1e3"), ("--max-cost", "$1"), ("--max-cost", "."),
    ("--max-cost", "0.0000000001"), ("--max-cost", "9" * 30), ("--max-tokens", "1.5"), ("--max-tokens", "0"), ("--max-tokens", "²"),
])  # fmt: skip
def test_a_bad_limit_is_refused_before_anything_starts(flag: str, text: str) -> None:
    """Wherever it is said, the message names it and what it should be."""
    name = f"SPENDMETER_{flag[2:].replace('-', '_').upper()}"
    for words, env, said in ((["run", flag, text, "true"], {}, flag), (["run", "true"], {name: text}, name)):
        with pytest.raises(UsageError) as caught:
            parse(words, env)
        assert str(caught.value).startswith(f'run: {said} "{text}" is not a')


@pytest.mark.parametrize(
    ("text", "nusd"), [("1", 10**9), ("0.5", 5 * 10**8), (".000000001", 1), ("12.345678901", 12_345_678_901), ("2.", 2 * 10**9)]
)
def test_a_limit_is_exact_to_the_nano_dollar(text: str, nusd: int) -> None:
    """And a flag wins over the environment."""
    assert parse(["run", "--max-cost", text, "true"], {"SPENDMETER_MAX_COST": "9"}).max_cost_nusd == nusd
    assert parse(["run", "--max-tokens", "7", "true"], {"SPENDMETER_MAX_COST": text}).max_cost_nusd == nusd
