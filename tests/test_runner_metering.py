"""What ``spendmeter run`` hands over, and that a metering that fails costs the run one line on stderr and nothing else."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from spendmeter.runner import recover as recovery
from spendmeter.runner.spool import pending_runs, spool_dirs
from tests.fakecli.harness import CASES, CLAUDE, SRC, Wrapper, python, until

SECRET = "SECRET-PROMPT"
SESSION = "527cda4c-22db-4f17-9929-a7b00f4f9454"


@pytest.fixture
def wrapper(tmp_path: Path) -> Wrapper:
    return Wrapper(tmp_path)


def case(name: str, **more: str) -> dict[str, str]:
    """Environment in which the fake claude replays *name*."""
    return {"FAKE_CASE": str(CASES / name)} | more


def names(run: dict[str, Any]) -> list[str]:
    """File names of a committed run."""
    return [Path(path).name for path, _ in run["files"]]


def test_a_run_is_handed_over_whole(wrapper: Wrapper) -> None:
    """Tags, CLI, times, exit code, session, files with their former size, observations."""
    flags = ("--agent", "developer", "--task=T-1", "--attr", "plan=book", "--attr", "a=b=c")
    done = wrapper.run(CLAUDE, "-p", SECRET, flags=flags, env=case("json-single", FAKE_EXIT="3"))
    assert (done.returncode, done.stdout, done.stderr) == (3, (CASES / "json-single" / "stdout").read_bytes(), b"")
    run = wrapper.only()
    assert run["tags"] == {"agent": "developer", "task": "T-1", "attrs": {"plan": "book", "a": "b=c"}}
    assert (run["cli"], run["exit_code"], run["signal"], run["sessions"]) == ("claude", 3, None, [SESSION])
    assert (names(run), [offset for _, offset in run["files"]]) == ([f"{SESSION}.jsonl"], [0])
    assert 0 <= run["ended_ms"] - run["started_ms"] < 60_000
    assert {kind for kind, _ in run["observations"]} >= {"Finish", "Level"}
    assert (run["cwd"], run["notes"]) == (str(wrapper.cwd), [])
    assert wrapper.pending() == []


def test_tags_come_from_the_environment_too(wrapper: Wrapper) -> None:
    """SPENDMETER_AGENT and SPENDMETER_TASK; else unknown."""
    wrapper.run("true", env={"SPENDMETER_AGENT": "reviewer", "SPENDMETER_TASK": "T-2"})
    assert wrapper.only()["tags"] == {"agent": "reviewer", "task": "T-2", "attrs": {}}


def test_the_child_is_told_of_its_trace_and_tags(wrapper: Wrapper) -> None:
    """TRACEPARENT, OTEL_RESOURCE_ATTRIBUTES and SPENDMETER_RUN_ID agree with what is recorded."""
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    code = "import os; print(*[os.environ[n] for n in ('SPENDMETER_RUN_ID', 'TRACEPARENT', 'OTEL_RESOURCE_ATTRIBUTES')])"
    env = {"TRACEPARENT": parent, "OTEL_RESOURCE_ATTRIBUTES": "team=x,agent=own"}
    run_id, traceparent, attributes = wrapper.run(*python(code), flags=("--agent", "a,b", "--task", "T"), env=env).stdout.decode().split()
    run = wrapper.only()
    assert run["run_id"] == run_id
    assert traceparent == f"00-{run['trace_id']}-{run['span_id']}-01"
    assert (run["trace_id"], run["parent_span_id"]) == ("a" * 32, "b" * 16)
    assert attributes == "team=x,agent=own,spendmeter.agent=a%2Cb,spendmeter.task=T,task.id=T"


@pytest.mark.parametrize("name", ["json-subagent", "stream-json-subagent-bg"])
def test_subagents_files_come_along(wrapper: Wrapper, name: str) -> None:
    """The session that stdout names, and its subagents."""
    wrapper.run(CLAUDE, "-p", "x", env=case(name))
    assert len([n for n in names(wrapper.only()) if n.startswith("agent-")]) == 1


@pytest.mark.parametrize("how", ["process file", "only change"])
def test_a_silent_run_is_found_by_its_files(wrapper: Wrapper, how: str) -> None:
    """Killed before it printed: the session is known by sessions/<pid>.json, else as the only one that changed."""
    env = case("kill-sigkill-json", FAKE_QUIET="1", FAKE_LIVE_S="0.5")
    wrapper.run(CLAUDE, "-p", "x", env=env | ({"FAKE_PID_FILE": "1"} if how == "process file" else {}))
    assert wrapper.only()["sessions"] == ["cada5f97-daaa-48fe-b2ea-ad451744eac0"]
    assert len(wrapper.only()["files"]) == 1


def test_the_process_file_is_read_while_the_run_lives_and_behind_launchers(wrapper: Wrapper) -> None:
    """A clean exit removes the file; a script may start several CLIs. All their sessions are the run's."""
    script = """
for id in 11111111 22222222; do sh -c '
    mkdir -p "$HOME/.claude/sessions"; f="$HOME/.claude/sessions/$$.json"
    printf "{\\"sessionId\\":\\"%s-0000-4000-8000-000000000000\\"}" '$id' >"$f"; sleep 0.6; rm "$f"'
done"""
    wrapper.run("sh", "-c", script)
    run = wrapper.only()
    assert run["cli"] is None
    assert run["sessions"] == [f"{id}-0000-4000-8000-000000000000" for id in ("11111111", "22222222")]


