"""Parsers: bytes in, observations out. A parser only reads; it never prices and never stores.

To add a CLI: one module with ``NAME``, ``MARKS``, ``is_stdout``, ``is_file``, ``StdoutReader``, ``FileReader``, and its name in ``PARSERS``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Protocol

from spendmeter.errors import ParseError
from spendmeter.parsers import claude
from spendmeter.parsers.scan import Scanner
from spendmeter.records import Observation, Skip

PARSERS: tuple[ModuleType, ...] = (claude,)
CHUNK = 1 << 20


class Reader(Protocol):
    """Reads rows of one source of one CLI."""

    last_ms: dict[str, int]

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the row at *line*."""

    def finish(self) -> list[Observation]:
        """All that the source told."""


class Stream:
    """Reads one source, printed or written, of any known CLI, in pieces of any size.

    Rows are given to the CLI and the kind (printed or written) that knows them, so a log may hold many runs.
    ``sessions`` are the ids seen so far; ``last_ms`` the time of each session's last own row.
    """

    def __init__(self, cli: str | None, source: str, session: str = "") -> None:
        self._parsers = _chosen(cli)
        self._source, self._session = source, session
        self._scanner = Scanner(tuple(m for p in self._parsers for m in p.MARKS))
        self._readers: dict[tuple[str, str], Reader] = {}
        self.sessions: set[str] = set()

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the source."""
        for line, row in self._scanner.feed(data):
            self._route(line, row)

    def finish(self) -> list[Observation]:
        """Ends the source: all that it told, then what could not be used."""
        for line, row in self._scanner.finish():
            self._route(line, row)
        out = [o for reader in self._readers.values() for o in reader.finish()]
        out += [Skip(self._source, reason, line, length) for line, reason, length in self._scanner.bad]
        return out

    @property
    def last_ms(self) -> dict[str, int]:
        """Time of the last own row of each session, ms since the epoch."""
        return {s: t for reader in self._readers.values() for s, t in reader.last_ms.items()}

    def ends(self, cli: str, kind: str) -> dict[str, int]:
        """Time of each session's last own row in what one reader has read."""
        return dict(self._readers[cli, kind].last_ms)

    @property
    def kinds(self) -> set[tuple[str, str]]:
        """(CLI, "stdout" or "file") of all that was recognised."""
        return set(self._readers)

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
            if isinstance(session := row.get("session_id") or row.get("sessionId"), str):
                self.sessions.add(session)
            return


def names() -> list[str]:
    """Names of the CLIs that can be read."""
    return [p.NAME for p in PARSERS]


def _chosen(cli: str | None) -> tuple[ModuleType, ...]:
    if cli is None:
        return PARSERS
    found = tuple(p for p in PARSERS if cli == p.NAME)
    if not found:
        raise ParseError(f'--cli "{cli}" is not one of {", ".join(names())}')
    return found


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


def read_file(path: Path, cli: str | None = None) -> tuple[list[Observation], Stream]:
    """Reads the file at *path*.

    Raises:
        ParseError: it cannot be opened or read.
    """
    try:
        with path.open("rb") as handle:
            return read(handle, cli, path.name)
    except OSError as e:
        raise ParseError(f"{path}: cannot be read ({e.strerror}); check the path and its permissions") from None


def skips(observations: Iterable[Observation]) -> list[Skip]:
    """The skips among *observations*."""
    return [o for o in observations if isinstance(o, Skip)]
