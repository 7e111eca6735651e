"""The only composition: sources are read, parsed and committed to the ledger here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from spendmeter.config import Settings, load
from spendmeter.errors import ParseError
from spendmeter.finding import Found, Result, digest_of
from spendmeter.ledger import Batch, Committed, Ledger, Process, now_ms
from spendmeter.ledger.costing import Prices
from spendmeter.parsers import CHUNK, Stream, places, read_file
from spendmeter.parsers import read as read_stream
from spendmeter.parsers.pool import Job
from spendmeter.parsers.reading import GROWING_S, Source, mark, read_source
from spendmeter.parsers.scan import CUT_SHORT
from spendmeter.parsers.sources import files
from spendmeter.prices import PriceTable
from spendmeter.records import Claim, Finish, Observation, Skip, Tags, Usage

if TYPE_CHECKING:
    from spendmeter.runner.finished import FinishedRun

FLUSH = 8_000  # observations per transaction
Progress = Callable[[int, int], None]


class Sink(Protocol):
    """Where sources go: a ledger, or a daemon that has one."""

    def commit(self, batch: Batch) -> Committed:
        """Takes *batch* in one transaction; again changes nothing."""

    def source_digest(self, path: str) -> tuple[str, str] | None:
        """What is remembered of a source that was read to its end."""


@dataclass(slots=True)
class _Pending:
    """Observations of several sources that go into one transaction."""

    ledger: Sink
    result: Result
    observations: list[Observation] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    sources: list[tuple[str, str, str]] = field(default_factory=list)
    seen_ms: int | None = None

    def flush(self) -> None:
        """Commits what has gathered."""
        if not self.observations and not self.sources:
            return
        done = self.ledger.commit(Batch(self.observations, self.claims, sources=self.sources, seen_ms=self.seen_ms))
        self.result.session_ids |= done.sessions
        self.result.changed += len(done.changed)
        for reason, n in done.skips.items():
            self.result.skips[reason] = self.result.skips.get(reason, 0) + n
        self.observations, self.claims, self.sources, self.seen_ms = [], [], [], None


def ingest_paths(ledger: Sink, paths: Sequence[str], *, cli: str | None = None, tags: Tags | None = None) -> Result:
    """Reads files and folders of any known format, "-" for standard input, and commits them.

    Args:
        tags: whose usage it is; None leaves that open (a later word, or the session's own, may say).

    Raises:
        ParseError: a path does not exist or cannot be read; what was read before it stays committed.
        LedgerError: the ledger cannot be written.
    """
    result = Result()
    pending = _Pending(ledger, result)
    try:
        for path in paths:
            if path == "-":
                _take(pending, sys.stdin.buffer, "stdin", cli, tags, None)
            else:
                for file in files(Path(path)):
                    _take_file(pending, file, cli, tags)
    finally:
        pending.flush()
    return result


def ingest_handle(
    ledger: Ledger, handle: BinaryIO, name: str, *, cli: str | None = None, tags: Tags | None = None, seen_ms: int | None = None
) -> set[int]:
    """Reads one open source to its end and commits it; the ids of the sessions that it told of."""
    pending = _Pending(ledger, Result())
    _take(pending, handle, name, cli, tags, seen_ms)
    pending.flush()
    return pending.result.session_ids


def sync(ledger: Ledger, *, home: Path | None = None, clis: Sequence[str] = (), progress: Progress | None = None) -> Result:
    """Finds and commits the session files of every known CLI that have changed since the last time.

    Args:
        home: look under this folder instead of the user's own.
        clis: only these.

    Raises:
        ParseError: a file cannot be read; the others are committed.
        LedgerError: the ledger cannot be written.
    """
    found = Found(ledger.sources(), home, clis)
    with found.read() as sources:
        return take_in(ledger, found, sources, progress)


def take_in(ledger: Ledger, found: Found, sources: Iterable[tuple[Job, Source | OSError]], progress: Progress | None = None) -> Result:
    """Commits what the changed files of *found* tell. One that has gone away meanwhile is passed over.

    Raises:
        ParseError, LedgerError: as ``sync``.
    """
    result, failed = Result(unchanged=found.unchanged), []
    pending = _Pending(ledger, result)
    try:
        for i, (job, source) in enumerate(sources):
            if isinstance(source, Source):
                seen = source.mark, digest_of(job.cli)
                _keep(pending, source.observations, source.stream, str(job.path), None, source.seen_ms, seen)
            elif not isinstance(source, FileNotFoundError):
                failed.append(_unreadable(job.path, source))
            if progress:
                progress(i + 1, len(found.jobs))
    finally:
        pending.flush()
    if result.changed:
        ledger.fold()
    if failed:
        raise failed[0]
    return result


def _unreadable(path: Path, e: OSError) -> ParseError:
    return ParseError(f"{path}: cannot be read ({e.strerror}); check its permissions")


def _take_file(pending: _Pending, path: Path, cli: str | None, tags: Tags | None) -> None:
    """Reads one file unless it is as it was when it was last read with the same tags."""
    name, digest = str(path.resolve()), digest_of(cli, tags)
    try:
        if pending.ledger.source_digest(name) == (mark(path, path.stat()), digest):
            pending.result.unchanged += 1
            return
        source = read_source(path, cli)
    except OSError as e:
        raise _unreadable(path, e) from None
    _keep(pending, source.observations, source.stream, name, tags, source.seen_ms, (source.mark, digest))


def _take(pending: _Pending, handle: BinaryIO, name: str, cli: str | None, tags: Tags | None, seen_ms: int | None) -> None:
    """Reads *handle* to its end."""
    observations, stream = read_stream(handle, cli, name)
    _keep(pending, observations, stream, name, tags, seen_ms)


def _keep(
    pending: _Pending, observations: list[Observation], stream: Stream | None, name: str, tags: Tags | None, seen_ms: int | None,
    mark: tuple[str, str] | None = None,
) -> None:  # fmt: skip
    """Adds what a source told; it counts as read if it ended with a whole line, or so long ago that no more will come."""
    growing = seen_ms is not None and now_ms() - seen_ms < GROWING_S * 1000
    kept = [o for o in observations if not (growing and isinstance(o, Skip) and o.reason == CUT_SHORT)]
    pending.result.sources += 1
    if not any(not isinstance(o, Skip) for o in observations):
        pending.result.silent.append(Path(name).name)
    pending.observations += kept
    if stream:
        pending.claims += stream.claims
    if seen_ms is not None:
        pending.seen_ms = seen_ms if pending.seen_ms is None else min(seen_ms, pending.seen_ms)
    if tags and stream:
        pending.claims += _claims(observations, stream, tags)
    if mark and len(kept) == len(observations):
        pending.sources.append((name, *mark))
    if len(pending.observations) > FLUSH:
        pending.flush()


def _claims(observations: Iterable[Observation], stream: Stream, tags: Tags) -> list[Claim]:
    """The user's word on all that a source holds: its runs where results tell them, else its sessions up to their last row."""
    out, told = [], set()
    for o in observations:
        if isinstance(o, Finish):
            key = o.leader or o.run_key
            told.add(o.session)
            out.append(Claim(o.cli, o.session, f"run:{key}", tags, key))
    word = f"tag:{tags.agent}/{tags.task}/{sorted(tags.attrs.items())}"
    for cli, kind in sorted(stream.kinds):
        for session, last in stream.ends(cli, kind).items():
            if not (kind == "stdout" and session in told):
                out.append(Claim(cli, session, word, tags, start_ms=stream.begins(cli, kind).get(session), end_ms=last))
    return out


# -- the wrapper's runs ------------------------------------------------------------------------------------------------


def commit_run(ledger_url: str | None, config: str | None, run: FinishedRun) -> str:
    """Commits a wrapped run: what it printed, what its CLI wrote and what the wrapper saw, in one transaction.

    Returns:
        The run's key in the ledger. Committing the same run again changes nothing.

    Raises:
        LedgerError, ConfigError: nothing was committed.
    """
    found = _ready.pop((ledger_url, config), None)
    ledger = found.ledger if found and found.ledger else Ledger(load(config, ledger_url))
    try:
        batch, key = run_batch(run)
        ledger.commit(batch)
    finally:
        ledger.close()
    return key


def commit_finished(ledger: Ledger, run: FinishedRun) -> set[int]:
    """As ``commit_run``, into an open ledger; the ids of the sessions that it touched."""
    return set(ledger.commit(run_batch(run)[0]).sessions)


@dataclass(slots=True)
class Ready:
    """What ``prepare`` has so far: prices, and the ledger once that is open."""

    settings: Settings
    prices: Prices
    ledger: Ledger | None = None


_ready: dict[tuple[str | None, str | None], Ready] = {}


def prepare(ledger_url: str | None, config: str | None, *, opens: bool = True) -> None:
    """Warms the price table and opens the ledger for a ``commit_run`` to come, while the child still runs.

    Args:
        opens: False where no ledger is written, so that there are prices alone.

    Raises:
        LedgerError, ConfigError, PriceError: as ``commit_run`` will.
    """
    settings = load(config, ledger_url)
    prices = PriceTable.load(settings.prices_file)
    prices.price("claude-sonnet-4-5", Usage(tokens_in=1), None)
    _ready[ledger_url, config] = made = Ready(settings, prices)
    if not opens:
        return
    made.ledger = Ledger(settings, prices)
    made.ledger.settle()


def ready(ledger_url: str | None, config: str | None) -> Ready | None:
    """What is prepared for the ledger by now; the ``commit_run`` that comes takes it away."""
    return _ready.get((ledger_url, config))


class Told(NamedTuple):
    """What one session file told; by session, the time of its last own row, of those ``before`` the run began and of all."""

    observations: list[Observation]
    before: dict[str, int]
    last: dict[str, int]


def run_batch(run: FinishedRun) -> tuple[Batch, str]:
    """A wrapped run as one transaction, its files read now, and the run's key."""
    return batch_of(run, [read_from(path, run.cli, offset) for path, offset in run.files])


def batch_of(run: FinishedRun, files: Iterable[Told]) -> tuple[Batch, str]:
    """All that is known of a wrapped run as one transaction, and the run's key.

    Args:
        files: what each of its files told.
    """
    observations = list(run.observations)
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for told in files:
        observations += told.observations
        starts |= {s: max(t, starts.get(s, t)) for s, t in told.before.items()}
        ends |= {s: max(t, ends.get(s, t)) for s, t in told.last.items()}
    cli = run.cli or next((o.cli for o in observations if not isinstance(o, Skip)), "unknown")
    own_key = f"w:{run.run_id}"
    results = {o.session: o.leader or o.run_key for o in reversed(observations) if isinstance(o, Finish)}
    sessions = sorted(run.sessions, key=lambda s: (s not in results, s)) or [f"run:{run.run_id}"]
    claims, processes = [], []
    for i, session in enumerate(sessions):
        key = results.get(session, own_key)
        claims.append(Claim(cli, session, f"run:{key}", run.tags, key, starts.get(session), ends.get(session)))
        if i == 0:  # the run itself belongs to its first session; others of the same process are parts of their own
            own_key = key
            processes.append(_process(cli, session, key, run))
    return Batch(observations, claims, processes, settled=True, seen_ms=run.ended_ms, releases=run.run_id), own_key


def _process(cli: str, session: str, key: str, run: FinishedRun) -> Process:
    return Process(
        cli, session, key, run.run_id, run.exit_code, run.signal, run.started_ms, run.ended_ms, run.trace_id, run.span_id,
        run.parent_span_id, run.repo, run.branch, run.commit, tuple(run.notes), run.stopped,
    )  # fmt: skip


def read_from(path: Path, cli: str | None, offset: int) -> Told:
    """Reads a session file, *offset* bytes of which were there when the run began; one that cannot be read is a skip."""
    if path.suffix == ".db":  # has no order: what it told before is in the ledger
        told, database = read_file(path, cli)
        return Told(told, {}, database.last_ms)
    stream = Stream(cli, path.name, places.session_of(path, cli))
    try:
        with path.open("rb") as handle:
            left = offset
            while left and (data := handle.read(min(left, CHUNK))):
                stream.feed(data)
                left -= len(data)
            before = dict(stream.last_ms)
            while data := handle.read(CHUNK):
                stream.feed(data)
    except OSError as e:
        return Told([Skip(path.suffix or "file", f"unreadable ({e.strerror})")], {}, {})
    return Told(stream.finish(), before, stream.last_ms)
