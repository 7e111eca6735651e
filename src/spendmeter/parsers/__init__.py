"""Parsers: bytes in, observations out. A parser only reads; it never prices and never stores.

To add a CLI: one module with ``NAME``, ``MARKS``, ``is_stdout``, ``is_file``, ``StdoutReader``, ``FileReader``, in ``PARSERS``.
A CLI that keeps a database has ``is_database`` and ``read_database`` besides. ``ROW``, a TypedDict of all keys that the module
ever looks at, and ``TYPES``, the types of rows that tell anything, make reading files of one known CLI quick. Modules of third
parties are found by the entry point group ``spendmeter.parsers``; of theirs, ``PLACES`` (see ``places``) tells where the CLI's
session files are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from spendmeter.errors import ParseError
from spendmeter.parsers import claude, codex, copilot, gemini, opencode, otlp, places, qwen
from spendmeter.parsers.scan import Scanner
from spendmeter.records import Claim, Observation, Skip

PARSERS: tuple[Any, ...] = (claude, codex, gemini, qwen, opencode, copilot)
GROUP = "spendmeter.parsers"  # entry points of third parties
CHUNK = 1 << 20
_NEEDED = ("NAME", "MARKS", "is_stdout", "is_file", "StdoutReader", "FileReader")
_SQLITE = b"SQLite format 3\0"


class Reader(Protocol):
    """Reads rows of one source of one CLI. ``last_ms``: each session's last own row, None where its rows bear no time."""

    last_ms: Mapping[str, int | None]

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the row at *line*."""

    def finish(self) -> list[Observation]:
        """All that the source has told so far; asked at its end, and before that of a source that still grows."""


class Stream:
    """Reads one source, printed or written, of any known CLI, in pieces of any size.

    Rows are given to the CLI and the kind (printed or written) that knows them, so a log may hold many runs.
    ``sessions`` are the ids seen so far; ``last_ms`` the time of each session's last own row.
    """

    def __init__(self, cli: str | None, source: str, session: str = "") -> None:
        self._parsers = _chosen(cli)
        self._types = frozenset().union(*told) if all(told := [getattr(p, "TYPES", ()) for p in self._parsers]) else frozenset()
        self._source, self._session = source, session
        self._telemetry = cli is None  # its rows are of many CLIs
        marks = (*(m for p in self._parsers for m in p.MARKS), *(otlp.MARKS if self._telemetry else ()))
        self._scanner = Scanner(marks, _typed(cli))
        self._readers: dict[tuple[str, str], Reader] = {}
        self._failed: list[Skip] = []
        self.sessions: set[str] = set()

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the source."""
        for line, row in self._scanner.feed(data):
            self._take(line, row)

    def finish(self) -> list[Observation]:
        """Ends the source: all that it told, then what could not be used."""
        for line, row in self._scanner.finish():
            self._take(line, row)
        return [*self.so_far(), *self.unused()]

    def unused(self) -> list[Skip]:
        """What could not be used of the whole lines so far."""
        return self._failed + [Skip(self._source, reason, line, length) for line, reason, length in self._scanner.bad]

    def so_far(self) -> list[Observation]:
        """What the whole lines so far have told."""
        return [o for reader in self._readers.values() for o in reader.finish()]

    @property
    def last_ms(self) -> dict[str, int]:
        """Time of the last own row of each session, ms since the epoch."""
        return {s: t for reader in self._readers.values() for s, t in reader.last_ms.items() if t is not None}

    def ends(self, cli: str, kind: str) -> dict[str, int | None]:
        """Time of each session's last own row in what one reader has read, None where its rows bear no time."""
        return dict(self._readers[cli, kind].last_ms)

    def begins(self, cli: str, kind: str) -> dict[str, int]:
        """Time of the begin of each session's first run in what one reader has read, where it knows that."""
        return dict(getattr(self._readers[cli, kind], "first_ms", {}))

    @property
    def claims(self) -> list[Claim]:
        """What the source itself says of whose its sessions are: telemetry does."""
        return [c for reader in self._readers.values() for c in getattr(reader, "claims", ())]

    @property
    def kinds(self) -> set[tuple[str, str]]:
        """(CLI, "stdout", "file" or "otlp") of all that was recognised."""
        return set(self._readers)

    def _take(self, line: int, row: dict[str, Any]) -> None:
        """One row that breaks a parser costs that row and no other."""
        kind = row.get("type", "")
        if not isinstance(kind, str) or (self._types and kind not in self._types):
            return
        try:
            self._route(line, row)
        except Exception as e:  # noqa: BLE001 - the parser may be somebody else's; what is in the row is not told
            self._failed.append(Skip(self._source, f"not understood ({type(e).__name__})", line))

    def _route(self, line: int, row: dict[str, Any]) -> None:
        for parser in self._parsers:
            kind = "stdout" if parser.is_stdout(row) else "file" if parser.is_file(row) else None
            if kind is None:
                continue
            reader = self._readers.get((parser.NAME, kind))
            if reader is None:
                made = parser.StdoutReader(self._source) if kind == "stdout" else parser.FileReader(self._source, self._session)
                reader = self._readers[parser.NAME, kind] = made
            reader.row(line, row)
            session = row.get("sessionId") or row.get("session_id") or row.get("sessionID") or row.get("thread_id")
            if isinstance(session, str):
                self.sessions.add(session)
            return
        if self._telemetry:
            otlp.take_row(row, self._readers)

    def add_database(self, path: Path) -> bool:
        """Takes the database at *path* whole; False if no CLI knows it."""
        for parser in self._parsers:
            if hasattr(parser, "read_database") and parser.is_database(path):
                self._readers[parser.NAME, "file"] = parser.read_database(path, self._source)
                return True
        return False


