"""Token events: usage that a client tells of by itself. Checked, recorded as usage like any other, listed, summed up.

An event becomes a run of the CLI "api" with one call: reports, budgets, metrics and spans know it by that. What it says besides
(its note, what it refers to, its idempotency key) stays in a row of its own.
"""

from spendmeter.token_events.model import FieldError, TokenEvent, TokenEventError, read, read_all
from spendmeter.token_events.queue import Queue
from spendmeter.token_events.reading import Asked, find, page
from spendmeter.token_events.summary import SCOPES, Summary, summary
from spendmeter.token_events.writing import ConflictError, Recorded, record

__all__ = [
    "SCOPES", "Asked", "ConflictError", "FieldError", "Queue", "Recorded", "Summary", "TokenEvent", "TokenEventError", "find", "page",
    "read", "read_all", "record", "summary",
]  # fmt: skip
