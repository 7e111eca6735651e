"""E-mail addresses and paths in what an event says of itself: what of them is kept, as ``[privacy]`` says.

An event comes from whoever may post, who need not know what its names are shown to: so it is cleaned before it is stored. Whoever asks
for it may use the name as it was posted or as it is kept.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement

from spendmeter.config import Settings
from spendmeter.ledger.privacy import cleaned
from spendmeter.token_events.fields import LABEL_MAX, NOTE_MAX
from spendmeter.token_events.model import TokenEvent

_LONGEST = {"agent": LABEL_MAX, "task": LABEL_MAX, "workstream": LABEL_MAX, "repo": LABEL_MAX, "note": NOTE_MAX}  # what is cleaned
_REMOTE = re.compile(r"(?:[\w+.-]+://)?[\w.%+-]+@[\w.-]+[:/]\S+")  # git@host:org/shop is no address of anybody


def kept(event: TokenEvent, settings: Settings) -> TokenEvent:
    """*event* as it is stored."""
    told = {name: text for name in _LONGEST if (text := getattr(event, name)) is not None}
    made: dict[str, Any] = {name: clean(name, text, settings) for name, text in told.items()}
    return replace(event, **made)


def clean(field: str, text: str, settings: Settings) -> str:
    """*text* of the event's *field* as it is stored."""
    if field not in _LONGEST:
        return text
    emails = "keep" if field == "repo" and _REMOTE.fullmatch(text) else settings.privacy_emails
    return cleaned(text, emails, settings.privacy_paths)[: _LONGEST[field]]


def names(column: ColumnElement[Any], field: str, text: str, settings: Settings) -> ColumnElement[bool]:
    """Rows whose *column* is *text* as a metered run has it, or as an event's *field* is stored."""
    stored = clean(field, text, settings)
    return column == text if stored == text else column.in_([text, stored])
