"""The slow part of recording a run, done beforehand in a thread of its own while the child runs.

Importing SQLAlchemy and genai-prices, reading the price table and opening the ledger take 0.4 s; the commit itself takes 0.02 s.
"""

from __future__ import annotations

import gc
import threading
from contextlib import suppress


class Loader(threading.Thread):
    """Loads; ``error`` is why ``spendmeter.ingest`` cannot be imported. A ledger that hangs or fails here does so again at the commit."""

    def __init__(self, ledger: str | None, config: str | None) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self._ledger, self._config = ledger, config

    def run(self) -> None:
        """The thread."""
        gc.disable()
        try:
            from spendmeter import ingest
        except Exception as e:  # noqa: BLE001 - told when the run is kept for later
            self.error = e
        else:
            with suppress(Exception):
                ingest.prepare(self._ledger, self._config)
        gc.freeze()  # what is loaded stays, so no collection need look at it
        gc.enable()
