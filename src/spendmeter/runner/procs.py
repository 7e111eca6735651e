"""Finds the processes of a run by the run id in their environment: that holds through launchers, double forks and orphaning."""

from __future__ import annotations

import os


def belongs(pid: int, run_id: str) -> bool:
    """Whether *pid* was started by the run; False where the system does not tell (no /proc, another user's process)."""
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    data = b""
    try:
        while piece := os.read(fd, 1 << 16):
            data += piece
    except OSError:
        return False
    finally:
        os.close(fd)
    return b"SPENDMETER_RUN_ID=" + run_id.encode() in data.split(b"\0")


def members(group: int, run_id: str) -> list[int]:
    """Processes of the run in process group *group*, without this one."""
    return [pid for pid in _pids() if pid != os.getpid() and _group(pid) == group and belongs(pid, run_id)]


def strays(group: int | None, run_id: str) -> list[int]:
    """Processes of the run that are in another process group than *group*, without this one and those that have ended."""
    return [pid for pid in _pids() if pid != os.getpid() and _group(pid) != group and belongs(pid, run_id)]


def is_group_alive(group: int) -> bool:
    """Whether anyone in process group *group* has not ended yet; without /proc a zombie counts too."""
    if not send(-group, 0):
        return False
    pids = [pid for pid in _pids() if _group(pid) == group]
    return not pids or any(not _is_zombie(pid) for pid in pids)


def send(pid: int, number: int) -> bool:
    """Sends a signal (0 = only look) to *pid*, or to group ``-pid``; whether anyone was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - pathlib would delay the child by 4 ms
    except OSError:
        return []


def _is_zombie(pid: int) -> bool:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return os.read(fd, 1 << 12).rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"], [])
    except OSError:
        return True
    finally:
        os.close(fd)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None
