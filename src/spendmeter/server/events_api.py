"""Token events over HTTP: posted one at a time or in a batch, listed, summed up. The same routes with and without /api/v1."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from spendmeter import token_events
from spendmeter.ledger.periods import when_ms, zone
from spendmeter.server import problems
from spendmeter.server.answers import TokenEventRow, TokenSummary
from spendmeter.server.api import LIMIT, LIMIT_MAX, TIME, checked
from spendmeter.server.book import Book
from spendmeter.server.paging import decode, encode
from spendmeter.server.problems import BadFieldError, responses
from spendmeter.token_events.fields import Text
from spendmeter.token_events.model import BATCH_MAX, schema
from spendmeter.token_events.reading import as_json

WAITING = 64  # requests whose events may be recorded by one commit; each waits in a thread, only the one that writes has a connection
_NAME = Text("exactly as it was posted")
Label = Annotated[str, AfterValidator(_NAME.read), WithJsonSchema(_NAME.schema())]
_EVENT = schema()
_BATCH = {"type": "array", "minItems": 1, "maxItems": BATCH_MAX, "items": _EVENT}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"One event, or a list of up to {BATCH_MAX}: all of them are recorded, or none.",
        "content": {"application/json": {"schema": {"anyOf": [_EVENT, _BATCH]}}},
    }
}


def _number(text: str) -> Decimal | float:
    """Exact, for money is never a float; one with an exponent beyond all bounds is no number, which no field takes."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return math.nan


_DECODER = msgspec.json.Decoder(float_hook=_number)


class TokenEvents(BaseModel):
    """A page of events, the latest first."""

    token_events: list[TokenEventRow]
    next_cursor: str | None = Field(description="for the next page; null at the end")


class EventFilters(BaseModel):
    """Which events."""

    model_config = ConfigDict(extra="forbid")

    task: Label | None = None
    workstream: Label | None = None
    repo: Label | None = None
    ref_type: Literal["commit", "release", "session"] | None = None
    ref_id: Label | None = None
    model: Label | None = None
    agent: Label | None = None
    since: str | None = Field(None, description=f"by occurred_at; {TIME}")
    until: str | None = Field(None, description="no longer belongs to the window; like since")
    timezone: str = Field("UTC", description="IANA name: where days and months begin")
    limit: int = Field(LIMIT, ge=1, le=LIMIT_MAX)
    cursor: str | None = Field(None, description="next_cursor of the page before, with the same filters")

    def asked(self) -> token_events.Asked:
        """As the ledger is asked.

        Raises:
            BadFieldError: a time or the zone is not understood.
        """
        checked("timezone", zone, self.timezone)
        since, until = (
            None if text is None else checked(name, when_ms, text, self.timezone)
            for name, text in (("since", self.since), ("until", self.until))
        )
        return token_events.Asked(since, until, self.agent, self.task, self.workstream, self.repo, self.ref_type, self.ref_id, self.model)


class SummaryOf(BaseModel):
    """What to sum up."""

    model_config = ConfigDict(extra="forbid")

    scope: Literal["task", "workstream", "repo", "commit", "release", "session"]
    id: Label


async def _json(request: Request) -> object:
    """The body. Another site's page cannot send this content type without being asked first."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send application/json")
    try:
        return _DECODER.decode(await request.body())
    except (ValueError, RecursionError) as e:
        raise HTTPException(400, f"the body is not JSON ({type(e).__name__}); send an event, or a list of events") from None


def _post(book: Book, told: object, key: str | None, path: str) -> Response:
    try:
        events = _events(told, key)
        done = book.events.record(events)
    except token_events.TokenEventError as e:
        errors = [problems.FieldError(field=x.field, message=x.message) for x in e.errors]
        return problems.answer(path, 422, str(e), errors)
    except token_events.ConflictError as e:
        field = f"{e.index}.idempotency_key" if isinstance(told, list) else "idempotency_key"
        return problems.answer(path, 409, f"{field}: {e}", [problems.FieldError(field=field, message=str(e))])
    rows = [as_json(row) for row in done.rows]
    return JSONResponse(rows if isinstance(told, list) else rows[0], 201 if done.new else 200)


def _events(told: object, key: str | None) -> list[token_events.TokenEvent]:
    if not isinstance(told, list):
        event = token_events.read(told)
        return [event if key is None else event.with_key(key)]
    if key is not None:
        raise BadFieldError("Idempotency-Key", "is for a single event; in a list each event has its own idempotency_key")
    return token_events.read_all(told)


def router(book: Book) -> APIRouter:
    """The routes over *book*."""
    routes = APIRouter(prefix="/token-events", tags=["token events"])
    waiting: anyio.CapacityLimiter | None = None  # of the event loop that asks first
    known: dict[int | str, dict[str, Any]] = {200: {"description": "All of them were known", "model": TokenEventRow | list[TokenEventRow]}}

    @routes.post(
        "",
        status_code=201,
        response_model=TokenEventRow | list[TokenEventRow],
        responses=known | responses(400, 409, 415, 422, 503),
        openapi_extra=_BODY,
    )
    async def post(
        told: Annotated[object, Depends(_json)], request: Request, idempotency_key: Annotated[str | None, Header()] = None
    ) -> Response:
        """Records usage. Answers with the row, or the rows in the order of the list; 200 where all of them had been recorded before."""
        nonlocal waiting
        waiting = waiting or anyio.CapacityLimiter(WAITING)
        return await anyio.to_thread.run_sync(_post, book, told, idempotency_key, request.url.path, limiter=waiting)

    @routes.get("", response_model=TokenEvents, responses=responses(422, 503))
    def listed(q: Annotated[EventFilters, Query()]) -> Response:
        """Posted events by the time of use, the latest first."""
        after = checked("cursor", decode, q.cursor, 1) if q.cursor else None
        found, last = token_events.page(book.ledger(), q.asked(), q.limit, after)
        return JSONResponse({"token_events": found, "next_cursor": encode(*last) if last else None})

    @routes.get("/summary", response_model=TokenSummary, responses=responses(422, 503))
    def summary(q: Annotated[SummaryOf, Query()]) -> Response:
        """What a task, workstream, repository, commit, release or session has used: posted events and metered runs."""
        return JSONResponse(token_events.summary(book.ledger(), q.scope, q.id).as_dict())

    @routes.get("/{id}", response_model=TokenEventRow, responses=responses(404, 422, 503))
    def one(id: str) -> Response:
        """One event."""
        found = token_events.find(book.ledger(), id)
        if found is None:
            raise HTTPException(404, "no token event has this id; list them at /api/v1/token-events")
        return JSONResponse(found)

    return routes
