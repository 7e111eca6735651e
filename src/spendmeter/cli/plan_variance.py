"""``spendmeter plan variance``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from spendmeter.cli.app import TEXT, App, as_json, bad, console, emit, pass_app, say
from spendmeter.cli.plan import NONE, window

if TYPE_CHECKING:
    from spendmeter.plans.variance import Variance


@click.command("variance")
@click.argument("plan", required=False, type=TEXT)
@click.option("--since", metavar="TIME", type=TEXT, help="Usage from this time: 2026-11-01, 2026-11, today, or a while ago: 7d, 24h (UTC).")
@click.option("--until", metavar="TIME", type=TEXT, help="Up to this time, which is no longer in.")
@as_json
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the same as YAML.")
@click.option("--line", "as_line", is_flag=True, help="Print one line per plan, for reports.")
@click.option("--lang", metavar="LANG", default="en", show_default=True, help="Language of the line: en or ru.")
@pass_app
def command(
    app: App, /, *, plan: str | None, since: str | None, until: str | None, as_json: bool, as_yaml: bool, as_line: bool, lang: str
) -> None:
    """Show estimates beside what the runs used.

    PLAN is a name or a snapshot's id; without it all plans are shown. With it, JSON and YAML hold one object, else a list.
    Unknown is not 0: it shows as a dash, and as null.
    """
    if as_json + as_yaml + as_line > 1:
        raise click.UsageError("--json, --yaml and --line exclude each other")
    from spendmeter.ledger import planning
    from spendmeter.projections import messages, plan_texts

    catalogue = bad("--lang", lambda: messages.messages(lang))
    where = window(since, until)
    with app.ledger() as ledger:
        found = [planning.variance(ledger, plan, where)] if plan is not None else planning.variances(ledger, where)
    if as_json or as_yaml:
        documents = [v.as_dict() for v in found]
        _print(documents if plan is None else documents[0], as_yaml=as_yaml)
    elif as_line:
        for v in found:
            click.echo(plan_texts.line(v, catalogue))
    else:
        _show(found)


def _print(document: Any, *, as_yaml: bool) -> None:
    if as_yaml:
        import yaml

        click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)
    else:
        emit(document)


def _show(found: list[Variance]) -> None:
    from spendmeter.projections import plan_tables

    terminal = console()
    if terminal:
        for v in found:
            terminal.print(plan_tables.variance_table(v, terminal))
    else:
        click.echo(plan_tables.variance_text(found), nl=False)
    if not found:
        say(NONE)
