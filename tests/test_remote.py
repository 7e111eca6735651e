"""A host whose runs go to a central daemon: what it sends, and what it does when the daemon does not take it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from spendmeter.cli import main
from spendmeter.records import Call, Tags, Usage, total
from spendmeter.runner import remote, wire
from spendmeter.runner.args import UsageError, daemon_url, parse
from spendmeter.runner.finished import FinishedRun
from spendmeter.runner.spool import spool_dirs, write_pending
from tests.fakecli.harness import CASES, CLAUDE, TESTS, until
from tests.remotes import SECRET, Central, Host, answering
from tests.runs import Chain, amounts

RUNAWAY = TESTS / "fakecli" / "runaway"
RUN = "0123456789abcdef" * 2
CALL = Call("claude", "req_1", "s1", Usage(tokens_in=5, tokens_out=7), "claude-sonnet-4-5", "claude-sonnet-4-5", 1_763_800_000_000)


@pytest.fixture
def daemon() -> Iterator[Central]:
    with answering() as made:
        yield made


@pytest.fixture
def host(tmp_path: Path, daemon: Central) -> Host:
    return Host(tmp_path / "host", daemon.url)


def test_a_run_is_handed_over_and_nothing_of_it_stays(host: Host, daemon: Central) -> None:
    """One POST with the run's tags and its session's calls; no ledger, no spool, no prompt; output and exit code are the run's."""
    done = host.replay(FAKE_EXIT="3", SPENDMETER_TOKEN="smt_x")
    assert (done.returncode, done.stdout, done.stderr) == (3, (CASES / "json-single" / "stdout").read_bytes(), b"")
    ((path, headers, body),) = daemon.took
    assert (path, headers["authorization"], headers["content-type"]) == (wire.PATH, "Bearer smt_x", "application/json")
    (batch,) = daemon.batches()
    assert ([c.tags for c in batch.claims], batch.processes[0].exit_code, batch.settled) == ([Tags("dev", "T-1", {})], 3, True)
    assert any(isinstance(o, Call) for o in batch.observations)
    assert SECRET.encode() not in wire.unzipped(body)
    assert host.kept() == []
    assert list(host.folder.rglob("*.db")) == []


@pytest.mark.parametrize("how", ["away", 500, 503, 429, 401, 403, 404, 302])
def test_a_run_that_is_not_taken_waits_and_goes_with_the_next(host: Host, daemon: Central, how: str | int) -> None:
    """Whatever may be mended: the run is kept, one line says why, and the next run that goes through takes it along."""
    if how == "away":
        daemon.server_close()
    else:
        daemon.status = int(how)
        daemon.more = {"location": "http://127.0.0.1:1/"} if how == 302 else {}
    done = host.replay()
    lines = done.stderr.decode().splitlines()
    if how == "away":
        assert lines.pop(0).startswith("spendmeter: run: its budgets are not checked: ")
    assert (done.returncode, len(lines)) == (0, 1)
    said = {"away": "Connection refused", 401: "SPENDMETER_TOKEN", 403: "scope write", 404: "as new as this one", 302: "redirect"}
    assert said.get(how, f"answered {how}") in lines[0]
    assert len(host.kept("*.json")) == 1
    if how != "away":
        daemon.status, daemon.took = 200, []
        assert host.replay("json-tool").stderr == b""
        assert len({b.processes[0].run_id for b in daemon.batches()}) == 2
        assert host.kept("*.json") == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_run_that_is_refused_for_good_is_set_aside(host: Host, daemon: Central, status: int) -> None:
    """It is told in one line with the daemon's own reason, is not tried again, and is still there."""
    daemon.status, daemon.body = status, b'{"detail": "version: 1 is not known"}'
    line = host.replay().stderr.decode()
    assert f"answered {status}: version: 1 is not known" in line
    assert line.count("\n") == 1
    (aside,) = host.kept()
    assert aside.suffix == ".unreadable"
    assert str(aside) in line


@pytest.mark.alone
def test_a_daemon_that_does_not_answer_holds_a_run_up_for_two_seconds(host: Host, daemon: Central) -> None:
    """Of 30 s that the answer would take, the end of the run waits 2; then the run is kept."""
    started_s = time.monotonic()
    host.replay()
    quick_s = time.monotonic() - started_s
    daemon.delay_s = 30.0
    started_s = time.monotonic()
    done = host.replay()
    assert time.monotonic() - started_s < quick_s + remote.LIMIT_S + 3  # the machine may be busy
    assert b"no answer within 2 s" in done.stderr
    assert len(host.kept("*.json")) == 1


