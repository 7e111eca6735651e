"""The REST API under /api/v1: the ledger's answers as JSON. It only reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from spendmeter.errors import LedgerError
from spendmeter.ledger import budgeting, now_ms, planning, query
from spendmeter.ledger.periods import when_ms, zone
from spendmeter.server.answers import Budgets, Facts, Plans, Report, RunDetails, Runs
from spendmeter.server.book import Book
from spendmeter.server.details import NoRunError, details
from spendmeter.server.paging import page
from spendmeter.server.problems import BadFieldError, responses

BY = "agent,task,model"  # as of `spendmeter report`
LIMIT, LIMIT_MAX = 50, 500
TIME = "2026-11-01, 2026-11-01T15:00, 2026-11, today, or a while ago: 7d, 24h"


class Window(BaseModel):
    """Query parameters that say from when to when."""

    model_config = ConfigDict(extra="forbid")

    since: str | None = Field(None, description=TIME)
    until: str | None = Field(None, description="no longer belongs to the window; like since")
    timezone: str = Field("UTC", description="IANA name: where days and months begin")

    def where(self) -> query.Where:
        """As the ledger is asked.

        Raises:
            BadFieldError: a time or the zone is not understood.
        """
        checked("timezone", zone, self.timezone)
        told = {"since": self.since, "until": self.until}
        times = {name: None if text is None else checked(name, when_ms, text, self.timezone) for name, text in told.items()}
        return query.Where(times["since"], times["until"])


class Filters(Window):
    """Query parameters that say what to look at."""

    agent: str | None = None
    task: str | None = None
    cli: str | None = None
    model: str | None = None
    repo: str | None = None
    session: str | None = None
    outcome: str | None = None

    def where(self) -> query.Where:
        """As the ledger is asked; raises BadFieldError."""
        names = ("agent", "task", "cli", "model", "repo", "session", "outcome")
        return replace(super().where(), **{name: getattr(self, name) for name in names})


class ReportFilters(Filters):
    """Those of a report."""

    by: list[str] = Field([BY], description=f"any of {', '.join(query.DIMENSIONS)}, attr:KEY; repeated or with commas between")


class RunFilters(Filters):
    """Those of a list of runs."""

    limit: int = Field(LIMIT, ge=1, le=LIMIT_MAX)
    cursor: str | None = Field(None, description="next_cursor of the page before, with the same filters")


def checked(field: str, read: Any, *args: Any) -> Any:
    """What *read* makes of *args*; its error is one of the request's *field*."""
    try:
        return read(*args)
    except (LedgerError, ValueError) as e:
        raise BadFieldError(field, str(e)) from None


def router(book: Book) -> APIRouter:
    """The routes over *book*."""
    routes = APIRouter(prefix="/api/v1", tags=["ledger"])

    @routes.get("/report", response_model=Report, responses=responses(422, 503))
    def report(q: Annotated[ReportFilters, Query()]) -> Response:
        """What was used and what it cost, cut by any dimensions: the dearest first or, by day and month, the oldest first."""
        keys = [k.strip() for part in q.by for k in part.split(",") if k.strip()]
        checked("by", query.check, keys)
        return JSONResponse(query.report(book.ledger(), keys, where=q.where(), timezone=q.timezone).as_dict())

    @routes.get("/runs", response_model=Runs, responses=responses(422, 503))
    def runs(q: Annotated[RunFilters, Query()]) -> Response:
        """Runs by their end, the latest first."""
        found, cursor = _checked_page(book, q)
        return JSONResponse({"runs": [r.as_dict() for r in found], "next_cursor": cursor})

    @routes.get("/runs/{key:path}", response_model=RunDetails, responses=responses(404, 503))
    def run(key: str) -> Response:
        """One run with its models and calls. The key: "last", a run key, a run id, a session, or the start of one."""
        try:
            return JSONResponse(details(book, key).as_dict())
        except NoRunError as e:
            raise HTTPException(404, str(e)) from None

    @routes.get("/budgets", response_model=Budgets, responses=responses(503))
    def budgets() -> Response:
        """Every budget as it stands, in the order of the file; none where no file is set."""
        ledger = book.ledger()
        found = budgeting.states(ledger, budgeting.defined(ledger), now_ms())
        return JSONResponse({"budgets": [s.as_dict() for s in found]})

    @routes.get("/plans", response_model=Plans, responses=responses(422, 503))
    def plans(q: Annotated[Window, Query()]) -> Response:
        """Every plan that is recorded or that a run names, by name: what was estimated beside what its runs used."""
        return JSONResponse({"plans": [v.as_dict() for v in planning.variances(book.ledger(), q.where())]})

    @routes.get("/ledger", response_model=Facts, responses=responses(503))
    def ledger() -> Response:
        """What the ledger is and how much it holds."""
        return JSONResponse(book.ledger().facts_about())

    return routes


def _checked_page(book: Book, q: RunFilters) -> tuple[list[query.RunLine], str | None]:
    where = q.where()
    try:
        return page(book.ledger(), where, q.limit, q.cursor)
    except ValueError as e:
        raise BadFieldError("cursor", str(e)) from None
