"""The small parts of ``spendmeter run``, each by itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spendmeter.parsers import claude_files
from spendmeter.runner import limits
from spendmeter.runner.args import UsageError, help_text, is_run, parse
from spendmeter.runner.childenv import Trace, child_env
from spendmeter.runner.detect import CLIS, Command
from spendmeter.runner.ending import Ending
from spendmeter.runner.glance import claude_home, glance, slug
from spendmeter.runner.meter import Meter
from spendmeter.runner.relay import Relay
from spendmeter.runner.repo import Repo, repo_of
from spendmeter.runner.warm import Loader

ID = "09ea3584-65be-4318-bd46-a46ed72d22d5"
RUN = "0123456789abcdef" * 2
A, B = "a" * 32, "b" * 16


@pytest.mark.parametrize(("argv", "expected"), [
    (["run"], True), (["--ledger", "x", "run"], True), (["--ledger=x", "--config", "run", "run"], True),
    (["--ledger", "run"], False), (["report", "run"], False), (["--json", "run"], False), ([], False),
])  # fmt: skip
def test_run_is_told_from_other_commands(argv: list[str], expected: bool) -> None:
    """Only global flags may stand before it."""
    assert is_run(argv) is expected


def test_flags_end_where_the_command_begins() -> None:
    """The command's own flags are its own, with and without ``--``."""
    words = ["--ledger=L", "run", "--agent", "a", "--task=t", "--attr", "x=1", "--attr=y=", "--config", "C"]
    for dashes in ([], ["--"]):
        o = parse([*words, *dashes, "claude", "--agent", "z", "--", "-h"], {})
        assert (o.ledger, o.config, o.agent, o.task, o.attrs) == ("L", "C", "a", "t", {"x": "1", "y": ""})
        assert o.command == ["claude", "--agent", "z", "--", "-h"]


def test_tags_default_to_the_environment_then_to_unknown() -> None:
    """A flag wins; an empty one counts as none."""
    env = {"SPENDMETER_AGENT": "e", "SPENDMETER_TASK": ""}
    o = parse(["run", "--task", "", "true"], env)
    assert (o.agent, o.task) == ("e", "unknown")
    assert parse(["run", "--agent", "f", "true"], env).agent == "f"


def test_a_tag_is_text_whatever_bytes_argv_held() -> None:
    """No lone surrogate gets as far as JSON or a database."""
    assert parse(["run", "--agent", os.fsdecode(b"a\xff"), "true"], {}).agent == "a�"


@pytest.mark.parametrize(("words", "said"), [
    (["--agnet", "a", "true"], "there is no flag --agnet; did you mean --agent?"),
    (["--agent"], "--agent needs a value, NAME"),
    (["--attr", "plan", "true"], '--attr "plan" is not KEY=VALUE'),
    (["--attr", "=x", "true"], "is not KEY=VALUE"),
    ([], "no command to run"),
    (["--agent", "a", "--"], "no command to run"),
])  # fmt: skip
def test_bad_usage_says_what_to_do_in_one_line(words: list[str], said: str) -> None:
    """And names the flag."""
    with pytest.raises(UsageError) as caught:
        parse(["run", *words], {})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_names_every_flag() -> None:
    """``-h`` wins over a missing command."""
    assert parse(["run", "-h"], {}).help
    assert all(flag in help_text() for flag in ("--agent", "--task", "--attr", "--ledger", "--config", "SPENDMETER_OFF", "127"))


@pytest.mark.parametrize(("argv", "cli"), [
    (["claude"], "claude"), (["/usr/local/bin/claude", "-p"], "claude"), (["./gemini.js"], "gemini"),
    (["npx", "-y", "@anthropic-ai/claude-code@latest", "-p", "x"], "claude"), (["npx", "@openai/codex", "exec"], "codex"),
    (["node", "/usr/lib/node_modules/@anthropic-ai/claude-code/cli.js"], "claude"), (["env", "A=1", "claude"], "claude"),
    (["timeout", "60", "qwen"], "qwen"), (["sh", "-c", "claude"], None), (["echo", "claude"], None), (["python", "x.py"], None),
    *(([name], name) for name in CLIS),
])  # fmt: skip
def test_the_cli_is_told_from_the_command(argv: list[str], cli: str | None) -> None:
    """By base name, npm package or script path, through launchers; a mere argument is none."""
    assert Command(argv).cli == cli


@pytest.mark.parametrize(("flags", "expected"), [
    (["--resume", ID], (ID, None, False, False)), (["-r", ID], (ID, None, False, False)), ([f"--resume={ID}"], (ID, None, False, False)),
    (["--session-id", ID], (None, ID, False, False)), (["--resume", "--print"], (None, None, False, False)),
    (["--resume", ID, "--fork-session"], (ID, None, True, False)), (["-c", "-p", "x"], (None, None, False, True)),
    (["-p", "x", "--", "--continue"], (None, None, False, False)),
])  # fmt: skip
def test_sessions_are_told_from_claudes_flags(flags: list[str], expected: tuple[object, ...]) -> None:
    """Only what looks like a session id is taken for one."""
    c = Command(["claude", *flags])
    assert (c.resumed, c.session, c.forked, c.continued) == expected


