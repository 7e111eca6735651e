"""``spendmeter budget check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spendmeter.cli.app import CLI, TEXT, App, as_json, emit, say, with_tags
from spendmeter.cli.budget import budgets_file
from spendmeter.runner.gate import OVER_BUDGET

if TYPE_CHECKING:
    from spendmeter.guard import Check
    from spendmeter.records import Tags


@click.command("check")
@with_tags
@click.option("--cli", metavar="NAME", type=CLI, help="CLI that is to run.")
@click.option("--model", metavar="NAME", type=TEXT, help="Model that it is to call.")
@click.option("--repo", metavar="NAME", type=TEXT, help="Repository that it is to run in; by default the one of this folder.")
@as_json
@click.pass_context
def command(ctx: click.Context, tags: Tags | None, cli: str | None, model: str | None, repo: str | None, as_json: bool) -> None:
    """Tell whether a run is within every budget that covers it.

    Exit code 3 if it is not: a budget is used up or, by one that would block the run, what is left is less than what it is expected
    to take. Nothing is set aside for it; spendmeter run does that.
    """
    from spendmeter import guard
    from spendmeter.budgets import Subject
    from spendmeter.budgets.file import load
    from spendmeter.records import Tags
    from spendmeter.runner.repo import name_here

    app, tags = ctx.ensure_object(App), tags or Tags()
    budgets = load(budgets_file(app))
    with app.ledger(needs_recovery=True) as ledger:
        found = guard.check(ledger, budgets, Subject(tags.agent, tags.task, cli, model, repo or name_here(), tags.attrs))
    if as_json:
        emit(found.as_dict())
    elif found.refusals:
        say(found.refusals[0])
    else:
        click.echo(_within(found))
    ctx.exit(OVER_BUDGET if found.refusals else 0)


def _within(found: Check) -> str:
    from spendmeter.guard import verdict

    nearest = found.nearest
    if nearest is None:
        return "within budget: no budget covers it"
    return f"within {verdict.counted(len(found.states), 'budget')}; nearest its limit is {verdict.left(nearest)}"
