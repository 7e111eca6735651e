"""A host that records runs as fast as it can: threads that each parse a captured run's clone and commit it, for some seconds.

Two threads after each other commit the same runs, often at the same time. What the ledger cannot take goes to the thread's own spool,
as ``spendmeter run`` would put it. Says "up", waits for a line, and in the end prints one JSON document: the seeds of all runs, and how
many were kept.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from pathlib import Path

from tests.replay import clone

from spendmeter import ingest
from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger, now_ms
from spendmeter.parsers import read_file
from spendmeter.records import Skip, Tags
from spendmeter.runner.finished import FinishedRun
from spendmeter.runner.spool import spool_dirs, write_pending

THREADS = 5
PAUSE_S = 3.0  # after a run that could not be recorded


def finished(case: Path, folder: Path, seed: str) -> FinishedRun:
    """The clone *seed* of *case* as the wrapper would hand it over."""
    clone(case, folder, seed)
    observations = read_file(folder / "stdout", "claude")[0]
    name = hashlib.md5(seed.encode()).hexdigest()
    sessions = {o.session for o in observations if not isinstance(o, Skip)}
    files = [(p, 0) for p in sorted((folder / "home").rglob("*.jsonl"))]
    run = FinishedRun(
        name, Tags("dev", f"T-{seed.split('-', maxsplit=1)[0]}"), "claude", 0, None, now_ms() - 1000, now_ms(), name, name[:16]
    )
    run.sessions, run.files, run.observations = sessions, files, observations
    return run


class Writer(threading.Thread):
    """One writer. ``seeds`` are what it took, ``kept`` how many of them the ledger did not take."""

    def __init__(self, ledger: Ledger, url: str, case: Path, folder: Path, group: int, until: float) -> None:
        super().__init__()
        self.ledger, self.url, self.case, self.folder, self.group, self.until = ledger, url, case, folder, group, until
        self.seeds: list[str] = []
        self.kept = 0
        self.slowest_s = 0.0

    def run(self) -> None:
        while time.monotonic() < self.until:
            seed = f"{self.group}-{len(self.seeds)}"
            run = finished(self.case, self.folder / seed, seed)
            self.seeds.append(seed)
            start = time.monotonic()
            try:
                ingest.commit_finished(self.ledger, run)
            except LedgerError:
                self.kept += 1
                write_pending(spool_dirs(self.url, {"XDG_DATA_HOME": str(self.folder / "data"), "HOME": str(self.folder)}), run)
                time.sleep(PAUSE_S)
            self.slowest_s = max(self.slowest_s, time.monotonic() - start)


def main(url: str, case: str, folder: str, number: int, seconds: float) -> None:
    """Opens the ledger, says so, and once it is told to runs the threads of host *number* for *seconds*."""
    ledger = Ledger(Settings(url, settle_s=0))
    print("up", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + seconds
    first = number * THREADS
    writers = [Writer(ledger, url, Path(case), Path(folder) / str(i), i // 2, until) for i in range(first, first + THREADS)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    ledger.close()
    kept, slowest = sum(w.kept for w in writers), max(w.slowest_s for w in writers)
    print(json.dumps({"seeds": [s for w in writers for s in w.seeds], "kept": kept, "slowest_s": slowest}))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5]))
