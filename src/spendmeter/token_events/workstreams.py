"""Which workstream a task belongs to, while a transaction adds events that may name one."""

from __future__ import annotations

from sqlalchemy import Connection, select

from spendmeter.config import Settings
from spendmeter.ledger import schema as t
from spendmeter.token_events.cleaning import clean, names

_Named = tuple[int, str | None]  # end of a run in ms, and the workstream that it names
_NONE: _Named = (-1, None)


class Workstreams:
    """By task: what its latest run (events are runs too) names, of those that are stored and those that are added."""

    def __init__(self, conn: Connection, settings: Settings) -> None:
        self._conn, self._settings = conn, settings
        self._stored: dict[str, _Named] = {}
        self._added: dict[str, _Named] = {}

    def of(self, task: str) -> str | None:
        """Of *task*, as it was posted; None where no run names one."""
        if task not in self._stored:
            self._stored[task] = self._find(task)
        return max(self._added.get(clean("task", task, self._settings), _NONE), self._stored[task], key=lambda x: x[0])[1]

    def add(self, task: str, ended_ms: int, workstream: str | None) -> None:
        """A run of *task*, as it is kept."""
        if workstream and ended_ms >= self._added.get(task, _NONE)[0]:
            self._added[task] = ended_ms, workstream

    def _find(self, task: str) -> _Named:
        r = t.runs.c
        query = select(r.ended_ms, r.workstream).where(names(r.task, "task", task, self._settings), r.workstream.is_not(None))
        found = self._conn.execute(query.order_by(r.ended_ms.desc()).limit(1)).first()
        return _NONE if found is None else (int(found.ended_ms), found.workstream)
