"""``/mcp`` of the daemon: streamable HTTP, each request on its own, each answer one JSON document."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from spendmeter.server.book import Book
from spendmeter.server.guard import may
from spendmeter.server.mcp_server.protocol import server
from spendmeter.server.mcp_server.source import Source


class Door:
    """An ASGI endpoint for POST. There are no sessions and no event streams: nothing is held open that would delay the daemon's end."""

    def __init__(self, book: Book) -> None:
        self._server = server(Source(book.settings, lambda: book), lambda request, scope: may(request.scope, scope))
        self._manager: StreamableHTTPSessionManager | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Answers as long as the context lasts."""
        manager = StreamableHTTPSessionManager(self._server, json_response=True, stateless=True)
        async with manager.run():
            self._manager = manager
            try:
                yield
            finally:
                self._manager = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if self._manager is None:
            await PlainTextResponse("the daemon is starting or ending; try again\n", 503)(scope, receive, send)
        else:
            await self._manager.handle_request(scope, receive, send)
