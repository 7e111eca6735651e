"""MCP as agents meet it: a real ``spendmeter mcp``, a real ``serve``, the SDK's own client, and the real Claude Code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anthropic_stub
import anyio
import pytest
from mcp import Client, StdioServerParameters
from procs import Daemon
from tests.agents import Question, ask, refused, told, tools
from tests.fakecli.harness import TESTS

from spendmeter.config import Settings
from spendmeter.demo import load
from spendmeter.ledger import Ledger
from spendmeter.prices import PriceTable
from spendmeter.records import Usage, usd_text

pytestmark = pytest.mark.e2e
MCP = [sys.executable, "-m", "spendmeter", "mcp"]
BUDGETS = """
budgets:
  - {name: purse, period: total, limit_usd: 100, match: {agent: "dev*"}, action: block}
  - {name: small, period: total, limit_tokens: 10, match: {agent: reviewer}, action: block}
"""
HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
MODEL = "claude-sonnet-4-5"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A host whose ledger holds the captured runs, with budgets of which one is used up."""
    (tmp_path / "budgets.yaml").write_text(BUDGETS)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with closing(Ledger(Settings(url, settle_s=0))) as ledger:
        load(ledger)
    named = {"SPENDMETER_LEDGER": url, "SPENDMETER_BUDGETS": str(tmp_path / "budgets.yaml"), "SPENDMETER_METRICS_SETTLE": "0"}
    return os.environ | named


