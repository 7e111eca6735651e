"""``spendmeter ledger``."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import click

from spendmeter.cli.app import TEXT, App, as_json, bad, bar, emit, pass_app, say


@click.group("ledger")
def command() -> None:
    """Verify, copy or shrink the ledger, or tell about it."""


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


@command.command("copy")
@click.option("--to", "url", metavar="URL", required=True, type=TEXT, help="An empty database, sqlite:///... or postgresql://...")
@as_json
@pass_app
def copy(app: App, url: str, as_json: bool) -> None:
    """Copy the whole ledger into another database.

    Reports and counters go on from the copy. Stop what writes to the ledger first: what it records later is not in the copy.
    """
    from spendmeter.ledger.copying import copy as copy_to
    from spendmeter.ledger.engine import safe

    with app.ledger(needs_recovery=True) as ledger, bar("Copying rows") as progress:
        done = copy_to(ledger, url, progress)
    if as_json:
        emit({"to": safe(url), **dataclasses.asdict(done)})
    else:
        say(f"copied {sum(done.rows.values())} rows to {safe(url)}; row counts and totals are equal")


@command.command("retain")
@click.option(
    "--older", metavar="DURATION", type=TEXT, help="Close what has been quiet for so long, e.g. 400d; by default [retention] calls."
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be closed.")
@as_json
@pass_app
def retain(app: App, older: str | None, dry_run: bool, as_json: bool) -> None:
    """Drop the single calls of sessions that ended long ago; no total changes.

    Their runs, dated sums and counters stay. What a closed session uses later is not counted, but is told as a skip.
    """
    from spendmeter.ledger.retention import retain as close

    older_s = _older_s(app, older)
    with app.ledger(needs_recovery=True) as ledger:
        done = close(ledger, int(older_s * 1000), dry_run=dry_run)
    if as_json:
        emit({"dry_run": dry_run, **done._asdict()})
    else:
        word = "to close" if dry_run else "closed"
        say(f"sessions {word}: {done.sessions}, rows of their facts dropped: {done.facts}; no total changes")


def _older_s(app: App, older: str | None) -> float:
    from spendmeter.config import duration_s
    from spendmeter.ledger.retention import LEAST_S, TOO_SOON

    found = app.settings.retention_calls_s if older is None else bad("--older", lambda: duration_s(older, "duration"))
    if found is None:
        raise click.UsageError('no age is given; write e.g. --older 400d, or in spendmeter.toml [retention] calls = "400d"')
    if found < LEAST_S:
        raise click.BadParameter(TOO_SOON, param_hint="--older")
    return found
