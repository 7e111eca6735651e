"""The transcript tree of the benchmark: its truth is what the ledger says of it, however it came in."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spendmeter import ingest
from spendmeter.ledger import Ledger, query
from spendmeter.ledger.verify import verify

BUILDER = Path(__file__).parents[1] / "benchmarks" / "sync_tree.py"
FIELDS = ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out", "web_searches", "cost_nusd", "calls")
TOLD = ("truth.json", "growth.json")


def build(out: Path) -> Path:
    """A tree of 2 MB, made by the command that the benchmark uses."""
    subprocess.run([sys.executable, str(BUILDER), "--mb", "2", str(out)], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tree for all; who changes it takes a copy."""
    return build(tmp_path_factory.mktemp("tree"))


def truth(home: Path, name: str = "truth.json") -> dict[str, dict[str, Any]]:
    """What really was used, by model; "total" is of all."""
    told = json.loads((home / name).read_text())
    return {model: {f: counts[f] for f in FIELDS} for model, counts in {**told["models"], "total": told["total"]}.items()}


def said(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """The same, as the ledger reports it."""
    found = query.report(ledger, ["model"])
    every = {str(r.keys[0]): r.amounts for r in found.rows} | {"total": found.total}
    return {model: {f: getattr(amounts, f) for f in FIELDS} for model, amounts in every.items()}


def plus(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Both, added up; what only one has stays."""
    return {m: {f: v if m not in b else v + b[m][f] for f, v in counts.items()} for m, counts in a.items()}


def test_the_report_equals_the_trees_truth(home: Path, both: Ledger) -> None:
    """Every token, dollar, call and session of the tree, by model; what has no price stays unknown."""
    result = ingest.sync(both, home=home)
    assert truth(home) == said(both)
    assert truth(home)["house-coder-7b"]["cost_nusd"] is None
    sessions = json.loads((home / "truth.json").read_text())["total"]["sessions"]
    assert sessions == len(query.report(both, ["session"]).rows)
    assert {"cut short": 1} == result.skips
    assert [] == verify(both)


def test_a_second_sync_changes_nothing(home: Path, both: Ledger) -> None:
    """Files as they were are passed over."""
    first = ingest.sync(both, home=home)
    again = ingest.sync(both, home=home)
    assert (0, first.sources, 0) == (again.sources, again.unchanged, again.changed)
    assert truth(home) == said(both)


def test_files_may_arrive_in_reverse_order(home: Path, both: Ledger, tmp_path: Path) -> None:
    """Forks before those that they were forked from, subagents before their sessions, one sync for each file."""
    late = tmp_path / "late"
    for path in sorted(home.rglob("*.jsonl"), reverse=True):
        to = late / path.relative_to(home)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to)
        ingest.sync(both, home=late)
    assert truth(home) == said(both)


def test_a_resumed_session_adds_its_new_run_alone(home: Path, both: Ledger, tmp_path: Path) -> None:
    """The run that the benchmark appends, cut within a line and then whole."""
    grown = shutil.copytree(home, tmp_path / "grown")
    more = json.loads((grown / "growth.json").read_text())
    text = more["text"].encode()
    ingest.sync(both, home=grown)
    for piece in (text[: len(text) // 2], text[len(text) // 2 :]):
        with (grown / more["file"]).open("ab") as handle:
            handle.write(piece)
        ingest.sync(both, home=grown)
    assert plus(truth(home), truth(home, "growth.json")) == said(both)


def test_the_same_seed_gives_the_same_tree(home: Path, tmp_path: Path) -> None:
    """Names, bytes and times; else figures of two runs could not be compared."""

    def marks(tree: Path) -> dict[str, tuple[str, int]]:
        return {str(p.relative_to(tree)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in tree.rglob("*.jsonl")}

    again = build(tmp_path / "again")
    assert marks(home) == marks(again)
    assert [(home / n).read_bytes() for n in TOLD] == [(again / n).read_bytes() for n in TOLD]
