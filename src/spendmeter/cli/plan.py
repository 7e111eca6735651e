"""``spendmeter plan``: each of its commands is a module of its own, ``plan_<name>``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spendmeter.cli.app import LazyGroup, bad

if TYPE_CHECKING:
    from spendmeter.ledger.query import Where

COMMANDS = {
    "Commands": {
        "record": "Keep a plan as a snapshot that is in force from now on.",
        "list": "List the snapshots that are kept, the last seen first.",
        "variance": "Show estimates beside what the runs used.",
        "estimate": "Draw a new plan.yaml from past runs.",
    }
}
NONE = (
    "no plan is recorded and no run names one; write a plan.yaml (spendmeter plan estimate draws one from past runs), record it "
    "(spendmeter plan record plan.yaml) and name it in runs (spendmeter run --attr plan=NAME --attr workflow=NAME ...)"
)

command = LazyGroup("plan", sections=COMMANDS, prefix="plan_", help="Compare what work was planned to take with what it took.")


def window(since: str | None, until: str | None) -> Where:
    """The times that --since and --until give."""
    from spendmeter.ledger.periods import when_ms
    from spendmeter.ledger.query import Where

    def told(flag: str, time: str | None) -> int | None:
        return None if time is None else bad(flag, lambda: when_ms(time))

    return Where(told("--since", since), told("--until", until))
