"""The real Claude Code, installed once from npm."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

VERSION = "2.1.330"
CACHE = Path(__file__).parents[2] / ".cache" / "claude-code" / VERSION
HOME = os.environ.get("HOME", "")  # as it was at import: tests get a home of their own


@pytest.fixture(scope="session")
def claude() -> Path:
    """The CLI, installed once into .cache from npm."""
    found = CACHE / "node_modules" / ".bin" / "claude"
    npm = shutil.which("npm")
    if npm is None:
        if os.environ.get("CI"):
            pytest.fail("npm is missing: CI runs the real CLI")
        pytest.skip("npm is missing: install Node.js to run the real CLI")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            wanted = [
                npm,
                "install",
                "--no-fund",
                "--no-audit",
                "--ignore-scripts",
                "--prefix",
                str(CACHE),
                f"@anthropic-ai/claude-code@{VERSION}",
            ]
            subprocess.run(wanted, check=True, capture_output=True, env=os.environ | {"HOME": HOME})
            subprocess.run(["node", str(CACHE / "node_modules/@anthropic-ai/claude-code/install.cjs")], check=True, capture_output=True)
    return found
