"""Runs a page at a time: a cursor names the last run that was shown, so runs that land meanwhile move nothing."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import replace

from spendmeter.ledger import Ledger
from spendmeter.ledger.query import RunLine, Where, runs

Place = tuple[int, str, str]  # end in ms, session, run key


def page(ledger: Ledger, where: Where, limit: int, cursor: str | None = None) -> tuple[list[RunLine], str | None]:
    """(runs after *cursor*, latest first, cursor of the next page or None at the end).

    Raises:
        ValueError: *cursor* is none of ours.
    """
    found = _after(ledger, where, limit + 1, _read(cursor)) if cursor else runs(ledger, where, limit + 1)
    shown = found[:limit]
    return shown, _write(shown[-1]) if len(found) > limit else None


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


def _write(run: RunLine) -> str:
    return base64.urlsafe_b64encode(json.dumps(_place(run), separators=(",", ":")).encode()).decode().rstrip("=")


def _read(cursor: str) -> Place:
    try:
        ended, session, key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return int(ended), str(session), str(key)
    except (ValueError, TypeError, binascii.Error):
        raise ValueError("not a cursor of this list; leave it out to begin again") from None
