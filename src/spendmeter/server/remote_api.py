"""POST /api/v1/observations: what other hosts' ``spendmeter run --remote`` have observed, committed to this daemon's ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from spendmeter.errors import UnfitError
from spendmeter.runner import wire
from spendmeter.server.book import Book
from spendmeter.server.problems import BadFieldError, responses

THREADS = 2  # of their own: unpacked, a batch may take much memory, and writers wait for each other anyway
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "As `spendmeter run --remote` sends it, gzipped if the Content-Encoding says so. Sending it again changes nothing.",
        "content": {"application/json": {"schema": {"type": "object", "required": ["version", "observations"]}}},
    }
}


class Taken(BaseModel):
    """What a batch did to the ledger."""

    run_key: str | None = Field(description="of the run that it tells of; null where it tells of none")
    sessions: int = Field(description="how many sessions it tells of")
    changed: int = Field(description="and of how many of them anything was new")


def router(book: Book) -> APIRouter:
    """The route over *book*."""
    routes = APIRouter(tags=["ledger"])
    limiter: anyio.CapacityLimiter | None = None  # made within the event loop

    @routes.post(wire.PATH, response_model=Taken, responses=responses(400, 413, 415, 422, 503), openapi_extra=_BODY)
    async def observations(request: Request) -> Response:
        """Takes in a batch of another host's observations, in one transaction."""
        nonlocal limiter
        limiter = limiter or anyio.CapacityLimiter(THREADS)
        packed = _check_media(request)
        return JSONResponse(await anyio.to_thread.run_sync(_commit, book, await request.body(), packed, limiter=limiter))

    return routes


def _check_media(request: Request) -> bool:
    """Whether the body is gzipped; a page of another site cannot send this content type without being asked first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if kind != "application/json" or coding not in ("identity", "gzip"):
        raise HTTPException(415, "send application/json, gzipped or as it is")
    return coding == "gzip"


def _commit(book: Book, body: bytes, packed: bool) -> dict[str, Any]:
    try:
        batch = wire.unpack(wire.unzipped(body) if packed else body)
    except wire.WireError as e:
        raise BadFieldError(e.field, e.message) from None
    run_id = batch.processes[0].run_id if batch.processes else None
    try:
        done = book.ledger().commit(replace(batch, releases=run_id))
    except UnfitError:
        raise BadFieldError("observations", "add up to more than a ledger can hold") from None
    key = batch.processes[0].run_key if batch.processes else None
    return Taken(run_key=key, sessions=len(done.sessions), changed=len(done.changed)).model_dump()
