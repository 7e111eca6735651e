"""Hands runs to a central daemon instead of a ledger of this host's own: ``spendmeter run --remote URL``, ``spendmeter send``.

A daemon that is away, slow or unwilling costs a run no more than LIMIT_S: the run is kept in a spool of that URL's own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar
from urllib.request import Request

import msgspec

from spendmeter import ingest
from spendmeter.errors import ConfigError, RemoteError, RunRefusedError
from spendmeter.ledger import Batch, Committed
from spendmeter.ledger.gauges import version
from spendmeter.notices.webhook import opener, why
from spendmeter.runner.describe import describe
from spendmeter.runner.finished import FinishedRun
from spendmeter.runner.recover import take_in
from spendmeter.runner.say import say
from spendmeter.runner.spool import spool_dirs
from spendmeter.runner.wire import PATH, pack

LIMIT_S = 2.0  # how long the end of a run may wait for the daemon
PATIENT_S = 30.0  # and how long ``send`` waits
BACKLOG_S = 0.5  # what a run that went through gives to those that wait
ANSWER_BYTES = 64 << 10
_T = TypeVar("_T")
TOKEN, TOKEN_FILE = "SPENDMETER_TOKEN", "SPENDMETER_TOKEN_FILE"
_REFUSED = (400, 413, 415, 422)  # nothing but another daemon will ever take it
_REMEDY = {
    401: f"put a token with the scope write into {TOKEN} or {TOKEN_FILE}",
    403: "give its token the scope write",
    404: "is that its address, and is its spendmeter as new as this one?",
    405: "is that its address, and is its spendmeter as new as this one?",
    415: "is its spendmeter as new as this one?",
    422: "is its spendmeter as new as this one?",
}


class Sent(NamedTuple):
    """What became of runs that waited: how many were sent, and why the rest was not, or None."""

    number: int
    problem: str | None


class Daemon:
    """The daemon at *remote* in the place of a ledger; it remembers no source, so each is read whole every time."""

    def __init__(self, remote: str) -> None:
        self._remote = remote

    def commit(self, batch: Batch) -> Committed:
        """As ``post``; how much of it was new is not told."""
        post(self._remote, batch, PATIENT_S)
        return Committed()

    def source_digest(self, path: str) -> tuple[str, str] | None:
        """Never anything."""


class _Receipt(msgspec.Struct):
    """What a daemon says that took a batch."""

    run_key: str | None
    sessions: int
    changed: int


class _Problem(msgspec.Struct):
    """What it says that did not."""

    detail: str = ""


def prepare(ledger: str | None, config: str | None) -> None:
    """As ``ingest.prepare``: prices for the run's own limits, and no ledger.

    Raises:
        ConfigError, PriceError: a setting or the prices are wrong.
    """
    ingest.prepare(ledger, config, opens=False)


def commit_run(remote: str, run: FinishedRun) -> str:
    """Hands a wrapped run to the daemon at *remote*, then as many that wait for it as BACKLOG_S allows; the run's key.

    Raises:
        RemoteError: it did not take the run, or not within LIMIT_S.
        RunRefusedError: it never will.
        ConfigError: its token cannot be read.
    """
    batch, key = ingest.run_batch(run)
    until_s = time.monotonic() + LIMIT_S
    _within(LIMIT_S, remote, batch)
    with suppress(Exception):  # this run is through; the next one tells what is wrong
        send_waiting(remote, min(BACKLOG_S, until_s - time.monotonic()))
    return key


def post(remote: str, batch: Batch, limit_s: float) -> None:
    """Hands *batch* to the daemon at *remote*; giving it again changes nothing there.

    Raises:
        RemoteError, RunRefusedError, ConfigError: as ``commit_run``.
    """
    headers = {"content-type": "application/json", "content-encoding": "gzip", "user-agent": f"spendmeter/{version()}"}
    request = Request(f"{remote}{PATH}", pack(batch), headers | _authorization(os.environ), method="POST")  # noqa: S310 - the opener knows HTTP alone
    try:
        with opener().open(request, timeout=limit_s) as response:
            status, body = response.status, response.read(ANSWER_BYTES)
    except (OSError, HTTPException) as e:
        raise RemoteError(f"{remote}: {why(e, limit_s)}; is it running, and reachable from here?") from None
    if status != 200 or _decoded(body, _Receipt) is None:
        _fail(remote, status, body)


def send_waiting(remote: str, for_s: float | None = None) -> Sent:
    """Hands over the runs that wait for the daemon at *remote*, for no longer than about *for_s*."""
    sent = 0
    until_s = float("inf") if for_s is None else time.monotonic() + for_s

    def commit(run: FinishedRun) -> None:
        nonlocal sent
        if (left_s := until_s - time.monotonic()) <= 0:
            raise RemoteError("more are waiting")
        try:
            post(remote, ingest.run_batch(run)[0], min(left_s, PATIENT_S))
        except ValueError as e:
            say(f"{describe(e)}; run {run.run_id} is set aside")
            raise
        sent += 1

    try:
        take_in(spool_dirs(remote, os.environ), commit)
    except (RemoteError, ConfigError) as e:
        return Sent(sent, str(e))
    return Sent(sent, None)


def waiting(remote: str, env: Mapping[str, str]) -> int:
    """How many runs wait for the daemon at *remote*, those under way too."""
    return sum(len(list(folder.glob("*.json"))) for folder in spool_dirs(remote, env))


def _within(limit_s: float, remote: str, batch: Batch) -> None:
    """``post`` in a thread of its own: looking up a name, or an answer byte by byte, knows no time limit."""
    failed: list[Exception] = []

    def attempt() -> None:
        try:
            post(remote, batch, limit_s)
        except Exception as e:  # noqa: BLE001 - raised again in the caller's thread
            failed.append(e)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise RemoteError(f"{remote}: no answer within {limit_s:g} s")
    if failed:
        raise failed[0]


def _authorization(env: Mapping[str, str]) -> dict[str, str]:
    token = env.get(TOKEN)
    if not token and (path := env.get(TOKEN_FILE)):
        try:
            token = Path(path).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{TOKEN_FILE} {path}: cannot be read ({describe(e)}); check the path and its permissions") from None
    if token and not (token.isascii() and token.isprintable()):
        raise ConfigError(f"{TOKEN} holds more than one line, or what is no token; copy it again")
    return {"authorization": f"Bearer {token}"} if token else {}


def _decoded(body: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _fail(remote: str, status: int, body: bytes) -> NoReturn:
    problem = _decoded(body, _Problem) if status >= 400 else None
    said = " ".join(problem.detail.split())[:200] if problem else ""
    told = f"{remote}: answered {status}{said and f': {said}'}"
    remedy = _REMEDY.get(status, "" if status >= 400 else "is that its address, with nothing before it that redirects or asks to log in?")
    raise (RunRefusedError if status in _REFUSED else RemoteError)(f"{told}; {remedy}" if remedy else told)
