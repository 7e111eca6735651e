"""``spendmeter rules``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spendmeter.cli.app import TEXT, App, pass_app, say
from spendmeter.rules import RUNBOOKS, WEBHOOK

if TYPE_CHECKING:
    from spendmeter.budgets import Budgets

RULES, ROUTES = "spendmeter.yml", "alertmanager.yml"


@click.command("rules")
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help=f"Write {RULES} and {ROUTES} into this folder.")
@click.option("--runbook-url", metavar="URL", type=TEXT, default=RUNBOOKS, show_default=True, help="Page that alerts link to.")
@click.option(
    "--webhook", metavar="URL", type=TEXT, default=WEBHOOK, show_default=True, help="Where Alertmanager posts; each receiver has a path."
)
@click.option("--alertmanager", is_flag=True, help="Print the Alertmanager configuration instead of the rules.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the files in DIR are not up to date.")
@pass_app
@click.pass_context
def command(ctx: click.Context, app: App, output: Path | None, runbook_url: str, webhook: str, alertmanager: bool, check: bool) -> None:
    """Write Prometheus alert rules for the budgets, and the routes for Alertmanager.

    Run it again when budgets.yaml has changed, and have Prometheus reload.
    """
    from spendmeter import rules
    from spendmeter.rules import files

    if output is None and check:
        raise click.UsageError("--check compares the files of a folder; add --output DIR")
    if output is not None and alertmanager:
        raise click.UsageError("--alertmanager is about what is printed; --output writes both files")
    budgets = known_budgets(app)
    made = {RULES: files.text(rules.build(budgets, runbook_url)), ROUTES: files.text(rules.alertmanager(budgets, webhook))}
    if output is None:
        click.echo(made[ROUTES if alertmanager else RULES], nl=False)
    elif check:
        ctx.exit(up_to_date("rules", output, files.stale(output, made)))
    else:
        files.write(output, made)
        click.echo("\n".join(f"wrote {output / name}" for name in made))


def known_budgets(app: App) -> Budgets:
    """Those of the budgets file in force; none where none is set, which is said."""
    from spendmeter.budgets import Budgets
    from spendmeter.budgets.file import load

    path = app.settings.budgets_file
    if path is None:
        say("no budgets file is set ([budgets] file, or SPENDMETER_BUDGETS): nothing about budgets is made")
        return Budgets()
    return load(path)


def up_to_date(command: str, folder: Path, stale: Sequence[str]) -> int:
    """The exit code of --check: 1 if there are *stale* files, which are named."""
    if stale:
        say(f"{folder}: not up to date: {', '.join(stale)}; run spendmeter {command} --output {folder}")
        return 1
    click.echo(f"{folder}: up to date")
    return 0
