"""One file read to its end, and what tells whether it is still as it was."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spendmeter.parsers import CHUNK, Stream, is_database, places, read_file
from spendmeter.records import Observation

GROWING_S = 60  # a file written so lately may have its last line still to come


@dataclass(slots=True)
class Source:
    """What a file told. ``mark`` names its content as it was when reading began, ``seen_ms`` is when it was last written."""

    mark: str
    seen_ms: int
    observations: list[Observation]
    stream: Stream | None = None


def mark(path: Path, stat: os.stat_result) -> str:
    """Names the content of the file at *path*, whose *stat* is given: another content, another mark."""
    beside = [p.stat() for p in places.companions(path)] if path.suffix == ".db" else []
    told = "".join(f":{s.st_size}:{s.st_mtime_ns}" for s in beside)
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}{told}"


def read_source(path: Path, cli: str | None) -> Source:
    """Reads the file at *path*, a database too, in bounded memory.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as handle:
        stat = os.fstat(handle.fileno())
        name, seen_ms = mark(path, stat), stat.st_mtime_ns // 1_000_000
        if is_database(handle.read(16)):
            return Source(name, seen_ms, *read_file(path, cli))
        handle.seek(0)
        stream = Stream(cli, str(path), places.session_of(path, cli))
        while data := handle.read(CHUNK):
            stream.feed(data)
    return Source(name, seen_ms, stream.finish(), stream)
