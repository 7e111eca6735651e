"""The only composition: sources are read, parsed and committed to the ledger here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

from spendmeter.config import Settings, load
from spendmeter.errors import ParseError
from spendmeter.ledger import Batch, Committed, Ledger, Process, now_ms
from spendmeter.ledger.costing import Prices
from spendmeter.parsers import CHUNK, Stream, is_database, names, places, places_of, read_file
from spendmeter.parsers.scan import CUT_SHORT
from spendmeter.parsers.sources import files
from spendmeter.prices import PriceTable
from spendmeter.records import Claim, Finish, Observation, Skip, Tags, Usage

if TYPE_CHECKING:
    from spendmeter.runner.finished import FinishedRun

FLUSH = 20_000  # observations per transaction
GROWING_MS = 60_000  # a file written so lately may have its last line still to come
Progress = Callable[[int, int], None]


class Sink(Protocol):
    """Where sources go: a ledger, or a daemon that has one."""

    def commit(self, batch: Batch) -> Committed:
        """Takes *batch* in one transaction; again changes nothing."""

    def source_digest(self, path: str) -> tuple[str, str] | None:
        """What is remembered of a source that was read to its end."""


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
    """
    result = Result()
    pending = _Pending(ledger, result)
    found = [
        (name, file)
        for name in names()
        if (not clis or name in clis) and (place := places_of(name))
        for root in place.homes(os.environ, home)
        for file in place.session_files(root)
    ]
    try:
        for i, (name, file) in enumerate(found):
            _take_file(pending, file, name, None)
            if progress:
                progress(i + 1, len(found))
    finally:
        pending.flush()
    if result.changed:
        ledger.fold()
    return result


def _take_file(pending: _Pending, path: Path, cli: str | None, tags: Tags | None) -> None:
    """Reads one file unless it is as it was when it was last read with the same tags."""
    try:
        with path.open("rb") as handle:
            stat = os.fstat(handle.fileno())
            name = str(path.resolve())
            mark = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}{_beside(path)}"
            digest = repr((cli, tags))
            if pending.ledger.source_digest(name) == (mark, digest):
                pending.result.unchanged += 1
                return
            if is_database(handle.read(16)):
                whole = _keep(pending, *read_file(path, cli), name, tags, stat.st_mtime_ns // 1_000_000)
            else:
                handle.seek(0)
                whole = _take(pending, handle, name, cli, tags, stat.st_mtime_ns // 1_000_000, places.session_of(path, cli))
            if whole:
                pending.sources.append((name, mark, digest))
    except OSError as e:
        raise ParseError(f"{path}: cannot be read ({e.strerror}); check its permissions") from None


def _take(
    pending: _Pending, handle: BinaryIO, name: str, cli: str | None, tags: Tags | None, seen_ms: int | None, session: str = ""
) -> bool:
    """Reads *handle* to its end; whether it ended with a whole line, or so long ago that no more will come."""
    stream = Stream(cli, name, session)
    while data := handle.read(CHUNK):
        stream.feed(data)
    return _keep(pending, stream.finish(), stream, name, tags, seen_ms)


def _beside(path: Path) -> str:
    """What tells that a database has changed while its file has not."""
    stats = [p.stat() for p in places.companions(path)]
    return "".join(f":{s.st_size}:{s.st_mtime_ns}" for s in stats)


def _keep(pending: _Pending, observations: list[Observation], stream: Stream, name: str, tags: Tags | None, seen_ms: int | None) -> bool:
    growing = seen_ms is not None and now_ms() - seen_ms < GROWING_MS
    kept = [o for o in observations if not (growing and isinstance(o, Skip) and o.reason == CUT_SHORT)]
    pending.result.sources += 1
    if not any(not isinstance(o, Skip) for o in observations):
        pending.result.silent.append(Path(name).name)
    pending.observations += kept
    if seen_ms is not None:
        pending.seen_ms = seen_ms if pending.seen_ms is None else min(seen_ms, pending.seen_ms)
    if tags:
        pending.claims += _claims(observations, stream, tags)
    if len(pending.observations) > FLUSH:
        pending.flush()
    return len(kept) == len(observations)


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
                out.append(Claim(cli, session, word, tags, end_ms=last))
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
