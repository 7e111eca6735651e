"""Runs a page at a time: a cursor names the last run that was shown, so runs that land meanwhile move nothing."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

from spendmeter.ledger import Ledger
from spendmeter.ledger.query import RunLine, Where, runs

Place = tuple[int, str, str]  # end in ms, session, run key
FAR_MS = 1 << 53  # no time of ours lies beyond


def page(ledger: Ledger, where: Where, limit: int, cursor: str | None = None) -> tuple[list[RunLine], str | None]:
    """(runs after *cursor*, latest first, cursor of the next page or None at the end).

    Raises:
        ValueError: *cursor* is none of ours.
    """
    found = _after(ledger, where, limit + 1, decode(cursor, 2)) if cursor else runs(ledger, where, limit + 1)
    shown = found[:limit]
    return shown, encode(*_place(shown[-1])) if len(found) > limit else None


def _after(ledger: Ledger, where: Where, count: int, place: Place) -> list[RunLine]:
    """Runs that ended with the last shown one come again before what is new: as many are read as it takes to pass them."""
    until = place[0] + 1 if where.until_ms is None else min(where.until_ms, place[0] + 1)
    ask = count + 1
    while True:
        found = runs(ledger, replace(where, until_ms=until), ask)
        rest = _beyond(found, place)
        if len(rest) >= count or len(found) < ask:
            return rest[:count]
        ask *= 2


def _beyond(found: list[RunLine], place: Place) -> list[RunLine]:
    for i, run in enumerate(found):
        if _place(run) == place:
            return found[i + 1 :]
    return [r for r in found if (r.ended_ms or 0) < place[0]]  # the run itself has gone: those beside it are let go too


def _place(run: RunLine) -> Place:
    return run.ended_ms or 0, run.session, run.run_key


def encode(at_ms: int, *names: str) -> str:
    """A place in a list as the text of a cursor."""
    return base64.urlsafe_b64encode(json.dumps([at_ms, *names], separators=(",", ":")).encode()).decode().rstrip("=")


def decode(cursor: str, names: int) -> tuple[Any, ...]:
    """The time and the *names* names that *cursor* holds.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        told = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        at_ms, *rest = told
        if type(at_ms) is int and abs(at_ms) <= FAR_MS and len(rest) == names and all(type(x) is str for x in rest):
            return at_ms, *rest
    except (ValueError, TypeError, RecursionError):
        pass
    raise ValueError("not a cursor of this list; leave it out to begin again")
