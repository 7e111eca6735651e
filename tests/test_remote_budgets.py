"""``spendmeter run --remote`` before its start and under way: what a daemon that answers as a test says makes of a run."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spendmeter.runner import admission
from tests.fakecli.harness import CASES, CLAUDE, SRC, TESTS, until
from tests.remotes import ADMITTED, SECRET, Central, Host, answering

HELD = ADMITTED | {"held": True, "expected_usd": "0.250000", "expected_tokens": 100}
LEFT = {"budget": "all", "left_usd": "0.300000", "left_tokens": None}


@pytest.fixture
def daemon() -> Iterator[Central]:
    with answering() as made:
        yield made


@pytest.fixture
def host(tmp_path: Path, daemon: Central) -> Host:
    return Host(tmp_path / "host", daemon.url)


def touch(host: Host, *flags: str, **env: str) -> tuple[int, str, bool]:
    """(exit code, what was said, whether the child ran) of a run that has a prompt among its arguments."""
    mark = host.folder / "ran"
    done = host.run("sh", "-c", f"touch {mark}; exit 7", SECRET, flags=flags, env=env)
    assert SECRET not in done.stderr.decode()
    return done.returncode, done.stderr.decode(), mark.exists()


def runaway(host: Host, **env: str) -> Any:
    """A run that calls its model without end, until something ends it."""
    (link := host.folder / "claude").symlink_to(TESTS / "fakecli" / "runaway")
    return host.run(str(link), env={"RUNAWAY_CASE": str(CASES / "stream-json-tool"), "RUNAWAY_LOG": str(host.folder / "log")} | env)


def test_a_run_is_described_as_its_budgets_see_it(host: Host, daemon: Central) -> None:
    """Its tags, its CLI and model, its repository and its own limits; no word of its prompt. Nothing is said to a run that may start."""
    host.cwd = host.folder / "shop"
    (host.cwd / ".git").mkdir(parents=True)
    (host.cwd / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    flags = ("--attr", "team=blue", "--max-cost", "0.5", "--max-tokens", "9")
    done = host.run(CLAUDE, "-p", SECRET, "--model", "opus-9", flags=flags, env={"FAKE_EXIT": "7"})
    assert (done.returncode, done.stderr) == (7, b"")
    ((method, path, told),) = daemon.asked
    assert (method, path, len(told.pop("run_id"))) == ("POST", "/api/v1/admissions", 32)
    assert told == {"agent": "dev", "task": "T-1", "cli": "claude", "model": "opus-9", "repo": "shop", "attrs": {"team": "blue"},
                    "max_cost_usd": "0.500000", "max_tokens": 9}  # fmt: skip


def test_a_run_that_is_refused_is_not_started(host: Host, daemon: Central) -> None:
    """Exit code 3 and the daemon's line, of which a terminal takes no harm; nothing is handed over or kept."""
    daemon.admission = 200, ADMITTED | {"allowed": False, "lines": ["budget all has\nno \x1b[31mroom" + "x" * 500]}, 0.0
    code, said, ran = touch(host)
    assert (code, ran, daemon.took, host.kept()) == (3, False, [], [])
    assert said.startswith("spendmeter: run not started: budget all has no  [31mroomxxx")
    assert (said.count("\n"), len(said) < 400) == (1, True)


def test_a_warning_of_the_daemons_starts_the_run(host: Host, daemon: Central) -> None:
    """One line for each."""
    daemon.admission = 200, ADMITTED | {"lines": ["over budget all", "over budget b"]}, 0.0
    assert touch(host) == (7, "spendmeter: over budget all\nspendmeter: over budget b\n", True)


def test_budgets_of_the_hosts_own_are_not_asked(host: Host, daemon: Central) -> None:
    """They are of its own ledger: a budget that is used up there says nothing here, and no ledger is made for it."""
    (file := host.folder / "budgets.yaml").write_text("budgets: [{name: all, period: total, limit_usd: 0, action: block}]")
    assert touch(host, SPENDMETER_BUDGETS=str(file)) == (7, "", True)
    assert list(host.folder.rglob("*.db")) == []


