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

from spendmeter.errors import LedgerError
from spendmeter.server import pages

API = "/api/"
RETRY_S = "5"


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


def describe(schema: dict[str, Any]) -> dict[str, Any]:
    """Adds what ``responses`` refers to, to an OpenAPI document."""
    _, found = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
    schema.setdefault("components", {}).setdefault("schemas", {}).update(found["$defs"])
    return schema


def install(app: FastAPI) -> None:
    """Handlers for all that a route may raise."""
    app.add_exception_handler(BadFieldError, _bad_field)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(LedgerError, _ledger)
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
    if path == "/" or path.startswith("/runs"):
        return pages.error_page(status, title, detail, headers)
    return PlainTextResponse(f"{detail}\n", status, headers=headers)


async def _bad_field(request: Request, e: Any) -> Response:
    return answer(request.url.path, 422, f"{e.field}: {e.message}", [FieldError(field=e.field, message=e.message)])


async def _invalid(request: Request, e: Any) -> Response:
    errors = [FieldError(field=".".join(str(x) for x in told["loc"][1:]), message=_said(told)) for told in e.errors()]
    return answer(request.url.path, 422, "; ".join(f"{x.field}: {x.message}" for x in errors), errors)


def _said(told: Mapping[str, Any]) -> str:
    return "unknown parameter" if told["type"] == "extra_forbidden" else str(told["msg"])


async def _ledger(request: Request, e: Any) -> Response:
    return answer(request.url.path, 503, str(e), headers={"retry-after": RETRY_S})


async def _http(request: Request, e: Any) -> Response:
    detail = f"there is nothing at {request.url.path}" if e.status_code == 404 and e.detail == "Not Found" else str(e.detail)
    return answer(request.url.path, e.status_code, detail, headers=e.headers)