@pytest.mark.parametrize(("given_", "parent"), [
    (f"00-{A}-{B}-00", (A, B, "00")), (f"01-{A}-{B}-01-more", (A, B, "01")), (None, None), ("", None), (f"00-{A}-{B}", None),
    (f"00-{'0' * 32}-{B}-01", None), (f"ff-{A}-{B}-01", None), (f"00-{A.upper()}-{B}-01", None), (f"00-{A}-{B}-01-more", None),
])  # fmt: skip
def test_a_valid_traceparent_is_carried_on(given_: str | None, parent: tuple[str, str, str] | None) -> None:
    """Same trace, our span as parent; else a trace that follows from the run id."""
    trace = Trace(RUN, given_)
    trace_id, span, flags = parent or (RUN, None, "01")
    assert (trace.trace_id, trace.parent_span_id) == (trace_id, span)
    assert trace.traceparent == f"00-{trace_id}-{RUN[16:]}-{flags}"


def test_tracestate_goes_with_its_traceparent() -> None:
    """W3C: without a valid traceparent it is dropped."""
    env = {"TRACESTATE": "v=1", "X": "1"}
    assert "TRACESTATE" not in child_env(env, RUN, Trace(RUN, None), "a", "t")
    kept = child_env(env, RUN, Trace(RUN, f"00-{A}-{B}-01"), "a", "t")
    assert (kept["TRACESTATE"], kept["X"], kept["SPENDMETER_RUN_ID"]) == ("v=1", "1", RUN)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_resource_attributes_survive_any_tag(agent: str, task: str) -> None:
    """The SDK's own reader gets back what we put in, beside what was there; an outer run's tags give way."""
    from opentelemetry.sdk.resources import OTELResourceDetector

    with pytest.MonkeyPatch.context() as patch:
        given_ = {"OTEL_RESOURCE_ATTRIBUTES": "team=x, task.id=own,spendmeter.agent=outer"}
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", child_env(given_, RUN, Trace(RUN, None), agent, task)["OTEL_RESOURCE_ATTRIBUTES"])
        got = dict(OTELResourceDetector().detect().attributes)
    expected = {"team": "x", "task.id": "own", "spendmeter.agent": agent, "spendmeter.task": task, "agent": agent}
    assert {k: str(v).strip() for k, v in got.items() if k in expected} == {k: v.strip() for k, v in expected.items()}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_first_glance_looks_where_the_watch_looks(cwd: str) -> None:
    """``glance`` says homes and slugs again, to be quick; it must not differ."""
    assert slug(cwd) == claude_files.slug(cwd)
    for env in ({"HOME": "/h"}, {"HOME": "/h", "CLAUDE_CONFIG_DIR": "/c"}):
        assert Path(claude_home(env)) == claude_files.homes(env)[0]


def test_a_glance_tells_sizes_of_sessions_and_of_one_sessions_subagents(tmp_path: Path) -> None:
    """By project folder; an absent one is empty, so what comes later is new."""
    env = {"CLAUDE_CONFIG_DIR": str(tmp_path)}
    assert glance(env, "/w", ID) == {"-w": {}}
    agents = tmp_path / "projects" / "-w" / ID / "subagents"
    agents.mkdir(parents=True)
    (agents / "agent-1.jsonl").write_text("ab")
    (tmp_path / "projects" / "-w" / f"{ID}.jsonl").write_text("abc")
    sizes = {name: mark[0] for name, mark in glance(env, "/w", ID)["-w"].items()}
    assert sizes == {f"{ID}.jsonl": 3, f"{ID}/subagents/agent-1.jsonl": 2}


def test_a_repository_is_read_without_git(tmp_path: Path) -> None:
    """Origin without its password, branch, commit; loose and packed refs, worktrees, a detached head."""
    git, commit = tmp_path / ".git", "c" * 40
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{commit} refs/heads/main\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert repo_of(str(inner)) == Repo(tmp_path.name, "main", commit)
    remotes = '[remote "up"]\n\turl = no\n[remote "origin"]\n\turl = https://u:pw@h.example/o/r.git\n\tfetch = x\n'
    (git / "config").write_text(f'[core]\n\tbare = false\n{remotes}[branch "m"]\n')
    (git / "refs" / "heads" / "main").write_text("d" * 40 + "\n")
    assert repo_of(str(inner)) == Repo("https://h.example/o/r.git", "main", "d" * 40)
    tree = git / "worktrees" / "w"
    tree.mkdir(parents=True)
    (tree / "HEAD").write_text("e" * 40 + "\n")
    (tree / "commondir").write_text("../..\n")
    (inner / ".git").write_text(f"gitdir: {tree}\n")
    assert repo_of(str(inner)) == Repo("https://h.example/o/r.git", None, "e" * 40)


def test_no_repository_is_no_error(tmp_path: Path) -> None:
    """Nor is a broken one, or a folder that has gone."""
    (tmp_path / ".git").mkdir()
    assert [repo_of(x) for x in (None, "/", str(tmp_path))] == [Repo()] * 3


@pytest.mark.parametrize("kind", [Ending, Loader, Meter, Relay, limits._Beats], ids=lambda kind: kind.__name__)
def test_a_thread_keeps_what_threads_need(kind: type[threading.Thread]) -> None:
    """One that hid ``Thread._stop`` left a traceback on standard error when the wrapper forked beside it."""
    assert vars(kind).keys() & vars(threading.Thread).keys() <= {"__doc__", "__init__", "__module__", "run", "join"}
