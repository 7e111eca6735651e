"""Reads and checks ``prices.yaml``; every mistake is named by file and line. A rate keeps the digits that were written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from hashlib import sha256
from pathlib import Path

from spendmeter import yamlfile
from spendmeter.errors import PriceError
from spendmeter.prices.override import Entry
from spendmeter.prices.rates import TOKEN_KINDS, WEB_SEARCH
from spendmeter.yamlfile import Node

ENTRY_KEYS = ("match", "from", "to", "per", *TOKEN_KINDS, WEB_SEARCH, "long_context", "fast", "geo", "tier")
LONG_CONTEXT_KEYS = ("above", *TOKEN_KINDS)
PER = {"million": Decimal(1), "thousand": Decimal(1_000)}
_BEGIN = 'begin each entry with "- match: ..."'


def read(path: Path) -> tuple[tuple[Entry, ...], str]:
    """The entries of *path* in file order, and a short hash of its bytes.

    Raises:
        PriceError: ``prices.yaml:12: <value seen>, <expectation>; <remedy>``
    """
    root, data = yamlfile.read(path, PriceError, "a list of entries")
    entries = () if root is None else tuple(_entry(node) for node in root.items(_BEGIN))
    return entries, sha256(data).hexdigest()[:8]


def _day(node: Node) -> date:
    try:
        return date.fromisoformat(node.text())
    except ValueError:
        node.fail(f"{node.seen} is not a day; write it as 2026-01-31 (UTC)")


def _entry(node: Node) -> Entry:
    keys = node.mapping(ENTRY_KEYS)
    if "match" not in keys:
        node.fail('an entry without "match"; name the models it is for, as match: "claude-*"')
    if not keys.keys() - {"match", "from", "to", "per"}:
        node.fail("an entry that sets no rate; give at least one of " + ", ".join(ENTRY_KEYS[4:]))
    per = PER[keys["per"].one_of("per", tuple(PER))] if "per" in keys else Decimal(1)
    long_context = keys["long_context"].mapping(LONG_CONTEXT_KEYS) if "long_context" in keys else {}
    return Entry(
        match=keys["match"].text(),
        start=_start(keys),
        end=_day(keys["to"]) if "to" in keys else None,
        usd=_rates(keys, per),
        above=_above(keys, long_context),
        long_usd=_rates(long_context, per),
        premiums=dict(_premiums(keys)),
    )


def _start(keys: Mapping[str, Node]) -> date | None:
    start = _day(keys["from"]) if "from" in keys else None
    if start is not None and "to" in keys and _day(keys["to"]) <= start:
        keys["to"].fail(f"to {keys['to'].seen} is not after from {keys['from'].seen}; to is the first day that is no longer covered")
    return start


def _rates(keys: Mapping[str, Node], per: Decimal) -> dict[str, Decimal]:
    usd = {kind: keys[kind].number(kind) * per for kind in TOKEN_KINDS if kind in keys}
    if WEB_SEARCH in keys:
        usd[WEB_SEARCH] = keys[WEB_SEARCH].number(WEB_SEARCH)
    return usd


def _above(keys: Mapping[str, Node], long_context: Mapping[str, Node]) -> int | None:
    if "long_context" not in keys:
        return None
    if "above" not in long_context or len(long_context) == 1:
        keys["long_context"].fail('long_context without "above" or without a rate; write {above: 200000, input: 6, output: 22.5}')
    return long_context["above"].whole("above", "tokens")


def _premiums(keys: Mapping[str, Node]) -> Iterator[tuple[tuple[str, str], Decimal]]:
    if "fast" in keys:
        yield ("speed", "fast"), keys["fast"].number("fast")
    for trait in ("geo", "tier"):
        for value, node in keys[trait].mapping(None, "{us: 1.1}").items() if trait in keys else ():
            yield (trait, value.lower()), node.number(f"{trait} {value}")
