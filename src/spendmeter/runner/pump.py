"""Copies the child's standard output to ours, byte for byte and at once, and shows it to the meter afterwards."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import termios
from collections.abc import Callable
from time import monotonic

from spendmeter.runner.process import PIPE_BYTES

Show = Callable[[bytes], None] | None


class Pump:
    """The copying loop.

    Args:
        source: read end of the child's standard output, or None where the child has ours.
        wake: read end of the pipe by which other threads end a ``wait``.
    """

    def __init__(self, source: int | None, wake: int) -> None:
        self.source, self._wake = source, wake
        self.problem: str | None = None
        self._poll = select.poll()
        self._poll.register(wake, select.POLLIN)
        self._watched: int | None = None
        if source is not None:
            self._poll.register(source, select.POLLIN)
            if _is_pipe(1):
                self._poll.register(1, 0)  # POLLERR: its reader has gone
                self._watched = 1

    def wait(self, done: Callable[[], bool], show: Show, until_s: Callable[[], float] = lambda: float("inf")) -> None:
        """Copies until *done*, asked after every event, or until the monotonic time *until_s*, asked likewise.

        Args:
            show: given every piece after it was written; None once what comes is a grandchild's.
        """
        while not done():
            left_s = until_s() - monotonic()
            if left_s <= 0:
                return
            for fd, event in self._poll.poll(None if left_s == float("inf") else left_s * 1000 + 1):
                self._serve(fd, event, show)

    def drain(self, show: Show) -> None:
        """Copies what the pipe holds now: all that the child, which has ended, wrote."""
        left = self._waiting()
        while left > 0 and self.source is not None:
            left -= self._copy(self.source, show)

    def _serve(self, fd: int, event: int, show: Show) -> None:
        if fd == self._wake:
            os.read(fd, 512)
        elif fd == self.source:
            self._copy(fd, show)
        elif fd == self._watched and event & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            self._close()

    def _copy(self, source: int, show: Show) -> int:
        data = os.read(source, PIPE_BYTES)
        if not data:
            self._close()
            return 0
        try:
            _write_all(data)
        except OSError as e:
            if e.errno != errno.EPIPE:
                self.problem = f"standard output could not be written ({e.strerror})"
            self._close()
        if show is not None:
            show(data)
        return len(data)

    def _close(self) -> None:
        """Closes our read end, so that the child meets SIGPIPE as it would without us."""
        if self.source is not None:
            self._poll.unregister(self.source)
            os.close(self.source)
            self.source = None
        if self._watched is not None:
            self._poll.unregister(self._watched)
            self._watched = None

    def _waiting(self) -> int:
        if self.source is None:
            return 0
        size = array.array("i", [0])
        fcntl.ioctl(self.source, termios.FIONREAD, size)
        return size[0]


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(1, view) :]
        except BlockingIOError:  # a caller that shares its stdout with us made it non-blocking
            poll = select.poll()
            poll.register(1, select.POLLOUT)
            poll.poll()


def _is_pipe(fd: int) -> bool:
    """Whether *fd* is a pipe without a name: once its reader has gone no other can come."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")  # noqa: PTH115 - its Path would mean nothing
    except OSError:
        return False
