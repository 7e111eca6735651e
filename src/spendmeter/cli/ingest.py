"""``spendmeter ingest``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spendmeter.cli.app import CLI, App, as_json, emit, pass_app, say, text, with_tags

if TYPE_CHECKING:
    from spendmeter.finding import Result
    from spendmeter.records import Tags


@click.command("ingest")
@click.option("--cli", type=CLI, metavar="NAME", help="The CLI that wrote it; by default every row tells.")
@with_tags
@as_json
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@pass_app
def command(app: App, cli: str | None, tags: Tags | None, as_json: bool, paths: tuple[str, ...]) -> None:
    """Read what a CLI printed or wrote into the ledger.

    PATH is a file or a folder of any known format, or - for standard input. Reading the same again changes nothing.
    """
    from spendmeter.ingest import ingest_paths

    with app.ledger(needs_recovery=True) as ledger:
        show(ingest_paths(ledger, paths, cli=cli, tags=tags), as_json=as_json)


def show(result: Result, *, as_json: bool) -> None:
    """What an ingest did: one line, and on standard error what could not be used."""
    if as_json:
        emit(result.as_dict())
        return
    click.echo(
        f"{_count(result.sources, 'source')} read, {result.unchanged} unchanged; "
        f"{_count(result.sessions, 'session')}, {result.changed} with new usage"
    )
    for name in result.silent[:5]:
        say(f"{text(name)}: holds no usage that we know")
    if len(result.silent) > 5:
        say(f"... and {len(result.silent) - 5} more without usage")
    for reason, n in sorted(result.skips.items()):
        say(f"skipped {n}: {reason}")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
