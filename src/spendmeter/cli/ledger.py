"""``spendmeter ledger``."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import click

from spendmeter.cli.app import App, as_json, emit, pass_app, say


@click.group("ledger")
def command() -> None:
    """Verify the ledger, or tell about it."""


@command.command("path")
@pass_app
def path(app: App) -> None:
    """Print the ledger's URL, without a password."""
    from spendmeter.ledger.engine import safe

    click.echo(safe(app.settings.ledger))


@command.command("info")
@as_json
@pass_app
def info(app: App, as_json: bool) -> None:
    """Tell the ledger's identity, age and size."""
    from spendmeter.ledger.engine import safe
    from spendmeter.ledger.schema import HEAD

    with app.ledger() as ledger:
        facts = {"url": safe(app.settings.ledger), "schema": HEAD} | ledger.facts_about()
    if as_json:
        emit(facts)
        return
    created = datetime.fromtimestamp(facts.pop("created_ms") / 1000, UTC)
    for name, value in (facts | {"created": f"{created:%Y-%m-%d %H:%M} UTC"}).items():
        click.echo(f"{name:<10} {value if value is not None else '-'}")


@command.command("verify")
@as_json
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Count everything again from the facts and compare; exit code 1 if anything differs."""
    from spendmeter.ledger.verify import verify as compare

    with ctx.ensure_object(App).ledger() as ledger:
        found = compare(ledger)
    if as_json:
        emit({"ok": not found, "differences": [dataclasses.asdict(d) for d in found]})
    for d in found if not as_json else []:
        click.echo(f"{d.what} {d.where}: stands at {d.stands}, should be {d.should_be}")
    if not as_json and not found:
        say("the ledger is as its facts say")
    ctx.exit(1 if found else 0)
