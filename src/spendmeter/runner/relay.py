"""Signals: taken by one thread, passed on to the child, and mirrored when the child stops or dies of one.

All signals that we pass on are blocked in every thread and taken by ``sigwaitinfo``, which also tells who sent them: those from the
terminal have reached a child in the foreground already and must not come twice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import NoReturn

from spendmeter.runner.mask import ENDING, OTHERS, Mask
from spendmeter.runner.process import Child
from spendmeter.runner.procs import members, send

STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
FROM_TERMINAL = frozenset((signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH))


class Relay(threading.Thread):
    """Passes signals on until the process ends. ``status`` is the child's wait status once it has ended.

    ``hurried`` tells that a signal came after that: whoever sent it wants us gone.
    """

    def __init__(self, child: Child, run_id: str, mask: Mask, wake: int) -> None:
        super().__init__(daemon=True)
        self._child, self._run_id, self._mask, self._wake = child, run_id, mask, wake
        self.status: int | None = None
        self.hurried = False

    def run(self) -> None:
        """Takes one signal after another."""
        while True:
            number, from_kernel = _next_signal(self._mask.taken)
            if number == signal.SIGCHLD:
                self._reap()
            elif self.status is not None:
                self.hurried = self.hurried or number in ENDING - self._mask.ignored
                self._notify()
            else:
                self._pass_on(number, from_kernel)

    def _reap(self) -> None:
        while self.status is None:
            pid, status = os.waitpid(self._child.pid, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                self._stop_too(signal.Signals(os.WSTOPSIG(status)))
                continue
            self.status = status
            self._notify()

    def _notify(self) -> None:
        nudge(self._wake)

    def _pass_on(self, number: signal.Signals, from_kernel: bool) -> None:
        child = self._child
        if child.group:
            if number == signal.SIGCONT:
                _give_terminal(child.pid)
            send(child.pid if number in OTHERS else -child.pid, number)
        elif not from_kernel:
            send(child.pid, number)
            if number in ENDING:
                for pid in members(os.getpgrp(), self._run_id):
                    if pid != child.pid:
                        send(pid, number)

    def _stop_too(self, number: signal.Signals) -> None:
        """Stops this process as the child was stopped, so that the shell sees its job stopped; returns when continued."""
        if number not in STOPS:  # SIGSTOP: whoever sent that will send SIGCONT to the child, not to us
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        signal.raise_signal(number)
        # One from the terminal may be pending too. Both at once stop us once: SIGCONT flushes what is left of them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.pthread_sigmask(signal.SIG_BLOCK, {number} & self._mask.taken)
        if number == signal.SIGTSTP:  # an orphaned group cannot stop by it, so the child must not stay stopped
            send(-self._child.pid if self._child.group else self._child.pid, signal.SIGCONT)


def nudge(wake: int) -> None:
    """Ends a wait of the thread that reads the other end of *wake*."""
    os.write(wake, b".")


def end_like(status: int) -> NoReturn:
    """Ends this process as the child ended: with its exit code, or by the same signal."""
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    _no_core()
    try:
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.raise_signal(number)
    finally:  # still here: init of a container is spared by its own signals
        os._exit(128 + number)


def _no_core() -> None:
    """The child has dumped its core where one was wanted; ours would overwrite it."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _next_signal(taken: set[signal.Signals]) -> tuple[signal.Signals, bool]:
    """The next signal, and whether the kernel sent it (<asm-generic/siginfo.h>: si_code > 0)."""
    if sys.platform == "darwin":
        number = signal.sigwait(taken)
        return signal.Signals(number), number in FROM_TERMINAL
    info = signal.sigwaitinfo(taken)
    return signal.Signals(info.si_signo), info.si_code > 0


def _give_terminal(group: int) -> None:
    """``fg`` on a job that began in the background: the child's group takes the terminal that was given to ours."""
    try:
        tty = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if os.tcgetpgrp(tty) == os.getpgrp():
            os.tcsetpgrp(tty, group)
    except OSError:
        return
    finally:
        os.close(tty)