def test_parallel_silent_runs_in_one_home_are_not_mixed_up(wrapper: Wrapper, tmp_path: Path) -> None:
    """Where nothing tells them apart neither is taken, and both records and stderr say why."""
    cases = ("kill-sigkill-json", "kill-sigterm-json")
    (gate := tmp_path / "gate").mkdir()
    runs = [wrapper.start(CLAUDE, env=case(n, FAKE_QUIET="1", FAKE_LIVE_S="1.5", FAKE_GATE=str(gate))) for n in cases]
    told = [run.communicate(timeout=60)[1] for run in runs]
    reason = "2 sessions changed, cannot tell which is this run's"
    assert told == [f"spendmeter: {reason}\n".encode()] * 2
    assert [(r["sessions"], r["files"], r["notes"]) for r in wrapper.committed()] == [([], [], [reason])] * 2


def test_parallel_runs_with_process_files_are_told_apart(wrapper: Wrapper, tmp_path: Path) -> None:
    """Each takes its own, also one that has no process file: the others' sessions are known to be foreign."""
    (gate := tmp_path / "gate").mkdir()
    env = {"FAKE_QUIET": "1", "FAKE_LIVE_S": "1.5", "FAKE_GATE": str(gate)}
    other = wrapper.start(CLAUDE, env=case("kill-sigkill-json", FAKE_PID_FILE="1", **env))
    mine = wrapper.start(CLAUDE, env=case("kill-sigterm-json", **env), flags=("--agent", "mine"))
    assert (other.communicate(timeout=60)[1], mine.communicate(timeout=60)[1]) == (b"", b"")
    found = {r["tags"]["agent"]: r["sessions"] for r in wrapper.committed()}
    assert found["unknown"] == ["cada5f97-daaa-48fe-b2ea-ad451744eac0"]
    assert len(found["mine"]) == 1
    assert found["mine"] != found["unknown"]


def test_a_resumed_run_knows_what_was_there_before(wrapper: Wrapper) -> None:
    """--resume: the session, and the size that its file had when the run started, however fast the CLI is."""
    wrapper.run(CLAUDE, env=case("resume-1-base", FAKE_QUIET="1"))
    ((path, _),) = wrapper.only()["files"]
    size = Path(path).stat().st_size
    for flags in (("--resume", Path(path).stem), ("--continue",)):
        for file in wrapper.out.iterdir():
            file.unlink()
        shutil.copyfile(CASES / "resume-1-base" / "home/.claude/projects/-home-dev-repo" / Path(path).name, path)
        wrapper.run(CLAUDE, "-p", "x", *flags, env=case("resume-2-continue", FAKE_QUIET="1"))
        run = wrapper.only()
        assert (run["sessions"], run["files"]) == ([Path(path).stem], [[path, size]])
        assert (run["resumed"], run["continued"]) == ((Path(path).stem, False) if flags[0] == "--resume" else (None, True))


def test_a_fork_brings_its_parent(wrapper: Wrapper) -> None:
    """--fork-session: the new session's file and the parent's, of which nothing is new."""
    parent, fork = "09ea3584-65be-4318-bd46-a46ed72d22d5", "f6b5ca7d-f26a-43e4-b535-48a0ae01ccf7"
    wrapper.run(CLAUDE, env=case("resume-1-base", FAKE_QUIET="1"))
    wrapper.out.joinpath(f"{wrapper.only()['run_id']}.json").unlink()
    wrapper.run(CLAUDE, "--resume", parent, "--fork-session", env=case("resume-4-fork"))
    run = wrapper.only()
    assert (run["sessions"], run["forked"], run["resumed"]) == ([fork], True, parent)
    assert names(run) == [f"{fork}.jsonl", f"{parent}.jsonl"]


