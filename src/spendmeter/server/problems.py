"""Errors as RFC 9457 problem documents, as a page or as a line of text, by who asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from spendmeter.errors import LedgerError, UnfitError
from spendmeter.server import pages

API = ("/api/", "/token-events")
RETRY_S = "5"
ANONYMOUS = "spendmeter.anonymous"  # scope key: nobody has said who asks, though there are doors


class FieldError(BaseModel):
    """What is wrong with one field of a request."""

    field: str = Field(examples=["since"])
    message: str


class Problem(BaseModel):
    """RFC 9457; ``errors`` names each field that was refused."""

    type: str = "about:blank"
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=['since: time "soon" is not understood'])
    errors: list[FieldError] = []


class BadFieldError(Exception):
    """A request's *field* was refused; *message* says what was expected."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


class ProblemResponse(JSONResponse):
    """JSON under its own media type."""

    media_type = "application/problem+json"


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What FastAPI is to write about errors."""
    schema = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {s: {"description": HTTPStatus(s).phrase, "content": schema} for s in statuses}


def describe(schema: dict[str, Any], *, needs_token: bool) -> dict[str, Any]:
    """Adds what ``responses`` refers to, to an OpenAPI document, and the token that requests need."""
    _, found = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
    schema.setdefault("components", {}).setdefault("schemas", {}).update(found["$defs"])
    if needs_token:
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
    return schema


def install(app: FastAPI) -> None:
    """Handlers for all that a route may raise."""
    app.add_exception_handler(BadFieldError, _bad_field)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(LedgerError, _ledger)
    app.add_exception_handler(UnfitError, _unfit)
    app.add_exception_handler(HTTPException, _http)


def defect(path: str) -> Response:
    """What an error that no one foresaw looks like from outside."""
    return answer(path, 500, "spendmeter met a defect of its own; its log names the place")


def answer(path: str, status: int, detail: str, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None) -> Response:
    """The error in the form that suits the path."""
    title = HTTPStatus(status).phrase
    if path.startswith(API):
        body = Problem(title=title, status=status, detail=detail, errors=list(errors)).model_dump()
        return ProblemResponse(body, status, headers=headers)
    if _is_page(path):
        return pages.error_page(status, title, detail, headers)
    return PlainTextResponse(f"{detail}\n", status, headers=headers)


def refused(path: str, status: int, detail: str, headers: Mapping[str, str]) -> Response:
    """Who is not let in gets the form to log in from a page, and a problem document from anything else."""
    if _is_page(path):
        return pages.login_page(status, detail, headers)
    return ProblemResponse(Problem(title=HTTPStatus(status).phrase, status=status, detail=detail).model_dump(), status, headers=headers)


def unavailable(path: str) -> Response:
    """503 for who may not know why: the reason names the ledger."""
    return answer(path, 503, "the ledger cannot be read now; the daemon's log says why", headers={"retry-after": RETRY_S})


def foreign(path: str) -> Response:
    """403 for a browser that another site's page has sent here."""
    return answer(path, 403, "a page of another origin sent this; only spendmeter's own page may")


def _is_page(path: str) -> bool:
    return path == "/" or path.startswith("/runs")


async def _bad_field(request: Request, e: Any) -> Response:
    return answer(request.url.path, 422, f"{e.field}: {e.message}", [FieldError(field=e.field, message=e.message)])


async def _invalid(request: Request, e: Any) -> Response:
    errors = [FieldError(field=".".join(str(x) for x in told["loc"][1:]), message=_said(told)) for told in e.errors()]
    return answer(request.url.path, 422, "; ".join(f"{x.field}: {x.message}" for x in errors), errors)


def _said(told: Mapping[str, Any]) -> str:
    return "unknown parameter" if told["type"] == "extra_forbidden" else str(told["msg"])


async def _ledger(request: Request, e: Any) -> Response:
    if request.scope.get(ANONYMOUS):
        return unavailable(request.url.path)
    return answer(request.url.path, 503, str(e), headers={"retry-after": RETRY_S})


async def _unfit(request: Request, e: Any) -> Response:
    return answer(request.url.path, 422, str(e))


async def _http(request: Request, e: Any) -> Response:
    detail = f"there is nothing at {request.url.path}" if e.status_code == 404 and e.detail == "Not Found" else str(e.detail)
    return answer(request.url.path, e.status_code, detail, headers=e.headers)
