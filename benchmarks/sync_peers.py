"""What ``sync.py`` times: Spendmeter, other meters as they are published, and floors; how each is called, and what it answers.

The peers are installed into .cache/bench-peers, in the versions below. Every program gets a home of its own, so that none sees what is
on this machine, and is pointed at the tree by its own option or variable.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".cache" / "bench-peers"
NPM = ("ccusage@20.0.24", "@ccusage/ccusage-linux-x64@20.0.24", "@tokscale/cli-linux-x64-gnu@4.17.0")
PYPI = "claude-usage-exporter==0.1.2"
FLOOR = "msgspec decodes every line, 2 processes"
COLD, WARM, GROWN = "cold", "nothing new", "one run more"

Answer = dict[str, int | None]  # tokens_in, cache_read, cache_write, tokens_out, cost_nusd; None = it does not tell


@dataclass(frozen=True)
class Program:
    """One line of the table, or one for each of its *steps*, which are taken in this order.

    ``read`` makes an answer of what it printed; None where it meters nothing. What it remembers is all in its ``home``.
    """

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    home: Path
    steps: tuple[str, ...] = ("",)
    read: Callable[[bytes], Answer] | None = None
    asks: tuple[str, ...] = ()  # prints the answer, where argv does not

    def forget(self) -> None:
        """Makes its home empty."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)


def install() -> None:
    """Brings the peers, unless they are there in these versions."""
    stamp, wanted = PEERS / "installed", "\n".join((*NPM, PYPI))
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if not shutil.which("npm"):
        raise SystemExit("sync.py: npm is not there, it brings ccusage and tokscale; install it, or run: make parts")
    shutil.rmtree(PEERS, ignore_errors=True)
    PEERS.mkdir(parents=True)
    for argv in (
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(PEERS), *NPM],
        [sys.executable, "-m", "venv", str(PEERS / "venv")],
        [str(PEERS / "venv" / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", PYPI],
    ):
        subprocess.run(argv, check=True, stdout=sys.stderr)
    stamp.write_text(wanted)


def programs(tree: Path, scratch: Path) -> list[Program]:
    """All that is timed on *tree*, floors first."""
    return [*_floors(tree, scratch), *_ours(tree, scratch), *_ccusage(tree, scratch), _tokscale(tree, scratch), _exporter(tree, scratch)]


def _env(home: Path, **more: str) -> dict[str, str]:
    kept = {k: os.environ[k] for k in ("PATH", "PYTHONPATH") if k in os.environ}
    return kept | {"HOME": str(home), "TZ": "UTC", "LANG": "C.UTF-8", **more}


def _floors(tree: Path, scratch: Path) -> list[Program]:
    home, floor = scratch / "floor", (sys.executable, str(HERE / "sync_floor.py"))
    cat = ("sh", "-c", f"find '{tree}' -name '*.jsonl' -exec cat {{}} + >/dev/null")
    return [
        Program("`cat >/dev/null`", cat, _env(home), home),
        Program("msgspec decodes every line, 1 process", (*floor, "1", str(tree)), _env(home), home),
        Program(FLOOR, (*floor, "2", str(tree)), _env(home), home),
    ]


def _ours(tree: Path, scratch: Path) -> list[Program]:
    home, command = scratch / "spendmeter", (sys.executable, "-m", "spendmeter")
    env = _env(home, SPENDMETER_LEDGER=f"sqlite:///{home}/ledger.db")
    report = (*command, "report", "--by", "model", "--json")
    sync = (*command, "sync", "--home", str(tree), "--json")
    return [
        Program("**`spendmeter sync`**", sync, env, home, (COLD, WARM, GROWN), _spendmeter_said, report),
        Program("`spendmeter report`", report, env, home),
    ]


def _spendmeter_said(out: bytes) -> Answer:
    total = json.loads(out)["total"]
    tokens = {k: total[k] for k in ("tokens_in", "cache_read", "cache_write", "tokens_out")}
    return tokens | {"cost_nusd": _nusd(total["cost_usd"])}


def _ccusage(tree: Path, scratch: Path) -> list[Program]:
    """As npm starts it, and without the script of npm's that starts it."""
    home, told = scratch / "ccusage", ("daily", "--json", "--offline")
    env = _env(home, CLAUDE_CONFIG_DIR=str(tree / ".claude"))
    modules = PEERS / "node_modules"
    name = f"ccusage {NPM[0].rpartition('@')[2]}"
    return [
        Program(name, (str(modules / ".bin" / "ccusage"), *told), env, home, read=_ccusage_said),
        Program(f"{name}, its binary", (str(modules / "@ccusage/ccusage-linux-x64/bin/ccusage"), *told), env, home, read=_ccusage_said),
    ]


def _ccusage_said(out: bytes) -> Answer:
    total = json.loads(out, parse_float=Decimal)["totals"]
    return {
        "tokens_in": total["inputTokens"], "cache_read": total["cacheReadTokens"], "cache_write": total["cacheCreationTokens"],
        "tokens_out": total["outputTokens"], "cost_nusd": _nusd(total["totalCost"]),
    }  # fmt: skip


def _tokscale(tree: Path, scratch: Path) -> Program:
    """Timed without its look-up of prices in the network, which it makes on every start; asked for its answer with it."""
    home, command = scratch / "tokscale", str(PEERS / "node_modules" / "@tokscale/cli-linux-x64-gnu/bin/tokscale")
    argv = (command, "models", "--json", "--no-spinner", "--client", "claude", "--home", str(tree))
    env, asks = _env(home, TOKSCALE_PRICING_CACHE_ONLY="1"), ("env", "--unset=TOKSCALE_PRICING_CACHE_ONLY", *argv)
    return Program(f"tokscale {NPM[-1].rpartition('@')[2]}", argv, env, home, (COLD, WARM, GROWN), _tokscale_said, asks)


def _tokscale_said(out: bytes) -> Answer:
    total = json.loads(out, parse_float=Decimal)
    names = {"tokens_in": "totalInput", "cache_read": "totalCacheRead", "cache_write": "totalCacheWrite", "tokens_out": "totalOutput"}
    return {k: total[v] for k, v in names.items()} | {"cost_nusd": _nusd(total["totalCost"])}


def _exporter(tree: Path, scratch: Path) -> Program:
    home, name = scratch / "exporter", PYPI.replace("==", " ")
    argv = (str(PEERS / "venv" / "bin" / "claude-usage-exporter"), "--projects-dir", str(tree / ".claude" / "projects"))
    argv = (*argv, "--state-file", str(home / "state.json"), "--sink", "stdout", "--format", "json")
    return Program(name, argv, _env(home), home, (COLD, WARM, GROWN), _exporter_said)


def _exporter_said(out: bytes) -> Answer:
    names = {"input": "tokens_in", "cache_read": "cache_read", "cache_creation": "cache_write", "output": "tokens_out"}
    answer: Answer = {**dict.fromkeys(names.values(), 0), "cost_nusd": None}
    for series in json.loads(out)["series"]:
        kind = names[series["labels"]["token_type"]]
        answer[kind] = (answer[kind] or 0) + int(series["value"])
    return answer


def truth(told: dict[str, Any]) -> Answer:
    """The truth that stands beside a tree, as an answer."""
    total = told["total"]
    same = {k: total[k] for k in ("tokens_in", "cache_read", "tokens_out", "cost_nusd")}
    return same | {"cache_write": total["cache_write_5m"] + total["cache_write_1h"]}


def _nusd(dollars: Any) -> int | None:
    return None if dollars is None else int((Decimal(str(dollars)) * 1_000_000_000).to_integral_value())