def test_a_killed_wrappers_run_is_sent_later(host: Host, daemon: Central, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 while the CLI runs: the mark that is left lies in the daemon's spool, and ``send`` hands the run over."""
    process = host.start(CLAUDE, env={"FAKE_CASE": str(CASES / "json-single"), "FAKE_LIVE_S": "30", "FAKE_PID_FILE": "1"})
    until(lambda: host.kept("*.json") and list(host.folder.rglob("sessions/*.json")))
    process.kill()
    process.communicate()
    monkeypatch.setenv("HOME", str(host.folder))
    until(lambda: remote.send_waiting(daemon.url) == (1, None))
    (batch,) = daemon.batches()
    assert any(isinstance(o, Call) for o in batch.observations)
    assert batch.processes[0].notes == ["its wrapper was killed; taken from its session files"]


def waits(url: str, number: int) -> FinishedRun:
    """A run that waits for the daemon at *url*."""
    found = FinishedRun(f"{number:032x}", Tags(), "claude", 0, None, 1, 2, RUN, RUN[:16], sessions={f"s{number}"}, observations=[CALL])
    write_pending(spool_dirs(url, os.environ), found)
    return found


def test_what_waits_for_one_daemon_is_sent_to_no_other(daemon: Central) -> None:
    """Each URL has a spool of its own, so neither runs nor a token get to a daemon that they are not for."""
    waits("http://127.0.0.1:1", 1)
    assert remote.send_waiting(daemon.url) == (0, None)
    assert (daemon.took, remote.waiting("http://127.0.0.1:1", os.environ)) == ([], 1)


def test_sending_stops_at_the_first_that_does_not_go_through(daemon: Central) -> None:
    """Of three runs that wait, one attempt is made at a daemon that is busy; the three still wait."""
    for number in range(3):
        waits(daemon.url, number)
    daemon.status = 503
    sent = remote.send_waiting(daemon.url)
    assert (sent.number, "answered 503" in str(sent.problem), len(daemon.took)) == (0, True, 1)
    assert remote.waiting(daemon.url, os.environ) == 3


def test_one_that_is_refused_does_not_keep_the_others(daemon: Central, capfd: pytest.CaptureFixture[str]) -> None:
    """It is set aside with a line; those behind it are tried."""
    for number in range(2):
        waits(daemon.url, number)
    daemon.status = 422
    assert remote.send_waiting(daemon.url) == (0, None)
    assert (len(daemon.took), remote.waiting(daemon.url, os.environ)) == (2, 0)
    assert capfd.readouterr().err.count("is set aside\n") == 2


def test_a_backlog_takes_no_more_time_than_it_is_given(daemon: Central) -> None:
    """With 0.1 s for an answer and 0.25 s in all, three of ten go."""
    for number in range(10):
        waits(daemon.url, number)
    daemon.delay_s = 0.1
    assert remote.send_waiting(daemon.url, 0.25).number <= 3
    assert remote.waiting(daemon.url, os.environ) >= 7


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>a captive portal</html>"), (200, b"{}"), (204, b""), (200, b"")])
def test_an_answer_that_is_not_the_daemons_is_no_receipt(daemon: Central, status: int, body: bytes) -> None:
    """A run is kept until a daemon has said that it has it."""
    daemon.status, daemon.body = status, body
    waits(daemon.url, 1)
    assert remote.send_waiting(daemon.url).number == 0
    assert remote.waiting(daemon.url, os.environ) == 1


def test_the_token_may_be_in_a_file(daemon: Central, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPENDMETER_TOKEN_FILE, without the line's end; a file that is missing is named and the run waits."""
    monkeypatch.setenv("SPENDMETER_TOKEN_FILE", str(tmp_path / "token"))
    waits(daemon.url, 1)
    assert f"SPENDMETER_TOKEN_FILE {tmp_path / 'token'}: cannot be read" in str(remote.send_waiting(daemon.url).problem)
    (tmp_path / "token").write_text("smt_file\n")
    assert remote.send_waiting(daemon.url) == (1, None)
    assert daemon.took[0][1]["authorization"] == "Bearer smt_file"


@pytest.mark.parametrize("token", ["a\r\nx-evil: 1", "smt_\u0434", "a\u2028b"])
def test_what_is_no_token_is_sent_to_no_one(daemon: Central, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """A header is one line of ASCII: anything else is named, not shown, and the run waits."""
    monkeypatch.setenv("SPENDMETER_TOKEN", token)
    waits(daemon.url, 1)
    problem = str(remote.send_waiting(daemon.url).problem)
    assert ("copy it again" in problem, token[-3:] in problem, daemon.took) == (True, False, [])
    assert remote.waiting(daemon.url, os.environ) == 1


def test_a_runs_own_limit_holds_without_a_ledger(host: Host, daemon: Central) -> None:
    """--max-cost ends the run on this host; what it used is handed over."""
    (link := host.folder / "claude").symlink_to(RUNAWAY)
    env = {"RUNAWAY_CASE": str(CASES / "stream-json-tool"), "RUNAWAY_LOG": str(host.folder / "log")}
    done = host.run(str(link), flags=("--max-cost", "0.3"), env=env)
    assert (done.returncode, b"--max-cost" in done.stderr) == (3, True)
    (batch,) = daemon.batches()
    assert (batch.processes[0].stopped, any(isinstance(o, Call) for o in batch.observations)) == ("max-cost", True)


def test_a_hook_hands_its_session_to_the_daemon(host: Host, daemon: Central) -> None:
    """With SPENDMETER_REMOTE and no ledger named by a flag: the session's calls and its tags are posted, no ledger is made."""
    shutil.copytree(CASES / "json-subagent" / "home", host.folder, dirs_exist_ok=True)
    path = next(p for p in host.folder.rglob("*.jsonl") if "subagents" not in p.parts)
    told = json.dumps({"session_id": path.stem, "transcript_path": str(path), "hook_event_name": "Stop", "last_assistant_message": SECRET})
    env = host.env | {"SPENDMETER_REMOTE": daemon.url, "SPENDMETER_TASK": "T-1", "SPENDMETER_TOKEN": "smt_x"}
    command = [sys.executable, "-m", "spendmeter", "hook", "claude"]
    done = subprocess.run(command, input=told, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (batch,) = until(daemon.batches)
    Chain("claude", (CASES / "json-subagent",)).check(
        amounts(total(o.usage for o in set(batch.observations) if isinstance(o, Call))), exact=False
    )
    assert {c.tags.task for c in batch.claims} == {"T-1"}
    assert daemon.took[0][1]["authorization"] == "Bearer smt_x"
    assert list(host.folder.rglob("*.db")) == []


# -- flags --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("argv", "env", "found"), [
    (["run", "--remote", "https://m.example/", "true"], {}, "https://m.example"),
    (["run", "true"], {"SPENDMETER_REMOTE": "http://10.0.0.1:9464"}, "http://10.0.0.1:9464"),
    (["run", "--remote=https://m.example/base", "true"], {"SPENDMETER_REMOTE": "http://x", "SPENDMETER_LEDGER": "y"}, "https://m.example/base"),
    (["--ledger", "L", "run", "true"], {"SPENDMETER_REMOTE": "http://x"}, None),
    (["run", "true"], {"SPENDMETER_REMOTE": ""}, None),
])  # fmt: skip
def test_where_a_run_goes(argv: list[str], env: dict[str, str], found: str | None) -> None:
    """A flag wins over the environment; a ledger that is named by a flag is meant."""
    assert parse(argv, env).remote == found


@pytest.mark.parametrize(
    "text", ["m.example", "ftp://m.example", "https://", "https://user:pw@m.example", "https://m example", "https://m/?x"]
)
def test_an_address_that_is_none_is_refused_without_being_shown(text: str) -> None:
    """It may hold a password."""
    with pytest.raises(UsageError) as e:
        daemon_url("--remote", text)
    assert "pw" not in str(e.value)
    assert "SPENDMETER_TOKEN" in str(e.value)


def test_one_run_has_one_place_to_go() -> None:
    """--ledger and --remote together are a mistake."""
    with pytest.raises(UsageError, match="leave one out"):
        parse(["run", "--ledger", "L", "--remote", "http://m", "true"], {})


@pytest.mark.parametrize(("words", "code"), [((), 2), (("--remote", "nonsense"), 2), (("--remote", "http://127.0.0.1:1"), 0)])
def test_send_needs_an_address(words: tuple[str, ...], code: int) -> None:
    """Without one, or with one that is none, its use is wrong; with nothing to send it is done."""
    assert CliRunner().invoke(main, ["send", *words]).exit_code == code


def test_send_without_an_address_names_flag_and_variable() -> None:
    """Either of them says where the runs go."""
    said = CliRunner().invoke(main, ["send"]).stderr
    assert "'--remote'" in said
    assert "SPENDMETER_REMOTE" in said
