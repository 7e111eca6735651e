"""What comes from npm: the real Claude Code, and axe, which judges pages; each installed once into .cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CLAUDE, AXE = "2.1.330", "4.10.3"
CACHE = Path(__file__).parents[2] / ".cache"
HOME = os.environ.get("HOME", "")  # as it was at import: tests get a home of their own


def installed(package: str, version: str, folder: str, after: str = "") -> Path:
    """node_modules with *package*, installed under .cache by one process; *after* is a script to run then."""
    npm = shutil.which("npm")
    if npm is None:
        if os.environ.get("CI"):
            pytest.fail("npm is missing: CI runs the real parts")
        pytest.skip("npm is missing: install Node.js to run the real parts")
    place = CACHE / folder / version
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            flags = ["--no-fund", "--no-audit", "--ignore-scripts", "--prefix", str(place)]
            env = os.environ | {"HOME": HOME}
            subprocess.run([npm, "install", *flags, f"{package}@{version}"], check=True, capture_output=True, env=env)
            if after:
                subprocess.run(["node", str(place / "node_modules" / package / after)], check=True, capture_output=True)
            (place / "done").touch()
    return place / "node_modules"


@pytest.fixture(scope="session")
def claude() -> Path:
    """The CLI."""
    return installed("@anthropic-ai/claude-code", CLAUDE, "claude-code", "install.cjs") / ".bin" / "claude"


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core: a script that defines ``axe`` in the page it is run in."""
    return (installed("axe-core", AXE, "axe") / "axe-core" / "axe.min.js").read_text()
