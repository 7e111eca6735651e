"""A file of lines that grows at its end, read on from where it was left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from spendmeter.parsers import CHUNK, Stream
from spendmeter.parsers.places import session_of
from spendmeter.parsers.pool import Job, read_here
from spendmeter.parsers.reading import GROWING_S, Source, mark

KEPT = 64  # files that are read on from where they were left; the others are read whole
SEAL = 256  # bytes before the place where reading stopped: they are the same as long as the file has only grown


class Growing:
    """Reads what has been added since the last time; a file that is not the same any more, or is shorter, from its start.

    Attributes:
        stream: what has been read has told.
        at: how many bytes that was.
    """

    def __init__(self, path: Path, cli: str | None, name: str) -> None:
        """*name*: what observations call the source."""
        self.path, self._cli, self._name = path, cli, name
        self._begin((0, 0))

    def _begin(self, identity: tuple[int, int]) -> None:
        self.stream = Stream(self._cli, self._name, session_of(self.path, self._cli))
        self.at, self._identity, self._seal = 0, identity, b""

    @property
    def is_torn(self) -> bool:
        """Whether the last line that was read has no end yet."""
        return bool(self._seal) and not self._seal.endswith(b"\n")

    @contextmanager
    def opened(self) -> Iterator[tuple[BinaryIO, os.stat_result]]:
        """The file where reading goes on, and how it is.

        Raises:
            OSError: it cannot be opened or read.
        """
        with self.path.open("rb") as handle:
            stat = os.fstat(handle.fileno())
            if self._identity != (stat.st_dev, stat.st_ino) or stat.st_size < self.at or not self._has_seal(handle):
                self._begin((stat.st_dev, stat.st_ino))
            handle.seek(self.at)
            yield handle, stat

    def _has_seal(self, handle: BinaryIO) -> bool:
        handle.seek(self.at - len(self._seal))
        return handle.read(len(self._seal)) == self._seal

    def take(self, handle: BinaryIO, most: int) -> bool:
        """Reads on, *most* bytes at most; whether there were any."""
        data = handle.read(most)
        self.stream.feed(data)
        self.at += len(data)
        self._seal = (self._seal + data[-SEAL:])[-SEAL:]
        return bool(data)

    def so_far(self, stat: os.stat_result) -> Source:
        """What has been read of the file that was like *stat* has told; a half-written last line leaves it without a mark."""
        name = "" if self.is_torn else mark(self.path, stat)
        return Source(name, stat.st_mtime_ns // 1_000_000, [*self.stream.so_far(), *self.stream.unused()], self.stream)


class Tails:
    """Reads files that grow, again and again, each from where it was left; of the ones read last, ``KEPT`` are kept in mind."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, Path], Growing] = {}
        self._left: dict[Job, float] = {}  # half-written, or not to be read, and when

    def due(self, jobs: Iterable[Job]) -> list[Job]:
        """*jobs* without those that there is no use in reading again so soon."""
        now, every = time.monotonic(), list(jobs)
        self._left = {job: at for job in every if (at := self._left.get(job)) is not None and now - at < GROWING_S}
        return [job for job in every if job not in self._left]

    def read(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Source | OSError]]:
        """Each file with all that it has told so far. A half-written last line is left for the next time."""
        for job in jobs:
            source = self._read(job) if job.path.suffix == ".jsonl" else read_here(job)
            if isinstance(source, OSError) or not source.mark:
                self._left[job] = time.monotonic()
            yield job, source

    def forget(self) -> None:
        """From now on files are read from their start again: what they told may not have been committed."""
        self._files.clear()
        self._left.clear()

    def _read(self, job: Job) -> Source | OSError:
        key = job.cli, job.path
        file = self._files.pop(key, None) or Growing(job.path, job.cli, str(job.path))
        try:
            with file.opened() as (handle, stat):
                while file.take(handle, CHUNK):
                    pass
        except OSError as e:
            return e
        if file.is_torn and time.time() - stat.st_mtime > GROWING_S:
            return read_here(job)  # no more will come of it: its end is told
        self._files[key] = file
        while len(self._files) > KEPT:
            del self._files[next(iter(self._files))]
        return file.so_far(stat)
