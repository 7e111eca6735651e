"""What the README shows is what happens: its commands and its Python are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.replay import clone
from tests.runs import ROOT

README = Path(__file__).parents[1] / "README.md"
FAKE = Path(__file__).parent / "fakecli"


def blocks(language: str, page: Path = README) -> list[str]:
    """The code blocks of one language."""
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    assert found
    return found


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A user with a ``claude`` on the PATH that replays a captured run, and a log of another."""
    (tmp_path / "run.log").write_text("starting\n" + (ROOT / "claude" / "json-opus" / "stdout").read_text() + "bye\n")
    case = clone(ROOT / "claude" / "json-tool", tmp_path / "case", "readme")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "spendmeter").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m spendmeter "$@"\n')
    (bin_ / "spendmeter").chmod(0o755)
    budgets = "budgets:\n- {name: developer-day, match: {agent: developer}, period: day, limit_usd: 5, action: block}\n"
    (tmp_path / "budgets.yaml").write_text(budgets)
    return os.environ | {
        "SPENDMETER_BUDGETS": str(tmp_path / "budgets.yaml"), "PATH": f"{bin_}:{FAKE}:{os.environ['PATH']}", "FAKE_CASE": str(case),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }  # fmt: skip


def test_the_readmes_commands_work(env: dict[str, str], tmp_path: Path) -> None:
    """Every ``spendmeter`` line of the README, in order, exits 0; the finish comment has the shape that it shows."""
    lines = [shlex.split(x, comments=True) for block in blocks("sh") for x in block.splitlines() if x.startswith("spendmeter ")]
    assert len(lines) >= 8
    said = {}
    for args in lines:
        done = subprocess.run(args, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (args, done.stderr)
        said[" ".join(args)] = done.stdout
    assert "T-12" in said["spendmeter report --by agent,task"]
    assert re.match(r"✅ \S+ done · [\d.]+k in / \d+ out · \$\d+\.\d\d", said["spendmeter summary --run last"])
    assert "что потрачено" in said["spendmeter summary --task T-12 --lang ru"]


def test_the_readmes_python_works(env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python block runs as it stands and prints what was used."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    prelude = f"import subprocess\nlog_text = open({str(tmp_path / 'run.log')!r}).read()\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + blocks("python")[0]], cwd=tmp_path, capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "1007 111 0.0120796 ()"


def test_the_readmes_links_lead_somewhere() -> None:
    """Every relative link of every document names a file that is there."""
    for page in [README, README.parent / "CONTRIBUTING.md", *(README.parent / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tutorials_commands_work(env: dict[str, str], tmp_path: Path) -> None:
    """Its shell blocks, one after the other with its budgets.yaml beside them, as a newcomer would type them."""
    page = README.parent / "docs" / "tutorial.md"
    (tmp_path / "budgets.yaml").write_text(next(b for b in blocks("yaml", page) if b.startswith("budgets:")))
    script = "set -euo pipefail\n" + "\n".join(blocks("sh", page))
    done = subprocess.run(["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "developer-day" in done.stdout
    rules = (tmp_path / "monitoring" / "spendmeter.yml").read_text()
    assert "developer-day" in rules


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every page is in the navigation, every link and anchor leads somewhere."""
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    root = README.parent
    done = subprocess.run(command, cwd=root, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.strip() == ""
    assert (tmp_path / "site" / "tutorial" / "index.html").exists()
