"""The captured runs under tests/fixtures/runs, with the truth beside each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spendmeter.parsers import read_file
from spendmeter.reconcile.facts import Book, SessionFacts
from spendmeter.reconcile.rule import Foreign, Rule
from spendmeter.records import Observation, Usage, total

ROOT = Path(__file__).parent / "fixtures" / "runs"
FIELDS = ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out")


@dataclass(frozen=True)
class Chain:
    """Runs that share a home, in order: one run, or a session that was resumed and forked."""

    cli: str
    folders: tuple[Path, ...]

    @property
    def name(self) -> str:
        return f"{self.cli}/{self.folders[-1].name}"

    def truth(self, least: bool) -> dict[str, int]:
        """Tokens that the server billed; calls that were cut short only count where *least* is False."""
        out = dict.fromkeys(FIELDS, 0)
        for folder in self.folders:
            for call in json.loads((folder / "truth.json").read_text())["calls"]:
                if call["usage"] and not (least and call.get("note")):
                    for name in FIELDS:
                        out[name] += call["usage"][name]
        return out

    def stdouts(self) -> list[Path]:
        return [f / "stdout" for f in self.folders if (f / "stdout").stat().st_size]

    def transcripts(self) -> list[Path]:
        return [p for f in self.folders for p in sorted((f / "home").rglob("*.jsonl"))]


def chains(cli: str = "claude") -> list[Chain]:
    """Every chain of *cli*; an empty folder fails."""
    done: dict[str, list[Path]] = {}
    for folder in sorted((ROOT / cli).iterdir()):
        fresh = json.loads((folder / "scenario.json").read_text())["fresh_home"]
        alone = fresh and not re.search(r"-1(-|$)", folder.name)
        done.setdefault(folder.name if alone else re.split(r"-\d", folder.name)[0], []).append(folder)
    assert done
    return [Chain(cli, tuple(folders)) for folders in done.values()]


def observe(paths: Iterable[Path]) -> list[Observation]:
    return [o for p in paths for o in read_file(p)[0]]


def kin(book: Book, facts: SessionFacts) -> Foreign:
    """What the other sessions of a small world know, as the ledger would gather it."""
    copied, owners = {}, set()
    for key, other in book.sessions.items():
        for call_id in facts.copies & other.calls.keys():
            copied[call_id] = other.calls[call_id]
            owners.add(key)
    levels = tuple(v for key in sorted(owners) for v in book.sessions[key].levels.values() if v.epoch)
    peers = frozenset(f.total for key, other in book.sessions.items() if other is not facts for f in other.finishes.values())
    return Foreign(copied, levels, peers)


def world_total(book: Book) -> Usage:
    """All usage of a small world."""
    return total(u for facts in book.sessions.values() for u in Rule(facts, kin(book, facts)).cells().values())


def amounts(used: Usage) -> dict[str, int]:
    return {name: getattr(used, name) or 0 for name in FIELDS}
