"""Commands in this process and in one of their own, and a ledger with three real runs for them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spendmeter.cli import main

RUNS = Path(__file__).parent / "fixtures" / "runs" / "claude"
SINGLE = RUNS / "json-single"
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
