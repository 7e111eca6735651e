"""``spendmeter token``."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from spendmeter.cli.app import TEXT, App, as_json, bad, emit, pass_app, say


@click.group("token")
def command() -> None:
    """Make, list and revoke tokens for the daemon's doors."""


@command.command("create")
@click.argument("name", type=TEXT)
@click.option(
    "--scope", "scopes", metavar="SCOPE,...", type=TEXT, required=True,
    help="What it is good for: read (page, API, MCP), write (what is sent in), metrics (/metrics), admin (everything).",
)  # fmt: skip
@click.option("--expires", metavar="WHEN", type=TEXT, help="For so long (90d, 12h), or until a date; by default for ever.")
@as_json
@pass_app
def create(app: App, name: str, scopes: str, expires: str | None, as_json: bool) -> None:
    """Make the token NAME and print it, this once."""
    from spendmeter.ledger import now_ms, periods, tokens

    at_ms = now_ms()
    until_ms = None if expires is None else bad("--expires", lambda: periods.until_ms(expires, at_ms))
    with app.ledger() as ledger:
        secret, made = tokens.create(ledger, name, {s.strip() for s in scopes.split(",") if s.strip()}, at_ms, until_ms)
    if as_json:
        emit(made.as_dict() | {"token": secret})
        return
    click.echo(secret)
    say(f"this is the only time that {name} ({', '.join(made.scopes)}) is shown; the ledger keeps a digest of it")


@command.command("list")
@as_json
@pass_app
def list_(app: App, as_json: bool) -> None:
    """Show all tokens by name, without their secrets."""
    from spendmeter.ledger import now_ms, tokens

    with app.ledger() as ledger:
        found = tokens.listed(ledger)
    if as_json:
        emit({"tokens": [token.as_dict() for token in found]})
        return
    if not found:
        say("there is no token; spendmeter token create NAME --scope read makes one")
        return
    rows = [("name", "scopes", "created", "expires", "last used")]
    for x in found:
        expires = _day(x.expires_ms, "never") + (" (over)" if x.has_expired(now_ms()) else "")
        rows.append((x.name, ",".join(x.scopes), _day(x.created_ms), expires, _day(x.used_ms, "never")))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command("revoke")
@click.argument("name", type=TEXT)
@pass_app
def revoke(app: App, name: str) -> None:
    """Make the token NAME worthless, also for daemons that run."""
    from spendmeter.ledger import tokens

    with app.ledger() as ledger:
        tokens.revoke(ledger, name)
    say(f"{name} is revoked")


def _day(at_ms: int | None, none: str = "") -> str:
    return none if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}"
