"""Tests marked ``alone`` have the machine to themselves: with several workers, no other test is under way meanwhile."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID")  # the same in all workers of one run


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Waits for the end of whoever is alone; *alone*, for the end of everyone."""
    if _RUN is None:
        yield
        return
    stem = Path(tempfile.gettempdir()) / f"spendmeter-tests-{_RUN}"
    with ExitStack() as stack:
        door, room = (stack.enter_context(stem.with_suffix(kind).open("w")) for kind in (".door", ".room"))
        fcntl.flock(door, fcntl.LOCK_EX)  # whoever waits for the room keeps the others out of it
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
