"""``spendmeter budget notify``."""

from __future__ import annotations

import threading
from dataclasses import asdict

import click

from spendmeter.cli.app import App, as_json, emit, say
from spendmeter.cli.budget import budgets_file


@click.command("notify")
@as_json
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Tell the notifiers of thresholds that were crossed, each once.

    For cron where no daemon runs: spendmeter serve does it all the time. Exit code 1 if something could not be delivered; it is kept and
    tried again.
    """
    from spendmeter.budgets.definitions import Definitions
    from spendmeter.ledger import now_ms
    from spendmeter.notices.teller import Teller

    app = ctx.ensure_object(App)
    definitions = Definitions(budgets_file(app))
    with app.ledger() as ledger:
        told = Teller(definitions).tell(ledger, now_ms(), threading.Event())
    failed = told.delivered.failed
    if as_json:
        emit({"raised": told.raised, "sent": told.delivered.sent, "failed": [asdict(f) for f in failed]})
    else:
        click.echo(f"{told.raised} new, {told.delivered.sent} sent{f', {len(failed)} failed' if failed else ''}")
        for failure in failed:
            say(str(failure))
    ctx.exit(1 if failed else 0)
