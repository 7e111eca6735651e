"""OTLP/HTTP in: POST /v1/metrics, /v1/logs and /v1/traces, from the CLIs' own telemetry or a Collector between.

Source: https://opentelemetry.io/docs/specs/otlp/ (OTLP/HTTP Response): answers and errors are messages in the request's encoding,
what could not be used is told as a partial success, and 429 and 503 alone are tried again.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spendmeter.ledger import Batch
from spendmeter.parsers import otlp
from spendmeter.parsers.otlp import jsonform
from spendmeter.parsers.otlp.model import MalformedError, Record
from spendmeter.records import Claim, Observation, Skip
from spendmeter.runner import wire
from spendmeter.server.book import Book
from spendmeter.server.limits import OTLP, OTLP_MAX

JSON, PROTOBUF = "application/json", "application/x-protobuf"
MOST_NOTED = 10_000
_REJECTED = {"metrics": "rejectedDataPoints", "logs": "rejectedLogRecords", "traces": "rejectedSpans"}
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 408: 4, 413: 8, 415: 3, 429: 8, 431: 8, 500: 13, 503: 14}  # of google.rpc.Code


def routes(book: Book) -> list[Route]:
    """The three routes over *book*."""
    taker = _Taker(book)
    return [Route(path, taker.endpoint(signal), methods=["POST"], include_in_schema=False) for path, signal in OTLP.items()]


class _Taker:
    """Takes requests into the ledger. ``_noted``: what is known there to be passed over, so that only news is written."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._noted: set[Skip] = set()

    def endpoint(self, signal: str) -> Any:
        """The handler of one signal's path."""

        async def handle(request: Request) -> Response:
            kind, packed = _media(request)
            body = await request.body()
            rejected = await run_in_threadpool(self._take, signal, kind, body, packed)
            return Response(_success(signal, kind, rejected), media_type=kind)

        return handle

    def _take(self, signal: str, kind: str, body: bytes, packed: bool) -> Counter[str]:
        """Commits what *body* tells, in one transaction; what had to be rejected, by what it is."""
        readers: otlp.Readers = {}
        try:
            otlp.take(_records(signal, kind, _unpacked(body) if packed else body), readers)
        except MalformedError as e:
            raise HTTPException(400, f"not understood: {e}") from None
        told: list[Observation] = [o for reader in readers.values() for o in reader.finish()]
        claims: list[Claim] = [c for reader in readers.values() for c in reader.claims]
        news = [o for o in told if o not in self._noted]
        if news:
            self._book.ledger().commit(Batch(news, claims))
            self._note(o for o in news if isinstance(o, Skip))
        return sum((reader.rejected for reader in readers.values()), Counter[str]())

    def _note(self, skips: Any) -> None:
        if len(self._noted) < MOST_NOTED:
            self._noted.update(skips)


def _media(request: Request) -> tuple[str, bool]:
    """The body's encoding, and whether it is gzipped."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, PROTOBUF):
        raise HTTPException(415, f"send {PROTOBUF} or {JSON}")
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity", "gzip"):
        raise HTTPException(415, "compress with gzip, or not at all")
    return kind, coding == "gzip"


def _unpacked(body: bytes) -> bytes:
    try:
        return wire.unzipped(body, OTLP_MAX)
    except wire.WireError as e:
        raise HTTPException(413 if isinstance(e, wire.TooLargeError) else 400, f"the body {e.message}") from None


def _records(signal: str, kind: str, body: bytes) -> list[Record]:
    """All of a request's records, before the first is used: a request is taken whole or refused whole."""
    if kind == PROTOBUF:
        from spendmeter.parsers.otlp import protobuf

        return list(protobuf.records(signal, body))
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedError("the body is no JSON") from None
    if not isinstance(document, dict):
        raise MalformedError("the body is no object")
    return list(jsonform.records(document, (signal,)))


def _success(signal: str, kind: str, rejected: Counter[str]) -> bytes:
    """An Export...ServiceResponse, with what was rejected and why."""
    told = [f"{n} x {what}" for what, n in sorted(rejected.items())]
    partial = {_REJECTED[signal]: str(rejected.total()), "errorMessage": "rejected: " + ", ".join(told)} if told else None
    document = {"partialSuccess": partial} if partial else {}
    if kind == JSON:
        return json.dumps(document).encode()
    from spendmeter.parsers.otlp import protobuf

    return protobuf.response(signal, document)


class StatusBodies:
    """Errors on OTLP's paths, whoever refuses, as a google.rpc.Status in the request's encoding. Plain ASGI, around all other guards."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wraps one request."""
        if scope["type"] != "http" or scope["path"] not in OTLP or scope["method"] == "HEAD":  # whose answer has no body
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        said = b""

        async def out(message: Message) -> None:
            nonlocal start, said
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None:
                await send(message)
            else:
                said += message.get("body", b"")
                if not message.get("more_body", False):
                    await _send_status(scope, start, said, send)

        await self._app(scope, receive, out)


async def _send_status(scope: Scope, start: Message, said: bytes, send: Send) -> None:
    headers = MutableHeaders(raw=list(start["headers"]))
    message = str(json.loads(said)["detail"]) if headers.get("content-type", "").endswith("json") else said.decode().strip()
    code = _CODES.get(start["status"], 2)
    is_binary = Headers(scope=scope).get("content-type", "").startswith(PROTOBUF)
    body = _binary_status(code, message) if is_binary else json.dumps({"code": code, "message": message}).encode()
    headers["content-type"], headers["content-length"] = PROTOBUF if is_binary else JSON, str(len(body))
    await send({**start, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})


def _binary_status(code: int, message: str) -> bytes:
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

    return bytes(Status(code=code, message=message).SerializeToString())