@cache
def _found() -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """All parsers, and a line for each of a third party that is of no use."""
    parsers, broken = list(PARSERS), []
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        try:
            module = point.load()
        except Exception as e:  # noqa: BLE001 - somebody else's module may raise anything
            broken.append(f'parser "{point.name}" ({point.value}) cannot be loaded: {type(e).__name__}')
            continue
        lacks = [n for n in _NEEDED if not hasattr(module, n)]
        if lacks or module.NAME in {p.NAME for p in parsers}:
            broken.append(f'parser "{point.name}" ({point.value}) {f"has no {lacks[0]}" if lacks else "has the name of another"}')
            continue
        parsers.append(module)
    return tuple(parsers), tuple(broken)


def names() -> list[str]:
    """Names of the CLIs that can be read."""
    return [p.NAME for p in _found()[0]]


def broken() -> tuple[str, ...]:
    """A line for each parser of a third party that was passed over, and why."""
    return _found()[1]


def places_of(cli: str) -> places.Places | None:
    """Where *cli* keeps its session files; None where its parser does not say."""
    found = next((getattr(p, "PLACES", None) for p in _found()[0] if cli == p.NAME), None)
    return found or places.PLACES.get(cli)


def _chosen(cli: str | None) -> tuple[Any, ...]:
    every = _found()[0]
    if cli is None:
        return every
    found = tuple(p for p in every if cli == p.NAME)
    if not found:
        raise ParseError(f'--cli "{cli}" is not one of {", ".join(names())}')
    return found


@cache
def _typed(cli: str | None) -> Callable[[bytes], dict[str, Any]] | None:
    """Decodes the keys of a row that the parser of *cli* looks at, where it says which."""
    row = next((getattr(p, "ROW", None) for p in _found()[0] if cli == p.NAME), None)
    return msgspec.json.Decoder(row).decode if row else None


def open_stream(cli: str | None, source: str) -> Stream:
    """A reader for what a process prints; *cli* None lets each row tell its CLI.

    Raises:
        ParseError: *cli* is not known.
    """
    return Stream(cli, source)


def read(handle: BinaryIO, cli: str | None, source: str, session: str = "") -> tuple[list[Observation], Stream]:
    """Reads *handle* to its end in bounded memory."""
    stream = Stream(cli, source, session)
    while data := handle.read(CHUNK):
        stream.feed(data)
    return stream.finish(), stream


def is_source(path: Path) -> bool:
    """Whether *path* may be read: text, or a database of a known CLI."""
    try:
        with path.open("rb") as handle:
            head = handle.read(4096)
    except OSError:
        return True  # reading it will say why
    return b"\0" not in head or (is_database(head) and Stream(None, path.name).add_database(path))


def is_database(head: bytes) -> bool:
    """Whether a file that begins with *head* is a SQLite database."""
    return head.startswith(_SQLITE)


def read_file(path: Path, cli: str | None = None) -> tuple[list[Observation], Stream]:
    """Reads the file at *path*, a database too.

    Raises:
        ParseError: it cannot be opened or read.
    """
    session = places.session_of(path, cli)
    try:
        with path.open("rb") as handle:
            if is_database(handle.read(len(_SQLITE))):
                stream = Stream(cli, path.name, session)
                stream.add_database(path)
                return stream.finish(), stream
            handle.seek(0)
            return read(handle, cli, path.name, session)
    except OSError as e:
        raise ParseError(f"{path}: cannot be read ({e.strerror}); check the path and its permissions") from None


def skips(observations: Iterable[Observation]) -> list[Skip]:
    """The skips among *observations*."""
    return [o for o in observations if isinstance(o, Skip)]
