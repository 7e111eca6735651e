"""What ``sync --watch`` does after its first round: waits for session files to change, and outlives whatever goes wrong meanwhile."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from spendmeter.cli.app import say
from spendmeter.cli.homes import folders
from spendmeter.errors import ConfigError, ParseError, SpendmeterError

LOOK_S = 5.0  # without any event: folders appear and go away, and events get lost
FORGOTTEN_S = 600.0  # what went wrong so long ago is said again
Place = tuple[Path, int, int]  # a folder, and which one of that name it is


class Watching:
    """Calls *look* whenever something may have changed in the session folders of *clis*, for ever.

    Args:
        look: one round; whatever it raises is said once, and the next round tries again.
        failed: called after a round that may have committed nothing.

    Raises:
        ConfigError: watchfiles is not installed.
    """

    def __init__(self, home: Path | None, clis: Sequence[str], look: Callable[[], None], failed: Callable[[], None]) -> None:
        try:
            import watchfiles
        except ModuleNotFoundError:
            raise ConfigError("sync --watch needs watchfiles; install spendmeter[watch]") from None
        self._home, self._clis, self._look, self._failed = home, clis, look, failed
        self._events = watchfiles.watch
        self._said: dict[str, float] = {}  # what went wrong, and when it did so last

    def run(self) -> None:
        """Goes on until Ctrl-C."""
        while True:
            places = self._places()
            names = ", ".join(str(path) for path, _, _ in places) or "for the session folder of any CLI to appear"
            say(f"watching {names}; stop with Ctrl-C")
            for _ in self._changes([path for path, _, _ in places]):
                self.round()
                if self._places() != places:
                    break

    def round(self) -> None:
        """Looks once, and tells what goes wrong."""
        try:
            self._look()
        except (SpendmeterError, OSError) as e:
            if not isinstance(e, ParseError):  # which leaves the other files committed
                self._failed()
            self.tell(e)

    def tell(self, error: Exception) -> None:
        """Says what went wrong once, until it has not gone wrong for a while."""
        problem, now = " ".join(str(error).split()), time.monotonic()
        if now - self._said.get(problem, -math.inf) > FORGOTTEN_S:
            say(f"{problem}; goes on")
        self._said[problem] = now

    def _places(self) -> list[Place]:
        """The session folders that are there now."""
        found = ((path, _stat(path)) for _, path in folders(os.environ, self._home, self._clis) if path.is_dir())
        return [(path, stat.st_dev, stat.st_ino) for path, stat in found if stat]

    def _changes(self, paths: Sequence[Path]) -> Iterator[object]:
        """Something at every change below *paths*, and every ``LOOK_S`` without one."""
        try:
            if paths:
                yield from self._events(
                    *paths, watch_filter=None, rust_timeout=int(LOOK_S * 1000), yield_on_timeout=True, ignore_permission_denied=True
                )
        except (OSError, RuntimeError) as e:  # such as the system's limit of watches
            say(f"changes are not told ({' '.join(str(e).split())}); looking every {LOOK_S:.0f} s instead")
        while True:
            time.sleep(LOOK_S)
            yield None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
