"""Many files read by several processes at once; what they tell comes back in the order in which it is ready.

python -P -m spendmeter.parsers.pool   # one reader: a job per line on standard input, one frame each on standard output
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from spendmeter.parsers.reading import Source, read_source
from spendmeter.records import Alias, Base, Call, Context, Finish, Level, Moment, Observation, Part, Skip

AT_ONCE = 4 << 20  # bytes of files that a reader is given at a time
AHEAD = 4  # questions that wait for a reader: more, and both sides could wait for each other, their pipes full
WAITING = 512  # frames that wait for us; a reader that is ahead of us by more has to wait too
_LENGTH = 4


class Job(NamedTuple):
    """A file to read."""

    cli: str
    path: Path
    size: int


class _Told(msgspec.Struct, array_like=True):
    """What one file told, as it goes from process to process; *error* where it could not be read."""

    mark: str = ""
    seen_ms: int = 0
    error: int | None = None
    calls: list[Call] = []
    levels: list[Level] = []
    parts: list[Part] = []
    bases: list[Base] = []
    aliases: list[Alias] = []
    moments: list[Moment] = []
    finishes: list[Finish] = []
    contexts: list[Context] = []
    skips: list[Skip] = []

    def source(self) -> Source:
        """The same as its reader had it."""
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        every: list[Observation] = [
            *self.aliases, *self.calls, *self.levels, *self.parts, *self.bases, *self.moments, *self.finishes, *self.contexts, *self.skips
        ]  # fmt: skip
        return Source(self.mark, self.seen_ms, every)


_KINDS = {
    Call: "calls", Level: "levels", Part: "parts", Base: "bases", Alias: "aliases", Moment: "moments", Finish: "finishes",
    Context: "contexts", Skip: "skips",
}  # fmt: skip
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Told).decode


def workers() -> int:
    """How many readers are of use here: one for each processor that we may run on, eight at most; 0 where one would be alone."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(free, 8) if free > 1 and sys.executable else 0


class Pool:
    """Reads the files of *jobs* by *readers* processes, from now on until it is closed.

    Memory is bounded: readers wait while ``WAITING`` files wait for ``sources``.
    """

    def __init__(self, jobs: Sequence[Job], readers: int) -> None:
        self._left = deque(jobs)
        self._lock = threading.Lock()
        self._ready: queue.Queue[tuple[Job, bytes | None] | None] = queue.Queue(WAITING)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self._readers = [threading.Thread(target=self._attend, daemon=True) for _ in range(readers)]
        for thread in self._readers:
            thread.start()

    def sources(self) -> Iterator[tuple[Job, Source | OSError]]:
        """What the files tell, each once, also where a reader has died."""
        left = len(self._readers)
        while left:
            done = self._ready.get()
            if done is None:
                left -= 1
                continue
            job, frame = done
            yield job, _opened(frame) if frame is not None else read_here(job)

    def close(self) -> None:
        """Lets the readers go, whatever they are doing."""
        self._closed = True
        with self._lock:
            for process in self._processes:
                process.kill()
        while any(thread.is_alive() for thread in self._readers):
            with contextlib.suppress(queue.Empty):  # one may wait to be rid of what it has
                self._ready.get(timeout=0.01)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()

    def _chunk(self) -> list[Job]:
        """The next few jobs; neighbours stay together, for they are mostly of one session."""
        with self._lock:
            out, size = [], 0
            while self._left and not self._closed and size < AT_ONCE:
                out.append(self._left.popleft())
                size += out[-1].size
            return out

    def _attend(self) -> None:
        """Serves one reader until nothing is left; what it does not answer is left to the caller."""
        process = self._start()
        while jobs := self._chunk():
            for job, frame in _asked(process, jobs):
                self._ready.put((job, frame))
        if process and process.stdin:
            with contextlib.suppress(OSError):
                process.stdin.close()
        self._ready.put(None)

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock, contextlib.suppress(OSError):
            if not self._closed:
                command, pipe = [sys.executable, "-P", "-m", __name__], subprocess.PIPE
                self._processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL))
                return self._processes[-1]
        return None


def _asked(process: subprocess.Popen[bytes] | None, jobs: Sequence[Job]) -> Iterator[tuple[Job, bytes | None]]:
    """Each job with the frame that answers it, None where none comes."""
    if process is None or process.stdin is None or process.stdout is None:
        yield from ((job, None) for job in jobs)
        return
    ahead = 0
    for n, job in enumerate(jobs):
        with contextlib.suppress(OSError, ValueError):  # it has died: what it leaves unanswered is told apart below
            for asked in jobs[ahead : n + AHEAD]:
                process.stdin.write(json.dumps([asked.cli, str(asked.path)]).encode() + b"\n")
            process.stdin.flush()
        ahead = n + AHEAD
        yield job, _frame(process.stdout)


def _frame(stream: IO[bytes]) -> bytes | None:
    head = stream.read(_LENGTH)
    size = int.from_bytes(head, "big")
    body = stream.read(size) if len(head) == _LENGTH else b""
    return body if len(head) == _LENGTH and len(body) == size else None


def _opened(frame: bytes) -> Source | OSError:
    try:
        return _decode(frame).source()
    except OSError as e:
        return e


def read_here(job: Job) -> Source | OSError:
    """What the file of *job* tells, read by this process."""
    try:
        return read_source(job.path, job.cli)
    except OSError as e:
        return e


def _packed(cli: str, path: str) -> bytes:
    try:
        source = read_source(Path(path), cli)
    except OSError as e:
        return _encode(_Told(error=e.errno or 0))
    told = _Told(source.mark, source.seen_ms)
    for name in _KINDS.values():
        setattr(told, name, [])
    kinds = {kind: getattr(told, name) for kind, name in _KINDS.items()}
    for o in source.observations:
        kinds[type(o)].append(o)
    return _encode(told)


def main() -> None:
    """Reads the files that standard input names until it ends. Ctrl-C is for the process that started us."""
    os.nice(5)  # whoever asked us has the longer way to go
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        frame = _packed(*json.loads(line))
        try:
            out.write(len(frame).to_bytes(_LENGTH, "big") + frame)
            out.flush()
        except BrokenPipeError:
            os._exit(0)


if __name__ == "__main__":
    main()
