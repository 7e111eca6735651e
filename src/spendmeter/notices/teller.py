"""One process's part in telling: looks for what is new, but only where something may be, and delivers what is due."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from spendmeter.budgets.definitions import Definitions
from spendmeter.budgets.periods import MINUTE_MS
from spendmeter.ledger import Ledger
from spendmeter.notices.delivery import Delivered, deliver
from spendmeter.notices.raising import raise_new


@dataclass(frozen=True, slots=True)
class Told:
    """What one pass did. ``raised``: new notices to deliver."""

    raised: int
    delivered: Delivered


class Teller:
    """Tells of the budgets that *definitions* hold by then."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._seen: tuple[Ledger, int, int, str] | None = None

    def tell(self, ledger: Ledger, at_ms: int, stop: threading.Event, limit_s: float = float("inf")) -> Told:
        """One pass; *stop* and *limit_s* are as for ``deliver``.

        Raises:
            ConfigError: the file was never right.
            LedgerError: the ledger cannot be read or written.
        """
        budgets = self._definitions.current()
        with ledger.read() as conn:
            seen = (ledger, ledger.moved(conn), at_ms // MINUTE_MS, budgets.digest)
        raised = 0 if seen == self._seen else raise_new(ledger, budgets, at_ms)
        self._seen = seen
        return Told(raised, deliver(ledger, budgets, at_ms, stop, limit_s))
