"""What the tools answer from: the ledger, the budgets, the prices, and who asks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cached_property

from spendmeter.budgets import Budgets
from spendmeter.config import Settings
from spendmeter.errors import SpendmeterError
from spendmeter.prices import PriceTable
from spendmeter.server.book import Book
from spendmeter.server.mcp_server.caller import NOBODY, Caller

log = logging.getLogger("spendmeter.mcp")


class Source:
    """Any thread may ask.

    Args:
        book: gives the daemon's book, or opens one; LedgerError where it cannot.
    """

    def __init__(self, settings: Settings, book: Callable[[], Book], caller: Caller = NOBODY) -> None:
        self.settings, self.book, self.caller = settings, book, caller

    def budgets(self) -> Budgets:
        """The budgets' file as it is now; none where the settings name no file.

        Raises:
            ConfigError: the file is wrong.
        """
        from spendmeter.budgets.file import load

        return Budgets() if self.settings.budgets_file is None else load(self.settings.budgets_file)

    @cached_property
    def prices(self) -> PriceTable:
        """List prices; PriceError where the override file is wrong."""
        return PriceTable.load(self.settings.prices_file)


class Opening:
    """Opens the book when it is first asked for, and again as long as that fails; takes in the runs of dead wrappers before each answer.

    Args:
        recover: takes them in.
    """

    def __init__(self, settings: Settings, recover: Callable[[], object]) -> None:
        self._settings, self._recover = settings, recover
        self._lock = threading.Lock()
        self._book: Book | None = None

    def __call__(self) -> Book:
        """The open book.

        Raises:
            LedgerError: it cannot be opened.
        """
        with self._lock:
            if self._book is None:
                self._book = Book(self._settings)
            try:
                self._recover()
            except SpendmeterError as e:
                log.warning("unfinished runs could not be recorded: %s", " ".join(str(e).split()))
            return self._book

    def close(self) -> None:
        """Lets go of the database."""
        with self._lock:
            if self._book is not None:
                self._book.close()
