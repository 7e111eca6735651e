"""The command line: help, stable flags, and how it fails."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from spendmeter.cli import COMMANDS, main
from spendmeter.cli.app import LazyGroup
from tests.commands import SINGLE, call, document, done, process

NAMES = [name for section in COMMANDS.values() for name in section]

# -- help --------------------------------------------------------------------------------------------------------------


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    """The tables that help shows without loading anything are true, and complete."""
    modules, groups = set(), [main]
    with click.Context(main) as ctx:
        for group in groups:
            for name, text in [item for section in group.sections.values() for item in section.items()]:
                command = group.get_command(ctx, name)
                assert command is not None
                assert command.name == name
                assert (command.help or "").splitlines()[0] == text
                modules.add(f"{group.prefix}{name}")
                groups += [command] if isinstance(command, LazyGroup) else []
    helpers = {"__init__", "app", "checks", "checks_remote", "doctor_sources", "homes", "watching"}
    assert {p.stem for p in Path(inspect.getfile(LazyGroup)).parent.glob("*.py")} - helpers == modules


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help(name: str) -> None:
    """-h and --help, exit code 0."""
    if name == "run":
        pytest.importorskip("fcntl")
        assert "--attr KEY=VALUE" in process("run", "--help").stdout
    else:
        assert done(name, "--help").startswith("Usage: main " + name)
        assert done(name, "-h") == done(name, "--help")


def test_help_and_version_load_no_database() -> None:
    """They answer at once."""
    code = (
        "import sys; from spendmeter.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(','.join(sorted({'sqlalchemy', 'alembic', 'rich', 'genai_prices', 'opentelemetry'} & set(sys.modules))) or 0)"
    )
    for args in (["--help"], ["--version"], ["report", "--help"], ["sync", "--help"], ["parse", str(SINGLE / "stdout")]):
        result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, ""), args
        assert result.stdout


def test_the_version_is_the_packages() -> None:
    """spendmeter --version."""
    import spendmeter

    assert done("--version") == f"spendmeter {spendmeter.__version__}\n"


def test_run_is_handed_on_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word after ``run`` reaches the runner, flags and -- too; its exit code is ours."""
    seen: list[Sequence[str]] = []
    monkeypatch.setattr("spendmeter.runner.main", lambda argv: seen.append(argv) or 7)
    assert call("--ledger", "sqlite:///x", "run", "--agent", "a", "--", "cmd", "--help", "--", "-x").exit_code == 7
    assert seen == [["--ledger", "sqlite:///x", "run", "--agent", "a", "--", "cmd", "--help", "--", "-x"]]


# -- flags and failures ------------------------------------------------------------------------------------------------


def test_global_flags_stand_on_either_side(tmp_path: Path) -> None:
    """Before or after the command."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    assert done("--ledger", url, "ledger", "path") == f"{url}\n"
    done("ingest", "--ledger", url, str(SINGLE / "stdout"))
    assert document("report", "--ledger", url)["total"] == document("--ledger", url, "report")["total"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--ledger", "nonsense", "report"], 'ledger "nonsense" is not a URL; write e.g. sqlite:///path/to/ledger.db or postgresql://host/name'),
        (["--ledger", "mysql://h/x", "report"], 'ledger "mysql://..." is not supported; write sqlite:///... or postgresql://...'),
        (["--config", "/nope", "report"], "/nope: cannot be read (No such file or directory); check --config or SPENDMETER_CONFIG"),
        (["ingest", "/nope"], "/nope: no such file or folder; check the path"),
        (["summary", "--run", "nope"], 'run "nope" is not in the ledger; write "last", a run key, a run id or a session'),
        (["summary", "--run", "last"], "no run in the ledger yet; meter one with: spendmeter run --agent NAME --task KEY -- COMMAND"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_and_exit_code_1(args: list[str], said: str) -> None:
    """On standard error, with what to do."""
    result = call(*args)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"spendmeter: {said}\n")


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"], ["--nonsense"], ["report", "--by", "agnt"], ["report", "--since", "soon"], ["report", "--timezone", "Mars"],
        ["report", "--json", "--csv"], ["report", "--attr", "x"], ["ingest"], ["ingest", "--attr", "=x", "f"],
        ["ingest", "--cli", "foo", "x"],
        ["parse"], ["sync", "--home", "/nope"], ["sync", "--watch", "--json"], ["summary"], ["summary", "--run", "last", "--task", "T"],
        ["summary", "--run", "last", "--lang", "de"], ["serve", "--port", "99999"], ["prices", "--at", "soon"], ["ledger", "nonsense"], [],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_usage_is_exit_code_2(args: list[str]) -> None:
    """With nothing on standard output."""
    result = call(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["reprot"], 'there is no command "reprot"; did you mean "report"?'),
        (["budget", "chekc"], 'there is no command "chekc"; did you mean "check"?'),
        (["zzz"], 'there is no command "zzz"'),
        (["ingest", "--cli", "cluade", "x"], 'codex, gemini, qwen, opencode, copilot; did you mean "claude"?'),
        (
            ["token", "create", "ci", "--scope", "read", "--expires", "90x"],
            "write a length such as 90d or 12h, or a date such as 2030-01-31",
        ),
    ],
)
def test_a_slip_of_the_pen_is_told_with_what_was_meant(args: list[str], said: str) -> None:
    """A command, a name of a CLI, a time that is yet to come."""
    result = call(*args)
    assert (result.exit_code, result.stderr.splitlines()[-1].endswith(said)) == (2, True), result.stderr


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["last", "agent", "7d", "2026-11-01", "-", "--"])


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["--by", "--since", "--until", "--timezone", "--agent", "--attr", "--model"]), WORDS)
def test_no_argument_of_report_ends_in_a_traceback(flag: str, word: str) -> None:
    """Whatever is written, the exit code is 0 or 2."""
    assert call("report", flag, word).exit_code in (0, 2)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([["summary", "--run"], ["summary", "--task"], ["prices"], ["prices", "--at"]]), WORDS)
def test_no_key_ends_in_a_traceback(command: list[str], word: str) -> None:
    """Nor any run, task, model or day."""
    assert call(*command, word).exit_code in (0, 1, 2)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_can_be_ingested_and_parsed(data: bytes) -> None:
    """They hold usage, or are counted, or are passed over."""
    assert call("ingest", "-", given=data).exit_code == 0
    assert call("parse", "-", given=data).exit_code == 0


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no traceback."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spendmeter.ledger.query.report", interrupted)
    result = call("report")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "\n")


def test_a_dead_wrappers_run_that_cannot_be_recorded_does_not_stop_a_report(filled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said; a command that writes fails instead."""
    from spendmeter.errors import LedgerError

    def broken(*_: object) -> None:
        raise LedgerError("no space; free some")

    monkeypatch.setattr("spendmeter.runner.recover.recover", broken)
    result = call("report", "--json")
    assert json.loads(result.stdout)["total"]["runs"] == 3
    assert result.stderr == "spendmeter: unfinished runs could not be recorded: no space; free some\n"
    assert call("ingest", str(SINGLE / "stdout")).exit_code == 1
