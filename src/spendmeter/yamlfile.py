"""YAML that people write, read as a graph of nodes: every mistake is named by file and line, and a number keeps its digits.

A node is not a value yet: whoever reads it says what it should be, and what it holds instead becomes the error's message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NoReturn

import yaml

from spendmeter.errors import SpendmeterError

_SHOWN = 60  # of a value in a message
MOST = 10**15  # of anything that is counted
_NULL = "tag:yaml.org,2002:null"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL and halves of surrogate pairs: no database and no UTF-8 takes them


def read(path: Path, error: type[SpendmeterError], expected: str) -> tuple[Node | None, bytes]:
    """The root of the file at *path*, None where it is empty, and its bytes.

    Args:
        error: what to raise for anything that is wrong with the file.
        expected: what the file should hold, in two or three words, such as "a list of entries".

    Raises:
        error: it cannot be read, is no UTF-8 or no YAML; names file and line.
    """
    try:
        data = path.read_bytes()
        root = yaml.compose(data.decode("utf-8-sig"), yaml.SafeLoader)
    except OSError as e:
        raise error(f"{path}: cannot be read ({e.strerror or type(e).__name__}); give the path of a file that holds {expected}") from e
    except UnicodeDecodeError as e:
        raise error(f"{path}: byte {e.start} is not UTF-8; save the file as UTF-8") from e
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as e:  # the latter for absurd escapes and versions
        problem = getattr(e, "problem", None) or type(e).__name__
        raise error(f"{path}{_mark(e)}: not YAML ({problem}); expected {expected}") from e
    return (None if root is None else Node(path, root, error)), data


def _mark(e: Exception) -> str:
    mark = getattr(e, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


@dataclass(frozen=True, slots=True)
class Node:
    """A YAML node that knows its file, and can say what is wrong with it."""

    path: Path
    node: yaml.Node
    error: type[SpendmeterError]

    def fail(self, what: str) -> NoReturn:
        """Raises with file and line before *what*."""
        raise self.error(f"{self.path}:{self.line}: {what}")

    @property
    def line(self) -> int:
        """Where it begins, from 1."""
        return int(self.node.start_mark.line) + 1

    @property
    def seen(self) -> str:
        """What it holds, for a message."""
        if not isinstance(self.node, yaml.ScalarNode):
            return "a mapping" if isinstance(self.node, yaml.MappingNode) else "a list"
        text = "".join(c if c.isprintable() else "?" for c in str(self.node.value))
        return f'"{text[:_SHOWN]}..."' if len(text) > _SHOWN else f'"{text}"'

    @property
    def is_null(self) -> bool:
        """Whether it is null, written so or left empty."""
        return bool(self.node.tag == _NULL)

    @property
    def is_list(self) -> bool:
        """Whether it is a sequence."""
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def is_mapping(self) -> bool:
        """Whether it is a mapping."""
        return isinstance(self.node, yaml.MappingNode)

    def items(self, hint: str = "") -> Iterator[Node]:
        """Its children; *hint* says how a list of them begins."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.fail(f"{self.seen} where a list was expected{f'; {hint}' if hint else ''}")
        return (Node(self.path, child, self.error) for child in self.node.value)

    def mapping(self, keys: Sequence[str] | None, example: str = "") -> dict[str, Node]:
        """Children by key; *keys* are the known ones, None allows any, and *example* shows one."""
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"{self.seen} where a mapping was expected, {'with keys ' + ', '.join(keys) if keys else f'as {example}'}")
        out: dict[str, Node] = {}
        for key_node, value_node in self.node.value:
            key = Node(self.path, key_node, self.error)._key(keys, out)
            out[key] = Node(self.path, value_node, self.error)
        return out

    def _key(self, keys: Sequence[str] | None, before: Mapping[str, Node]) -> str:
        text = str(self.node.value) if isinstance(self.node, yaml.ScalarNode) else ""
        if not text or _NO_TEXT.search(text) or (keys is not None and text not in keys):
            self.fail(f"key {self.seen} is not {'one of ' + ', '.join(keys) if keys else 'a name'}{suggest(text, keys or ())}")
        if text in before:
            self.fail(f'key "{text}" is given twice in one mapping; keep one of them')
        return text

    def text(self) -> str:
        """A scalar that is not empty, nor null."""
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip() or self.is_null:
            self.fail(f"{self.seen} where a text was expected")
        if _NO_TEXT.search(self.node.value):
            self.fail(f"{self.seen} holds a character that cannot be stored; remove the escape \\0 or \\ud800 to \\udfff")
        return str(self.node.value).strip()

    def number(self, what: str) -> Decimal:
        """A finite number of 0 or more, with the digits that were written."""
        try:
            value = Decimal(self.text())
        except InvalidOperation:
            self.fail(f"{what} {self.seen} is not a number; write it as 3 or 0.25")
        if not value.is_finite() or value < 0:
            self.fail(f"{what} {self.seen} is not a finite number of 0 or more")
        return value

    def whole(self, what: str, of: str, least: int = 1) -> int:
        """A whole number from *least*, which is 1 or 0, to 10^15."""
        value = self.number(what)
        if value > MOST:
            self.fail(f"{what} {self.seen} is more than {MOST}; write a smaller number")
        if value != value.to_integral_value() or value < least:
            self.fail(f"{what} {self.seen} is not a whole number of {of} {'above 0' if least else 'of 0 or more'}")
        return int(value)

    def one_of(self, what: str, known: Sequence[str]) -> str:
        """One of *known*."""
        if self.text() not in known:
            self.fail(f"{what} {self.seen} is not one of {', '.join(known)}{suggest(self.text(), known)}")
        return self.text()


def suggest(text: str, known: Sequence[str]) -> str:
    """What *text* was perhaps meant to be, as the end of a message."""
    from difflib import get_close_matches  # only a mistake needs it

    close = get_close_matches(text.lower().replace("-", "_"), known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
