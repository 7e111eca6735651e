"""``spendmeter attribute``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from spendmeter.cli.app import TEXT, App, as_json, bad, bar, emit, pass_app, say

if TYPE_CHECKING:
    from spendmeter.ledger.attributing import Attributed, Move


@click.command("attribute")
@click.option("--dry-run", is_flag=True, help="Only tell what would move.")
@click.option("--since", metavar="TIME", type=TEXT, help="Only sessions active since then: 2026-11-01, 2026-11, today, 7d, 24h.")
@as_json
@pass_app
def command(app: App, dry_run: bool, since: str | None, as_json: bool) -> None:
    """Apply today's attribution rules to what is in the ledger.

    Rules are the [[attribution]] of spendmeter.toml. Sessions that are new take them by themselves; those that went by other rules, or
    by none, do so here. What a user said stays. Reports and budgets move at once; what Prometheus has counted already stays under its
    old labels, and only later usage is counted under the new ones.
    """
    from spendmeter.attribution.file import lines
    from spendmeter.ledger.attributing import attribute
    from spendmeter.ledger.periods import when_ms

    since_ms = None if since is None else bad("--since", lambda: when_ms(since, "UTC"))
    with app.ledger(needs_recovery=not dry_run) as ledger, bar("Sessions") as progress:
        done = attribute(ledger, since_ms=since_ms, dry_run=dry_run, progress=progress)
        if not dry_run:
            ledger.fold()
    places = lines(app.settings)
    if as_json:
        moves = [m.as_dict() | {"lines": [places[n - 1] for n in m.rules]} for m in done.moves]
        emit({"dry_run": dry_run, "sessions": done.sessions, "looked_at": done.looked, "closed": done.closed, "moves": moves})
    else:
        _show(done, places, dry_run=dry_run)


def _show(done: Attributed, places: Sequence[int | None], *, dry_run: bool) -> None:
    from spendmeter.projections.reports import aligned

    if done.moves:
        heads = ["rule", "line", "sessions", "runs", "tokens", "cost_usd", "from", "to"]
        click.echo(aligned([heads, *[_cells(move, places) for move in done.moves]], (0, 1, 6, 7)), nl=False)
    word = "would move" if dry_run else "moved"
    say(f"{done.sessions} of {done.looked} sessions that went by other rules {word}" + _closed(done.closed))


def _closed(n: int) -> str:
    return f"; {n} closed ones stay as they are" if n else ""


def _cells(move: Move, places: Sequence[int | None]) -> list[str]:
    from spendmeter.projections.reports import printable
    from spendmeter.records import usd_text

    rules = "+".join(map(str, move.rules)) or "-"
    at = "+".join(str(places[n - 1] or "-") for n in move.rules) or "-"
    sums = (move.sessions, move.amounts.runs, move.amounts.tokens)
    here, there = (printable(" / ".join(pair)) for pair in (move.before, move.after))
    attrs = f" +{','.join(move.attrs)}" if move.attrs else ""
    return [rules, at, *map(str, sums), usd_text(move.amounts.cost_nusd) or "-", here, there + printable(attrs)]
