"""The signals that are passed on to the child, and the state in which the wrapper found them."""

from __future__ import annotations

import signal

ENDING = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT))
OTHERS = frozenset((signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH))
JOB = frozenset((signal.SIGTSTP, signal.SIGCONT))


class Mask:
    """Signals as the wrapper found them, and blocked for the relay from here on."""

    def __init__(self) -> None:
        self._child_ignored = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
        if self._child_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else there would be no exit status
        mine = {s for s in ENDING | OTHERS | JOB if signal.getsignal(s) is not signal.SIG_IGN}
        self._found = signal.pthread_sigmask(signal.SIG_BLOCK, mine | {signal.SIGCHLD})
        self.taken = (mine - self._found) | {signal.SIGCHLD}

    def restore(self) -> None:
        """Puts back mask and dispositions; Python itself had SIGPIPE and SIGXFSZ ignored."""
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if self._child_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._found)
