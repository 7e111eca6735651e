"""/api/v1/admissions: may a run of another host start by this daemon's budgets, and may it go on?"""

from __future__ import annotations

import os
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from spendmeter import guard
from spendmeter.budgets import Budgets, Subject
from spendmeter.budgets.definitions import Definitions
from spendmeter.errors import ConfigError
from spendmeter.guard import Standing
from spendmeter.guard.ticket import using
from spendmeter.ledger import reservations
from spendmeter.ledger.liveness import ELSEWHERE
from spendmeter.ledger.reservations import Reservation
from spendmeter.records import to_nusd, usd_text
from spendmeter.runner import spool
from spendmeter.runner.admission import PATH
from spendmeter.runner.wire import MOST_TEXT, MOST_TOKENS
from spendmeter.server.book import Book
from spendmeter.server.problems import responses
from spendmeter.token_events.fields import MONEY

MOST_TAGS = 100
_LEASE = "what is set aside for it lasts a minute, and goes with its observations"
Tag = Annotated[str, Field(max_length=MOST_TEXT, pattern=r"^[^\x00]*$")]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="names the run for ever; its observations bear it too")]
Usd = Annotated[str, Field(pattern=MONEY, examples=["0.50"])]
Tokens = Annotated[int, Field(strict=True, ge=0, le=MOST_TOKENS)]


class Run(BaseModel):
    """A run as budgets see it; null is not known."""

    model_config = ConfigDict(extra="forbid")

    agent: Tag = "unknown"
    task: Tag = "unknown"
    cli: Tag | None = None
    model: Tag | None = Field(None, description="that its arguments name")
    repo: Tag | None = None
    attrs: Annotated[dict[Tag, Tag], Field(max_length=MOST_TAGS)] = {}

    def subject(self) -> Subject:
        """As the guard is asked."""
        return Subject(self.agent, self.task, self.cli, self.model, self.repo, self.attrs)


class Asked(Run):
    """A run that wants to start."""

    run_id: RunId
    max_cost_usd: Usd | None = Field(None, description="what it is ended at in any case")
    max_tokens: Tokens | None = Field(None, description="likewise")


class UnderWay(Run):
    """A run that was let in, and what it has used by now. It may be told again at any time: only the newest counts."""

    expected_usd: Usd | None = Field(None, description="as it was answered when the run was let in")
    expected_tokens: Tokens | None = None
    used_usd: Usd | None = None
    used_tokens: Tokens | None = None
    models: Annotated[list[Tag], Field(max_length=MOST_TAGS)] = Field([], description="that it is known to have called")


class Left(BaseModel):
    """A budget that ends runs, and what this run may have used in all when it is to be ended; null in the other's unit."""

    budget: str
    left_usd: str | None
    left_tokens: int | None


class Admitted(BaseModel):
    """Whether the run may start. Where not, ``lines`` says why in one line; else it holds warnings."""

    allowed: bool
    lines: list[str]
    held: bool = Field(description=f"whether anything was set aside for it: {_LEASE}")
    kills: bool = Field(description="whether a budget may end it")
    expected_usd: str | None
    expected_tokens: int | None
    left: list[Left]


class Watched(BaseModel):
    """Whether the run may go on: ``exceeded`` names the budget that ends it, ``line`` says why."""

    exceeded: str | None
    line: str | None
    left: list[Left]


def router(book: Book) -> APIRouter:
    """The routes over *book*; budgets are those of its settings."""
    routes = APIRouter(prefix=PATH, tags=["budgets"])
    definitions = Definitions(book.settings.budgets_file)

    @routes.post("", response_model=Admitted, responses=responses(400, 413, 422, 503))
    def admission(asked: Asked) -> Response:
        """May this run start? What it is expected to use is set aside: it must be renewed within a minute."""
        return JSONResponse(_admit(book, _defined(definitions), asked).model_dump())

    @routes.put("/{run_id}", response_model=Watched, responses=responses(400, 413, 422, 503))
    def renewal(run_id: Annotated[RunId, Path()], told: UnderWay) -> Response:
        """May this run go on? Keeps what is set aside for it for another minute."""
        return JSONResponse(_renew(book, _defined(definitions), run_id, told).model_dump())

    @routes.delete("/{run_id}", status_code=204, responses=responses(422, 503))
    def release(run_id: Annotated[RunId, Path()]) -> Response:
        """Gives back what was set aside for a run that has not come about."""
        with book.ledger().write() as conn:
            reservations.drop(conn, run_id)
        return Response(status_code=204)

    return routes


def _defined(definitions: Definitions) -> Budgets:
    try:
        return definitions.current()
    except ConfigError:
        raise HTTPException(503, "the daemon's budgets file is wrong; its log says where") from None


def _admit(book: Book, budgets: Budgets, asked: Asked) -> Admitted:
    ledger, folders = book.ledger(), spool.spool_dirs(book.settings.ledger, os.environ)
    found = guard.admit(
        ledger, budgets, asked.subject(), asked.run_id, max_cost_nusd=to_nusd(asked.max_cost_usd), max_tokens=asked.max_tokens,
        is_pending=lambda run_id: spool.is_pending(folders, run_id), holder=ELSEWHERE,
    )  # fmt: skip
    if found.ticket is None:
        return Admitted(allowed=found.allowed, lines=found.lines, held=False, kills=False, expected_usd=None, expected_tokens=None, left=[])
    held = found.ticket.reservation
    return Admitted(
        allowed=True, lines=found.lines, held=True, kills=found.ticket.kills, expected_usd=usd_text(held.expected_nusd),
        expected_tokens=held.expected_tokens, left=_left(guard.watch(ledger, budgets, held, frozenset())),
    )  # fmt: skip


def _renew(book: Book, budgets: Budgets, run_id: str, told: UnderWay) -> Watched:
    run = Reservation(run_id, told.subject(), 0, to_nusd(told.expected_usd), told.expected_tokens)
    models = frozenset(told.models)
    run = guard.renew(book.ledger(), using(run, to_nusd(told.used_usd), told.used_tokens, models))
    found = guard.watch(book.ledger(), budgets, run, models)
    over = next((s for s in found if s.over), None)
    return Watched(exceeded=over and over.state.budget.name, line=over and over.over, left=_left(found))


def _left(found: list[Standing]) -> list[Left]:
    """Those in US dollars and in tokens; how many runs there are does not end one of them midway."""
    return [
        Left(budget=b.name, left_usd=usd_text(s.left) if b.unit == "usd" else None, left_tokens=s.left if b.unit == "tokens" else None)
        for s in found
        if (b := s.state.budget).unit != "runs"
    ]
