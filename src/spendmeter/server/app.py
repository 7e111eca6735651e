"""The ASGI application: routes, guards and errors put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

import spendmeter
from spendmeter.server import admission_api, api, events_api, login, otlp_in, problems, remote_api, web
from spendmeter.server.auth import Doors, Keeper
from spendmeter.server.book import Book
from spendmeter.server.guard import Armoured, SameOrigin, TrustedHosts
from spendmeter.server.limits import Buckets, SizeLimit, WriteLimit
from spendmeter.server.mcp_server import door
from spendmeter.server.scrape import Scrapes
from spendmeter.server.workers import Workers

if TYPE_CHECKING:
    from spendmeter.server.mcp_server.endpoint import Door

THREADS = 4  # for pages and API calls; with scrapes, tokens, batches, the one that writes events and workers no more than connections
STATIC = Path(__file__).parent / "static"


def create_app(
    book: Book, workers: Workers, hosts: Sequence[str] | None = (), keeper: Keeper | None = None, writes: Buckets | None = None
) -> FastAPI:
    """The application over *book*.

    Args:
        hosts: names that the Host header may hold besides loopback ones; None takes any.
        keeper: of the tokens that every request needs; None asks for none.
        writes: how many requests that change something each client may send.
    """
    guards = [
        Middleware(otlp_in.StatusBodies),
        Middleware(Armoured, defect=problems.defect),
        *([Middleware(TrustedHosts, allowed=hosts)] if hosts is not None else []),
        Middleware(SameOrigin, refused=problems.foreign),
        *([Middleware(Doors, keeper=keeper)] if keeper else []),
        *([Middleware(WriteLimit, buckets=writes)] if writes else []),
        Middleware(SizeLimit),
    ]
    mcp = door(book)
    app = FastAPI(
        title="Spendmeter", version=spendmeter.__version__, docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json",
        middleware=[*guards, Middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)], lifespan=_lifespan(mcp),
        description="What coding-agent CLIs used and cost, by agent and task. Unknown is null, never 0; money is a decimal string.",
    )  # fmt: skip
    problems.install(app)
    app.add_route("/metrics", Scrapes(book).__call__, include_in_schema=False)
    _add_health(app, book, workers)
    app.include_router(api.router(book))
    events = events_api.router(book)
    app.include_router(events, prefix="/api/v1")
    app.include_router(events, include_in_schema=False)  # for clients that have these paths already
    app.include_router(remote_api.router(book))
    app.include_router(admission_api.router(book))
    app.router.routes += otlp_in.routes(book)
    app.include_router(web.router(book, workers))
    if keeper:
        app.include_router(login.router(keeper))
    app.openapi = lambda: problems.describe(FastAPI.openapi(app), needs_token=keeper is not None)  # type: ignore[method-assign]
    if mcp is not None:
        app.router.routes.append(Route("/mcp", mcp, methods=["POST"], include_in_schema=False))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _lifespan(mcp: Door | None) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        async with mcp.open() if mcp is not None else contextlib.nullcontext():
            yield

    return lifespan


def _add_health(app: FastAPI, book: Book, workers: Workers) -> None:
    def ready() -> Response:
        """Whether the ledger can be read; LedgerError becomes a 503 that says what to do."""
        book.check()
        return live()

    def live() -> Response:
        """Whether the process is sound, whatever the ledger does: what an orchestrator may restart it for."""
        if not workers.alive:
            return PlainTextResponse("a thread of spendmeter has died; restart it\n", 503)
        return PlainTextResponse("ok\n")

    for path, handler in (("/healthz", ready), ("/readyz", ready), ("/livez", live)):
        app.add_api_route(path, handler, include_in_schema=False)
