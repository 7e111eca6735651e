"""Requests to a central daemon. One of them is made before a run's child starts, so only quick modules are imported here."""

from __future__ import annotations

import json
import os
from http.client import HTTPException
from urllib.request import Request

import spendmeter
from spendmeter.errors import ConfigError, RemoteError, RunRefusedError
from spendmeter.outgoing import opener, why

TYPE_CHECKING = False  # importing typing costs 5 ms before the child starts
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

TOKEN, TOKEN_FILE = "SPENDMETER_TOKEN", "SPENDMETER_TOKEN_FILE"
ANSWER_BYTES = 64 << 10
_BUSY = (429, 503)  # another try, a little later, may do
_REFUSED = (400, 413, 415, 422)  # nothing but another daemon will ever take it
_REMEDY = {
    401: f"put a token with the scope write into {TOKEN} or {TOKEN_FILE}",
    403: "give its token the scope write",
    404: "is that its address, and is its spendmeter as new as this one?",
    405: "is that its address, and is its spendmeter as new as this one?",
    415: "is its spendmeter as new as this one?",
    422: "is its spendmeter as new as this one?",
}


class BusyError(RemoteError):
    """The daemon cannot do it just now."""


def ask(remote: str, method: str, path: str, told: Mapping[str, Any] | None, limit_s: float) -> dict[str, Any]:
    """The JSON object that the daemon at *remote* answers to the JSON object *told*; one without entries where it has nothing to say.

    Raises:
        RemoteError: it did not answer, or not with such a document.
        ConfigError: the token cannot be read.
    """
    body = None if told is None else json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")
    status, answer = send(remote, method, path, body, limit_s, {"content-type": "application/json"})
    found = decoded(answer) if status == 200 else {} if status == 204 else None
    return fail(remote, status, answer) if found is None else found


def send(remote: str, method: str, path: str, body: bytes | None, limit_s: float, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """(status, body) of the daemon's answer to one request. *limit_s* is for each step of it; looking up a name knows no limit.

    Raises:
        RemoteError: there was none.
        ConfigError: the token cannot be read.
    """
    named = {"user-agent": f"spendmeter/{spendmeter.__version__}", **headers, **_authorization(os.environ)}
    request = Request(f"{remote}{path}", body, named, method=method)  # noqa: S310 - the opener knows HTTP alone
    try:
        with opener().open(request, timeout=limit_s) as response:
            return response.status, response.read(ANSWER_BYTES)
    except (OSError, HTTPException) as e:
        raise RemoteError(f"{remote}: {why(e, limit_s)}; is it running, and reachable from here?") from None


def decoded(body: bytes) -> dict[str, Any] | None:
    """The JSON object in *body*; None where there is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def fail(remote: str, status: int, body: bytes) -> NoReturn:
    """Says what an answer that is no receipt means.

    Raises:
        RunRefusedError: where no other try will do.
        BusyError: where another may do soon.
        RemoteError: else.
    """
    problem = decoded(body) if status >= 400 else None
    said = plain(str(problem.get("detail", ""))) if problem else ""
    told = f"{remote}: answered {status}{said and f': {said}'}"
    remedy = _REMEDY.get(status, "" if status >= 400 else "is that its address, with nothing before it that redirects or asks to log in?")
    kind = RunRefusedError if status in _REFUSED else BusyError if status in _BUSY else RemoteError
    raise kind(f"{told}; {remedy}" if remedy else told)


def plain(text: str) -> str:
    """What another host said, as it may stand in a line on a terminal."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:300]


def _authorization(env: Mapping[str, str]) -> dict[str, str]:
    token = env.get(TOKEN)
    if not token and (path := env.get(TOKEN_FILE)):
        from spendmeter.runner.describe import describe

        try:
            with open(path, encoding="ascii") as file:  # noqa: PTH123 - pathlib would delay the child
                token = file.read().strip()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{TOKEN_FILE} {path}: cannot be read ({describe(e)}); check the path and its permissions") from None
    if token and not (token.isascii() and token.isprintable()):
        raise ConfigError(f"{TOKEN} holds more than one line, or what is no token; copy it again")
    return {"authorization": f"Bearer {token}"} if token else {}
