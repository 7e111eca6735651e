"""Makes a tree of Claude Code transcripts and writes the truth about it beside: ``python benchmarks/sync_tree.py --mb 50 OUT``.

OUT is then a home: its transcripts are in OUT/.claude/projects, what they add up to in OUT/truth.json, and one run more, to be appended
to one of them, in OUT/growth.json. The same seed and size give the same bytes. The tree has what real homes have and meters stumble on:
one row per content block with repeated and growing usage, subagents' files, resumed sessions with cumulative readings, forks that copy
rows with and without their owner's name, kills with and without a half-written last line, files that are there twice, answers without a
request id whose message ids other sessions have too, cache writes of both lifetimes, long contexts, web searches, a compaction that no
row tells of, a model without a price, error notes, and much noise.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sync_rows import Row, Source, summary
from sync_session import KINDS, Session, family

from spendmeter.prices import PriceTable
from spendmeter.records import NOTHING, Usage

SEED = 20261121
BEGIN_MS, SPAN_MS = 1_788_220_800_000, 79 * 86_400_000  # from 2026-09-01
FULL_MB = 25  # smaller trees get shorter sessions, so that they too have every kind


@dataclass
class Truth:
    """What was really used: by model, of calls in rows; a hidden call adds tokens and dollars to its session, and stands in no row."""

    used: dict[str, Usage] = field(default_factory=lambda: defaultdict(lambda: NOTHING))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    sessions: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    hidden: int = 0

    def add(self, session: str, model: str, used: Usage, *, hidden: bool = False) -> None:
        """Counts one call; its ``cost_nusd`` is list price, None where there is none."""
        self.used[model] = self.used[model].plus(used)
        self.calls[model] += not hidden
        self.hidden += hidden
        self.sessions[model].add(session)

    def as_dict(self) -> dict[str, Any]:
        """The totals and each model's."""
        every = NOTHING
        for used in self.used.values():
            every = every.plus(used)
        whole = _counts(every, sum(self.calls.values()), len(set().union(*self.sessions.values())))
        models = {m: _counts(self.used[m], self.calls[m], len(self.sessions[m])) for m in sorted(self.used)}
        return {"total": whole | {"hidden_calls": self.hidden}, "models": models}


def _counts(used: Usage, calls: int, sessions: int) -> dict[str, int | None]:
    names = ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out", "web_searches", "cost_nusd")
    return {n: getattr(used, n) for n in names} | {"calls": calls, "sessions": sessions}


def _text(whole: list[Row]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) + "\n" for r in whole)


def _half(row: Row | None) -> str:
    whole = json.dumps(row) if row else ""
    return whole[: len(whole) // 2]


class World:
    """The home that is being made."""

    def __init__(self, out: Path, mb: float, seed: int) -> None:
        self.out, self.target, self.scale = out, int(mb * 1e6), min(1.0, mb / FULL_MB)
        self.source, self.prices, self.truth = Source(seed), PriceTable.load(), Truth()
        self.luck = self.source.luck
        self.bytes = self.lines = self.files = 0
        self._torn = False

    def build(self) -> dict[str, Any]:
        """Writes families of sessions until the tree is large enough, then the truth."""
        kinds = self._kinds()
        families, grows = 0, None
        while self.bytes < self.target or families < len(KINDS):
            session = family(self, next(kinds), BEGIN_MS + self.luck.randrange(SPAN_MS))
            grows = grows or (session if session.kind == "plain" else None)
            families += 1
        self._noise()
        self._growth(grows)
        told = {"files": self.files, "lines": self.lines, "bytes": self.bytes} | self.truth.as_dict()
        (self.out / "truth.json").write_text(json.dumps(told, indent=1) + "\n")
        return told

    def _kinds(self) -> Iterator[str]:
        """Every kind in its share, in a new order each time round."""
        while True:
            yield from self.luck.sample(KINDS, len(KINDS))

    def _noise(self) -> None:
        folder = self.folder("/home/dev/empty")
        self.write(folder / f"{self.source.uuid()}.jsonl", [], BEGIN_MS)
        self.write(folder / f"{self.source.uuid()}.jsonl", [summary(self.source) for _ in range(3)], BEGIN_MS)

    def _growth(self, session: Session | None) -> None:
        """What *session* will have when somebody resumes it: a run that is still under way."""
        assert session, "KINDS has plain ones"
        kept, self.truth = self.truth, Truth()
        known = len(session.main.rows)
        session.helpers = 0.0
        session.run(3, killed=True)
        path, text = session.path, _text(session.main.rows[known:])
        told = {"file": str(path.relative_to(self.out)), "size": path.stat().st_size, "text": text} | self.truth.as_dict()
        (self.out / "growth.json").write_text(json.dumps(told, indent=1) + "\n")
        self.truth = kept

    def folder(self, cwd: str) -> Path:
        """Where the CLI keeps the transcripts of *cwd*."""
        return self.out / ".claude" / "projects" / cwd.replace("/", "-")

    def write(self, path: Path, whole: list[Row], last_ms: int, torn: Row | None = None) -> None:
        """Writes one transcript, as old as its last row."""
        data = (_text(whole) + _half(torn)).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (last_ms / 1000, last_ms / 1000))
        self.bytes, self.lines, self.files = self.bytes + len(data), self.lines + len(whole), self.files + 1

    def tears(self) -> bool:
        """Whether the kill that asks is the one that tears a line: the first."""
        first, self._torn = not self._torn, True
        return first

    def turns(self, middle: float) -> int:
        """How long a conversation goes, in calls: mostly short, now and then very long."""
        return max(2, int(self.luck.lognormvariate(0, 0.8) * middle * self.scale))


def main() -> None:
    """Builds a tree and prints how large it came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=float, default=50)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if (args.out / ".claude").exists():
        parser.error(f"{args.out} is a home already; name a new folder")
    told = World(args.out, args.mb, args.seed).build()
    print(f"{args.out}: {told['bytes'] / 1e6:.1f} MB, {told['files']:,} files, {told['lines']:,} lines, {told['total']['calls']:,} calls")


if __name__ == "__main__":
    main()
