"""``spendmeter plan list``."""

from __future__ import annotations

import click

from spendmeter.cli.app import App, as_json, console, emit, pass_app, say
from spendmeter.cli.plan import NONE


@click.command("list")
@as_json
@pass_app
def command(app: App, as_json: bool) -> None:
    """List the snapshots that are kept, the last seen first."""
    from spendmeter.ledger import planning
    from spendmeter.projections import plan_tables

    with app.ledger() as ledger:
        kept, pruned = planning.snapshots(ledger)
    in_force = list(planning.latest(kept).values())
    if as_json:
        emit({"plans": [s.as_dict() | {"in_force": s in in_force} for s in kept], "pruned": pruned})
        return
    terminal = console()
    if terminal and kept:
        terminal.print(plan_tables.list_table(kept, in_force, terminal))
    else:
        click.echo(plan_tables.list_text(kept, in_force), nl=False)
    if pruned:
        say(f"{pruned} older snapshot{'s were' if pruned != 1 else ' was'} pruned")
    if not kept:
        say(NONE)