@pytest.fixture
def daemon(env: dict[str, str], tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(env, tmp_path / "serve.log")
    made.start()
    yield made
    made.stop()


@pytest.fixture(params=["stdio", "http", "http-legacy"])
def to(request: pytest.FixtureRequest, env: dict[str, str]) -> Iterator[Any]:
    """Asks a server on each transport, over HTTP by both kinds of the protocol."""
    if request.param == "stdio":
        yield lambda *questions: ask(_command(env), *questions)
    else:
        address = f"{request.getfixturevalue('daemon').url}/mcp"
        yield lambda *questions: ask(address, *questions, mode="auto" if request.param == "http" else "legacy")


def _command(env: dict[str, str], **more: str) -> StdioServerParameters:
    return StdioServerParameters(command=MCP[0], args=MCP[1:], env=env | more)


def command(env: dict[str, str], *args: str) -> Any:
    """The JSON document that a command prints."""
    done = subprocess.run([sys.executable, "-m", "spendmeter", *args, "--json"], env=env, capture_output=True, check=False)
    return json.loads(done.stdout)


def test_every_tool_says_what_the_commands_say(to: Any, env: dict[str, str]) -> None:
    """One connection, each tool once, and a run that a budget keeps from starting."""
    event = {"agent": "tester", "task": "T-9", "model": MODEL, "tokens_in": 1000, "tokens_out": 20, "idempotency_key": "once"}
    questions: list[Question] = [
        ("record_token_event", event), ("record_token_event", event), ("get_token_summary", {"scope": "task", "id": "T-9"}),
        ("get_budget_status", {"agent": "developer", "task": "T-1"}), ("get_budget_status", {"agent": "reviewer", "task": "T-1"}),
        ("get_run", {"key": "last"}), ("estimate_cost", {"model": MODEL, "tokens_in": 1000, "tokens_out": 20}),
    ]  # fmt: skip
    row, again, summary, room, none, run, price = (told(x) for x in to(*questions))
    assert row == again
    total = command(env, "report", "--by", "task", "--task", "T-9")["total"]
    assert (total["tokens_in"], total["tokens_out"], total["runs"]) == (1000, 20, 1)
    assert {n: summary[n] for n in ("tokens_in", "tokens_out", "cost_usd")} == {
        n: total[n] for n in ("tokens_in", "tokens_out", "cost_usd")
    }
    assert room["budgets"] == command(env, "budget", "list", "--agent", "developer", "--task", "T-1")["budgets"]
    assert (room["allowed"], none["allowed"]) == (True, False)
    assert none["refusals"] == command(env, "budget", "check", "--agent", "reviewer", "--task", "T-1")["refusals"]
    last = command(env, "summary", "--run", "last")
    assert {name: run[name] for name in last if name != "text"} == {name: last[name] for name in last if name != "text"}
    assert price["cost_usd"] == usd_text(PriceTable.load().price(MODEL, Usage(1000, 0, 0, 0, 20), None)) == total["cost_usd"]


def test_errors_are_lines_and_end_nothing(to: Any) -> None:
    """Each is an answer; the next question is answered too."""
    questions = [("nope", {}), ("get_run", {"key": "nope"}), ("estimate_cost", {"model": MODEL, "tokens_in": -1}), ("get_run", {"x": 1})]
    *wrong, right = to(*questions, ("estimate_cost", {"model": MODEL}))
    assert [refused(x).partition(" ")[0] for x in wrong] == ["there", "run", "tokens_in:", "x:"]
    assert told(right)["cost_usd"] == "0.000000"


def test_both_transports_have_the_same_tools(env: dict[str, str], daemon: Daemon) -> None:
    """To the letter."""
    assert tools(_command(env)) == tools(f"{daemon.url}/mcp")


# -- stdio -------------------------------------------------------------------------------------------------------------


def _line(method: str, number: int | None = None, **params: Any) -> bytes:
    told: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
    return json.dumps(told).encode() + b"\n"


def _started(env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A server that has shaken hands."""
    process = subprocess.Popen(MCP, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(_line("initialize", 1, **HELLO) + _line("notifications/initialized"))
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["result"]["serverInfo"]["name"] == "spendmeter"
    return process


@pytest.mark.alone
def test_it_ends_with_its_input(env: dict[str, str]) -> None:
    """With code 0, soon, and not a word."""
    with _started(env) as process:
        began = time.monotonic()
        assert process.communicate(timeout=60) == (b"", b"")
        assert time.monotonic() - began < 5
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.alone
def test_a_signal_ends_it_while_its_input_is_open(env: dict[str, str], number: int) -> None:
    """At once, as clients send one to a server that does not end by itself."""
    with _started(env) as process:
        process.send_signal(number)
        assert process.wait(timeout=20) == -number


def test_what_is_no_message_ends_nothing_and_is_told_nowhere(env: dict[str, str]) -> None:
    """Standard output carries answers alone, standard error not a byte of what came in."""
    with _started(env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        junk = [b"sesame street\n", b"\xff\xfe sesame\n", b'{"jsonrpc":"2.0","id":"sesame"}\n', b"[]\n", b"{" * 5000 + b"\n"]
        process.stdin.write(b"".join(junk) + _line("no/such", 2, word="sesame") + _line("ping", 3))
        process.stdin.flush()
        answers = {}
        while 3 not in answers:
            told = json.loads(process.stdout.readline())
            answers[told.get("id")] = told
        assert "error" in answers[2]
        assert answers[3]["result"] == {}
        out, err = process.communicate(timeout=60)
        assert all(json.loads(line)["jsonrpc"] == "2.0" for line in out.splitlines())
        assert b"sesame" not in err
        assert b"Traceback" not in err


def test_it_starts_without_a_ledger(env: dict[str, str], tmp_path: Path) -> None:
    """Which is an error of the tools that need one, and only of these."""
    run, price = ask(
        _command(env, SPENDMETER_LEDGER="sqlite:////proc/none/ledger.db"), ("get_run", {}), ("estimate_cost", {"model": MODEL})
    )
    assert "/proc/none/ledger.db" in refused(run)
    assert told(price)["cost_usd"] == "0.000000"


AGENT = """
import json, os, sys
from mcp import StdioServerParameters
from tests.agents import ask
server = StdioServerParameters(command=sys.executable, args=["-m", "spendmeter", "mcp"], env=dict(os.environ))
(found,) = ask(server, ("get_budget_status", {}))
with open(sys.argv[1], "w") as out:
    json.dump(found.structured_content, out)
"""


def test_an_agent_in_a_run_asks_what_it_has_left(env: dict[str, str], tmp_path: Path) -> None:
    """Without a word of who it is: the run that it is part of has set something aside, and has these tags."""
    own = [sys.executable, "-m", "spendmeter", "run", "--agent", "dev, one", "--task", "T-7", "--"]
    done = subprocess.run(
        [*own, sys.executable, "-c", AGENT, str(tmp_path / "out")], env=env, cwd=TESTS.parent, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out").read_text())
    assert (found["agent"], found["task"], found["allowed"]) == ("dev, one", "T-7", True)
    assert [b["name"] for b in found["budgets"]] == ["purse"]
    assert float(found["budgets"][0]["reserved_usd"]) > 0
    assert len(found["this_run"]["run_id"]) == 32


# -- HTTP --------------------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_an_open_session_does_not_keep_the_daemon(daemon: Daemon) -> None:
    """SIGTERM while a client is connected: it is gone within seconds, with code 0."""

    async def talk() -> float:
        async with Client(f"{daemon.url}/mcp", mode="legacy") as client:
            assert (await client.call_tool("get_run", {})).structured_content
            began = time.monotonic()
            await anyio.to_thread.run_sync(daemon.stop)
            return time.monotonic() - began

    assert anyio.run(talk) < 8
    assert daemon._process is not None
    assert daemon._process.returncode == 0
    assert "Traceback" not in daemon.log.read_text()


# -- Claude Code -------------------------------------------------------------------------------------------------------


def test_the_real_claude_code_uses_a_tool(claude: Path, env: dict[str, str], tmp_path: Path) -> None:
    """Registered as the how-to says, it is connected; a model that calls the tool is told what is left."""
    tool = "mcp__spendmeter__get_budget_status"
    quiet = dict.fromkeys(("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "IS_SANDBOX", "DISABLE_AUTOUPDATER"), "1")
    with anthropic_stub.serving({"CASE-LEFT": [(tool, {}), "Done."]}) as (url, truth):
        world = env | quiet | {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "sk-ant-stub"}

        def run(*args: str) -> str:
            done = subprocess.run(args, env=world, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        run(str(claude), "mcp", "add", "spendmeter", "--", *MCP)
        assert "Connected" in run(str(claude), "mcp", "list")
        wrapped = [sys.executable, "-m", "spendmeter", "run", "--agent", "developer", "--task", "T-1", "--", str(claude)]
        run(*wrapped, "-p", "CASE-LEFT", "--model", "claude-sonnet-4-5-20250929", "--dangerously-skip-permissions")
        assert len(truth.calls) >= 2
    (transcript,) = (Path(env["HOME"]) / ".claude" / "projects").rglob("*.jsonl")
    results = [x for line in transcript.read_text().splitlines() for x in _results(json.loads(line))]
    assert len(results) == 1
    assert "developer" in results[0]
    assert "purse" in results[0]


def _results(row: dict[str, Any]) -> Iterator[str]:
    content = row["message"]["content"] if row["type"] == "user" else None
    for block in content if isinstance(content, list) else []:
        if block.get("type") == "tool_result":
            yield json.dumps(block["content"])
