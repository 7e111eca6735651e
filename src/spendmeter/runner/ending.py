"""Ends a run: asks, insists, kills, each only while something of the run is alive."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from spendmeter.runner.process import Child
from spendmeter.runner.procs import is_group_alive, send, strays

STEPS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LOOK_S = 0.03
LAST_S = 1.0  # for the kernel to carry out SIGKILL


class Ending(threading.Thread):
    """One run's end. The whole group is told, for npm launchers leave the real child alive, and who has left the group too.

    A process that is stopped would not hear: each signal is followed by SIGCONT. ``is_done`` tells that all is over.
    """

    def __init__(self, child: Child, run_id: str, has_ended: Callable[[], bool], grace_s: float, wake: Callable[[], None]) -> None:
        """*has_ended*: whether *child* was waited for; *wake* is called when all is over."""
        super().__init__(daemon=True)
        self.is_done = False
        self._child, self._run_id, self._has_ended, self._grace_s, self._wake = child, run_id, has_ended, grace_s, wake

    def run(self) -> None:
        """The thread."""
        try:
            for number in STEPS:
                self._tell(number)
                if self._is_gone(number):
                    return
        finally:
            self.is_done = True
            self._wake()

    def is_needed(self) -> bool:
        """Whether anything of the run is alive."""
        child_lives = is_group_alive(self._child.pid) if self._child.group else not self._has_ended()
        return child_lives or bool(self._strays())

    def _is_gone(self, number: signal.Signals) -> bool:
        """Waits for it; what is born meanwhile is killed as well."""
        is_last = number == signal.SIGKILL
        until_s = time.monotonic() + (LAST_S if is_last else self._grace_s)
        while self.is_needed():
            if time.monotonic() >= until_s:
                return False
            time.sleep(LOOK_S)
            if is_last:
                self._tell(number)
        return True

    def _tell(self, number: signal.Signals) -> None:
        for pid in self._targets():
            send(pid, number)
            if number != signal.SIGKILL:
                send(pid, signal.SIGCONT)

    def _targets(self) -> list[int]:
        """The child's group as one; in the foreground of a terminal that is the caller's group as well, so then each process."""
        found = self._strays()
        if self._child.group:
            return [-self._child.pid, *found]
        return found if self._has_ended() or self._child.pid in found else [self._child.pid, *found]

    def _strays(self) -> list[int]:
        return strays(self._child.pid if self._child.group else None, self._run_id)
