"""What a run under way has used so far: by the rule, the cut into runs and the prices by which its ledger will count it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from spendmeter.ingest import Told, batch_of, read_from
from spendmeter.ledger.costing import Prices, cost
from spendmeter.parsers import CHUNK, Stream
from spendmeter.parsers.growing import Growing
from spendmeter.parsers.places import companions
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.split import Piece, split
from spendmeter.records import Call, Claim, Observation
from spendmeter.runner.compose import AnyWatch, compose_so_far
from spendmeter.runner.finished import FinishedRun

if TYPE_CHECKING:
    from types import TracebackType

    from spendmeter.runner.facts import Facts

LOOK_S, LOOK_SHARE = 0.25, 0.02  # for the run's files: no more often, and no more of one core
COUNT_S, COUNT_SHARE = 0.25, 0.1  # for the rule likewise
WHOLE_S = 1.0  # a file that cannot be read on from where it was left is read no more often
STEP_BYTES = 4 << 20  # read of one file before standard output has its turn again


class Reading(NamedTuple):
    """What a run has used so far: nano-USD (None where no price is known), billed tokens, by which models, which of them have no price.

    ``sessions``: (cli, session) that it goes on in.
    """

    nusd: int | None
    tokens: int
    models: frozenset[str] = frozenset()
    unpriced: frozenset[str] = frozenset()
    sessions: frozenset[tuple[str, str]] = frozenset()


class Live:
    """Reads on in the run's session files and counts; all in one thread.

    Attributes:
        behind: whether a file holds more than has been read.
        blind: why it is not known which session is the run's, in one line, or None.
    """

    def __init__(self, facts: Facts, child_pid: int, watches: list[AnyWatch], prices: Prices) -> None:
        self.behind = False
        self.blind: str | None = None
        self._facts, self._child_pid, self._watches, self._prices = facts, child_pid, watches, prices
        self._run: FinishedRun | None = None
        self._sources: dict[tuple[Path, int], _Tail | _Whole] = {}
        self._printed, self._size = _Known(), 0
        self._book = Book()
        self._grown = False
        self._look, self._count = Pace(LOOK_S, LOOK_SHARE), Pace(COUNT_S, COUNT_SHARE)

    def reading(self, stream: Stream | None, size: int, sessions: set[str]) -> Reading | None:
        """A new reading; None where nothing is new, or it is too early for the next one.

        Args:
            stream: what standard output has told.
            size: how many bytes of that there were.
            sessions: that are known to be the run's.
        """
        if self._look.is_due():
            with self._look:
                self._find(sessions)
        self._grown |= size != self._size
        self._size = size
        self._read()
        if self._run is None or self.behind or not (self._grown and self._count.is_due()):
            return None
        with self._count:
            self._grown = False
            return self._counted(self._run, stream.so_far() if stream is not None else [])

    def last(self, run: FinishedRun) -> Reading:
        """The reading of *run* at its end."""
        self._run, self.behind = run, True
        self._sources = {key: source for key, source in self._sources.items() if isinstance(source, _Tail)}  # the others have their pace
        while self.behind:
            self._read()
        return self._counted(run, run.observations)

    def _find(self, sessions: set[str]) -> None:
        before = self._run
        run = compose_so_far(self._facts, self._watches, [self._child_pid], sessions, self._printed.all)
        self.blind = run.notes[0] if run.notes and not run.sessions else None
        self._grown |= before is None or (before.files, before.sessions) != (run.files, run.sessions)
        self._run = run

    def _read(self) -> None:
        grown = [source.grow() for source in self._files()]
        self._grown |= any(grown)
        self.behind = any(source.behind for source in self._files())

    def _files(self) -> list[_Tail | _Whole]:
        run = self._run
        if run is None:
            return []
        for path, offset in run.files:
            if (path, offset) not in self._sources:
                made = _Tail if path.suffix == ".jsonl" else _Whole
                self._sources[path, offset] = made(path, run.cli, offset, run.started_ms)
        return [self._sources[key] for key in run.files]

    def _counted(self, run: FinishedRun, printed: list[Observation]) -> Reading:
        """Facts that a source goes on to repeat are kept; what it may still take back is counted and forgotten."""
        told = [source.told() for source in self._files()]
        known = [self._printed, *(source.known for source in self._files())]
        unsure: list[Observation] = []
        for of_one, now in zip(known, [printed, *(t.observations for t in told)], strict=True):
            sure, rest = of_one.parted(now)
            self._book.add_all(sure)
            unsure += rest
        run.observations = printed
        claims = batch_of(run, told)[0].claims
        book = self._book.copy()
        book.add_all([*unsure, *claims])
        used = _sum(self._pieces(book, run, claims), self._prices)
        return used._replace(sessions=frozenset((c.cli, c.session) for c in claims if c.session in run.sessions))

    def _pieces(self, book: Book, run: FinishedRun, claims: Iterable[Claim]) -> Iterable[tuple[Piece, int]]:
        """The run's own, each with the time of those of its calls that have none. A session that began in it is its own whole."""
        for claim in claims:
            facts = book.at(claim.cli, claim.session)
            times = [facts.own_ms, *(c.at_ms for c in facts.calls.values())]
            is_new = all(at_ms is None or at_ms >= run.started_ms for at_ms in times)
            for part in split(*book.gather(facts)):
                if is_new or part.run_key == claim.run_key:
                    yield from ((piece, part.ended_ms or run.ended_ms) for piece in part.pieces)


