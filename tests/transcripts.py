"""Captured transcripts, to be written piece by piece into a home."""

from __future__ import annotations

from pathlib import Path

from tests.runs import Chain, chains

WITH_SUBAGENTS = [c for c in chains() if any("subagents" in p.parts for p in c.transcripts())]
WIDE = '{"type":"progress","text":"Größe 数字 🧾"}\n'.encode()  # to be torn within a character


def lay(home: Path, chain: Chain) -> dict[Path, bytes]:
    """What the chain's last run left, by where it is to be written under *home*; a line of other alphabets among the rest."""
    source = chain.folders[-1] / "home"
    found = {home / p.relative_to(source): p.read_bytes() for p in sorted(source.rglob("*")) if p.is_file()}
    return {path: data.replace(b"\n", b"\n" + WIDE, 1) for path, data in found.items() if path.suffix == ".jsonl"}


def named(name: str) -> Chain:
    return next(c for c in chains(name.partition("/")[0]) if c.name == name)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
