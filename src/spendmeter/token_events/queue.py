"""Group commit: what several threads bring at once is recorded in one transaction, for what a commit costs is mostly not its events."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from spendmeter.ledger import Ledger
from spendmeter.token_events.model import BATCH_MAX, TokenEvent
from spendmeter.token_events.writing import Recorded, record_each


@dataclass(slots=True, eq=False)
class _Waiting:
    """One thread's events. ``woken``: they are done, or it is for this thread to record them and those behind them."""

    events: Sequence[TokenEvent]
    woken: threading.Event = field(default_factory=threading.Event)
    done: Recorded | BaseException | None = None


class Queue:
    """Threads wait here for their turn to write; the first records what all of them have brought, and each goes on once that is committed.

    Args:
        ledger: gives the one to write to; LedgerError where there is none.
    """

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._busy = False

    def record(self, events: Sequence[TokenEvent]) -> Recorded:
        """As ``token_events.record``, and with its errors; those of others who wait are none of this caller's."""
        mine = _Waiting(events)
        with self._lock:
            self._waiting.append(mine)
            first, self._busy = not self._busy, True
        if not first:
            mine.woken.wait()
        if mine.done is None:
            self._write(self._group())
        if isinstance(mine.done, BaseException):
            raise mine.done
        return cast(Recorded, mine.done)

    def _group(self) -> list[_Waiting]:
        """The first of those who wait, and as many behind it as make up one batch."""
        with self._lock:
            group = [self._waiting.popleft()]
            size = len(group[0].events)
            while self._waiting and size + len(self._waiting[0].events) <= BATCH_MAX:
                group.append(self._waiting.popleft())
                size += len(group[-1].events)
        return group

    def _write(self, group: Sequence[_Waiting]) -> None:
        done: Sequence[Recorded | BaseException] = ()
        try:
            done = record_each(self._ledger(), [one.events for one in group])
        except BaseException as e:  # noqa: BLE001 - each of the threads raises it
            done = [e] * len(group)
        with self._lock:
            successor = self._waiting[0] if self._waiting else None
            self._busy = successor is not None
        for one, result in zip(group, done, strict=True):
            one.done = result
            one.woken.set()
        if successor:
            successor.woken.set()
