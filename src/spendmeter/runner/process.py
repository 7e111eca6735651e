"""Starts the child just as exec would have, and sees to it that it does not outlive a killed wrapper."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import sys

from spendmeter.runner.locate import become, failure

TYPE_CHECKING = False  # importing typing costs 5 ms before the child starts
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
FIRST_FD = 10  # our own descriptors lie above those that users hand on by number
PIPE_BYTES = 1 << 16


class Child:
    """The started command: ``pid``, whether it leads a process ``group`` of its own, and the read end of its stdout, if any."""

    __slots__ = ("group", "out", "pid")

    def __init__(self, pid: int, group: bool, out: int | None) -> None:
        self.pid, self.group, self.out = pid, group, out


def pipe() -> tuple[int, int]:
    """A close-on-exec pipe whose ends are not 0, 1 or 2, even if those are closed."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, FIRST_FD) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


def in_foreground() -> bool:
    """Whether this process belongs to the foreground job of a terminal: then ctrl-C reaches the child directly."""
    try:
        tty = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(tty) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(tty)


def start(path: str, argv: Sequence[str], env: dict[str, str], restore: Callable[[], None], look: Callable[[], None]) -> Child:
    """Forks and executes *path*; returns when the child has become it.

    Standard output goes through a pipe unless it is a terminal or closed. Where the caller has sent standard error down the same
    pipe or file, the child's goes the same way too: otherwise the order between the two would be lost.

    Args:
        restore: called in the child; puts signal mask and dispositions back.
        look: called here while the child is still becoming the command; must not raise.

    Raises:
        CannotRunError: the child could not execute it.
        OSError: nothing was started for want of something that only metering needs.
    """
    group = not in_foreground()
    out_r, out_w = pipe() if _is_metered() else (None, None)
    targets = () if out_w is None else (1, 2) if _is_merged() else (1,)
    error_r, error_w = pipe()
    parent, prctl = os.getpid(), _prctl()
    pid = os.fork()
    if pid == 0:
        try:
            if group:
                os.setpgid(0, 0)
            _die_with(parent, prctl)
            for target in targets:
                os.dup2(out_w or 0, target)
            restore()
            become(path, argv, env)
        except BaseException as e:  # noqa: BLE001 - nothing may leave a forked child but an exit
            os.write(error_w, str(getattr(e, "errno", None) or errno.EIO).encode())
        finally:
            os._exit(127)
    for fd in (error_w, out_w):
        if fd is not None:
            os.close(fd)
    look()
    code = os.read(error_r, 16)
    os.close(error_r)
    if code:
        os.waitpid(pid, 0)
        if int(code) == errno.E2BIG:  # without our additions to the environment it may fit
            raise OSError(int(code), os.strerror(int(code)))
        raise failure(argv[0], int(code))
    return Child(pid, group, out_r)


def guard(child: Child, run_id: str) -> int:
    """Leaves a tiny process behind that ends the child's whole group when this process is killed by SIGKILL.

    PR_SET_PDEATHSIG alone reaches only the direct child, and npm launchers leave the real one alive.

    Returns:
        The descriptor that holds the guard off; write a byte to it before going.
    """
    guard_r, guard_w = pipe()
    wrapper_group = os.getpgrp()
    if os.fork() == 0:
        try:
            os.setsid()
            os.dup2(guard_r, 0, inheritable=False)
            os.closerange(1, 1 << 16)
            os.chdir("/")
            if not os.read(0, 1):
                _end(child, run_id, wrapper_group)
        finally:
            os._exit(0)
    os.close(guard_r)
    return guard_w


def dismiss(guard_w: int) -> None:
    """Sends the guard away: the run has ended."""
    try:
        os.write(guard_w, b".")
    except OSError:  # it was killed itself
        return


def leave_pump(source: int) -> None:
    """Leaves a process behind that goes on copying *source* to stdout: grandchildren still hold the other end.

    The bare command would have ended by now and left them writing to its stdout; so must we.
    """
    if os.fork() != 0:
        return
    try:
        os.dup2(source, 0)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.closerange(3, 1 << 16)
        os.chdir("/")
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        _become_cat()
    finally:
        os._exit(0)


def _become_cat() -> NoReturn:
    for path in ("/bin/cat", "/usr/bin/cat"):
        try:
            os.execv(path, ["cat"])  # noqa: S606 - no shell is meant
        except OSError:
            continue
    while data := os.read(0, PIPE_BYTES):
        while data:
            data = data[os.write(1, data) :]
    os._exit(0)


def _is_metered() -> bool:
    try:
        os.fstat(1)
    except OSError:
        return False
    return not os.isatty(1)


def _is_merged() -> bool:
    try:
        out, err = os.fstat(1), os.fstat(2)
    except OSError:
        return False
    same = (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)
    return same and (stat.S_ISFIFO(out.st_mode) or stat.S_ISSOCK(out.st_mode) or stat.S_ISREG(out.st_mode))


def _prctl() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        call: Callable[..., int] = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None
    return call


def _die_with(parent: int, prctl: Callable[..., int] | None) -> None:
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(128 + signal.SIGTERM)


def _end(child: Child, run_id: str, wrapper_group: int) -> None:
    """SIGTERM to the run's processes, and SIGKILL to those that are left after 5 s."""
    from time import sleep

    from spendmeter.runner.procs import members, send

    def left() -> list[int]:
        if child.group:
            return [-child.pid] if send(-child.pid, 0) else []
        return members(wrapper_group, run_id)

    for number, patience in ((signal.SIGTERM, 50), (signal.SIGKILL, 1)):
        for pid in left():
            send(pid, number)
        for _ in range(patience):
            if not left():
                return
            sleep(0.1)
