"""``python -m spendmeter.demo``: the bundled sample in a ledger of its own, served. ``make run`` calls it.

``python -m spendmeter.demo load`` only takes the sample in.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from spendmeter import config
from spendmeter.demo.bundle import RUNS, load
from spendmeter.errors import SpendmeterError
from spendmeter.ledger import Ledger

_DEFAULTS = {"SPENDMETER_METRICS_ZERO_FIRST": "0", "SPENDMETER_METRICS_SETTLE": "0"}
BAD_USAGE = 2


def main(argv: list[str]) -> int:
    """Entry point; the exit code."""
    if argv not in ([], ["load"]):
        sys.stderr.write("usage: python -m spendmeter.demo [load]\n")
        return BAD_USAGE
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        settings = config.load(ledger=os.environ.get("SPENDMETER_LEDGER") or _own_ledger())
        with contextlib.closing(Ledger(settings)) as ledger:
            done = load(ledger)
        took = "was there already" if not done.sources else f"taken in from {done.sources} files"
        note = f"sample: {len(RUNS)} runs of Claude Code, captured on 21 November 2026, {took}"
        if argv:
            sys.stderr.write(f"spendmeter: {note}\n")
            return 0
        return _serve(settings, note)
    except SpendmeterError as e:
        sys.stderr.write(f"spendmeter: {' '.join(str(e).split())}\n")
        return 1


def _serve(settings: config.Settings, note: str) -> int:
    from spendmeter.server import run

    run(settings, note=note)
    return 0


def _own_ledger() -> str:
    """Never the user's own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return f"sqlite:///{cache / 'spendmeter' / 'demo' / 'ledger.db'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
