"""What is shipped to deploy with is what its own tools accept, and the action does what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runs import ROOT as RUNS

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / ".cache" / "tools"
DEPLOY = ROOT / "deploy"


def tool(name: str) -> str:
    """A tool that ``make parts`` builds or installs; missing, it fails in CI and skips by name elsewhere."""
    found = str(TOOLS / name) if (TOOLS / name).exists() else shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: CI runs the real part")
        pytest.skip(f"{name} is missing: make parts brings it")
    return found


def ran(*args: str, **kw: Any) -> str:
    done = subprocess.run(args, capture_output=True, text=True, check=False, **kw)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """compose.yaml as the Compose specification's own loader has it."""
    env = {"HOME": "/home/someone", "PATH": os.environ["PATH"]}
    return dict(json.loads(ran(tool("compose-spec"), "-format", "json", "compose.yaml", cwd=ROOT, env=env)))


def test_the_stack_opens_loopback_ports_only(stack: dict[str, Any]) -> None:
    """Nobody else on the network reaches it."""
    ports = [p for s in stack["services"].values() for p in s.get("ports", [])]
    assert {p["published"] for p in ports} == {"9464", "3000", "9090", "9093"}
    assert {p["host_ip"] for p in ports} == {"127.0.0.1"}


def test_the_stack_mounts_what_is_there(stack: dict[str, Any]) -> None:
    """Every bound file or folder of the repository exists; images are pinned to a version."""
    bound = [Path(v["source"]) for s in stack["services"].values() for v in s.get("volumes", []) if v["type"] == "bind"]
    ours = [p for p in bound if p.is_relative_to(ROOT)]
    assert len(ours) >= 6
    assert [p for p in ours if not p.exists()] == []
    images = [s["image"] for s in stack["services"].values() if "image" in s]
    assert [i for i in images if not re.search(r":v?\d+\.\d+", i)] == []


def test_the_stack_has_no_password(stack: dict[str, Any]) -> None:
    """Grafana has no account at all, so none with a known password."""
    env = stack["services"]["grafana"]["environment"]
    assert env["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert not any("PASSWORD" in name for s in stack["services"].values() for name in s.get("environment", {}))


def test_what_can_say_so_tells_its_health(stack: dict[str, Any]) -> None:
    """All but the network's holder and the two images without a shell."""
    silent = {name for name, s in stack["services"].items() if "healthcheck" not in s}
    assert silent == {"network", "collector", "tempo"}


def test_the_kubernetes_manifests_are_valid(tmp_path: Path) -> None:
    """kustomize builds them, and each object is what its schema says, with no field too many."""
    built = tmp_path / "built.yaml"
    built.write_text(ran(tool("kustomize"), "build", str(DEPLOY / "kubernetes")))
    kinds = {d["kind"] for d in yaml.safe_load_all(built.read_text())}
    assert kinds == {"ConfigMap", "Deployment", "Service"}
    ran(sys.executable, "-W", "ignore", "-m", "kubernetes_validate", "--strict", "--quiet", str(built))


def test_the_settings_for_kubernetes_are_understood() -> None:
    """The daemon in the pod can read its configuration and its budgets."""
    env = {"PATH": os.environ["PATH"], "SPENDMETER_CONFIG": str(DEPLOY / "kubernetes" / "spendmeter.toml"), "HOME": "/nonexistent",
           "SPENDMETER_LEDGER": "sqlite://"}  # fmt: skip
    assert "cluster-month" in ran(sys.executable, "-m", "spendmeter", "budget", "list", env=env)


def test_the_systemd_units_are_valid(tmp_path: Path) -> None:
    """systemd's own check finds nothing to say but that the program is not installed here."""
    units = [str(p) for p in (DEPLOY / "systemd").iterdir()]
    env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run([tool("systemd-analyze"), "verify", "--user", *units], capture_output=True, text=True, env=env, check=False)
    said = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert [line for line in said if "spendmeter" in line] == []


@pytest.fixture
def runner_env(tmp_path: Path) -> dict[str, str]:
    """What a hosted runner gives to steps, with a ``claude`` that replays a captured run and an installed spendmeter."""
    venv = tmp_path / "spendmeter" / "bin"
    venv.mkdir(parents=True)
    (venv / "spendmeter").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m spendmeter "$@"\n')
    (venv / "spendmeter").chmod(0o755)
    fake = Path(__file__).parent / "fakecli"
    return os.environ | {
        "RUNNER_TEMP": str(tmp_path), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_WORKFLOW": "build", "GITHUB_JOB": "fix", "PATH": f"{fake}:{os.environ['PATH']}",
        "FAKE_CASE": str(RUNS / "claude" / "json-single"), "SPENDMETER_LEDGER": f"sqlite:///{tmp_path / 'spendmeter.db'}",
    }  # fmt: skip


def steps(env: dict[str, str], cwd: Path, **inputs: str) -> list[int]:
    """Runs the action's steps after the install as a runner does; their exit codes."""
    action = yaml.safe_load((DEPLOY / "github-action" / "action.yml").read_text())
    given = {name: inputs.get(name, "") for name in action["inputs"]} | {"agent": inputs.get("agent", "ci")}
    codes: list[int] = []
    for step in action["runs"]["steps"][1:]:
        if any(codes) and step.get("if") != "always()":
            continue
        told = {k: v for k, v in step["env"].items() if "SPENDMETER_LEDGER" not in k}
        filled = {k: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda m: given[m[1]], v) for k, v in told.items()}
        codes.append(subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=env | filled, cwd=cwd, check=False).returncode)
    return codes


def test_the_action_meters_a_step_and_writes_the_summary(runner_env: dict[str, str], tmp_path: Path) -> None:
    """The command's own exit code, a table in the job summary, tokens and cost as outputs."""
    assert steps(runner_env, tmp_path, run="claude -p x --output-format json", task="fix/42") == [0, 0]
    summary = (tmp_path / "summary.md").read_text()
    assert "fix/42" in summary
    assert "| Ci |" in summary
    outputs = dict(line.split("=") for line in (tmp_path / "output").read_text().splitlines())
    assert float(outputs["cost_usd"]) > 0
    assert int(outputs["tokens_in"]) > 0


def test_a_step_that_fails_fails_and_is_accounted_for(runner_env: dict[str, str], tmp_path: Path) -> None:
    """The code is the command's; the summary says that there was nothing."""
    assert steps(runner_env, tmp_path, run="echo no; exit 7", task="t") == [7, 0]
    assert (tmp_path / "summary.md").exists()
