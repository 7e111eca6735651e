"""Runs the real wrapper as a real process, with the fake ingest unless a test wants the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
SRC = TESTS.parent / "src"
CLAUDE = str(TESTS / "fakecli" / "claude")
Flags = tuple[str, ...]
Env = dict[str, str] | None
INJECT = TESTS / "fakecli" / "inject"
CASES = TESTS / "fixtures" / "runs" / "claude"


class Wrapper:
    """``spendmeter run`` in a home of its own."""

    def __init__(self, folder: Path, *, real: bool = False) -> None:
        self.folder = folder
        self.out = folder / "committed"
        self.cwd = folder / "work"
        self.ledger = f"sqlite:///{folder}/data/ledger.db"
        for path in (self.out, self.cwd):
            path.mkdir()
        dropped = ("SPENDMETER_", "CLAUDE", "XDG_", "OTEL_", "TRACE", "PYTEST")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        self.env |= {"HOME": str(folder), "PYTHONPATH": str(SRC)}
        if not real:
            self.env |= {"PYTHONPATH": f"{SRC}{os.pathsep}{INJECT}", "FAKE_INGEST_OUT": str(self.out)}

    def argv(self, *command: str, flags: Flags = ()) -> list[str]:
        """The wrapper's command line for *command*."""
        return [sys.executable, "-m", "spendmeter", "--ledger", self.ledger, "run", *flags, "--", *command]

    def run(self, *command: str, flags: Flags = (), env: Env = None, **kw: Any) -> subprocess.CompletedProcess[bytes]:
        """Runs *command* wrapped, to its end."""
        kw = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60, "cwd": self.cwd} | kw
        return subprocess.run(self.argv(*command, flags=flags), env=self.env | (env or {}), check=False, **kw)

    def start(self, *command: str, flags: Flags = (), env: Env = None, **kw: Any) -> subprocess.Popen[bytes]:
        """Starts *command* wrapped."""
        kw = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.cwd} | kw
        return subprocess.Popen(self.argv(*command, flags=flags), env=self.env | (env or {}), **kw)

    def committed(self) -> list[dict[str, Any]]:
        """What the fake ingest was given."""
        return [json.loads(p.read_text()) for p in sorted(self.out.glob("*.json"))]

    def only(self) -> dict[str, Any]:
        """The one run that was committed."""
        runs = self.committed()
        assert len(runs) == 1
        return runs[0]

    def pending(self) -> list[Path]:
        """Files in the spool."""
        return sorted(self.folder.glob("data/ledger.db.spool/*"))


def python(code: str, *args: str) -> tuple[str, ...]:
    """A command that runs *code* without the injected parts."""
    return (sys.executable, "-S", "-E", "-u", "-c", code, *args)


def until(done: Callable[[], object], timeout_s: float = 60.0) -> Any:
    """Waits until *done* is truthy and returns it; fails after *timeout_s*."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not so within {timeout_s} s")


def alive(pid: int) -> bool:
    """Whether *pid* is a process that is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
