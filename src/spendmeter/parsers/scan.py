"""Finds JSON objects in a stream of bytes: one per line, in arrays, pretty-printed, after a log prefix, amid any text.

Memory is bounded by ``MAX_LINE`` whatever the stream holds; text is never kept beyond the object it belongs to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

MAX_LINE = 64 << 20  # bytes; a longer line is cut, its last WINDOW bytes are still searched
WINDOW = 4 << 20
MAX_TRIES = 32  # places in one line where an object may begin, and attempts to close a pretty-printed one
CUT_SHORT = "cut short"  # the reason of a last line that is no whole object
Row = dict[str, Any]
_decode = json.JSONDecoder().raw_decode
_NOT_JSON = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def _rows(value: object) -> Iterator[Row]:
    if isinstance(value, dict):
        yield value
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield item


class Scanner:
    """Feed bytes, get ``(line, row)`` pairs; ``bad`` counts lines that looked like our JSON and were not.

    Args:
        marks: a line without any of these byte strings is passed over undecoded.
        typed: decodes a line that is one object to those of its keys that anybody reads; it may do so whether the line has a
            mark or not, and raises ``msgspec.MsgspecError`` for any other line.
    """

    def __init__(self, marks: tuple[bytes, ...], typed: Callable[[bytes], Row] | None = None) -> None:
        self._typed = typed
        self._has_mark = re.compile(b"|".join(map(re.escape, sorted(marks)))).search  # much faster than one search for each
        self._tail = bytearray()
        self._block: list[str] = []
        self._block_size = 0
        self._single = False
        self._indent = 0
        self._tries = 0
        self.line = 0
        self.bad: list[tuple[int, str, int]] = []  # line, reason, length

    def feed(self, data: bytes) -> Iterator[tuple[int, Row]]:
        """Rows that *data* completes, in order."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            piece = data[start:end]
            start = end + 1
            if self._tail:
                self._tail += piece
                piece = bytes(self._tail)
                self._tail.clear()
            self.line += 1
            if self._typed and not self._block and piece.startswith(b"{"):  # most lines by far
                try:
                    row = self._typed(piece)
                except _NOT_JSON:
                    pass
                else:
                    yield self.line, row
                    continue
            yield from self._line(piece)
        self._tail += data[start:]
        if len(self._tail) > MAX_LINE:
            self.bad.append((self.line + 1, "line too long", len(self._tail)))
            del self._tail[:-WINDOW]

    def finish(self) -> Iterator[tuple[int, Row]]:
        """Rows of a last line that has no newline; a half-written one counts as bad."""
        if self._tail:
            self.line += 1
            yield from self._line(bytes(self._tail), last=True)
            self._tail.clear()

    def _line(self, raw: bytes, *, last: bool = False) -> Iterator[tuple[int, Row]]:
        marked = last or self._has_mark(raw) is not None
        if not marked and not self._block and not raw.rstrip().endswith((b"{", b"[")):
            return
        if marked and not self._block and raw.startswith(b"{"):
            try:
                yield self.line, msgspec.json.decode(raw)
            except _NOT_JSON:  # more than one object, or none that is whole
                pass
            else:
                return
        text = raw.decode("utf-8", "replace")
        found, broken = self._objects(text, last=last) if marked else ([], False)
        if broken and not self._block and text.lstrip().startswith("{") and not text.rstrip().endswith("{"):
            self.bad.append((self.line, CUT_SHORT if last else "not JSON", len(raw)))
        for row in found:
            yield self.line, row
        if found and self._block and text.lstrip().startswith("{"):
            self._single = True  # an array with one object a line: its objects were just told
        if self._block or not found:
            yield from self._grow(text)

    @staticmethod
    def _objects(text: str, *, last: bool) -> tuple[list[Row], bool]:
        """Complete objects of one line, wherever they begin, and whether the first that began was broken.

        Values of an object that may still be written to its end are no rows.
        """
        rows: list[Row] = []
        broken, half, end = False, False, 0
        for tries in range(MAX_TRIES):
            at = _opening(text, end)
            if at < 0:
                break
            try:
                value, end = _decode(text, at)
            except (ValueError, RecursionError):
                broken, end = broken or tries == 0, at + 1
                half = half or (last and tries == 0 and text[at] == "{")
                continue
            if not (half and text[:at].rstrip().endswith((":", ",", "["))):
                rows += _rows(value)
        return rows, broken

    def _grow(self, text: str) -> Iterator[tuple[int, Row]]:
        """Collects a pretty-printed object line by line until it can be decoded."""
        stripped = text.strip()
        if not self._block:
            if stripped.endswith(("{", "[")) and (at := _opening(text, 0)) >= 0:
                self._indent = len(text) - len(text.lstrip())
                self._block, self._block_size, self._tries, self._single = [text[at:]], len(text), 0, False
            return
        self._block.append(text)
        self._block_size += len(text)
        if stripped.startswith(("}", "]")) and len(text) - len(text.lstrip()) <= self._indent:
            yield from self._close()
        elif self._block_size > MAX_LINE:
            self._block = []

    def _close(self) -> Iterator[tuple[int, Row]]:
        self._tries += 1
        try:
            value, _ = _decode("\n".join(self._block))
        except (ValueError, RecursionError):
            if self._tries >= MAX_TRIES:
                self._block = []
            return
        self._block = []
        if not self._single:
            for row in _rows(value):
                yield self.line, row


def _opening(text: str, start: int) -> int:
    """Where the next object or array of objects may begin, or -1."""
    a, b = text.find("{", start), text.find("[", start)
    return a if b < 0 else b if a < 0 else min(a, b)
