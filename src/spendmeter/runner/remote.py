"""Hands runs to a central daemon instead of a ledger of this host's own: ``spendmeter run --remote URL``, ``spendmeter send``.

A daemon that is away, slow or unwilling costs a run no more than LIMIT_S: the run is kept in a spool of that URL's own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from spendmeter import ingest
from spendmeter.errors import ConfigError, RemoteError
from spendmeter.ledger import Batch, Committed
from spendmeter.runner import central
from spendmeter.runner.describe import describe
from spendmeter.runner.finished import FinishedRun
from spendmeter.runner.recover import take_in
from spendmeter.runner.say import say
from spendmeter.runner.spool import spool_dirs
from spendmeter.runner.wire import PATH, pack

LIMIT_S = 2.0  # how long the end of a run may wait for the daemon
PATIENT_S = 30.0  # and how long ``send`` waits
BACKLOG_S = 0.5  # what a run that went through gives to those that wait
_RECEIPT = {"run_key", "sessions", "changed"}  # what a daemon says that took a batch


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
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    status, body = central.send(remote, "POST", PATH, pack(batch), limit_s, headers)
    if status != 200 or not _RECEIPT.issubset(central.decoded(body) or ()):
        central.fail(remote, status, body)


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
