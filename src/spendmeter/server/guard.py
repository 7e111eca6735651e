"""What stands before every route: who may ask, by which name, and what a browser may do with the answer. Plain ASGI."""

from __future__ import annotations

import ipaddress
import logging
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from spendmeter.ledger.tokens import Token

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # not no-referrer, with which browsers post our own forms with "Origin: null"
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})  # methods that change nothing
HSTS = "max-age=31536000"  # a year in which browsers come by https alone
COOKIE = "spendmeter_token"
IS_HEAD = "spendmeter.head"  # scope key: the client wants no body
TOKEN = "spendmeter.token"  # noqa: S105 - scope key: the Token of a request that came through the doors
log = logging.getLogger("spendmeter.server")


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an address, is this machine and no other."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The Host header without its port and brackets; "" where it is none."""
    if header.startswith("["):
        name, closed, port = header[1:].partition("]")
        return name.lower() if closed and port[:1] in ("", ":") else ""
    return header.partition(":")[0].lower().rstrip(".")


def may(scope: Scope, needs: str) -> bool:
    """Whether the request of this ASGI scope may do what the token scope *needs* is for; where there are no doors it may."""
    token: Token | None = scope.get(TOKEN)
    return token is None or token.allows(needs)


class TrustedHosts:
    """Refuses names that a foreign page may have pointed at this machine (DNS rebinding)."""

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app, self._allowed = app, {a.lower() for a in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what is addressed to this machine or to an allowed name."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = host_of(Headers(scope=scope).get("host", ""))
        if is_loopback(name) or name in self._allowed:
            await self._app(scope, receive, send)
            return
        said = "this Host is not served; name it in SPENDMETER_SERVE_HOSTS to allow it\n"
        await PlainTextResponse(said, 400)(scope, receive, send)


class SameOrigin:
    """Refuses what a foreign page makes a browser send here, the one thing that neither CORS nor a loopback address prevents.

    A bearer token is never sent by a browser of its own accord. Else: Sec-Fetch-Site decides, then the Origin header beside Host; a
    request with neither is no browser's and passes, unless it has the page's cookie.
    Source: https://pkg.go.dev/net/http#CrossOriginProtection does the same.
    """

    def __init__(self, app: ASGIApp, refused: Callable[[str], Response]) -> None:
        self._app, self._refused = app, refused  # path -> what to answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what changes nothing, and what comes from our own page or from no browser."""
        if scope["type"] != "http" or scope["method"] in SAFE or is_ours(Headers(scope=scope)):
            await self._app(scope, receive, send)
        else:
            await self._refused(scope["path"])(scope, receive, send)


def is_ours(headers: Headers) -> bool:
    """Whether a request with these headers is our own page's, or no browser's."""
    if headers.get("authorization", "").lower().startswith("bearer "):
        return True
    if site := headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")
    if origin := headers.get("origin"):
        _, told, name = origin.partition("://")
        return bool(told) and name.lower() == headers.get("host", "").lower()
    return f"{COOKIE}=" not in headers.get("cookie", "")


class Armoured:
    """Security headers on every answer; HEAD as GET without its body; a defect becomes a 500 and a log line without any content."""

    def __init__(self, app: ASGIApp, defect: Callable[[str], Response]) -> None:
        self._app, self._defect = app, defect  # path -> what to answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wraps one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        begun = False

        async def out(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope.get("scheme") == "https":
                    headers.setdefault("strict-transport-security", HSTS)
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app({**scope, "method": "GET", IS_HEAD: True} if head else scope, receive, out)
        except ClientDisconnect:  # midway in its body: nobody is there to be answered
            return
        except Exception as e:  # noqa: BLE001 - whatever it is, its text is not for the log
            log.error("%s: %s", scope["method"], where(e))  # noqa: TRY400
            if begun:
                raise ConnectionResetError from None
            await self._defect(scope["path"])(scope, receive, out)


def where(e: BaseException) -> str:
    """The error's class and the last places of its way, without its text."""
    frames: list[Any] = traceback.extract_tb(e.__traceback__)[-3:]
    return f"{type(e).__name__} at {' < '.join(f'{f.filename}:{f.lineno}' for f in reversed(frames))}"
