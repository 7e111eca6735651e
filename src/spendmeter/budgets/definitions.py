"""``budgets.yaml`` as it is now, for processes that outlive it."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock

from spendmeter.budgets.file import load
from spendmeter.budgets.model import Budgets
from spendmeter.errors import ConfigError

_COARSE_NS = 2_000_000_000  # of the clock of a file system, at worst


class Definitions:
    """The budgets of a file that may change while a daemon runs. Any thread may ask.

    ``trouble`` is what is wrong with the file as it is now, "" if nothing is.
    """

    def __init__(self, path: Path | None) -> None:
        """No path is no budgets."""
        self.path = path
        self.trouble = ""
        self._stamp: tuple[int, int, int] | None = None
        self._good: Budgets | None = None if path else Budgets()
        self._lock = Lock()

    def current(self) -> Budgets:
        """The file as it is now or, where that is wrong, as it last was right.

        Raises:
            ConfigError: it was never right.
        """
        with self._lock:
            if self.path:
                self._look(self.path)
            if self._good is None:
                raise ConfigError(self.trouble)
            return self._good

    def _look(self, path: Path) -> None:
        stamp = _stamp(path)
        if stamp is not None and stamp == self._stamp:
            return
        # A file that is younger than its clock is coarse may change once more and look the same: the next call reads it again.
        self._stamp = stamp if stamp is not None and time.time_ns() - stamp[0] > _COARSE_NS else None
        try:
            self._good, self.trouble = load(path), ""
        except ConfigError as e:
            self.trouble = str(e)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What differs when the file does; None where there is none, as reading it will say."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
