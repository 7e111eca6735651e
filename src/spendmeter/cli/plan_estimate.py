"""``spendmeter plan estimate``."""

from __future__ import annotations

import click

from spendmeter.cli.app import TEXT, App, as_json, emit, pass_app
from spendmeter.cli.plan import window


@click.command("estimate")
@click.option("--name", metavar="NAME", type=TEXT, default="plan", show_default=True, help="Name of the new plan.")
@click.option("--agent", metavar="AGENT", type=TEXT, help="Only from runs of this agent.")
@click.option("--task", metavar="TASK", type=TEXT, help="Only from runs of this task.")
@click.option("--workflow", metavar="NAME", type=TEXT, help="Only from runs that name this workflow.")
@click.option("--since", metavar="TIME", type=TEXT, help="Only from runs that ended since: 2026-11-01, 2026-11, today, 7d, 24h (UTC).")
@click.option(
    "--quantile",
    type=click.Choice(["0.5", "0.9"]),
    default="0.5",
    show_default=True,
    help="0.5 takes the median run's figures, 0.9 those that 9 of 10 runs do not exceed.",
)
@as_json
@pass_app
def command(
    app: App, /, *, name: str, agent: str | None, task: str | None, workflow: str | None, since: str | None, quantile: str, as_json: bool
) -> None:
    """Draw a new plan.yaml from past runs.

    It holds what ONE run of each agent and workflow took; multiply it by the runs that you plan. The q-quantile of n runs is the one
    at rank q * n, rounded up, when they are sorted: a figure that occurred.
    """
    from dataclasses import replace

    from spendmeter.ledger import planning
    from spendmeter.plans.history import drawn

    if not name.strip():
        raise click.BadParameter("a plan needs a name, such as book", param_hint="--name")
    where = replace(window(since, None), agent=agent, task=task, attrs={} if workflow is None else {"workflow": workflow})
    with app.ledger() as ledger:
        found = planning.history(ledger, where)
    if as_json:
        emit({"name": name, "quantile": float(quantile), "estimates": [h.as_dict() for h in found]})
    else:
        click.echo(drawn(name, found, round(float(quantile) * 100)), nl=False)
