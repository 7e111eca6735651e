"""Which session files have changed since they were last read. Needs no ledger open: most of the time nothing has."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from stat import S_ISLNK
from typing import Any

from spendmeter.parsers import names, places_of
from spendmeter.parsers.pool import Job, Pool, read_here, workers
from spendmeter.parsers.reading import Source, mark

PARALLEL = 16 << 20  # bytes to read that are worth starting processes for
Known = Mapping[str, tuple[str, str]]  # (mark, digest) by path, of sources that were read to their end


@dataclass
class Result:
    """What an ingest did. ``sources`` were read, ``unchanged`` passed over, ``silent`` held nothing that we know."""

    sources: int = 0
    unchanged: int = 0
    silent: list[str] = field(default_factory=list)
    skips: dict[str, int] = field(default_factory=dict)
    session_ids: set[int] = field(default_factory=set)
    changed: int = 0

    @property
    def sessions(self) -> int:
        """How many sessions the sources told of."""
        return len(self.session_ids)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "sources": self.sources, "unchanged": self.unchanged, "sessions": self.sessions, "sessions_changed": self.changed,
            "without_usage": self.silent, "skips": self.skips,
        }  # fmt: skip


def known_to(ledger: str) -> Known | None:
    """What the ledger at the URL *ledger* remembers of sources, read without opening it as one; None where that cannot be told.

    An SQLite ledger that is not there yet knows of none.
    """
    path = ledger.removeprefix("sqlite:///")
    if path == ledger or not path or "?" in path or path.startswith(":"):
        return None
    if not Path(path).exists():
        return {}
    with contextlib.suppress(sqlite3.Error):
        db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(db):
            return {source: (told, digest) for source, told, digest in db.execute("select path, identity, digest from sources")}
    return None


class Found:
    """The session files of every known CLI that are not as they were when they were last read, and how many are.

    Args:
        home: look under this folder instead of the user's own.
        clis: only these.
    """

    def __init__(self, known: Known, home: Path | None = None, clis: Sequence[str] = ()) -> None:
        self.jobs: list[Job] = []
        self.unchanged = 0
        for cli, path in _session_files(home, clis):
            try:
                full, stat = _real(path)
                is_known = known.get(str(full)) == (mark(full, stat), digest_of(cli))
            except FileNotFoundError:
                continue
            except OSError:
                self.jobs.append(Job(cli, path, 0))  # reading it will say why
                continue
            if is_known:
                self.unchanged += 1
            else:
                self.jobs.append(Job(cli, full, stat.st_size))

    @contextlib.contextmanager
    def read(self) -> Iterator[Iterator[tuple[Job, Source | OSError]]]:
        """Each changed file with what it tells. Where that is much, several processes begin to read at once."""
        readers = workers() if sum(job.size for job in self.jobs) >= PARALLEL else 0
        text = [job for job in self.jobs if readers and job.path.suffix != ".db"]  # databases go no further than where they are read
        rest = [job for job in self.jobs if not readers or job.path.suffix == ".db"]
        with contextlib.closing(Pool(text, readers if text else 0)) as pool:
            yield _both(pool, rest)


def _both(pool: Pool, rest: Sequence[Job]) -> Iterator[tuple[Job, Source | OSError]]:
    yield from pool.sources()
    for job in rest:
        yield job, read_here(job)


def digest_of(cli: str | None, tags: object = None) -> str:
    """Names how a source is read: as of which CLI, with which tags."""
    return repr((cli, tags))


def _session_files(home: Path | None, clis: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for cli in names():
        place = places_of(cli) if not clis or cli in clis else None
        if place:
            for root in place.homes(os.environ, home):
                yield from ((cli, path) for path in place.session_files(root))


def _real(path: Path) -> tuple[Path, os.stat_result]:
    """*path* without links, and its status."""
    full = Path(_real_folder(str(path.parent)), path.name)
    stat = full.lstat()
    if S_ISLNK(stat.st_mode):
        full = Path(os.path.realpath(full))
        stat = full.stat()
    return full, stat


@cache
def _real_folder(path: str) -> str:
    return os.path.realpath(path)
