"""What the daemon does besides answering: settles what is due, takes in unfinished runs, sends by OTLP, tells of budgets, retains."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from spendmeter.errors import SpendmeterError
from spendmeter.ledger import Ledger, now_ms
from spendmeter.server.book import Book

if TYPE_CHECKING:
    from spendmeter.notices.teller import Teller
    from spendmeter.projections.export import Exporter

SETTLE_S = 2.0
FOLD_S = 10.0
NOTICE_S = 2.0
RECOVER_S = 60.0
WATCH_S = 0.5
RETAIN_S = 3600.0
RETAIN_AT_ONCE = 20  # sessions in one transaction: others write meanwhile
RETAIN_LEASE = "retain.lease"  # key of meta
RETAIN_LEASE_MS = 120_000  # longer than a transaction takes: one daemon at a time
RETRY_S = 10.0  # after a failure that no one foresaw
JOIN_S = 5.0
log = logging.getLogger("spendmeter.server")


class Workers:
    """A thread for each task; what troubles them is told once, and again when it is over.

    Args:
        config: the settings file that runs of dead wrappers are priced and settled by.
    """

    def __init__(self, book: Book, config: str | None = None) -> None:
        self._book, self._config = book, config
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._recovered = self._folded = float("-inf")
        self.trouble: dict[str, str] = {}

    def start(self) -> None:
        """Starts settling, sending where an OTLP endpoint is configured, telling where there are budgets, and retention where it is set."""
        steps: dict[str, Callable[[], None]] = {"settle": self._keep_settling}
        if exports():
            steps["export"] = self._keep_sending
        if self._book.settings.budgets_file is not None:
            steps["notices"] = self._keep_telling
        if self._book.settings.retention_calls_s is not None:
            steps["retain"] = self._keep_retaining
        for name, step in steps.items():
            self._threads.append(threading.Thread(target=step, name=f"spendmeter-{name}", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends all, waiting a little for what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(JOIN_S)

    @property
    def alive(self) -> bool:
        """Whether all that was started still runs."""
        return all(t.is_alive() for t in self._threads)

    def _keep_settling(self) -> None:
        while not self._stop.is_set():
            self._try("settle", lambda: self._book.ledger().settle())
            if time.monotonic() - self._folded >= FOLD_S:
                self._folded = time.monotonic()
                self._try("fold", lambda: self._book.ledger().fold())
            if time.monotonic() - self._recovered >= RECOVER_S:
                self._recovered = time.monotonic()
                self._try("recover", self._recover)
            self._stop.wait(SETTLE_S)

    def _recover(self) -> None:
        from spendmeter.runner.recover import recover

        recover(self._book.settings.ledger, self._config)

    def _keep_sending(self) -> None:
        while not self._stop.is_set():
            self._try("export", lambda: self._send(self._book.ledger()))
            self._stop.wait(RETRY_S)

    def _send(self, ledger: Ledger) -> None:
        """Sends until the daemon stops or another ledger has taken this one's place."""
        from spendmeter.projections.export import Exporter

        ended = threading.Event()
        exporter = Exporter(ledger)
        watch = threading.Thread(target=self._watch, args=(ledger, exporter, ended), name="spendmeter-watch", daemon=True)
        watch.start()
        try:
            exporter.loop(ended)
        finally:
            ended.set()
            watch.join()

    def _watch(self, ledger: Ledger, exporter: Exporter, ended: threading.Event) -> None:
        """Ends the sending when its time is over, also a request that waits for a slow endpoint."""
        while not ended.is_set():
            if self._stop.wait(WATCH_S) or not self._current(ledger):
                ended.set()
                with contextlib.suppress(SpendmeterError):
                    exporter.close()

    def _keep_telling(self) -> None:
        from spendmeter.budgets.definitions import Definitions
        from spendmeter.notices.teller import Teller

        teller = Teller(Definitions(self._book.settings.budgets_file))
        while not self._stop.is_set():
            self._try("notices", lambda: self._tell_of_budgets(teller))
            self._stop.wait(NOTICE_S)

    def _tell_of_budgets(self, teller: Teller) -> None:
        """A delivery that fails is logged the first time and when it is given up."""
        for failure in teller.tell(self._book.ledger(), now_ms(), self._stop).delivered.failed:
            if failure.attempts == 1 or failure.given_up:
                log.warning("notices: %s", failure)

    def _keep_retaining(self) -> None:
        while not self._stop.is_set():
            self._try("retain", lambda: self._retain(self._book.ledger()))
            self._stop.wait(RETRY_S if "retain" in self.trouble else RETAIN_S)

    def _retain(self, ledger: Ledger) -> None:
        """Closes what has been quiet for long enough, unless another daemon over this ledger is at it."""
        from spendmeter.ledger.retention import retain
        from spendmeter.projections.spool import Lease

        lease = Lease(ledger, RETAIN_LEASE)

        def goes_on() -> bool:
            return not self._stop.is_set() and lease.take(now_ms(), RETAIN_LEASE_MS)

        try:
            retain(ledger, int((self._book.settings.retention_calls_s or 0) * 1000), at_once=RETAIN_AT_ONCE, goes_on=goes_on)
        finally:
            lease.drop()

    def _current(self, ledger: Ledger) -> bool:
        try:
            return self._book.ledger() is ledger
        except SpendmeterError:
            return True  # gone for now; what it says comes from the export itself

    def _try(self, name: str, step: Callable[[], object]) -> None:
        """One step; a failure is told when it is new. The text of an error that no one foresaw is not: it may hold anything."""
        try:
            step()
        except SpendmeterError as e:
            self._tell(name, " ".join(str(e).split()))
        except Exception as e:  # noqa: BLE001 - a thread that dies would stop the counters without a word
            self._tell(name, f"{type(e).__name__}; this is a defect of spendmeter")
        else:
            if self.trouble.pop(name, None):
                log.warning("%s: works again", name)

    def _tell(self, name: str, what: str) -> None:
        if self.trouble.get(name) != what:
            self.trouble[name] = what
            log.warning("%s: %s", name, what)


def exports() -> bool:
    """Whether the environment names an OTLP endpoint for any signal."""
    from spendmeter.projections.otlp import SIGNALS, configured

    return any(configured(s) for s in SIGNALS)
