"""The captured runs under tests/fixtures/runs, with the truth beside each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spendmeter.parsers import read_file
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.facts import SessionFacts
from spendmeter.reconcile.rule import Foreign, Rule
from spendmeter.records import Observation, Usage, total

ROOT = Path(__file__).parent / "fixtures" / "runs"
FIELDS = ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out")
CLIS = ("claude", "codex", "gemini", "qwen", "opencode", "copilot")
FILES_TELL_LESS = {  # what no file holds
    "gemini/otel-http": "the router's call is in the printed stats alone",
    "gemini/otel-session-5-text": "the router's call is in the printed stats and in exports alone",
    "gemini/compress-2-json": "the compression's calls are in the printed stats alone",
    "gemini/json-web-search": "the search's own call is in the printed stats alone",
}
STDOUT_TELLS_LESS = {  # chains, by name: what is printed is a lower bound
    "claude": "kill|text",
    "codex": "kill|nested|subagents",  # a run that fails or is killed prints no usage, none prints that of its subagents
    "gemini": "kill|text|max-turns|stream-json",  # the stream leaves out thoughts and tools, the others print nothing
    "qwen": "text|max-turns",
    "opencode": "subagent|kills-5|undo-4",  # a run in text form, one through the server
    "copilot": "(?!err)",  # no usage is printed
}
STDOUT_TELLS_MORE = {  # nothing printed names a fork's parent
    "codex/resume-4-fork": "a fork's total starts at its parent's",
    "codex/compaction-4": "the same",
    "codex/forks-5-resume-fork": "the same",
    "codex/subagents-5-fork": "the same",
    "qwen/resume-5-resume": "the same",
    "qwen/forked-5-fork": "the same",
}
PARTS_TELL_MORE = {"qwen/resume-5-resume", "qwen/forked-5-fork"}  # a fork's row in usage_record.jsonl names no parent, its chat does


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
                unseen = self.cli == "opencode" and call["kind"] == "side"  # the title's call is recorded nowhere
                if call["usage"] and not unseen and not (least and call.get("note")):
                    for name in FIELDS:
                        out[name] += call["usage"][name]
        return out if self.cli == "claude" else one_input(out)

    def check(self, got: dict[str, int], *, exact: bool = True) -> None:
        """*got* is what was billed; with *exact* False it may be less, never more."""
        got = got if self.cli == "claude" else one_input(got)
        low, high = self.truth(least=True), self.truth(least=False)
        assert all((low[k] if exact else 0) <= got[k] <= high[k] for k in got), (got, low, high)

    def stdouts(self) -> list[Path]:
        return [f / "stdout" for f in self.folders if (f / "stdout").stat().st_size]

    def files(self) -> list[Path]:
        """What the CLI wrote, in its home and in the working folder."""
        found = [p for f in self.folders for part in ("home", "work") for p in sorted((f / part).rglob("*"))]
        return [p for p in found if p.suffix in (".jsonl", ".json", ".db")]

    def transcripts(self) -> list[Path]:
        """Its files of lines."""
        return [p for p in self.files() if p.suffix == ".jsonl"]


def chains(cli: str = "claude") -> list[Chain]:
    """Every chain of *cli*; an empty folder fails."""
    done: dict[str, list[Path]] = {}
    for folder in sorted((ROOT / cli).iterdir()):
        fresh = json.loads((folder / "scenario.json").read_text())["fresh_home"]
        alone = fresh and not re.search(r"-1(-|$)", folder.name)
        done.setdefault(folder.name if alone else re.split(r"-\d", folder.name)[0], []).append(folder)
    assert done
    return [Chain(cli, tuple(folders)) for folders in done.values()]


def all_chains() -> list[Chain]:
    """Every chain of every CLI."""
    return [c for cli in CLIS for c in chains(cli)]


def one_input(used: dict[str, int]) -> dict[str, int]:
    """*used* with uncached input and cache writes as one: only Anthropic's API bills them apart."""
    rest = {k: v for k, v in used.items() if not k.startswith("cache_write")}
    return rest | {"tokens_in": used["tokens_in"] + sum(v for k, v in used.items() if k.startswith("cache_write"))}


def observe(paths: Iterable[Path]) -> list[Observation]:
    return [o for p in paths for o in read_file(p)[0]]


def kin(book: Book, facts: SessionFacts) -> Foreign:
    """What the other sessions of a small world know."""
    return book.gather(facts)[1]


def world_total(book: Book) -> Usage:
    """All usage of a small world."""
    return total(u for facts in book.sessions.values() for u in Rule(*book.gather(facts)).cells().values())


def amounts(used: Usage) -> dict[str, int]:
    return {name: getattr(used, name) or 0 for name in FIELDS}
