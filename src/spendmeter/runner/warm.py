"""The slow part of recording a run, done beforehand in a thread of its own while the child runs.

Importing SQLAlchemy and genai-prices, reading the price table and opening the ledger take 0.4 s; the commit itself takes 0.02 s.
"""

from __future__ import annotations

import gc
import threading


class Loader(threading.Thread):
    """Loads; ``error`` is why ``spendmeter.ingest`` cannot be imported, ``imported`` that it was.

    A ledger that hangs or fails here does so again at the commit; ``trouble`` is why it failed.
    """

    def __init__(self, ledger: str | None, config: str | None, remote: str | None = None) -> None:
        """*remote*: the daemon that gets the run; no ledger is opened then."""
        super().__init__(daemon=True)
        self.imported = False
        self.error: BaseException | None = None
        self.trouble: Exception | None = None
        self._ledger, self._config, self._remote = ledger, config, remote

    def run(self) -> None:
        """The thread."""
        gc.disable()
        try:
            from spendmeter import ingest
        except Exception as e:  # noqa: BLE001 - told when the run is kept for later
            self.error = e
        else:
            self.imported = True
            try:
                if self._remote is None:
                    ingest.prepare(self._ledger, self._config)
                else:
                    from spendmeter.runner import remote

                    remote.prepare(self._ledger, self._config)
            except Exception as e:  # noqa: BLE001 - told by whoever needs it before the commit
                self.trouble = e
        gc.freeze()  # what is loaded stays, so no collection need look at it
        gc.enable()
