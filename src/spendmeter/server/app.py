"""The ASGI application: routes, guards and errors put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

import spendmeter
from spendmeter.server import api, problems, web
from spendmeter.server.book import Book
from spendmeter.server.guard import Armoured, TrustedHosts
from spendmeter.server.scrape import Scrapes
from spendmeter.server.workers import Workers

THREADS = 8  # for pages and API calls; with those for scrapes and the workers' fewer than the ledger has connections
STATIC = Path(__file__).parent / "static"


def create_app(book: Book, workers: Workers, hosts: Sequence[str] | None = ()) -> FastAPI:
    """The application over *book*.

    Args:
        hosts: names that the Host header may hold besides loopback ones; None takes any.
    """
    guards = [Middleware(Armoured, defect=problems.defect), *([Middleware(TrustedHosts, allowed=hosts)] if hosts is not None else [])]
    app = FastAPI(
        title="Spendmeter", version=spendmeter.__version__, docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json",
        middleware=[*guards, Middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)], lifespan=_lifespan,
        description="What coding-agent CLIs used and cost, by agent and task. Unknown is null, never 0; money is a decimal string.",
    )  # fmt: skip
    problems.install(app)
    app.add_route("/metrics", Scrapes(book).__call__, include_in_schema=False)
    _add_health(app, book, workers)
    app.include_router(api.router(book))
    app.include_router(web.router(book, workers))
    app.openapi = lambda: problems.describe(FastAPI.openapi(app))  # type: ignore[method-assign]
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


@contextlib.asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


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
