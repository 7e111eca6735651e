"""Notices: who is told, once, that a budget threshold was crossed."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from spendmeter.config import Settings

AFTER_RUN_S = 3.0
_NOTE_S = 0.7  # of it to note the last answer


def after_run(ledger: str | None, config: str | None) -> list[str]:
    """Raises and delivers notices at the end of a wrapped run; takes ``AFTER_RUN_S`` at most and never raises.

    What is not delivered by then is left to the daemon, ``spendmeter budget notify`` or the next run.

    Returns:
        A line for each delivery that failed.
    """
    lines: list[str] = []
    with suppress(Exception):
        from spendmeter import config as settings

        if path := (found := settings.load(config, ledger)).budgets_file:
            _within_time(found, path, lines)
    return list(lines)


def _within_time(settings: Settings, path: Path, lines: list[str]) -> None:
    """In a thread of its own, for neither a database nor name resolution can be hurried."""
    from threading import Thread

    until_s = time.monotonic() + AFTER_RUN_S
    thread = Thread(target=_tell, args=(settings, path, until_s - _NOTE_S, lines), name="spendmeter-notices", daemon=True)
    thread.start()
    thread.join(AFTER_RUN_S)


def _tell(settings: Settings, path: Path, until_s: float, lines: list[str]) -> None:
    from spendmeter.budgets.definitions import Definitions

    with suppress(Exception):
        definitions = Definitions(path)
        if not definitions.current().notifiers:
            return
        from contextlib import closing
        from threading import Event

        from spendmeter.ledger import Ledger, now_ms
        from spendmeter.notices.teller import Teller

        with closing(Ledger(settings)) as opened:
            told = Teller(definitions).tell(opened, now_ms(), Event(), until_s - time.monotonic())
        lines += map(str, told.delivered.failed)
