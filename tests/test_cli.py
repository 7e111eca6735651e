"""The command line: stable flags, one JSON document, exit codes, messages of one line; by click's runner and as real processes."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import insert, update

from spendmeter.cli import COMMANDS, main
from spendmeter.cli.app import LazyGroup
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.server import daemon
from spendmeter.server.auth import Access

RUNS = Path(__file__).parent / "fixtures" / "runs" / "claude"
SINGLE = RUNS / "json-single"
NAMES = [name for section in COMMANDS.values() for name in section]
DESIGN = ("tokens_in", "tokens_out", "cache_read", "cache_write", "reasoning", "cost_usd", "runs", "calls")
PROGRAM = Path(sys.executable).with_name("spendmeter")


def call(*args: str, given: str | bytes | None = None) -> Result:
    """One command; whatever it does, no exception but SystemExit comes out."""
    result = CliRunner().invoke(main, args, input=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), "".join(map(str, result.exc_info or ()))
    return result


def done(*args: str, given: str | bytes | None = None) -> str:
    """Standard output of a command that must succeed."""
    result = call(*args, given=given)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def document(*args: str) -> Any:
    """The one JSON document that the command prints."""
    return json.loads(done(*args, "--json"))


def process(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *args], capture_output=True, text=True, timeout=60, env=os.environ | env, check=False)


@pytest.fixture
def filled() -> None:
    """A ledger with two tagged runs and an untagged one."""
    done("ingest", "--agent", "developer", "--task", "SHOP-1", "--attr", "plan=book", str(SINGLE / "stdout"))
    done("ingest", "--agent", "reviewer", "--task", "SHOP-1", str(RUNS / "stream-json-tool" / "stdout"))
    done("sync", "--home", str(RUNS / "max-turns-1" / "home"))


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


# -- reading in --------------------------------------------------------------------------------------------------------


def test_what_is_ingested_is_reported(filled: None) -> None:
    """Tags, tokens, cost; the shape of design.md section 6; twice changes nothing."""
    found = document("report", "--by", "agent,task")
    assert list(found) == ["rows", "total"]
    assert all(list(r)[:2] == ["agent", "task"] and list(r)[2:10] == list(DESIGN) for r in found["rows"])
    row = next(r for r in found["rows"] if r["agent"] == "developer")
    assert [row[k] for k in DESIGN] == [1007, 111, 20013, 310, 0, "0.01206165", 1, None]
    again = document("ingest", "--agent", "developer", "--task", "SHOP-1", "--attr", "plan=book", str(SINGLE / "stdout"))
    assert (again["sources"], again["unchanged"]) == (0, 1)
    assert document("report", "--by", "agent,task") == found


def test_the_files_truth_is_the_reports_total() -> None:
    """What the model server billed."""
    done("sync", "--home", str(SINGLE / "home"))
    billed = json.loads((SINGLE / "truth.json").read_text())["calls"][0]["usage"]
    total = document("report", "--by", "model")["total"]
    assert {k: total[k] for k in billed if k in total} == {k: v for k, v in billed.items() if k in total}
    assert total["calls"] == 1


def test_standard_input_is_a_source() -> None:
    """Its name is -."""
    done("ingest", "--agent", "a", "-", given=(SINGLE / "stdout").read_bytes())
    assert document("report", "--by", "agent")["rows"][0]["tokens_in"] == 1007


def test_a_folder_is_a_source() -> None:
    """Everything in it that any CLI wrote; the rest is named on standard error."""
    result = call("ingest", str(SINGLE))
    assert result.exit_code == 0
    assert "truth.json: holds no usage that we know" in result.stderr
    assert document("report", "--by", "cli")["rows"][0]["tokens_in"] == 1007


def test_tags_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """SPENDMETER_AGENT and SPENDMETER_TASK, as for run; a flag goes before."""
    monkeypatch.setenv("SPENDMETER_AGENT", "nightly")
    monkeypatch.setenv("SPENDMETER_TASK", "T-9")
    done("ingest", "--task", "T-1", str(SINGLE / "stdout"))
    assert [r["agent"] + r["task"] for r in document("report", "--by", "agent,task")["rows"]] == ["nightlyT-1"]


def test_parse_prints_observations_and_touches_no_ledger(tmp_path: Path) -> None:
    """One JSON object a line, kind first, usage as an object, unknown as null; no text of the conversation."""
    lines = [json.loads(x) for x in done("parse", str(SINGLE)).splitlines()]
    assert {x["kind"] for x in lines} >= {"call", "level", "finish", "moment", "context"}
    assert all(next(iter(x)) == "kind" for x in lines)
    call_ = next(x for x in lines if x["kind"] == "call")
    assert call_["usage"] == {
        "tokens_in": 1007, "cache_read": 20013, "cache_write_5m": 217, "cache_write_1h": 93, "tokens_out": 111, "reasoning": 0,
        "web_searches": None, "cost_usd": None,
    } | {"web_searches": call_["usage"]["web_searches"]}  # fmt: skip
    assert "MAIN-TASK" not in done("parse", str(SINGLE))
    assert not (tmp_path / "home" / ".local").exists()
    assert done("parse", "-", given=(SINGLE / "stdout").read_bytes()) == done("parse", str(SINGLE / "stdout"))


@pytest.mark.parametrize("folder", sorted(RUNS.iterdir()), ids=lambda p: p.name)
def test_everything_that_was_captured_can_be_parsed(folder: Path) -> None:
    """Each line is one JSON object."""
    for line in done("parse", "--cli", "claude", str(folder)).splitlines():
        assert isinstance(json.loads(line), dict)


def test_parse_goes_on_after_a_file_that_is_not_there() -> None:
    """And its exit code tells."""
    result = call("parse", "/nope", str(SINGLE / "stdout"))
    assert (result.exit_code, result.stderr) == (1, "spendmeter: /nope: no such file or folder; check the path\n")
    assert result.stdout


# -- looking -----------------------------------------------------------------------------------------------------------


def test_reports_in_every_form(filled: None) -> None:
    """Text in a pipe, CSV and JSON tell the same."""
    text = done("report", "--by", "agent").splitlines()
    assert text[0].split() == ["agent", "runs", "calls", "tokens_in", "cache_read", "cache_write", "tokens_out", "reasoning", "cost_usd"]
    assert text[-1].startswith("total")
    rows = document("report", "--by", "agent")["rows"]
    assert [x.split()[0] for x in text[1:-1]] == [r["agent"] for r in rows]
    assert [x.split(",")[0] for x in done("report", "--by", "agent", "--csv").splitlines()[1:]] == [r["agent"] for r in rows]


def test_reports_can_be_cut(filled: None) -> None:
    """By window, agent, task, tag; several --by add up."""
    assert document("report", "--agent", "developer")["total"]["runs"] == 1
    assert document("report", "--task", "SHOP-1")["total"]["runs"] == 2
    assert document("report", "--attr", "plan=book")["total"]["runs"] == 1
    assert document("report", "--since", "2026-11-21", "--until", "2026-11-21")["total"]["runs"] == 0
    assert list(document("report", "--by", "agent", "--by", "attr:plan")["rows"][0])[:2] == ["agent", "attr:plan"]
    assert document("report", "--by", "day", "--timezone", "Asia/Tokyo", "--cli", "claude")["rows"][0]["day"].startswith("2026-11-2")


def test_an_empty_report_says_what_to_do(filled: None) -> None:
    """On standard error, so that a pipe stays empty; JSON has a total of nothing."""
    result = call("report", "--agent", "nobody")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No usage matches; the ledger holds 3 runs" in result.stderr
    fresh = call("--ledger", f"sqlite:///{os.environ['HOME']}/other.db", "report")
    assert "spendmeter sync" in fresh.stderr
    assert document("report", "--agent", "nobody")["total"]["cost_usd"] is None


def test_the_finish_comment(filled: None) -> None:
    """For the last run, or one that is named."""
    session = json.loads((SINGLE / "stdout").read_text())["session_id"]
    assert done("summary", "--run", session) == "✅ Developer done · 1.0k in / 111 out · $0.01 · 20.3k cached\n"
    assert done("summary", "--run", session, "--lang", "ru").startswith("✅ Developer: готово · 1,0")
    assert re.fullmatch(r"\S+ \S+ .* · .* in / .* out · .*\n", done("summary", "--run", "last"))
    told = document("summary", "--run", session)
    assert (told["agent"], told["cost_usd"], told["text"][:11]) == ("developer", "0.01206165", "✅ Developer")


def test_the_task_comment(filled: None) -> None:
    """Markdown, or JSON with the same text; an unknown task names near ones."""
    text = done("summary", "--task", "SHOP-1")
    assert text.startswith("### SHOP-1: what it took\n\n| Agent | Runs |")
    told = document("summary", "--task", "SHOP-1")
    assert told["text"].rstrip() == text.rstrip()
    assert [a["agent"] for a in told["agents"]] == ["reviewer", "developer"]
    result = call("summary", "--task", "SHOP-11")
    assert (result.exit_code, result.stderr) == (1, 'spendmeter: task "SHOP-11" is not in the ledger; did you mean SHOP-1?\n')


def test_prices_of_a_model_on_a_day() -> None:
    """USD per million tokens, long contexts apart; an unknown model names near ones; without a model all."""
    told = document("prices", "claude-sonnet-4-5", "--at", "2026-11-01")
    assert told["at"] == "2026-11-01"
    assert told["models"][0]["bands"][0]["usd_per_mtok"]["input"] == "3"
    assert done("prices", "claude-sonnet-4-5").splitlines()[1].split()[:3] == ["claude-sonnet-4-5", "3", "15"]
    result = call("prices", "claude-sonet-4-5")
    assert result.exit_code == 1
    assert 'no price for model "claude-sonet-4-5"; did you mean claude-sonnet-4-5' in result.stderr
    assert len(document("prices")["models"]) > 500


def test_an_override_file_counts(tmp_path: Path) -> None:
    """The price that the config file names is shown as the user's own."""
    (tmp_path / "prices.yaml").write_text("prices:\n  - {match: my-model, input: 1.5, output: 2}\n")
    (tmp_path / "spendmeter.toml").write_text('[prices]\nfile = "prices.yaml"\n')
    result = call("--config", str(tmp_path / "spendmeter.toml"), "prices", "my-model", "--json")
    assert result.exit_code in (0, 1)
    assert result.exit_code == 1 or json.loads(result.stdout)["models"][0]["source"] == "override"