@pytest.mark.parametrize(("mode", "told"), [
    ("import", "ImportError: No module named 'sqlalchemy'"),
    ("locked", "LedgerError: ledger sqlite:///l.db is locked by another process; try again"),
    ("crash", "RuntimeError in spendmeter.ingest, line"),
])  # fmt: skip
def test_metering_that_fails_leaves_run_and_facts_whole(wrapper: Wrapper, mode: str, told: str) -> None:
    """The exit code stands, one line says what happened, and a file without content keeps the run for later."""
    done = wrapper.run(CLAUDE, "-p", SECRET, env=case("json-single", FAKE_INGEST=mode, FAKE_EXIT="5"))
    assert (done.returncode, done.stdout) == (5, (CASES / "json-single" / "stdout").read_bytes())
    assert done.stderr.startswith(f"spendmeter: this run was not recorded yet: {told}".encode())
    assert done.stderr.count(b"\n") == 1
    (path,) = wrapper.pending()
    text = path.read_text()
    assert SECRET not in text + done.stderr.decode()
    assert "Stub ans" not in text
    data = json.loads(text)
    assert (data["state"], data["exit_code"], data["sessions"]) == ("finished", 5, [SESSION])


@pytest.mark.parametrize("mode", ["hang", "slow"])
def test_a_ledger_that_does_not_answer_is_given_up(wrapper: Wrapper, mode: str) -> None:
    """After 10 s without progress; the run is kept."""
    done = wrapper.run(CLAUDE, env=case("json-single", FAKE_INGEST=mode))
    assert b"the ledger did not answer in time" in done.stderr
    assert json.loads(wrapper.pending()[0].read_text())["sessions"] == [SESSION]


@pytest.mark.alone
def test_a_signal_shortens_the_wait_for_the_ledger(wrapper: Wrapper) -> None:
    """Whoever asks us to go need not wait 10 s; the exit code is the child's all the same."""
    run = wrapper.start(CLAUDE, env=case("json-single", FAKE_INGEST="slow", FAKE_EXIT="6"))
    assert run.stdout is not None
    run.stdout.read((CASES / "json-single" / "stdout").stat().st_size)
    time.sleep(1)  # the child ends
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=8) == 6
    run.communicate()
    assert len(wrapper.pending()) == 1


@pytest.mark.alone
def test_a_signal_that_we_found_ignored_does_not_shorten_the_wait_for_the_ledger(wrapper: Wrapper) -> None:
    """nohup: nobody asks us to go, so the run is committed in the end."""
    slow = case("json-single", FAKE_INGEST="slow", FAKE_EXIT="6")
    run = wrapper.start(CLAUDE, env=slow, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert run.stdout is not None
    run.stdout.read((CASES / "json-single" / "stdout").stat().st_size)
    time.sleep(1)  # the child ends
    run.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(timeout=3)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=3) == 6
    run.communicate()


@pytest.mark.parametrize("broken", ["config", "directory", "no space"])
def test_real_ledgers_fail_in_real_ways(tmp_path: Path, broken: str) -> None:
    """Wrong settings, a ledger in a place that cannot be, a full disk: one line, and the run's own exit code."""
    wrapper = Wrapper(tmp_path, real=True)
    env = case("json-single", FAKE_EXIT="4", XDG_STATE_HOME=str(tmp_path / "state"))
    if broken == "config":
        (tmp_path / "spendmeter.toml").write_text("[metrics]\nzero_frist = 1\n")
        env["SPENDMETER_CONFIG"] = str(tmp_path / "spendmeter.toml")
    elif broken == "directory":
        wrapper.ledger = "sqlite:////proc/nowhere/ledger.db"
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))) if broken == "no space" else None
    done = wrapper.run(CLAUDE, env=env, preexec_fn=limit)
    assert (done.returncode, done.stdout) == (4, (CASES / "json-single" / "stdout").read_bytes())
    assert done.stderr.startswith(b"spendmeter: ")
    assert b"this run was not recorded yet" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert [p for p in tmp_path.rglob("*.json") if "spool" in str(p)]


