"""Gives events back as they were posted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select, tuple_

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import Where, within
from spendmeter.records import iso, usd_text
from spendmeter.token_events.cleaning import names
from spendmeter.token_events.model import FIELDS, tokens_total

Place = tuple[int, str]  # time of an event in ms, its id
_OF_ROW = ("agent", "task", "workstream", "repo", "ref_type", "ref_id", "model")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which events; None is any. ``since_ms`` is within the window, ``until_ms`` no longer."""

    since_ms: int | None = None
    until_ms: int | None = None
    agent: str | None = None
    task: str | None = None
    workstream: str | None = None
    repo: str | None = None
    ref_type: str | None = None
    ref_id: str | None = None
    model: str | None = None

    def conditions(self, settings: Settings) -> list[ColumnElement[bool]]:
        """In SQL, where names are as *settings* have made them."""
        c = t.token_events.c
        told = {name: getattr(self, name) for name in _OF_ROW}
        return [
            *within(c.occurred_ms, Where(self.since_ms, self.until_ms)),
            *(names(c[name], name, text, settings) for name, text in told.items() if text is not None),
        ]


def page(ledger: Ledger, asked: Asked, limit: int, after: Place | None = None) -> tuple[list[dict[str, Any]], Place | None]:
    """(events as JSON beyond *after*, the latest first; the place of the last, None where no more follow)."""
    c = t.token_events.c
    query = select(t.token_events).where(*asked.conditions(ledger.settings)).order_by(c.occurred_ms.desc(), c.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(tuple_(c.occurred_ms, c.id) < after)
    with ledger.read() as conn:
        found = conn.execute(query).all()
    shown = [as_json(r._mapping) for r in found[:limit]]
    last = found[limit - 1] if len(found) > limit else None
    return shown, (int(last.occurred_ms), last.id) if last else None


def find(ledger: Ledger, name: str) -> dict[str, Any] | None:
    """The event of that id as JSON, or None."""
    if not re.fullmatch("[0-9a-f]{32}", name):
        return None
    with ledger.read() as conn:
        row = conn.execute(select(t.token_events).where(t.token_events.c.id == name)).first()
    return as_json(row._mapping) if row else None


def as_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of the table as it is answered: what was posted, and ``id``, ``tokens_total``, ``created_at``."""
    made = {"cost_usd": usd_text(row["cost_nusd"]), "occurred_at": iso(row["occurred_ms"])}
    return (
        {"id": row["id"]}
        | {name: made[name] if name in made else row[name] for name in FIELDS}
        | {"tokens_total": tokens_total(row["tokens_in"], row["tokens_out"]), "created_at": iso(row["created_ms"])}
    )
