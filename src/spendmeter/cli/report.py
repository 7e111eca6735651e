"""``spendmeter report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spendmeter.cli.app import PAIR, TEXT, App, as_json, bad, console, emit, pass_app, say

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger
    from spendmeter.ledger.query import Report, Where

BY = "agent,task,model"
FILTERS = ("agent", "task", "cli", "model", "repo", "session", "outcome")


def _filters(f: Any) -> Any:
    for name in reversed(FILTERS):
        f = click.option(f"--{name}", type=TEXT, metavar=name.upper(), help=f"Only this {name}.")(f)
    return f


@click.command("report")
@click.option("--by", metavar="KEYS", multiple=True, default=[BY], show_default=True,
              help="Any of agent, task, cli, model, day, month, repo, session, outcome, attr:KEY, with commas between.")  # fmt: skip
@click.option("--since", metavar="TIME", type=TEXT, help="From this time: 2026-11-01, 2026-11, today, or a while ago: 7d, 24h.")
@click.option("--until", metavar="TIME", type=TEXT, help="Up to this time, which is no longer in.")
@click.option("--timezone", metavar="ZONE", type=TEXT, default="UTC", show_default=True, help="Where days begin, such as Europe/Berlin.")
@_filters
@click.option("--attr", metavar="KEY=VALUE", type=PAIR, multiple=True, help="Only runs with this tag.")
@as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, every field in full.")
@click.option(
    "--chart", metavar="FILE.svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw spend by day and agent into this file."
)
@pass_app
def command(
    app: App, /, *, by: Sequence[str], since: str | None, until: str | None, timezone: str, attr: Sequence[tuple[str, str]], as_json: bool,
    as_csv: bool, chart: Path | None, **filters: str | None,
) -> None:  # fmt: skip
    """Show usage and cost by agent, task, model, day, ...

    A table on a terminal, plain text in a pipe. Unknown is not 0: it shows as a dash, and as null in JSON. A cost with ~ is estimated
    at list prices, in whole or in part.
    """
    if as_json + as_csv + bool(chart) > 1:
        raise click.UsageError("--json, --csv and --chart exclude each other")
    from spendmeter.ledger import query
    from spendmeter.ledger.periods import when_ms, zone

    keys = [k.strip() for part in by for k in part.split(",") if k.strip()]
    bad("--by", lambda: query.check(keys))
    bad("--timezone", lambda: zone(timezone))
    times = [None if t is None else bad(flag, lambda t=t: when_ms(t, timezone)) for flag, t in (("--since", since), ("--until", until))]  # type: ignore[misc]
    where = query.Where(times[0], times[1], attrs=dict(attr), **filters)
    with app.ledger() as ledger:
        if chart:
            _draw(chart, ledger, where, timezone)
            return
        found = query.report(ledger, keys, where=where, timezone=timezone)
        if as_json:
            emit(found.as_dict())
        else:
            _show(found, ledger, where, as_csv=as_csv)


def _draw(path: Path, ledger: Ledger, where: Where, timezone: str) -> None:
    """Writes the picture and says what is in it."""
    from spendmeter.errors import ConfigError
    from spendmeter.projections.chart import spend
    from spendmeter.projections.chart_svg import svg
    from spendmeter.projections.messages import messages

    if path.suffix != ".svg":
        raise click.BadParameter(f'"{path.name}" is no SVG file; name it like spend.svg', param_hint="--chart")
    m = messages("en")
    it, total = spend(ledger, where, timezone)
    cost = "unknown cost" if total.cost_nusd is None else m.money(total.cost_nusd)
    try:
        path.write_text(svg(it, m, f"Spend by {it.unit}: {cost}"), encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written ({e.strerror}); choose another place with --chart") from None
    say(f"{path}: {cost} in {len(it.columns)} {it.unit}s")


def _show(found: Report, ledger: Ledger, where: Where, *, as_csv: bool) -> None:
    from spendmeter.ledger import query
    from spendmeter.projections import reports

    if as_csv:
        click.echo(reports.as_csv(found), nl=False)
        return
    if not found.rows:
        hint = reports.empty_hint(filtered=not where.everything, runs=query.report(ledger, []).total.runs)
        for line in hint.splitlines():
            click.echo(line) if console() else say(line)
        return
    terminal = console()
    if terminal:
        terminal.print(reports.as_table(found, terminal))
    else:
        click.echo(reports.as_text(found), nl=False)
