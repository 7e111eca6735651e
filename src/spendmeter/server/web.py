"""The web page: an overview, lists of runs, one run with its calls."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from spendmeter.ledger import Ledger
from spendmeter.records import NOTHING, Usage, total
from spendmeter.server.asked import PERIODS, Asked
from spendmeter.server.book import Book
from spendmeter.server.details import NoRunError, RunDetails, details
from spendmeter.server.overview import Overview, overview
from spendmeter.server.pages import html, places
from spendmeter.server.paging import page
from spendmeter.server.problems import BadFieldError
from spendmeter.server.workers import Workers

RUNS = 50
FRESH_S = 1.0  # at least so long an overview is shown again, and ten times as long as it took to make
_KEPT = 32


def router(book: Book, workers: Workers) -> APIRouter:
    """The pages over *book*."""
    routes = APIRouter(include_in_schema=False)
    memory = Memory(overview)

    @routes.get("/")
    def index(request: Request) -> Response:
        """What was spent, on what, by whom."""
        asked = Asked.of(request.query_params)
        view = memory.get(book.ledger(), asked)
        shown = {"asked": asked, "view": view, "digits": places(view.cards[-1].total), "periods": PERIODS}
        return html("overview.html", shown | {"trouble": list(workers.trouble.items())})

    @routes.get("/runs")
    def runs(request: Request) -> Response:
        """Runs of a period, fifty at a time."""
        asked = Asked.of(request.query_params)
        where = asked.where(asked.period or "all")
        try:
            found, cursor = page(book.ledger(), where, RUNS, request.query_params.get("cursor"))
        except ValueError as e:
            raise BadFieldError("cursor", str(e)) from None
        return html("runs.html", {"asked": asked, "runs": found, "cursor": cursor, "digits": 4, "periods": PERIODS})

    @routes.get("/runs/{key:path}")
    def run(key: str, request: Request) -> Response:
        """One run: what it used by model and call by call."""
        asked = Asked.of(request.query_params)
        try:
            found = details(book, key)
        except NoRunError as e:
            raise HTTPException(404, str(e)) from None
        return html("run.html", {"asked": asked, "it": found, "run": found.run, "gap": beyond_calls(found), "digits": 4})

    return routes


def beyond_calls(it: RunDetails) -> int:
    """Tokens of the run that none of its calls shows."""
    seen = total(c.usage for c in it.calls) if it.calls else NOTHING
    used = Usage(*it.run.amounts[:5])
    return used.minus(seen).tokens


class Memory:
    """Keeps what was made last, so that many open pages cost little more than one. Made once however many ask at a time."""

    def __init__(self, make: Callable[[Ledger, Asked], Overview]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._kept: OrderedDict[Asked, _Kept] = OrderedDict()

    def get(self, ledger: Ledger, asked: Asked) -> Overview:
        """The overview of *asked*, no older than it may be."""
        with self._lock:
            kept = self._kept.setdefault(asked, _Kept())
            self._kept.move_to_end(asked)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return kept.get(ledger, lambda: self._make(ledger, asked))


class _Kept:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._of: Any = None
        self._value: Overview | None = None

    def get(self, ledger: Ledger, make: Callable[[], Overview]) -> Overview:
        with self._lock:
            began = time.monotonic()
            if self._value is None or self._of is not ledger or began >= self._until:
                self._value, self._of = make(), ledger
                now = time.monotonic()
                self._until = now + max(FRESH_S, 10 * (now - began))
            return self._value