# -- the ledger --------------------------------------------------------------------------------------------------------


def test_the_ledger_tells_about_itself(filled: None) -> None:
    """Where it is, who it is, how large."""
    assert done("ledger", "path") == f"sqlite:///{os.environ['HOME']}/.local/share/spendmeter/ledger.db\n"
    assert call("--ledger", "postgresql://u:secret@h/x", "ledger", "path").stdout == "postgresql://u:***@h/x\n"
    assert document("ledger", "info")["sessions"] == 3
    assert "sessions   3\n" in done("ledger", "info")


def test_verify_finds_what_was_tampered_with(filled: None) -> None:
    """Exit code 1 and a line for each difference."""
    assert document("ledger", "verify") == {"ok": True, "differences": []}
    ledger = Ledger(Settings(done("ledger", "path").strip()))
    with ledger.write() as conn:
        conn.execute(update(t.entries).values(tokens_in=t.entries.c.tokens_in + 1))
    ledger.close()
    result = call("ledger", "verify")
    assert result.exit_code == 1
    assert re.search(r"^\w+ .*: stands at .*, should be .*$", result.stdout, re.MULTILINE)
    told = json.loads(call("ledger", "verify", "--json").stdout)
    assert not told["ok"]
    assert told["differences"]


def test_export_without_an_endpoint_says_so(filled: None) -> None:
    """And asks for --once."""
    assert "set OTEL_EXPORTER_OTLP_ENDPOINT" in call("export", "--once").stderr
    assert document("export", "--once")["configured"] is False
    assert call("export").exit_code == 2


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


