"""The daemon's ledger: gives up on a lock soon, notices that its file has gone, opens the one that takes its place."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url

from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger
from spendmeter.ledger.engine import safe
from spendmeter.token_events import Queue

BUSY_MS = 2000  # how long a request waits for a lock: a scrape has 10 s in all
_Identity = tuple[int, int]  # device and inode


class Book:
    """Hands out the ledger at ``settings.ledger``; ``events`` records into it what is posted.

    Raises:
        LedgerError: it cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._file = _file(settings.ledger)
        self._ledger = Ledger(settings, busy_ms=BUSY_MS)
        self._identity = self._look()
        self.events = Queue(self.ledger)

    def ledger(self) -> Ledger:
        """The open ledger, a new one if another file stands in its place.

        Raises:
            LedgerError: its file has gone, or the new one cannot be opened. SQLite itself would go on with the deleted file.
        """
        seen = self._look()
        if seen == self._identity:
            return self._ledger
        if seen is None:
            raise LedgerError(f"ledger {safe(self.settings.ledger)}: its file has gone; put it back, or restart to begin a new one")
        with self._lock:
            if seen != self._identity:
                fresh = Ledger(self.settings, busy_ms=BUSY_MS)
                self._ledger.close()
                self._ledger, self._identity = fresh, seen
            return self._ledger

    def check(self) -> None:
        """Reads one row.

        Raises:
            LedgerError: the ledger cannot be read; says what to do.
        """
        with self.ledger().read() as conn:
            conn.execute(text("select value from meta limit 1")).first()

    def close(self) -> None:
        """Lets go of the database."""
        self._ledger.close()

    def _look(self) -> _Identity | None:
        """What stands at the ledger's path; always the same for a ledger that is no file."""
        if self._file is None:
            return 0, 0
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino


def _file(url: str) -> Path | None:
    parsed = make_url(url)
    name = parsed.database if parsed.get_backend_name() == "sqlite" else None
    return Path(name).absolute() if name and name != ":memory:" and not name.startswith("file:") else None
