"""How much one client may ask for: bytes of a body, time to send it, requests in a while. Plain ASGI and uvicorn's protocol."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

import anyio
import h11
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from spendmeter.parsers.otlp.model import SIGNALS
from spendmeter.server import problems
from spendmeter.server.guard import SAFE

BODY_MAX = 4 * 1024 * 1024
OTLP = {f"/v1/{signal}": signal for signal in SIGNALS}  # what comes there may hold prompts and answers, which are passed over
OTLP_MAX = 20 * 1024 * 1024  # as much as the Collector takes by default
BODY_S = 60.0  # for the whole body
HEAD_MAX = 32 * 1024  # h11 looks at less only where it comes in pieces
HEAD_S = 20.0  # for a request's line and headers, and before the first of a connection
WRITES_PER_S, WRITES_AT_ONCE = 100.0, 1000
_ADDRESSES = 10_000  # that are remembered
_CLOSE = {"connection": "close"}  # what is left of the body is not read


def address(scope: Scope) -> str:
    """Who counts as one client: an IPv4 address, or the /64 of an IPv6 address, which is what one host is given."""
    told = (scope.get("client") or ("",))[0]
    try:
        found = ipaddress.ip_address(told)
    except ValueError:
        return str(told)
    return str(found) if found.version == 4 else str(ipaddress.ip_network((int(found), 64), strict=False))


def too_many(path: str, wait_s: float, what: str) -> Response:
    """429 that says when to come again."""
    wait = math.ceil(wait_s)
    return problems.answer(path, 429, f"{what}; wait {wait} s", headers={"retry-after": str(wait)})


class Buckets:
    """A token bucket for each client: *burst* at once, then *rate_per_s*. Kept in memory, for the clients that came last."""

    def __init__(self, rate_per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate_per_s, float(burst), clock
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (what was left, when)

    def wait_s(self, client: str) -> float:
        """Seconds until *client* may; 0 is now. Takes nothing."""
        return max(0.0, (1 - self._left(client)) / self._rate)

    def take(self, client: str) -> float:
        """As ``wait_s``, and takes one where that is 0."""
        wait = self.wait_s(client)
        if not wait:
            self._kept[client] = self._left(client) - 1, self._clock()
            self._kept.move_to_end(client)
            if len(self._kept) > _ADDRESSES:
                self._kept.popitem(last=False)
        return wait

    def _left(self, client: str) -> float:
        left, at = self._kept.get(client, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - at) * self._rate)


class WriteLimit:
    """So many requests that change something, for each client."""

    def __init__(self, app: ASGIApp, buckets: Buckets) -> None:
        self._app, self._buckets = app, buckets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what there is room for."""
        answer = None
        if scope["type"] == "http" and scope["method"] not in SAFE and (wait_s := self._buckets.take(address(scope))):
            answer = too_many(scope["path"], wait_s, "too many requests from this address")
        await (answer or self._app)(scope, receive, send)


class SizeLimit:
    """Headers of 32 KiB, bodies of 4 MiB (telemetry 20) within a minute: more is refused before it is read, told or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wraps one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def out(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            _check_head(scope)
            await self._app(scope, _Body(receive, _most(scope)).receive, out)
        except HTTPException as e:  # ours, also through an application that knows no such exceptions
            if begun:
                raise
            await problems.answer(scope["path"], e.status_code, e.detail, headers=e.headers)(scope, receive, send)


def _check_head(scope: Scope) -> None:
    if sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["query_string"]) > HEAD_MAX:
        raise HTTPException(431, f"the headers are larger than {HEAD_MAX} bytes", _CLOSE)
    if int(Headers(scope=scope).get("content-length", "0")) > _most(scope):
        raise _too_large(_most(scope))


def _most(scope: Scope) -> int:
    return OTLP_MAX if scope["path"] in OTLP else BODY_MAX


class _Body:
    """Counts what comes in until the body is complete; what a client says later (that it has gone) may take as long as it likes."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._size, self._complete = receive, most, 0, False
        self._end: float | None = None  # on the event loop's clock

    async def receive(self) -> Message:
        """The next message.

        Raises:
            HTTPException: 413 or 408.
        """
        if self._complete:
            return await self._receive()
        now = anyio.current_time()
        self._end = self._end or now + BODY_S
        try:
            with anyio.fail_after(self._end - now):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {BODY_S:g} s", _CLOSE) from None
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise _too_large(self._most)
        self._complete = not message.get("more_body", False)
        return message


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {most} bytes; send it in parts", _CLOSE)


class Protocol(H11Protocol):
    """HTTP/1.1 whose clients must finish a request's headers in time (uvicorn alone would wait for ever)."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Stops it where a request is complete, starts it where one has begun."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops it."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        is_answered = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY  # the rest of its body is read by nobody
        if self.conn.their_state is not h11.IDLE and not is_answered:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
