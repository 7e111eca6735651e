"""``spendmeter summary``."""

from __future__ import annotations

import click

from spendmeter.cli.app import TEXT, App, as_json, bad, emit, pass_app


@click.command("summary")
@click.option("--run", metavar="last|KEY", type=TEXT, help="One line on a run: the last one, or a run key, run id or session.")
@click.option("--task", metavar="KEY", type=TEXT, help="Markdown on a whole task, a line per agent.")
@click.option("--lang", metavar="LANG", default="en", show_default=True, help="Language: en or ru.")
@as_json
@pass_app
def command(app: App, run: str | None, task: str | None, lang: str, as_json: bool) -> None:
    """Write the comment for a finished run or task."""
    if (run is None) == (task is None):
        raise click.UsageError("write either --run last (or a run's key) or --task KEY")
    from spendmeter.ledger import planning, query
    from spendmeter.projections import messages, summary

    catalogue = bad("--lang", lambda: messages.messages(lang))
    with app.ledger() as ledger:
        if run is not None:
            line = query.run_totals(ledger, run)
            text, document = summary.finish_line(line, catalogue), line.as_dict()
        else:
            totals = query.task_totals(ledger, task or "")
            plans = planning.of_task(ledger, totals.task)
            text = summary.task_markdown(totals, catalogue, plans)
            document = totals.as_dict() | {"plans": [v.as_dict() for v in plans]}
    if as_json:
        emit(document | {"text": text})
    else:
        click.echo(text.rstrip("\n"))