ANSWERS: dict[str, tuple[tuple[int, Any, float], str]] = {
    "no token": ((401, {"detail": "this needs a token"}, 0.0), "answered 401: this needs a token; put a token with the scope write into "),
    "scope": ((403, {"detail": "this needs a token with the scope write"}, 0.0), "answered 403: this needs a token with the scope write; "),
    "old": (
        (404, {"detail": "there is nothing"}, 0.0),
        "answered 404: there is nothing; is that its address, and is its spendmeter as new",
    ),
    "busy": ((503, {"detail": "locked"}, 0.0), "answered 503: locked"),
    "redirect": ((302, None, 0.0), "answered 302; is that its address, with nothing before it that redirects"),
    "portal": ((200, b"<html>", 0.0), "answered 200"),
    "list": ((200, [], 0.0), "answered 200"),
    "other": ((200, {"allowed": True}, 0.0), "its answer is not understood"),
    "nonsense": ((200, HELD | {"left": [1]}, 0.0), "its answer is not understood"),
    "refused": ((422, {"detail": "agent: is too long"}, 0.0), "answered 422: agent: is too long; is its spendmeter as new as this one?"),
}


@pytest.mark.parametrize("on_error", ["allow", "block"])
@pytest.mark.parametrize("how", ANSWERS)
def test_a_daemon_that_lets_nobody_in_stops_a_run_only_if_told_to(host: Host, daemon: Central, how: str, on_error: str) -> None:
    """By default the run starts; one line says what is wrong and what to do about it."""
    daemon.admission, said = ANSWERS[how]
    (host.folder / "spendmeter.toml").write_text(f'[budgets]\non_error = "{on_error}"\n')
    code, line, ran = touch(host, SPENDMETER_CONFIG=str(host.folder / "spendmeter.toml"))
    start = "run not started: its budgets cannot be checked" if on_error == "block" else "run: its budgets are not checked"
    assert line.startswith(f"spendmeter: {start}: RemoteError: {host.url}: {said}")
    assert (code, ran, line.count("\n")) == ((3, False, 1) if on_error == "block" else (7, True, 1))


def test_a_daemon_that_is_busy_is_asked_again(host: Host, daemon: Central) -> None:
    """As long as the start may wait: it starts once there is an answer."""
    daemon.admission = 503, {"detail": "locked"}, 0.0
    run = host.start("sh", "-c", "exit 7", env={"SPENDMETER_BUDGETS_ON_ERROR": "block"})
    until(lambda: len(daemon.asked) > 1)
    daemon.admission = 200, ADMITTED, 0.0
    assert (run.communicate(timeout=60)[1], run.returncode) == (b"", 7)
    assert len({doc["run_id"] for _, _, doc in daemon.asked}) == 1


@pytest.mark.parametrize(("on_error", "code"), [("allow", 7), ("block", 3)])
@pytest.mark.alone
def test_where_no_daemon_listens_the_setting_decides(host: Host, daemon: Central, on_error: str, code: int) -> None:
    """At once: a refused connection is not waited for."""
    daemon.server_close()
    begun_s = time.monotonic()
    got, said, ran = touch(host, SPENDMETER_BUDGETS_ON_ERROR=on_error)
    assert (got, ran, time.monotonic() - begun_s < 8) == (code, code == 7, True)
    assert "Connection refused; is it running, and reachable from here?" in said.splitlines()[0]


@pytest.mark.parametrize(("on_error", "waits_s", "code"), [("allow", admission.LIMIT_S, 7), ("block", admission.PATIENT_S, 3)])
@pytest.mark.alone
def test_a_daemon_that_does_not_answer_is_given_up(host: Host, daemon: Central, on_error: str, waits_s: float, code: int) -> None:
    """Of 60 s that it would take a run waits 2; one that may not start unasked waits 10."""
    daemon.admission = 200, ADMITTED, 60.0
    begun_s = time.monotonic()
    got, said, _ = touch(host, SPENDMETER_BUDGETS_ON_ERROR=on_error)
    assert waits_s < time.monotonic() - begun_s < waits_s + 7  # the machine may be busy
    assert (got, f"no answer within {waits_s:g} s" in said) == (code, True)


@pytest.mark.alone
def test_a_name_that_is_not_found_out_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking one up knows no time limit of its own."""

    def never(*_: object, **__: object) -> None:
        time.sleep(60)

    monkeypatch.setattr("socket.getaddrinfo", never)
    begun_s = time.monotonic()
    with pytest.raises(admission.RemoteError, match="no answer within 1 s"):
        admission.enter("http://meter.example", {"run_id": "x"}, 1.0)
    assert time.monotonic() - begun_s < 5


def test_a_token_that_cannot_be_read_is_told(host: Host) -> None:
    """By its file; the run starts."""
    code, said, ran = touch(host, SPENDMETER_TOKEN_FILE="/none/token")
    assert (code, ran) == (7, True)
    assert "SPENDMETER_TOKEN_FILE /none/token: cannot be read" in said.splitlines()[0]


def test_a_run_keeps_what_is_set_aside_for_it(host: Host, daemon: Central, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells what it has used, its models and its tags, at most once a second, and hands over its observations under the same id."""
    daemon.admission = 200, HELD, 0.0
    assert runaway(host, RUNAWAY_CALLS="60").returncode == 0
    first, *beats = daemon.asked
    assert len(beats) in range(1, 9)
    run_id = first[2]["run_id"]
    assert {(method, path) for method, path, _ in beats} == {("PUT", f"/api/v1/admissions/{run_id}")}
    told = beats[-1][2]
    assert told == told | {"agent": "dev", "task": "T-1", "cli": "claude", "expected_usd": "0.250000", "expected_tokens": 100}
    assert (float(told["used_usd"]) > 0, told["used_tokens"] > 0, len(told["models"])) == (True, True, 1)
    assert [b.processes[0].run_id for b in daemon.batches()] == [run_id]


