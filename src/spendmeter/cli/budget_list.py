"""``spendmeter budget list``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from spendmeter.cli.app import CLI, PAIR, TEXT, App, as_json, console, emit, pass_app, say
from spendmeter.cli.budget import budgets_file

if TYPE_CHECKING:
    from spendmeter.budgets import Subject
    from spendmeter.ledger.budgeting import State


@click.command("list")
@click.option("--agent", metavar="NAME", type=TEXT, help="Only budgets that cover a run of this agent;")
@click.option("--task", metavar="KEY", type=TEXT, help="for this task;")
@click.option("--cli", metavar="NAME", type=CLI, help="by this CLI;")
@click.option("--model", metavar="NAME", type=TEXT, help="with this model;")
@click.option("--repo", metavar="NAME", type=TEXT, help="in this repository;")
@click.option("--attr", metavar="KEY=VALUE", type=PAIR, multiple=True, help="with this tag; may be given many times.")
@as_json
@pass_app
def command(app: App, /, *, attr: Sequence[tuple[str, str]], as_json: bool, **tags: str | None) -> None:
    """Show where every budget stands.

    A table on a terminal, plain text in a pipe. Of a budget per task or agent a terminal shows those that have spent most.
    """
    from spendmeter.budgets.file import load
    from spendmeter.ledger import now_ms
    from spendmeter.ledger.budgeting import states

    budgets, at_ms = load(budgets_file(app)), now_ms()
    with app.ledger() as ledger:
        found = states(ledger, budgets, at_ms, _subject(dict(attr), **tags))
    if as_json:
        emit({"budgets": [s.as_dict() for s in found]})
    elif not found:
        say("no budget covers such a run" if budgets.budgets else f"{budgets_file(app)} holds no budget")
    else:
        _show(found, at_ms)


def _subject(attrs: dict[str, str], **tags: str | None) -> Subject | None:
    """The run that was asked about, None where none was; without an agent or a task it has those of a run that names none."""
    from spendmeter.budgets import Subject
    from spendmeter.records import Tags

    if not attrs and not any(tags.values()):
        return None
    told: dict[str, Any] = {"agent": Tags().agent, "task": Tags().task} | {name: value for name, value in tags.items() if value}
    return Subject(**told, attrs=attrs)


def _show(found: Sequence[State], at_ms: int) -> None:
    from spendmeter.projections import budget_tables

    terminal = console()
    if terminal:
        terminal.print(budget_tables.as_table(found, terminal, at_ms))
    else:
        click.echo(budget_tables.as_text(found), nl=False)
