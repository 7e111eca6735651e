"""Reads and checks ``prices.yaml``; every mistake is named by file and line.

The YAML is read as a graph of nodes, not as values: a rate keeps the digits that were written (it is never a float) and
every message knows its line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import yaml

from spendmeter.errors import PriceError
from spendmeter.prices.override import Entry
from spendmeter.prices.rates import TOKEN_KINDS, WEB_SEARCH

ENTRY_KEYS = ("match", "from", "to", "per", *TOKEN_KINDS, WEB_SEARCH, "long_context", "fast", "geo", "tier")
LONG_CONTEXT_KEYS = ("above", *TOKEN_KINDS)
PER = {"million": Decimal(1), "thousand": Decimal(1_000)}

_SHOWN = 60  # of a value in a message


def read(path: Path) -> tuple[tuple[Entry, ...], str]:
    """The entries of *path* in file order, and a short hash of its bytes.

    Raises:
        PriceError: ``prices.yaml:12: <value seen>, <expectation>; <remedy>``
    """
    try:
        data = path.read_bytes()
        root = yaml.compose(data.decode("utf-8-sig"), yaml.SafeLoader)
    except OSError as e:
        raise PriceError(
            f"{path}: cannot be read ({e.strerror or type(e).__name__}); give the path of a prices.yaml or leave it out"
        ) from e
    except UnicodeDecodeError as e:
        raise PriceError(f"{path}: byte {e.start} is not UTF-8; save the file as UTF-8") from e
    except (yaml.YAMLError, RecursionError) as e:
        raise PriceError(
            f"{path}{_mark(e)}: not YAML ({getattr(e, 'problem', None) or type(e).__name__}); expected a list of entries"
        ) from e
    entries = () if root is None else tuple(_entry(node) for node in _Node(path, root).items())
    return entries, sha256(data).hexdigest()[:8]


def _mark(e: Exception) -> str:
    mark = getattr(e, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


@dataclass(frozen=True, slots=True)
class _Node:
    """A YAML node that knows its file, and can say what is wrong with it."""

    path: Path
    node: yaml.Node

    def fail(self, what: str) -> NoReturn:
        raise PriceError(f"{self.path}:{self.node.start_mark.line + 1}: {what}")

    @property
    def seen(self) -> str:
        if not isinstance(self.node, yaml.ScalarNode):
            return "a mapping" if isinstance(self.node, yaml.MappingNode) else "a list"
        text = str(self.node.value)
        return f'"{text[:_SHOWN]}..."' if len(text) > _SHOWN else f'"{text}"'

    def items(self) -> Iterator[_Node]:
        if not isinstance(self.node, yaml.SequenceNode):
            self.fail(f'{self.seen} where a list of entries was expected; begin each entry with "- match: ..."')
        return (_Node(self.path, child) for child in self.node.value)

    def mapping(self, keys: tuple[str, ...] | None) -> dict[str, _Node]:
        """Children by key; *keys* are the known ones, None allows any."""
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"{self.seen} where a mapping was expected, {'with keys ' + ', '.join(keys) if keys else 'as {us: 1.1}'}")
        out: dict[str, _Node] = {}
        for key_node, value_node in self.node.value:
            key = _Node(self.path, key_node).key(keys, out)
            out[key] = _Node(self.path, value_node)
        return out

    def key(self, keys: tuple[str, ...] | None, before: Mapping[str, _Node]) -> str:
        text = str(self.node.value) if isinstance(self.node, yaml.ScalarNode) else ""
        if not text or (keys is not None and text not in keys):
            self.fail(f"key {self.seen} is not {'one of ' + ', '.join(keys) if keys else 'a name'}{_suggest(text, keys or ())}")
        if text in before:
            self.fail(f'key "{text}" is given twice in one mapping; keep one of them')
        return text

    def text(self) -> str:
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip():
            self.fail(f"{self.seen} where a text was expected")
        return str(self.node.value).strip()

    def day(self) -> date:
        try:
            return date.fromisoformat(self.text())
        except ValueError:
            self.fail(f"{self.seen} is not a day; write it as 2026-01-31 (UTC)")

    def number(self, what: str) -> Decimal:
        try:
            value = Decimal(self.text())
        except InvalidOperation:
            self.fail(f"{what} {self.seen} is not a number; write it as 3 or 0.25")
        if not value.is_finite() or value < 0:
            self.fail(f"{what} {self.seen} is not a finite number of 0 or more")
        return value

    def tokens(self) -> int:
        value = self.number("above")
        if value != value.to_integral_value() or value == 0:
            self.fail(f"above {self.seen} is not a whole number of tokens above 0")
        return int(value)

    def one_of(self, what: str, known: Mapping[str, Decimal]) -> Decimal:
        if self.text() not in known:
            self.fail(f"{what} {self.seen} is not one of {', '.join(known)}{_suggest(self.text(), tuple(known))}")
        return known[self.text()]


def _suggest(text: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches  # only a mistake needs it

    close = get_close_matches(text.lower().replace("-", "_"), known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _entry(node: _Node) -> Entry:
    keys = node.mapping(ENTRY_KEYS)
    if "match" not in keys:
        node.fail('an entry without "match"; name the models it is for, as match: "claude-*"')
    if not keys.keys() - {"match", "from", "to", "per"}:
        node.fail("an entry that sets no rate; give at least one of " + ", ".join(ENTRY_KEYS[4:]))
    per = keys["per"].one_of("per", PER) if "per" in keys else Decimal(1)
    long_context = keys["long_context"].mapping(LONG_CONTEXT_KEYS) if "long_context" in keys else {}
    return Entry(
        match=keys["match"].text(),
        start=_start(keys),
        end=keys["to"].day() if "to" in keys else None,
        usd=_rates(keys, per),
        above=_above(keys, long_context),
        long_usd=_rates(long_context, per),
        premiums=dict(_premiums(keys)),
    )


def _start(keys: Mapping[str, _Node]) -> date | None:
    start = keys["from"].day() if "from" in keys else None
    if start is not None and "to" in keys and keys["to"].day() <= start:
        keys["to"].fail(f"to {keys['to'].seen} is not after from {keys['from'].seen}; to is the first day that is no longer covered")
    return start


def _rates(keys: Mapping[str, _Node], per: Decimal) -> dict[str, Decimal]:
    usd = {kind: keys[kind].number(kind) * per for kind in TOKEN_KINDS if kind in keys}
    if WEB_SEARCH in keys:
        usd[WEB_SEARCH] = keys[WEB_SEARCH].number(WEB_SEARCH)
    return usd


def _above(keys: Mapping[str, _Node], long_context: Mapping[str, _Node]) -> int | None:
    if "long_context" not in keys:
        return None
    if "above" not in long_context or len(long_context) == 1:
        keys["long_context"].fail('long_context without "above" or without a rate; write {above: 200000, input: 6, output: 22.5}')
    return long_context["above"].tokens()


def _premiums(keys: Mapping[str, _Node]) -> Iterator[tuple[tuple[str, str], Decimal]]:
    if "fast" in keys:
        yield ("speed", "fast"), keys["fast"].number("fast")
    for trait in ("geo", "tier"):
        for value, node in keys[trait].mapping(None).items() if trait in keys else ():
            yield (trait, value.lower()), node.number(f"{trait} {value}")