# -- serve and watch ---------------------------------------------------------------------------------------------------


def test_serve_hands_its_flags_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is opened first, so that a bad one is told before anything listens."""
    seen: list[tuple[str, int, Access]] = []
    monkeypatch.setattr(daemon, "run", lambda settings, host, port, config, access: seen.append((host, port, access)))
    done("serve", "--port", "1234")
    done("serve", "--host", "::", "--require-token", "--tls-cert", "a", "--tls-key", "b", "--proxy", "10.0.0.7", "--proxy", "fd00::/8")
    done("serve", "--insecure-no-token")
    assert call("--ledger", "nonsense", "serve").exit_code == 1
    doors = Access(require_token=True, tls=(Path("a"), Path("b")), proxies=("10.0.0.7", "fd00::/8"))
    assert seen == [("127.0.0.1", 1234, Access()), ("::", 9464, doors), ("127.0.0.1", 9464, Access(insecure=True))]


def test_serve_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install."""

    class Without:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "spendmeter.server":
                raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")

    monkeypatch.delitem(sys.modules, "spendmeter.server", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    result = call("serve")
    assert (result.exit_code, result.stderr) == (1, "spendmeter: serve needs fastapi; install spendmeter[server]\n")


def test_watch_without_watchfiles_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a first round, which needs none."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    result = call("sync", "--watch", "--home", str(SINGLE / "home"))
    assert result.exit_code == 1
    assert result.stderr == "spendmeter: sync --watch needs watchfiles; install spendmeter[watch]\n"
    assert document("report")["total"]["runs"] == 1


def test_watch_reads_what_is_written(tmp_path: Path) -> None:
    """A transcript that appears is in the ledger soon; Ctrl-C ends it with 130."""
    pytest.importorskip("watchfiles")
    source = next((SINGLE / "home").rglob("*.jsonl"))
    folder = Path(os.environ["HOME"]) / ".claude" / "projects" / source.parent.name
    folder.mkdir(parents=True)
    with subprocess.Popen([PROGRAM, "sync", "--watch"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stderr is not None
            assert "watching" in watching.stderr.readline()
            time.sleep(0.5)
            (folder / source.name).write_bytes(source.read_bytes())
            until = time.monotonic() + 20
            while not document("report")["rows"] and time.monotonic() < until:
                time.sleep(0.2)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(10) == 130
        finally:
            watching.kill()
    assert document("report")["total"]["tokens_in"] == 1007


# -- real processes ----------------------------------------------------------------------------------------------------


def test_the_installed_command_works(tmp_path: Path) -> None:
    """Ingest, report and summary as a shell would call them; a closed pipe is quiet."""
    assert process("ingest", "--agent", "developer", "--task", "T-1", str(SINGLE / "stdout")).returncode == 0
    assert json.loads(process("report", "--json").stdout)["total"]["tokens_in"] == 1007
    assert process("summary", "--run", "last").stdout.startswith("✅ Developer done · ")
    failed = process("report", "--config", "/nope")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    closed = subprocess.run(f"'{PROGRAM}' prices | head -1", shell=True, capture_output=True, text=True, check=False)
    assert closed.stdout.startswith("Model")
    assert closed.stderr == ""


def test_a_latin_terminal_is_no_reason_to_fail(filled: None) -> None:
    """What it cannot show becomes a question mark."""
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    told = subprocess.run([PROGRAM, "summary", "--run", "last", "--lang", "ru"], capture_output=True, env=env, check=False)
    assert (told.returncode, told.stderr) == (0, b"")
    assert told.stdout.startswith(b"? ")


def test_arguments_may_hold_any_bytes() -> None:
    """A tag that is no text is cleaned, as run does."""
    words = [os.fsencode(PROGRAM), b"ingest", b"--agent", b"caf\xe9", os.fsencode(SINGLE / "stdout")]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    assert document("report", "--by", "agent")["rows"][0]["agent"] == "caf�"


def test_a_terminal_gets_a_table(filled: None) -> None:
    """Box lines and colour where standard output is a terminal, neither where NO_COLOR or a pipe says no."""
    seen = on_terminal(["report", "--by", "agent"], {"TERM": "xterm-256color", "COLUMNS": "120"})
    assert "────" in seen
    assert "\x1b[" in seen
    assert "\x1b[32m" not in on_terminal(["report", "--by", "agent"], {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1"})
    piped = process("report", "--by", "agent").stdout
    assert "─" not in piped
    assert "\x1b" not in piped


def on_terminal(args: list[str], env: dict[str, str]) -> str:
    """What the command shows on a pseudo-terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen([PROGRAM, *args], stdout=slave, stderr=slave, stdin=slave, env=os.environ | env) as child:
        os.close(slave)
        seen = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
        assert child.wait(30) == 0
    os.close(master)
    return seen.decode()


# -- doctor ------------------------------------------------------------------------------------------------------------


def levels(told: Any) -> dict[str, str]:
    return {c["name"]: c["level"] for c in told["checks"]}


def test_doctor_looks_at_everything(filled: None, tmp_path: Path) -> None:
    """A ledger in order: no problem, exit code 0."""
    (home := Path(os.environ["HOME"]) / ".claude" / "projects" / "x").mkdir(parents=True)
    (home / "s.jsonl").write_text("")
    told = document("doctor")
    assert told["ok"]
    assert set(levels(told)) >= {
        "spendmeter", "settings", "prices", "ledger", "writing", "journal", "counters", "export", "skipped", "unpriced", "cost drift",
        "disk", "pending runs", "sessions", "OTLP",
    }  # fmt: skip
    assert all(c["remedy"] for c in told["checks"] if c["level"] != "ok")
    assert "sessions" in done("doctor")


def test_doctor_makes_no_ledger() -> None:
    """One that is not there yet is no problem, and stays away."""
    assert levels(document("doctor"))["ledger"] == "ok"
    assert not (Path(os.environ["HOME"]) / ".local").exists()


def test_doctor_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the ledger's password nor the endpoint's; a ledger that cannot be reached is a problem."""
    monkeypatch.setenv("SPENDMETER_LEDGER", "postgresql://u:hush-1@127.0.0.1:1/x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hush-2@h:4318/?key=hush-3")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hush-4")
    result = call("doctor", "--json")
    assert result.exit_code == 1
    assert "hush" not in result.output
    assert levels(json.loads(result.stdout))["ledger"] == "problem"
    assert "http://h:4318" in result.stdout


@pytest.mark.parametrize(
    ("name", "value"), [("SPENDMETER_METRICS_SETTLE", "soon"), ("SPENDMETER_CONFIG", "/nope.toml"), ("SPENDMETER_LEDGER", "nonsense")]
)
def test_doctor_names_a_bad_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A problem with its remedy; the other checks go on."""
    monkeypatch.setenv(name, value)
    result = call("doctor")
    assert result.exit_code == 1
    assert re.search(r"^problem +(settings|ledger) .* -> ", result.stdout, re.MULTILINE)
    assert "OTLP" in result.stdout


def test_doctor_warns_of_what_is_not_well(filled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips, unpriced models, drift, sessions that do not settle, a spool that waits: warnings with remedies, exit code 0."""
    ledger = Ledger(Settings(done("ledger", "path").strip()))
    with ledger.write() as conn:
        conn.execute(insert(t.skips).values(id="x", source="jsonl", reason="not JSON", at_ms=1))
        conn.execute(update(t.entries).values(unpriced_tokens=7, listed_nusd=t.entries.c.listed_nusd * 2))
        conn.execute(update(t.sessions).values(settle_at_ms=1))
        conn.execute(insert(t.spool).values(session_id=1, run_key="x", print="x", traced=False, logged=False))
    ledger.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    told = document("doctor")
    found = levels(told)
    assert {n for n in found if found[n] == "warning"} >= {"skipped", "unpriced", "cost drift", "counters", "export"}
    assert "claude -50.0%" in next(c["detail"] for c in told["checks"] if c["name"] == "cost drift")


def test_doctor_is_good_to_look_at(filled: None) -> None:
    """A mark, a name, a detail; remedies below; a count last."""
    seen = on_terminal(["doctor"], {"TERM": "xterm-256color", "COLUMNS": "100"})
    assert "✓" in seen
    assert "→" in seen
    assert "warning" in seen.splitlines()[-1]