def test_a_killed_wrapper_leaves_a_mark_from_which_the_run_is_finished(wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9: the next command takes the run's tags from the mark and its usage from its session files."""
    run = wrapper.start(CLAUDE, "-p", SECRET, flags=("--agent", "dev"), env=case("kill-sigkill-json", FAKE_LIVE_S="60", FAKE_PID_FILE="1"))
    until(lambda: [p for p in wrapper.pending() if p.suffix == ".json" and '"found":["cada' in p.read_text()])
    assert list(pending_runs(wrapper.pending()[0].parent)) == []  # its wrapper lives
    text = wrapper.pending()[0].read_text()
    assert SECRET not in text
    run.kill()
    run.communicate()
    runs: list[Any] = []
    monkeypatch.setattr("spendmeter.ingest.commit_run", lambda ledger, config, run: runs.append(run))
    until(lambda: recovery.recover(wrapper.ledger) or runs)
    assert wrapper.pending() == []
    (found,) = runs
    assert (found.tags.agent, found.cli, found.exit_code, found.signal) == ("dev", "claude", None, None)
    assert found.sessions == {"cada5f97-daaa-48fe-b2ea-ad451744eac0"}
    assert [path.stem for path, _ in found.files] == ["cada5f97-daaa-48fe-b2ea-ad451744eac0"]
    assert found.run_id == json.loads(text)["run_id"]
    assert found.notes == ["its wrapper was killed; taken from its session files"]


def test_a_run_that_was_kept_is_recovered_as_it_was(wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """All observations, tags, files and times survive the file."""
    wrapper.run(CLAUDE, flags=("--attr", "k=v"), env=case("json-subagent", FAKE_INGEST="locked"))
    kept = json.loads(wrapper.pending()[0].read_text())
    runs: list[Any] = []
    monkeypatch.setattr("spendmeter.ingest.commit_run", lambda ledger, config, run: runs.append(run))
    recovery.recover(wrapper.ledger)
    from spendmeter.runner.spool import to_json

    assert json.loads(json.dumps(to_json(runs[0]))) == kept
    assert wrapper.pending() == []


def test_recovering_fails_without_loss(wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the ledger cannot be written the file stays; one that is no run is set aside."""
    wrapper.run(CLAUDE, env=case("json-single", FAKE_INGEST="locked"))
    folder = wrapper.pending()[0].parent
    (folder / "!0.json").write_text("{not json")
    (folder / "!1.json").write_text('{"run_id": "x", "state": "finished"}')

    def locked(*_: object) -> None:
        raise OSError("locked")

    monkeypatch.setattr("spendmeter.ingest.commit_run", locked)
    with pytest.raises(OSError, match="locked"):
        recovery.recover(wrapper.ledger)
    assert sorted(p.suffix for p in wrapper.pending()) == [".json", ".unreadable", ".unreadable"]


def test_each_ledger_has_its_own_spool(tmp_path: Path) -> None:
    """A run pending for one is never taken into another, and no password is part of a path."""
    env = {"HOME": str(tmp_path)}
    urls = ["sqlite:////a/l.db", "sqlite:////a/m.db", "postgresql://u:pw@h/d", "postgresql://u@h/e"]
    folders = [spool_dirs(url, env) for url in urls]
    assert len({str(f) for pair in folders for f in pair}) == 8
    assert spool_dirs("postgresql://u:other@h/d", env) == folders[2]
    assert folders[0][0] == Path("/a/l.db.spool")


def test_real_ledger_holds_the_truth(tmp_path: Path) -> None:
    """Nothing faked but the CLI: a wrapped run stands in the ledger once, with its tags."""
    wrapper = Wrapper(tmp_path, real=True)
    done = wrapper.run(CLAUDE, flags=("--agent", "dev", "--task", "T-9"), env=case("json-subagent", FAKE_LIVE_S="0.3"))
    assert (done.returncode, done.stderr) == (0, b"")
    report = [sys.executable, "-m", "spendmeter", "--ledger", wrapper.ledger, "report", "--by", "agent,task", "--json"]
    rows = json.loads(subprocess.run(report, env=wrapper.env, check=True, capture_output=True).stdout)["rows"]
    assert [(r["agent"], r["task"], r["runs"]) for r in rows] == [("dev", "T-9", 1)]
    truth = json.loads((CASES / "json-subagent" / "truth.json").read_text())["calls"]
    assert rows[0]["tokens_out"] == sum(c["usage"]["tokens_out"] for c in truth)
    with sqlite3.connect(tmp_path / "data" / "ledger.db") as db:
        assert db.execute("select count(*) from sqlite_master").fetchone()[0] > 0
    db.close()


def test_nothing_heavy_is_imported_before_the_child_starts() -> None:
    """The child's start waits for quick modules of the standard library only."""
    code = """
import os, sys
def fork():
    os.write(1, ' '.join(sys.modules).encode()); os._exit(0)
os.fork = fork
sys.argv = ['spendmeter', 'run', '--agent', 'a', '--', 'claude', '--resume', 'x']
import spendmeter.__main__ as m
m.main()
"""
    env = {"PATH": f"{Path(CLAUDE).parent}:{os.environ['PATH']}", "PYTHONPATH": str(SRC)}
    seen = set(subprocess.run([sys.executable, "-S", "-c", code], env=env, capture_output=True, check=True).stdout.decode().split())
    heavy = {
        "click",
        "sqlalchemy",
        "msgspec",
        "dataclasses",
        "argparse",
        "pathlib",
        "json",
        "subprocess",
        "threading",
        "inspect",
        "tomllib",
    }
    assert "spendmeter.runner.process" in seen
    assert seen & heavy == set()
    ours = {n.removeprefix("spendmeter.runner.") for n in seen if n.startswith("spendmeter.runner.")}
    assert ours == {"args", "attend", "childenv", "detect", "facts", "gate", "glance", "locate", "mask", "process", "say"}
