"""The command line as a shell meets it: real processes, terminals, ``serve`` and ``sync --watch``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spendmeter.server import daemon
from spendmeter.server.auth import Access
from tests.commands import PROGRAM, SINGLE, call, document, done, on_terminal, process

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
            until = time.monotonic() + 60
            while not document("report")["rows"] and time.monotonic() < until:
                time.sleep(0.2)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(60) == 130
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


# -- standard streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [["report"], ["report", "--json"], ["parse", str(SINGLE / "stdout")], ["--help"], ["report", "--help"], ["--version"]]
)
def test_standard_output_without_room_is_one_line(filled: None, args: list[str]) -> None:
    """On a full disk a command ends with 1 and says so, without a traceback."""
    with Path("/dev/full").open("w") as full:
        child = subprocess.run([PROGRAM, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    said = "spendmeter: standard output cannot be written (No space left on device); free some space, or send it somewhere else\n"
    assert (child.returncode, child.stderr) == (1, said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ingest - <&-", "spendmeter: stdin: holds no usage that we know\n"), ("parse - <&-", ""), ("report >&-", ""),
        ("report --json >&-", ""), ("report <&- >&- 2>&-", ""), ("statusline <&-", ""),
    ],
)  # fmt: skip
def test_a_closed_stream_is_empty_or_goes_nowhere(filled: None, line: str, said: str) -> None:
    """As cron and some daemons start their children."""
    child = subprocess.run(["sh", "-c", f'exec "$0" {line}', PROGRAM], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (child.returncode, child.stderr) == (0, said)


@pytest.mark.parametrize("module", ["spendmeter.runner.args", "spendmeter.cli", "click"])
def test_ctrl_c_while_modules_load_is_130_without_a_traceback(module: str) -> None:
    """A module that takes long is what a signal meets at the start; here it comes exactly there."""
    code = (
        "import os, signal, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "sys.argv = ['spendmeter', 'report']\n"
        "from spendmeter.__main__ import main\n"
        "sys.exit(main())\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "")
