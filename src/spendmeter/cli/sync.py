"""``spendmeter sync``."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spendmeter.cli.app import CLI, App, as_json, bar, pass_app
from spendmeter.cli.ingest import show
from spendmeter.errors import ParseError

if TYPE_CHECKING:
    from spendmeter.finding import Found, Known, Result
    from spendmeter.parsers.growing import Tails
    from spendmeter.parsers.pool import Job
    from spendmeter.parsers.reading import Source

_SELDOM = 100_000, 20, 20  # collections of garbage: what is read has no cycles, and looking for them took a tenth of the time


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
    gc.set_threshold(*_SELDOM)
    problem = None
    try:
        show(_look(app, home, clis), as_json=as_json)
    except ParseError as e:
        if not watch:
            raise
        problem = e
    if watch:
        _watch(app, home, clis, problem)


def _watch(app: App, home: Path | None, clis: Sequence[str], problem: ParseError | None) -> None:
    """Goes on after the first round, whose *problem* is told like that of any other."""
    from spendmeter.cli.watching import Watching

    rounds = _Rounds(app, home, clis)
    watching = Watching(home, clis, rounds.next, rounds.tails.forget)
    if problem:
        watching.tell(problem)
    watching.run()


def _look(app: App, home: Path | None, clis: Sequence[str], tails: Tails | None = None) -> Result:
    """One round over all session files; *tails* reads on those that it has read before."""
    from spendmeter.finding import Result, known_to
    from spendmeter.runner.recover import is_pending

    known = known_to(app.settings.ledger)
    found = None if known is None else _find(known, home, clis, tails)
    if found and not found.jobs and not is_pending(app.flags["ledger"], app.flags["config"]):
        return Result(unchanged=found.unchanged)  # opening the ledger takes longer than all of this
    with contextlib.ExitStack() as stack:
        sources = stack.enter_context(_read(found, tails)) if found else None  # who reads begins while the ledger is opened
        ledger = stack.enter_context(app.ledger(needs_recovery=True))
        progress = None if tails else stack.enter_context(bar("Reading sessions"))
        from spendmeter.ingest import take_in

        if found is None or sources is None:
            found = _find(ledger.sources(), home, clis, tails)
            sources = stack.enter_context(_read(found, tails))
        return take_in(ledger, found, sources, progress)


def _find(known: Known, home: Path | None, clis: Sequence[str], tails: Tails | None) -> Found:
    from spendmeter.finding import Found

    found = Found(known, home, clis)
    if tails:
        found.jobs = tails.due(found.jobs)
    return found


def _read(found: Found, tails: Tails | None) -> AbstractContextManager[Iterable[tuple[Job, Source | OSError]]]:
    return contextlib.nullcontext(tails.read(found.jobs)) if tails else found.read()


class _Rounds:
    """Looks again and again, reading files on from where they were left."""

    def __init__(self, app: App, home: Path | None, clis: Sequence[str]) -> None:
        from spendmeter.parsers.growing import Tails

        self._app, self._home, self._clis = app, home, clis
        self.tails = Tails()
        self._skips: dict[str, int] = {}

    def next(self) -> None:
        """One round, told where it brought anything."""
        result = _look(self._app, self._home, self._clis, self.tails)
        skips = {reason: n for reason, n in result.skips.items() if self._skips.get(reason) != n}
        self._skips |= skips
        if result.changed:
            result.silent, result.skips = [], skips  # a session that has just begun has told nothing yet
            show(result, as_json=False)
