"""``spendmeter``: ``run`` goes its own quick way, everything else to the command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Entry point of the command; returns the exit code.

    ``run`` must not wait for click, SQLAlchemy and the like: its child starts first.
    """
    from spendmeter.runner.args import is_run

    if is_run(sys.argv[1:]):
        from spendmeter.runner import main as run

        return run(sys.argv[1:])
    from spendmeter.cli import main as cli

    cli()
    return 0


if __name__ == "__main__":
    sys.exit(main())
