"""Logging in to the page: a token pasted into a form becomes a cookie that scripts cannot read and other sites cannot send."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from spendmeter.errors import LedgerError
from spendmeter.server import limits, problems
from spendmeter.server.auth import Keeper, TooManyError
from spendmeter.server.guard import COOKIE
from spendmeter.server.pages import login_page

_FORM_MAX = 4096


def router(keeper: Keeper) -> APIRouter:
    """The form and what it posts to."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/login")
    def form() -> Response:
        """Where a token goes."""
        return login_page()

    @routes.post("/login")
    async def login(request: Request) -> Response:
        """To the overview with a cookie, or back to the form with a reason."""
        try:
            found = await keeper.admit(secret := _pasted(await request.body()), limits.address(request.scope))
        except TooManyError as e:
            return limits.too_many(request.url.path, e.wait_s, "too many wrong tokens from this address")
        except LedgerError:
            return problems.unavailable(request.url.path)
        if found is None:
            return login_page(401, "This token is not good here, or no longer.")
        if not found.allows("read"):
            return login_page(403, "The page needs a token with the scope read; this one has not.")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, secret, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer

    @routes.post("/logout")
    def logout() -> Response:
        """Forgets the cookie."""
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return routes


def _pasted(body: bytes) -> str:
    """The form's field "token"; nothing where there is none."""
    fields = parse_qs(body.decode("ascii", "replace")) if len(body) <= _FORM_MAX else {}
    return fields.get("token", [""])[0].strip()
