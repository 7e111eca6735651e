"""``spendmeter plan record``."""

from __future__ import annotations

from pathlib import Path

import click

from spendmeter.cli.app import App, as_json, emit, pass_app, say


@click.command("record")
@click.argument("file", type=click.Path(path_type=Path))
@as_json
@pass_app
def command(app: App, file: Path, as_json: bool) -> None:
    """Keep a plan as a snapshot that is in force from now on.

    FILE is a plan.yaml. A plan that has not changed keeps its snapshot, whose time is refreshed.
    """
    from spendmeter.ledger import planning
    from spendmeter.plans.file import read
    from spendmeter.records import iso

    plan = read(file)
    with app.ledger() as ledger:
        done = planning.record(ledger, plan)
    s = done.snapshot
    if as_json:
        emit({"plan": plan.name, "snapshot_id": s.snapshot_id, "new": done.new, "recorded_at": iso(s.recorded_ms), "pruned": done.pruned})
        return
    click.echo(f"{s.snapshot_id} {'recorded' if done.new else 'refreshed'}")
    if done.pruned:
        say(f"{done.pruned} old snapshot{'s' * (done.pruned != 1)} pruned; [plans] keep is {app.settings.plans_keep}")
