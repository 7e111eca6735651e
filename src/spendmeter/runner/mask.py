"""The signals that are passed on to the child, and the state in which the wrapper found them."""

from __future__ import annotations

import signal

ENDING = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT))
OTHERS = frozenset((signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH))
JOB = frozenset((signal.SIGTSTP, signal.SIGCONT))


class Mask:
    """Signals as the wrapper found them, and blocked for the relay from here on.

    One that was found ignored (a shell without job control starts its background commands with SIGINT ignored, nohup with SIGHUP) is
    taken too: the child may listen to it all the same, as Claude Code does, and else ignores it as well. Linux keeps a blocked
    signal for ``sigwaitinfo`` even so.

    Attributes:
        taken: what the relay takes.
        ignored: those of them that were found ignored: they end the child at most, never us.
    """

    def __init__(self) -> None:
        self._child_ignored = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
        if self._child_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else there would be no exit status
        ignored = {s for s in ENDING | OTHERS | JOB if signal.getsignal(s) is signal.SIG_IGN}
        mine = set(ENDING | OTHERS | JOB) - (ignored & JOB)
        self._found = signal.pthread_sigmask(signal.SIG_BLOCK, mine | {signal.SIGCHLD})
        self.taken = (mine - self._found) | {signal.SIGCHLD}
        self.ignored = ignored & self.taken

    def restore(self) -> None:
        """Puts back mask and dispositions; Python itself had SIGPIPE and SIGXFSZ ignored."""
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if self._child_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._found)