def test_a_run_ends_when_the_daemon_says_so(host: Host, daemon: Central) -> None:
    """Exit code 3, its line, and the outcome in what is handed over."""
    daemon.admission = 200, HELD | {"kills": True}, 0.0
    daemon.renewal = 200, {"exceeded": "all", "line": "over budget all: $1.00 of $1.00 spent in all", "left": [LEFT]}, 0.0
    done = runaway(host)
    assert (done.returncode, done.stderr) == (3, b"spendmeter: run ended: over budget all: $1.00 of $1.00 spent in all\n")
    assert [b.processes[0].stopped for b in daemon.batches()] == ["budget all"]


@pytest.mark.parametrize("left", [LEFT, {"budget": "all", "left_usd": None, "left_tokens": 100_000}], ids=["usd", "tokens"])
def test_a_run_ends_at_what_was_left_for_it_also_while_the_daemon_is_away(host: Host, daemon: Central, left: dict[str, Any]) -> None:
    """The limit came with the admission; nobody need be asked again."""
    daemon.admission = 200, HELD | {"kills": True, "left": [left]}, 0.0
    daemon.renewal = 503, {"detail": "locked"}, 0.0
    done = runaway(host)
    assert done.returncode == 3
    end = "$0.30 were left for it" if left["left_usd"] else "100,000 tokens were left for it"
    line = done.stderr.decode()
    assert line.startswith("spendmeter: run ended: over budget all: ")
    assert line.endswith(f" used by this run, {end}\n")
    assert [b.processes[0].stopped for b in daemon.batches()] == ["budget all"]


def test_a_command_that_cannot_be_executed_gives_back_what_it_had(host: Host, daemon: Central) -> None:
    """It was let in before anybody could know."""
    daemon.admission = 200, HELD, 0.0
    (script := host.folder / "broken").write_text("#!/no/such/interpreter\n")
    script.chmod(stat.S_IRWXU)
    assert host.run(str(script)).returncode == 127
    assert [(method, path) for method, path, _ in daemon.asked[1:]] == [("DELETE", f"/api/v1/admissions/{daemon.asked[0][2]['run_id']}")]


def test_nobody_need_be_told_of_children_that_end(host: Host, daemon: Central) -> None:
    """Also where whoever started the wrapper ignores SIGCHLD, so that there is nobody left to wait for."""
    done = host.run("true", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert (done.stderr, len(daemon.asked)) == (b"", 1)


def test_switched_off_means_off(host: Host, daemon: Central) -> None:
    """SPENDMETER_OFF asks nobody."""
    assert touch(host, SPENDMETER_OFF="1") == (7, "", True)
    assert daemon.asked == []


def test_what_is_loaded_before_the_child_starts(tmp_path: Path, daemon: Central) -> None:
    """HTTP and JSON, and nothing of a ledger; no process is left of the question."""
    code = """
import os, sys
real, asked = os.fork, []
def fork():
    if not asked:
        asked.append(pid := real())
        return pid
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        os.write(1, b'alone ')
    os.write(1, ' '.join(sys.modules).encode()); os._exit(0)
os.fork = fork
sys.argv = ['spendmeter', 'run', '--agent', 'a', '--', 'claude']
import spendmeter.__main__ as m
m.main()
"""
    env = {
        "PATH": f"{Path(CLAUDE).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(SRC),
        "HOME": str(tmp_path),
        "SPENDMETER_REMOTE": daemon.url,
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    seen = done.stdout.decode().split()
    assert until(lambda: len(daemon.asked)) == 1
    assert ("alone" in seen, {"sqlalchemy", "msgspec", "yaml", "spendmeter.ledger", "spendmeter.config"} & set(seen)) == (True, set())
