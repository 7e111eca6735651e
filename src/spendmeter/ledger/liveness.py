"""Whether the process that set something aside is still there.

On its own host the pid and the time at which the process started tell, so a pid that has gone to another process is told apart, and
a zombie is dead. Of other hosts, and where there is no ``/proc`` or it hides what is others', only the heartbeat tells.
Source: proc(5), /proc/<pid>/stat: field 3 is the state, field 22 the start in ticks since boot.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from typing import NamedTuple

EXPIRES_MS = 60_000  # without a heartbeat for so long, a process that cannot be looked at is taken for dead
_ENDED = "ended"  # where a start would stand
_STATE, _START = 0, 19  # fields after the name, which is in parentheses and may itself hold any character
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Mark(NamedTuple):
    """One process for ever: ``host`` names a boot of a host and a pid namespace of it, ``born`` is "" where nothing tells it."""

    host: str
    pid: int
    born: str


ELSEWHERE = Mark("(elsewhere)", 0, "")  # a process of another host, of which nothing but its heartbeat comes here


def own() -> Mark:
    """This process."""
    pid = os.getpid()
    return Mark(here(), pid, born(pid) or "")


@cache
def here() -> str:
    """Where pids mean the same as here. Host names are given twice, and containers of one host have pids of their own."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        namespace = boot = ""
    return " ".join([socket.gethostname(), boot, namespace]).strip()


def born(pid: int) -> str | None:
    """Start of the process *pid*, which no zombie has; None where it cannot be looked at."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return _ENDED if fields[_STATE] in (b"Z", b"X") else fields[_START].decode()


def is_alive(mark: Mark, beat_ms: int, at_ms: int) -> bool:
    """Whether the process is there at *at_ms*, its last heartbeat having been at *beat_ms*."""
    if mark.host == here():
        start = born(mark.pid)
        if start is not None:
            return start == mark.born
        if not _exists(mark.pid):
            return False
    return at_ms - beat_ms <= EXPIRES_MS


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
