"""GET /metrics: the page in the format and encoding that the scraper asks for; its new series count as shown once it has gone out."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from spendmeter.ledger.exposition import Page, exposition
from spendmeter.projections import prometheus
from spendmeter.server.book import Book
from spendmeter.server.guard import IS_HEAD

THREADS = 2  # of their own, so that slow pages and API calls keep no scrape waiting
_GZIP_LEVEL = 3  # 100 000 series: a tenth of the size in a quarter of level 9's time


@dataclass(frozen=True, slots=True)
class _Made:
    page: Page
    kind: str
    body: bytes


class PageResponse(Response):
    """Sends a page, then notes that it was sent, unless the scraper has hung up or wanted no body."""

    def __init__(self, page: Page, body: bytes, headers: dict[str, str], media_type: str) -> None:
        super().__init__(body, headers=headers, media_type=media_type)
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keeps the end of the message back until it is known whether anyone listens."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        request = Request(scope, receive)
        gone = await request.is_disconnected() or await request.is_disconnected()  # the first may only tell of the empty body
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if not gone and not scope.get(IS_HEAD):
            await anyio.to_thread.run_sync(self._page.sent)


class Scrapes:
    """The route's handler."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._limiter: anyio.CapacityLimiter | None = None

    async def __call__(self, request: Request) -> Response:
        """The page; 503 with a reason where the ledger cannot be read."""
        self._limiter = self._limiter or anyio.CapacityLimiter(THREADS)
        packed = takes_gzip(request.headers.get("accept-encoding", ""))
        accept = request.headers.get("accept")
        made = await anyio.to_thread.run_sync(lambda: self._make(accept, packed=packed), limiter=self._limiter)
        headers = {"vary": "accept, accept-encoding", "cache-control": "no-store"} | ({"content-encoding": "gzip"} if packed else {})
        return PageResponse(made.page, made.body, headers, made.kind)

    def _make(self, accept: str | None, *, packed: bool) -> _Made:
        page = exposition(self._book.ledger(), "scrape")
        kind, body = prometheus.render(page, accept)
        return _Made(page, kind, gzip.compress(body, _GZIP_LEVEL, mtime=0) if packed else body)


def takes_gzip(accept_encoding: str) -> bool:
    """Whether the Accept-Encoding header allows gzip."""
    for part in accept_encoding.lower().split(","):
        name, _, quality = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
