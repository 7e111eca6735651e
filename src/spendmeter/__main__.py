"""``spendmeter``: ``run`` goes its own quick way, everything else to the command line."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130


def main() -> int:
    """Entry point of the command; returns the exit code, 130 where Ctrl-C comes while modules are still loaded."""
    try:
        return _main()
    except KeyboardInterrupt:
        return INTERRUPTED


def _main() -> int:
    """``run`` must not wait for click, SQLAlchemy and the like: its child starts first, with the streams as they are."""
    from spendmeter.runner.args import is_run

    if is_run(sys.argv[1:]):
        from spendmeter.runner import main as run

        return run(sys.argv[1:])
    _open_closed_streams()
    from spendmeter.cli import main as cli

    cli()
    return 0


def _open_closed_streams() -> None:
    """A standard stream that the caller closed (``<&-``, ``>&-``) is empty, or goes nowhere; no file of ours gets its number."""
    from pathlib import Path

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 # open as long as the process lives


if __name__ == "__main__":
    sys.exit(main())
