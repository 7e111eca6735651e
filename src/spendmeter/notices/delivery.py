"""Delivers what is due: each notice is claimed before it is sent, so that no two processes send it at once."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, update

from spendmeter.budgets.model import Budget, Budgets, Notifier
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.notices import channels
from spendmeter.notices.channels import Answer, Notice
from spendmeter.outgoing import no_answer

CLAIM_MS = 120_000  # longer than any try: whoever finds a notice due after that knows that its sender has died
ORPHAN_MS = 3_600_000  # due for so long without anyone who knows its notifier
BACKOFF_S = (30.0, 6 * 3600.0)  # after the first failure, and at most
JITTER = (0.8, 1.2)
LEAST_PATIENCE_MS = 86_400_000  # a notice is tried for its period's length, but no less
MARK_BUSY_MS = 30_000  # what was sent must be noted, so this waits for other writers longer than a request may
STOP_S = 3.0  # for answers under way when the daemon is told to end
SLACK_S = 1.0  # until a try that has run out of time says so itself
LEAST_TRY_S = 0.3  # no try is begun that has less time than that
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Failure:
    """A try that failed. ``place``: the webhook's host, or whose command it is."""

    budget: str
    value: str
    threshold: str
    notifier: str
    place: str
    attempts: int
    error: str
    given_up: bool

    def __str__(self) -> str:
        of = f" of {self.value}" if self.value else ""
        end = "given up" if self.given_up else "kept, and tried again"
        return f"budget {self.budget}{of} at {percent(self.threshold)}: {self.place}: {self.error}; {end}"


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one pass did."""

    sent: int = 0
    failed: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class _Letter:
    """A claimed row and whom it goes to."""

    row: Row[Any]
    budget: Budget
    notifier: Notifier
    claimed_ms: int  # its due_ms while it is ours

    @property
    def notice(self) -> Notice:
        told = json.loads(self.row.body)
        return Notice(self.row.id, self.row.budget, self.row.threshold, told["severity"], told["text"], self.row.body)


class _Clock:
    """Milliseconds UTC that go on from *at_ms*, and how long the pass may still take."""

    def __init__(self, at_ms: int, limit_s: float) -> None:
        self._at_ms, self._start_s, self._limit_s = at_ms, time.monotonic(), limit_s

    @property
    def ms(self) -> int:
        return self._at_ms + int((time.monotonic() - self._start_s) * 1000)

    @property
    def left_s(self) -> float:
        return self._start_s + self._limit_s - time.monotonic()


def percent(threshold: str) -> str:
    """A share of the limit for people: "0.8" is "80%"."""
    return f"{float(threshold) * 100:g}%"


def deliver(ledger: Ledger, budgets: Budgets, at_ms: int, stop: threading.Event, limit_s: float = float("inf")) -> Delivered:
    """Sends every notice that is due at *at_ms*, the notifiers side by side, each one's notices one after the other.

    A notifier that fails gets nothing more in this pass. Notices whose notifier *budgets* do not know are left to other
    processes on the ledger, and dropped where none has taken them for an hour.

    Args:
        stop: ends the pass; what is under way then gets ``STOP_S``, and is sent again later if it takes longer.
        limit_s: how long the pass may take; a try under way then is ended and counts as failed.

    Raises:
        LedgerError: the ledger cannot be read or written. What was sent and could not be noted is sent again.
    """
    clock = _Clock(at_ms, limit_s)
    _drop_orphans(ledger, budgets, clock.ms)
    sent, failed = 0, list[Failure]()
    left = {n.name: n for n in budgets.notifiers}
    while not stop.is_set() and clock.left_s > LEAST_TRY_S and (due := _due(ledger, budgets, left.values(), clock.ms)):
        for letter, answer in _send(_claim(ledger, due, clock.ms), clock, stop):
            if not answer.error:
                _note_sent(ledger, letter, clock.ms)
                sent += 1
            else:
                failed.append(_note_failure(ledger, letter, answer, clock.ms))
                left.pop(letter.notifier.name, None)
    return Delivered(sent, tuple(failed))


def _due(ledger: Ledger, budgets: Budgets, notifiers: Iterable[Notifier], now_ms: int) -> list[_Letter]:
    """The oldest due notice for each of *notifiers*."""
    with ledger.read() as conn:
        if conn.execute(select(t.notices.c.id).where(t.notices.c.due_ms <= now_ms).limit(1)).first() is None:
            return []
        return [letter for n in notifiers if (letter := _next(conn, budgets, n, now_ms))]


def _next(conn: Connection, budgets: Budgets, notifier: Notifier, now_ms: int) -> _Letter | None:
    by_name = {b.name: b for b in budgets.budgets if tells(b, notifier)}
    row = conn.execute(
        select(t.notices)
        .where(t.notices.c.due_ms <= now_ms, t.notices.c.notifier == notifier.name, t.notices.c.budget.in_(list(by_name)))
        .order_by(t.notices.c.at_ms, t.notices.c.id)
        .limit(1)
    ).first()
    return _Letter(row, by_name[row.budget], notifier, now_ms + CLAIM_MS) if row else None


def tells(budget: Budget, notifier: Notifier) -> bool:
    """Whether *notifier* is told of *budget*."""
    return budget.notify is None or notifier.name in budget.notify


def _claim(ledger: Ledger, due: list[_Letter], now_ms: int) -> list[_Letter]:
    """Those of *due* that no other process has claimed meanwhile; they are ours until ``CLAIM_MS`` from now."""
    taken = t.notices.c
    with ledger.write() as conn:
        return [
            letter
            for letter in due
            if conn.execute(
                update(t.notices)
                .where(taken.id == letter.row.id, taken.due_ms == letter.row.due_ms)
                .values(due_ms=letter.claimed_ms, attempts=taken.attempts + 1, error="the sender ended before the answer came")
            ).rowcount
        ]


def _send(letters: list[_Letter], clock: _Clock, stop: threading.Event) -> Iterator[tuple[_Letter, Answer]]:
    """Each letter with its answer, in the order of the answers.

    Threads, because neither name resolution nor a dripping answer minds a timeout. One that does not end is left behind.
    """
    answers: queue.SimpleQueue[tuple[_Letter, Answer]] = queue.SimpleQueue()

    def work(letter: _Letter, limit_s: float) -> None:
        answers.put((letter, channels.send(letter.notifier, letter.notice, limit_s)))

    limits = {x.row.id: min(channels.allowed_s(x.notifier), clock.left_s) for x in letters}
    for letter in letters:
        threading.Thread(target=work, args=(letter, limits[letter.row.id]), name="spendmeter-notice", daemon=True).start()
    waiting = {x.row.id: x for x in letters}
    until_s = time.monotonic() + max(limits.values(), default=0.0) + SLACK_S
    while waiting and time.monotonic() < until_s:
        try:
            letter, answer = answers.get(timeout=POLL_S)
        except queue.Empty:
            until_s = min(until_s, time.monotonic() + STOP_S) if stop.is_set() else until_s
            continue
        del waiting[letter.row.id]
        yield letter, answer
    if not stop.is_set():
        yield from ((x, Answer(no_answer(limits[x.row.id]))) for x in waiting.values())


def _note_sent(ledger: Ledger, letter: _Letter, now_ms: int) -> None:
    """Also where someone else has claimed it since: it has arrived, so no more tries."""
    with ledger.write(MARK_BUSY_MS) as conn:
        conn.execute(update(t.notices).where(t.notices.c.id == letter.row.id).values(sent_ms=now_ms, due_ms=None, error=None))


def _note_failure(ledger: Ledger, letter: _Letter, answer: Answer, now_ms: int) -> Failure:
    row, attempts = letter.row, letter.row.attempts + 1
    due_ms = now_ms + _wait_ms(attempts, answer.wait_s)
    given_up = answer.final or due_ms > row.at_ms + _patience_ms(letter.budget, row.at_ms)
    ours = (t.notices.c.id == row.id) & (t.notices.c.due_ms == letter.claimed_ms)
    with ledger.write(MARK_BUSY_MS) as conn:
        conn.execute(update(t.notices).where(ours).values(due_ms=None if given_up else due_ms, error=answer.error))
        if answer.wait_s:  # it is asked of the sender, not of one notice
            others = (t.notices.c.notifier == row.notifier) & (t.notices.c.due_ms < due_ms)
            conn.execute(update(t.notices).where(others).values(due_ms=due_ms))
    place = channels.place(letter.notifier)
    return Failure(row.budget, row.value, row.threshold, row.notifier, place, attempts, answer.error, given_up)


def _wait_ms(attempts: int, asked_s: float) -> int:
    """Until the next try: twice as long each time, or what the receiver asked for if that is longer."""
    backoff_s = min(BACKOFF_S[0] * 2 ** min(attempts - 1, 20), BACKOFF_S[1]) * random.uniform(*JITTER)  # noqa: S311 - no secret
    return int(max(backoff_s, min(asked_s, BACKOFF_S[1])) * 1000)


def _patience_ms(budget: Budget, at_ms: int) -> int:
    return max(LEAST_PATIENCE_MS, budget.period.window(at_ms).length_ms or 0)


def _drop_orphans(ledger: Ledger, budgets: Budgets, now_ms: int) -> None:
    """Gives up what nobody has taken for long because its budget or its notifier is in no file any more."""
    known = {(b.name, n.name) for b in budgets.budgets for n in budgets.notifiers if tells(b, n)}
    with ledger.read() as conn:
        late = conn.execute(select(t.notices).where(t.notices.c.due_ms < now_ms - ORPHAN_MS)).all()
    lost = [row for row in late if (row.budget, row.notifier) not in known]
    if not lost:
        return
    with ledger.write() as conn:
        for row in lost:
            ours = (t.notices.c.id == row.id) & (t.notices.c.due_ms == row.due_ms)
            conn.execute(update(t.notices).where(ours).values(due_ms=None, error="the budgets file no longer tells this notifier of it"))
