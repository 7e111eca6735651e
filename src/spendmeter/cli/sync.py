"""``spendmeter sync``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spendmeter.cli.app import CLI, App, as_json, pass_app, say
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

    with _progress() as progress:
        result = sync(ledger, home=home, clis=clis, progress=progress)
    show(result, as_json=as_json)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("Reading sessions"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, all_: bar.update(task, completed=done, total=all_)


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
