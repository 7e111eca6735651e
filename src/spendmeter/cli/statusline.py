"""``spendmeter statusline``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from spendmeter.cli.app import TEXT, App, bad, pass_app

STDIN_MAX = 1 << 20


@click.command("statusline")
@click.option("--timezone", metavar="ZONE", type=TEXT, default="UTC", show_default=True, help="Where days begin, such as Europe/Berlin.")
@pass_app
def command(app: App, timezone: str) -> None:
    """Print spend in one line, for CLIs that show one.

    Takes what the CLI hands over on standard input (Claude Code: a JSON object with session_id and cost), if anything. For Claude Code,
    in its settings.json: {"statusLine": {"type": "command", "command": "spendmeter statusline"}}
    """
    from spendmeter.ledger import now_ms
    from spendmeter.ledger.periods import zone
    from spendmeter.projections.messages import messages
    from spendmeter.projections.top import fullest, statusline, today_and_month, told_budget

    bad("--timezone", lambda: zone(timezone))
    told = _told()
    with app.ledger() as ledger:
        spends = [("this session", _session(told)), *today_and_month(ledger, timezone)]
        budgets = [told_budget(s) for s in fullest(ledger, now_ms())[:1]]
    click.echo(statusline(spends, messages("en"), budgets))


def _told() -> dict[str, Any]:
    """The object on standard input; empty where there is none."""
    if sys.stdin is None or sys.stdin.isatty():
        return {}
    try:
        found = json.loads(sys.stdin.buffer.read(STDIN_MAX))
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _session(told: dict[str, Any]) -> int | None:
    """The CLI's own figure for the session, in nano-USD."""
    from spendmeter.records import to_nusd

    cost = told.get("cost")
    return to_nusd(cost.get("total_cost_usd")) if isinstance(cost, dict) else None
