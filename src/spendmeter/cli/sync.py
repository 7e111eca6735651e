"""``spendmeter sync``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spendmeter.cli.app import CLI, App, as_json, bar, pass_app, say
from spendmeter.cli.homes import homes
from spendmeter.cli.ingest import show
from spendmeter.errors import ConfigError

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger


@click.command("sync")
@click.option("--home", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Look under this folder instead of your own.")
@click.option("--cli", "clis", type=CLI, metavar="NAME", multiple=True, help="Only this CLI; may be given many times.")
@click.option("--watch", is_flag=True, help="Go on, and read what changes as it is written.")
@as_json
@pass_app
def command(app: App, home: Path | None, clis: tuple[str, ...], watch: bool, as_json: bool) -> None:
    """Find and read every known CLI's session files.

    Only what has changed since the last time is read.
    """
    if watch and as_json:
        raise click.UsageError("--json prints one document and --watch never ends; leave one out")
    with app.ledger(needs_recovery=True) as ledger:
        _once(ledger, home, clis, as_json=as_json)
        if watch:
            _watch(ledger, home, clis)


def _once(ledger: Ledger, home: Path | None, clis: tuple[str, ...], *, as_json: bool = False) -> None:
    from spendmeter.ingest import sync

    with bar("Reading sessions") as progress:
        result = sync(ledger, home=home, clis=clis, progress=progress)
    show(result, as_json=as_json)


def _watch(ledger: Ledger, home: Path | None, clis: tuple[str, ...]) -> None:
    try:
        from watchfiles import watch
    except ModuleNotFoundError:
        raise ConfigError("sync --watch needs watchfiles; install spendmeter[watch]") from None
    folders = [h.path for h in homes(os.environ, home) if h.path.is_dir() and (not clis or h.cli in clis)]
    if not folders:
        raise ConfigError("sync --watch found no session folder of any CLI; see: spendmeter doctor")
    say(f"watching {', '.join(str(f) for f in folders)}; stop with Ctrl-C")
    for _ in watch(*folders, raise_interrupt=True):
        _once(ledger, home, clis)