class Pace:
    """Says when something that is done again and again may be done again; as a context it takes the time."""

    def __init__(self, least_s: float, share: float) -> None:
        """No more often than every *least_s*, and for no more than *share* of one core."""
        self._least_s, self._share = least_s, share
        self._due_s = self._began_s = 0.0

    def is_due(self) -> bool:
        """Whether it may be done now."""
        return time.monotonic() >= self._due_s

    def __enter__(self) -> None:
        self._began_s = time.thread_time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        took_s = time.thread_time() - self._began_s
        self._due_s = time.monotonic() + max(self._least_s, took_s / self._share)


class _Known:
    """What one source has told, asked again and again; tells what is sure from what it may still take back."""

    def __init__(self) -> None:
        self.all: list[Observation] = []
        self._kept = 0

    def parted(self, now: list[Observation]) -> tuple[list[Observation], list[Observation]]:
        """(what is sure since the last time, the rest): sure is what stands in the same place as the last time."""
        same = 0
        for old, new in zip(self.all, now, strict=False):
            if old is not new:
                break
            same += 1
        sure = now[self._kept : same]
        self.all, self._kept = now, same
        return sure, now[same:]


class _Tail:
    """A file that grows at its end."""

    def __init__(self, path: Path, cli: str | None, offset: int, started_ms: int) -> None:
        self.known = _Known()
        self.behind = False
        self._file, self._offset, self._started_ms = Growing(path, cli, path.name), offset, started_ms
        self._before: dict[str, int] = {}

    def grow(self) -> bool:
        """Reads what was added, up to STEP_BYTES; whether that was anything."""
        file = self._file
        try:
            with file.opened() as (handle, stat):
                begun, until = file.at, min(stat.st_size, file.at + STEP_BYTES)
                self._before = self._before if begun else {}
                while file.at < until and file.take(handle, self._next(until)):
                    self._note_edge()
        except OSError:  # it may come back; at the run's end its absence is told
            self.behind = False
            return False
        self.behind = begun < file.at < stat.st_size
        return file.at > begun

    def _next(self, until: int) -> int:
        """How much to read at once: not over the place where the run began."""
        at = self._file.at
        edge = self._offset if at < self._offset else until
        return min(edge - at, until - at, CHUNK)

    def _note_edge(self) -> None:
        if self._file.at == self._offset:
            self._before = dict(self._file.stream.last_ms)

    def told(self) -> Told:
        """What it holds so far. A file that changed before its size was noted has no known place where the run began."""
        stream = self._file.stream
        observations = stream.so_far()
        return Told(observations, self._before or _last_calls(observations, self._started_ms), stream.last_ms)


class _Whole:
    """A file that changes anywhere, a database: read anew when it has changed. What it held before the run, its own times tell."""

    def __init__(self, path: Path, cli: str | None, offset: int, started_ms: int) -> None:
        self.known = _Known()
        self.behind = False
        self._path, self._cli, self._offset, self._started_ms = path, cli, offset, started_ms
        self._pace = Pace(WHOLE_S, COUNT_SHARE)
        self._mark: tuple[tuple[int, int], ...] = ()
        self._told = Told([], {}, {})

    def grow(self) -> bool:
        """Reads it, if it has changed and was not read just now; whether it was."""
        mark = tuple((s.st_size, s.st_mtime_ns) for p in (self._path, *companions(self._path)) if (s := _stat(p)))
        if mark == self._mark or not self._pace.is_due():
            return False
        with self._pace:
            told = read_from(self._path, self._cli, self._offset)
            self._mark, self._told = mark, told._replace(before=_last_calls(told.observations, self._started_ms))
        return True

    def told(self) -> Told:
        """What it held when it was last read."""
        return self._told


def _sum(pieces: Iterable[tuple[Piece, int]], prices: Prices) -> Reading:
    nusd: list[int] = []
    tokens, models, unpriced = 0, set(), set()
    for piece, at_ms in pieces:
        money = cost(piece, prices, at_ms)
        nusd += [x for x in (money.reported, money.estimated) if x is not None]
        tokens += piece.usage.tokens
        models.add(piece.model)
        if money.unpriced:
            unpriced.add(piece.model)
    return Reading(sum(nusd) if nusd else None, tokens, frozenset(models), frozenset(unpriced))


def _last_calls(observations: Iterable[Observation], until_ms: int) -> dict[str, int]:
    """Time of each session's last call before *until_ms*."""
    out: dict[str, int] = {}
    for o in observations:
        if isinstance(o, Call) and o.at_ms is not None and o.at_ms < until_ms:
            out[o.session] = max(o.at_ms, out.get(o.session, o.at_ms))
    return out


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
