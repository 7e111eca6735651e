"""Doors: beyond this machine every request needs a token that is good for it. Plain ASGI."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from spendmeter.errors import ConfigError, LedgerError
from spendmeter.ledger import now_ms, tokens
from spendmeter.ledger.tokens import Token
from spendmeter.server import limits, problems
from spendmeter.server.book import Book
from spendmeter.server.guard import COOKIE, SAFE, TOKEN, is_loopback

OPEN = frozenset({"/healthz", "/readyz", "/livez", "/login", "/logout"})  # to anyone; and what is under /static/
FRESH_MS = 2000  # so long a token that was found is taken for good, so that a database far away is not asked at every request
FAILURES_PER_S, FAILURES_AT_ONCE = 1 / 6, 10
_THREADS = 2
_BUSY_MS = 1  # the time of the last use is not worth waiting for


@dataclass(frozen=True, slots=True)
class Access:
    """What ``serve`` was told about its doors. ``tls``: files of the certificate and its key; ``proxies``: their addresses."""

    require_token: bool = False
    insecure: bool = False
    tls: tuple[Path, Path] | None = None
    proxies: tuple[str, ...] = ()

    def beyond(self, host: str) -> bool:
        """Whether others than this machine may come, or tokens were asked for."""
        return self.require_token or bool(self.proxies) or not is_loopback(host)

    def needs_token(self, host: str) -> bool:
        """Whether requests to a daemon at *host* need one."""
        return self.beyond(host) and not self.insecure


THIS_HOST = Access()  # whoever is on this machine, without more ado


class TooManyError(Exception):
    """Too many wrong tokens from one address."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self.wait_s = wait_s


class Keeper:
    """Knows which tokens are good, and who has offered too many that are not."""

    def __init__(self, book: Book, failures: limits.Buckets | None = None) -> None:
        self._book, self._failures = book, failures or limits.Buckets(FAILURES_PER_S, FAILURES_AT_ONCE)
        self._good: dict[str, tuple[Token, int]] = {}  # digest -> what was found, and when
        self._limiter: anyio.CapacityLimiter | None = None

    def check(self) -> None:
        """Whether there is any token to come in with.

        Raises:
            ConfigError: there is none.
            LedgerError: the ledger cannot be read.
        """
        if not any(not token.has_expired(now_ms()) for token in tokens.listed(self._book.ledger())):
            raise ConfigError(
                "nobody could come in: the ledger knows no token; make one (spendmeter token create NAME --scope read,metrics), "
                "listen on 127.0.0.1 alone, or open it to anyone on purpose with --insecure-no-token"
            )

    async def admit(self, secret: str, client: str) -> Token | None:
        """The token behind *secret*, None where it is good for nothing: why not is nobody's business.

        A client that has offered too many bad ones is heard only with a token that has been good here before, so that it
        shuts out no one else behind its address.

        Raises:
            TooManyError: that is so.
            LedgerError: the ledger cannot be read.
        """
        digest, at_ms = tokens.digest(secret), now_ms()
        if digest not in self._good and (wait_s := self._failures.wait_s(client)):
            raise TooManyError(wait_s)
        found = await self._found(digest, at_ms) if digest else None
        if found is None:
            self._failures.take(client)
        return found

    async def _found(self, digest: str, at_ms: int) -> Token | None:
        known, since_ms = self._good.get(digest, (None, 0))
        if known is None or not since_ms <= at_ms < since_ms + FRESH_MS or known.has_expired(at_ms):
            self._limiter = self._limiter or anyio.CapacityLimiter(_THREADS)
            known = await anyio.to_thread.run_sync(self._look_up, digest, at_ms, limiter=self._limiter)
            if known is not None:
                self._good[digest] = known, at_ms
            else:
                self._good.pop(digest, None)
        return known

    def _look_up(self, digest: str, at_ms: int) -> Token | None:
        ledger = self._book.ledger()
        found = tokens.find(ledger, digest, at_ms)
        if found and at_ms - (found.used_ms or 0) >= tokens.USED_MS:
            with contextlib.suppress(LedgerError):  # the next request notes it
                tokens.note_use(ledger, found.name, at_ms, _BUSY_MS)
        return found


def needed(method: str, path: str) -> tuple[str, ...]:
    """The scopes of which a request needs one."""
    if path == "/metrics":
        return ("metrics",)
    if path == "/mcp" or path.startswith("/mcp/"):
        return ("read", "write")  # which tools with them, is for guard.may
    return ("read",) if method in SAFE else ("write",)


class Doors:
    """Lets in who has a token that is good for the request. Bearer tokens; the page's cookie holds one too."""

    def __init__(self, app: ASGIApp, keeper: Keeper) -> None:
        self._app, self._keeper = app, keeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wraps one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["path"] in OPEN or scope["path"].startswith("/static/"):
            await self._app({**scope, problems.ANONYMOUS: True}, receive, send)
        else:
            found = await self._asked(scope)
            if isinstance(found, Response):
                await found(scope, receive, send)
            else:
                await self._app({**scope, TOKEN: found}, receive, send)

    async def _asked(self, scope: Scope) -> Token | Response:
        """The token of the request, or what it is refused with."""
        path, secret = scope["path"], offered(scope)
        if secret is None:
            return unauthorized(path, "this needs a token: Authorization: Bearer smt_...; spendmeter token create makes one")
        try:
            found = await self._keeper.admit(secret, limits.address(scope))
        except TooManyError as e:
            return limits.too_many(path, e.wait_s, "too many wrong tokens from this address")
        except LedgerError:
            return problems.unavailable(path)
        if found is None:
            return unauthorized(path, "this token is not good here, or no longer", error="invalid_token")
        needs = needed(scope["method"], path)
        return found if any(found.allows(s) for s in needs) else forbidden(path, needs)


def offered(scope: Scope) -> str | None:
    """The secret that a request offers, a bearer token before the cookie; None where it offers nothing."""
    header = Headers(scope=scope).get("authorization")
    if header is None:
        return Request(scope).cookies.get(COOKIE)
    kind, _, value = header.partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""


def unauthorized(path: str, detail: str, error: str = "") -> Response:
    """401, on a page with the form to log in; a cookie that is of no use goes."""
    challenge = 'Bearer realm="spendmeter"' + (f', error="{error}"' if error else "")
    answer = problems.refused(path, 401, detail, {"www-authenticate": challenge})
    if error:
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def forbidden(path: str, needs: tuple[str, ...]) -> Response:
    """403 that names the missing scope, as RFC 6750 has it."""
    names = " or ".join(needs)
    challenge = f'Bearer realm="spendmeter", error="insufficient_scope", scope="{" ".join(needs)}"'
    return problems.refused(path, 403, f"this needs a token with the scope {names}", {"www-authenticate": challenge})
