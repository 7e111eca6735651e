"""``spendmeter hook``: what each CLI hands to its hooks is enough to fill the ledger, and nothing of it can hold a CLI up."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import Where, report
from spendmeter.runner.hooks import session_files
from tests.fakecli.harness import SRC, until
from tests.runs import ROOT, Chain

SECRET = "SECRET-PROMPT"
SUBAGENT, CODEX, GEMINI = (ROOT / case for case in ("claude/json-subagent", "codex/json-tool-known-model", "gemini/json-subagent"))
PLUGINS = Path(__file__).parents[1] / "plugins"
PATIENCE_S = 6.0  # 1.5 s for the work, and what an interpreter takes to start on a busy machine


class Host:
    """A home that holds what a captured run wrote, and a ledger."""

    def __init__(self, folder: Path, case: Path) -> None:
        self.home, self.db = folder / "user", folder / "ledger.db"
        shutil.copytree(case / "home", self.home)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPENDMETER_", "CLAUDE", "CODEX", "GEMINI", "XDG_"))}
        self.env = kept | {"HOME": str(self.home), "PYTHONPATH": str(SRC), "SPENDMETER_LEDGER": f"sqlite:///{self.db}"}

    def hook(self, *words: str, told: object = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Calls the hook as a CLI does, with *told* on standard input."""
        text = told if isinstance(told, str) else json.dumps(told)
        command = [sys.executable, "-m", "spendmeter", "hook", *words]
        return subprocess.run(command, input=text, env=self.env | env, capture_output=True, text=True, timeout=60, check=False)

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.home.rglob(pattern))

    def used(self, **where: str) -> dict[str, int]:
        """What the ledger holds by token kind; of nothing where there is no ledger yet."""
        with closing(Ledger(Settings(f"sqlite:///{self.db}", settle_s=0))) as ledger:
            total = report(ledger, ["agent"], where=Where(**where)).total.as_dict()
        return {k: total[k] or 0 for k in ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out")}


def claude(host: Host, event: str = "Stop") -> dict[str, Any]:
    """What Claude Code 2.1.330 hands to a hook, with text where it puts text."""
    main = next(p for p in host.files("*.jsonl") if "subagents" not in p.parts)
    return {
        "session_id": main.stem, "transcript_path": str(main), "cwd": "/home/dev/repo", "prompt_id": "819f9210-a309-4b8e-8788-7cd88bce4407",
        "permission_mode": "default", "hook_event_name": event, "stop_hook_active": False, "last_assistant_message": SECRET,
        "background_tasks": [], "session_crons": [],
    }  # fmt: skip


def test_a_claude_session_is_read_with_its_subagents_once(tmp_path: Path) -> None:
    """Stop, then SessionEnd: exactly what the server billed, tagged as the environment says; nothing is printed and no text is kept."""
    host = Host(tmp_path, SUBAGENT)
    env = {"SPENDMETER_AGENT": "developer", "SPENDMETER_TASK": "T-1"}
    for event in ("Stop", "SubagentStop", "SessionEnd"):
        done = host.hook("claude", told=claude(host, event), **env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    until(lambda: any(host.used().values()))
    Chain("claude", (SUBAGENT,)).check(host.used(agent="developer", task="T-1"))
    assert not any(SECRET.encode() in p.read_bytes() for p in tmp_path.glob("ledger.db*"))


def test_a_session_that_goes_on_is_read_on(tmp_path: Path) -> None:
    """After each turn the ledger has what the transcript holds by then."""
    host = Host(tmp_path, ROOT / "claude" / "json-tool")
    (path,) = host.files("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))
    host.hook("claude", told=claude(host))
    before = host.used()
    path.write_text("".join(lines))
    host.hook("claude", told=claude(host))
    until(lambda: host.used() != before)
    Chain("claude", (ROOT / "claude" / "json-tool",)).check(host.used())


def codex(thread: str) -> str:
    """What Codex 0.169.0 gives its notify program as the last argument."""
    told = {
        "type": "agent-turn-complete",
        "thread-id": thread,
        "turn-id": "1",
        "cwd": "/repo",
        "client": "codex_exec",
        "input-messages": [SECRET],
    }
    return json.dumps(told | {"last-assistant-message": SECRET})


def rollout(host: Host, name: str, **meta: str) -> Path:
    """A copy of the rollout as a thread of its own named *name*."""
    source = host.files("rollout-*.jsonl")[0]
    thread, target = source.stem[-36:], source.with_name(f"rollout-2026-11-21T00-00-00-{name}.jsonl")
    head, _, rest = source.read_text().partition("\n")
    row = json.loads(head)
    row["payload"] |= {"id": name, "session_id": name} | meta
    target.write_text(json.dumps(row) + "\n" + rest.replace(thread, name))
    return target


def test_a_codex_thread_is_found_by_its_id(tmp_path: Path) -> None:
    """Only this thread's rollout is read, exactly."""
    host = Host(tmp_path, CODEX)
    thread = host.files("rollout-*.jsonl")[0].stem[-36:]
    rollout(host, "01999999-0000-7000-8000-000000000001")
    done = host.hook("codex", codex(thread), SPENDMETER_AGENT="reviewer")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    until(lambda: any(host.used().values()))
    Chain("codex", (CODEX,)).check(host.used(agent="reviewer"))
    assert not any(SECRET.encode() in p.read_bytes() for p in tmp_path.glob("ledger.db*"))


def test_a_codex_threads_subagents_come_along(tmp_path: Path) -> None:
    """Rollouts whose first row names the thread as parent, or as root, are its own; others are not."""
    host = Host(tmp_path, CODEX)
    own = host.files("rollout-*.jsonl")[0]
    thread = own.stem[-36:]
    child = rollout(host, "01999999-0000-7000-8000-000000000001", parent_thread_id=thread)
    grandchild = rollout(host, "01999999-0000-7000-8000-000000000002", parent_thread_id=child.stem[-36:], session_id=thread)
    rollout(host, "01999999-0000-7000-8000-000000000003", parent_thread_id="01999999-0000-7000-8000-00000000000f")
    (own.parent / "rollout-2026-11-21T00-00-00-01999999-0000-7000-8000-000000000004.jsonl").write_text('{"payload": []}\n')
    assert set(session_files("codex", json.loads(codex(thread)), host.env)) == {own, child, grandchild}


def test_a_gemini_session_is_read_with_its_subagents(tmp_path: Path) -> None:
    """The transcript that the hook names, and the folder beside it that bears the session's name."""
    host = Host(tmp_path, GEMINI)
    (main,), (sub,) = host.files("chats/session-*.jsonl"), host.files("chats/*/*.jsonl")
    session = sub.parent.name
    told = {
        "session_id": session, "transcript_path": str(main), "cwd": "/repo", "hook_event_name": "AfterAgent",
        "timestamp": "2026-11-21T23:34:00Z", "prompt": SECRET, "prompt_response": SECRET, "stop_hook_active": False,
    }  # fmt: skip
    assert session_files("gemini", told, {}) == [main, sub]
    done = host.hook("gemini", told=told)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    until(lambda: any(host.used().values()))
    Chain("gemini", (GEMINI,)).check(host.used())
    assert not any(SECRET.encode() in p.read_bytes() for p in tmp_path.glob("ledger.db*"))


@pytest.mark.parametrize(("words", "told", "env"), [
    (["claude"], "", {}), (["claude"], f"{{{SECRET}", {}), (["claude"], "[1]", {}), (["claude"], '"x"', {}), (["claude"], "[" * 99_999, {}),
    (["claude"], {"transcript_path": 5, "session_id": [SECRET]}, {}), (["claude"], {"transcript_path": f"/nowhere/{SECRET}.jsonl"}, {}),
    (["claude"], {"transcript_path": "/dev/zero", "session_id": ".."}, {}), (["claude"], {"transcript_path": "a\0b"}, {}),
    (["codex"], "", {}), (["codex", "--nonsense"], "", {}), (["codex", codex("nobody")], "", {}), (["gemini"], {"session_id": "/"}, {}),
    (["clade"], "{}", {}), ([], "{}", {}), (["--help-me"], "{}", {}),
    (["claude"], None, {"SPENDMETER_LEDGER": "mysql://user:pw@h/x"}), (["claude"], None, {"SPENDMETER_METRICS_SETTLE": "soon"}),
    (["claude"], None, {"SPENDMETER_REMOTE": "nonsense", "SPENDMETER_LEDGER": ""}),
])  # fmt: skip
def test_a_hook_never_fails(tmp_path: Path, words: list[str], told: object, env: dict[str, str]) -> None:
    """Whatever it is given, its code is 0 (2 would stop the CLI) and it says one line at most, without any of what it was given."""
    host = Host(tmp_path, SUBAGENT)
    done = host.hook(*words, told=claude(host) if told is None else told, **env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
    assert done.stderr.startswith("spendmeter: hook: ")
    assert not any(word in done.stderr for word in (SECRET, "pw", "Traceback"))


@pytest.mark.parametrize("env", [{"SPENDMETER_RUN_ID": "a" * 32}, {"SPENDMETER_OFF": "1"}])
def test_under_the_wrapper_a_hook_has_nothing_to_do(tmp_path: Path, env: dict[str, str]) -> None:
    """``spendmeter run`` meters the session itself, and SPENDMETER_OFF is obeyed: no ledger is touched."""
    host = Host(tmp_path, SUBAGENT)
    assert host.hook("claude", told=claude(host), **env).stderr == ""
    assert not host.db.exists()


@pytest.mark.alone
def test_a_locked_ledger_does_not_hold_the_cli_up(tmp_path: Path) -> None:
    """The hook goes back to the CLI, closes its streams and reads the session when the lock is gone."""
    host = Host(tmp_path, SUBAGENT)
    assert not any(host.used().values())
    with closing(sqlite3.connect(host.db, isolation_level=None)) as lock:
        lock.execute("begin immediate")
        started_s = time.monotonic()
        done = host.hook("claude", told=claude(host))
        assert time.monotonic() - started_s < PATIENCE_S
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        lock.execute("rollback")
    until(lambda: any(host.used().values()))
    Chain("claude", (SUBAGENT,)).check(host.used())


def test_the_plugins_call_the_hook_that_is_tested_here() -> None:
    """Claude Code: after each turn, each subagent and at the end; Gemini CLI: after each turn and at the end; Codex: notify."""
    for file, cli, events in (
        ("claude-code/hooks/hooks.json", "claude", {"Stop", "SubagentStop", "SessionEnd"}),
        ("gemini/settings.json", "gemini", {"AfterAgent", "SessionEnd"}),
    ):
        hooks = json.loads((PLUGINS / file).read_text())["hooks"]
        assert set(hooks) == events
        assert {h["command"] for found in hooks.values() for m in found for h in m["hooks"]} == {f"spendmeter hook {cli}"}
    assert 'notify = ["spendmeter", "hook", "codex"]' in (PLUGINS / "codex/README.md").read_text()
    assert json.loads((PLUGINS / "claude-code/.claude-plugin/plugin.json").read_text())["name"] == "spendmeter"
