"""A token event: its fields, declared once, and the check of what a client sends."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from typing import Any, NamedTuple

from spendmeter.errors import SpendmeterError
from spendmeter.ledger.store import dump
from spendmeter.records import Usage
from spendmeter.token_events.fields import NOTE_MAX, Choice, Count, Field, Moment, Money, Text

BATCH_MAX = 1000
_ERRORS_MAX = 50  # that one answer names
_NAME_MAX = 64  # of an unknown field's name, in what is said of it
_KEPT = {"cost_usd": "cost_nusd", "occurred_at": "occurred_ms"}  # by another name, in another unit
REF_TYPES = ("commit", "release", "session")
AMOUNTS = ("tokens_in", "tokens_out", "cache_read", "cache_write", "cost_usd")  # one of them at least
FIELDS: dict[str, Field] = {
    "agent": Text('the role that used it; "unknown" where it is left out'),
    "task": Text('the unit of work, such as an issue key; "unknown" where it is left out'),
    "workstream": Text("what the task belongs to; filled in from the task's latest event or run that names one"),
    "repo": Text("the repository, such as org/shop"),
    "ref_type": Choice("what ref_id names", REF_TYPES),
    "ref_id": Text("a commit hash, the name of a release, or the id of a CLI's session; needs ref_type"),
    "model": Text("the model that answered"),
    "tokens_in": Count("uncached input"),
    "tokens_out": Count("all output, reasoning included"),
    "cache_read": Count("input read from the cache"),
    "cache_write": Count("input written to the cache; priced as of the 5 minute cache"),
    "cost_usd": Money("what it cost, where the client knows; else it is estimated at list price"),
    "note": Text("anything; stored, given back, and exported nowhere", NOTE_MAX, lines=True),
    "occurred_at": Moment("when it was used, with a time zone; now where it is left out"),
    "idempotency_key": Text("names this event: sending it again changes nothing"),
}


class FieldError(NamedTuple):
    """What is wrong with one field; in a batch its name begins with the event's index: ``3.tokens_in``."""

    field: str
    message: str


class TokenEventError(SpendmeterError):
    """An event is not what its fields say; ``errors`` names each of them."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in errors))
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """An event as it was told; None is unknown. Money in nano-USD, time in ms."""

    agent: str = "unknown"
    task: str = "unknown"
    workstream: str | None = None
    repo: str | None = None
    ref_type: str | None = None
    ref_id: str | None = None
    model: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    cost_nusd: int | None = None
    note: str | None = None
    occurred_ms: int | None = None
    idempotency_key: str | None = None

    @property
    def usage(self) -> Usage:
        """As of a call. A client cannot tell how long its cache entries live: they count as those of 5 minutes."""
        return Usage(self.tokens_in, self.cache_read, self.cache_write, None, self.tokens_out, cost_nusd=self.cost_nusd)

    @property
    def digest(self) -> str:
        """Equal for equal events, whatever their key."""
        told = {name: getattr(self, name) for name in self.__slots__ if name != "idempotency_key"}
        return hashlib.sha256(dump(told).encode()).hexdigest()

    def with_key(self, key: str) -> TokenEvent:
        """The event under the idempotency key of a header.

        Raises:
            TokenEventError: the key is none, or the event itself names another.
        """
        try:
            FIELDS["idempotency_key"].read(key)
        except ValueError as e:
            raise TokenEventError([FieldError("Idempotency-Key", str(e))]) from None
        if self.idempotency_key not in (None, key):
            raise TokenEventError([FieldError("idempotency_key", "differs from the header Idempotency-Key; send one of them")])
        return replace(self, idempotency_key=key)


def tokens_total(tokens_in: int | None, tokens_out: int | None) -> int | None:
    """Input and output; an unknown adds nothing to what is known."""
    return tokens_out if tokens_in is None else tokens_in + (tokens_out or 0)


def read(told: object) -> TokenEvent:
    """The event that *told*, a JSON object, describes.

    Raises:
        TokenEventError: names every field that is wrong.
    """
    found, errors = _read(told)
    if errors:
        raise TokenEventError(errors)
    return found


def read_all(told: Sequence[object]) -> list[TokenEvent]:
    """A batch.

    Raises:
        TokenEventError: names the fields that are wrong, up to 50 of them.
    """
    if not 1 <= len(told) <= BATCH_MAX:
        raise TokenEventError([FieldError("", f"a batch of {len(told)} events; send from 1 to {BATCH_MAX}")])
    found: list[TokenEvent] = []
    errors: list[FieldError] = []
    for i, one in enumerate(told):
        event, wrong = _read(one)
        found.append(event)
        errors += [FieldError(f"{i}.{e.field}".rstrip("."), e.message) for e in wrong]
        if len(errors) >= _ERRORS_MAX:
            break
    if errors:
        raise TokenEventError(errors[:_ERRORS_MAX])
    return found


def _read(told: object) -> tuple[TokenEvent, list[FieldError]]:
    if not isinstance(told, Mapping):
        return TokenEvent(), [FieldError("", "an event must be a JSON object")]
    values: dict[str, Any] = {}
    strange = (str(name) for name in told if name not in FIELDS)
    errors = [FieldError(name[:_NAME_MAX], _unknown(name)) for name in islice(strange, _ERRORS_MAX)]
    for name, field in FIELDS.items():
        try:
            if told.get(name) is not None:
                values[_KEPT.get(name, name)] = field.read(told[name])
        except ValueError as e:
            errors.append(FieldError(name, str(e)))
    return TokenEvent(**values), errors or _together(told)


def _unknown(name: str) -> str:
    near = get_close_matches(name[:_NAME_MAX], FIELDS, 1)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; there are {', '.join(FIELDS)}"


def _together(told: Mapping[str, object]) -> list[FieldError]:
    """What no field is to blame for alone."""
    errors = []
    if all(told.get(name) is None for name in AMOUNTS):
        errors.append(FieldError("tokens_in", f"an event must tell one at least of {', '.join(AMOUNTS)}"))
    for name, other in (("ref_type", "ref_id"), ("ref_id", "ref_type")):
        if told.get(name) is None and told.get(other) is not None:
            errors.append(FieldError(name, f"is missing; {other} needs it"))
    return errors


def schema() -> dict[str, Any]:
    """What ``read`` takes, as JSON Schema."""
    nothing = {"type": "null"}
    one = [{"required": [name], "properties": {name: {"not": nothing}}} for name in AMOUNTS]
    neither = {"properties": {"ref_type": nothing, "ref_id": nothing}}
    both = {"required": ["ref_type", "ref_id"], "properties": {"ref_type": {"type": "string"}, "ref_id": {"type": "string"}}}
    return {
        "title": "TokenEvent", "type": "object", "additionalProperties": False,
        "properties": {name: {"anyOf": [field.schema(), nothing]} for name, field in FIELDS.items()},
        "allOf": [{"anyOf": one}, {"anyOf": [neither, both]}],
    }  # fmt: skip
