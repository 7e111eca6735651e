"""``spendmeter dashboards``."""

from __future__ import annotations

from pathlib import Path

import click

from spendmeter.cli.app import TEXT, App, pass_app
from spendmeter.cli.rules import known_budgets, up_to_date
from spendmeter.grafana_src import PROMETHEUS_URL, TEMPO_URL


@click.command("dashboards")
@click.option(
    "--output", metavar="DIR", type=click.Path(path_type=Path), default=Path("grafana"), show_default=True, help="Write into this folder."
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the files in DIR are not up to date.")
@click.option("--prometheus", metavar="URL", type=TEXT, default=PROMETHEUS_URL, show_default=True, help="Where Grafana finds Prometheus.")
@click.option("--tempo", metavar="URL", type=TEXT, default=TEMPO_URL, show_default=True, help="Where Grafana finds Tempo.")
@pass_app
@click.pass_context
def command(ctx: click.Context, app: App, output: Path, check: bool, prometheus: str, tempo: str) -> None:
    """Write Grafana dashboards, and what Grafana is to load.

    dashboards/*.json can be imported by hand; provisioning/ makes Grafana load them and its data sources at its start; alerting/
    holds the alerts of `spendmeter rules` for a Grafana that is to alert in Prometheus' place.
    """
    from spendmeter.grafana_src import shipped
    from spendmeter.rules import files

    folder = str((output / shipped.DASHBOARDS).resolve())
    made = shipped.dashboards()
    made |= shipped.provisioned(known_budgets(app), folder, prometheus, tempo, by="spendmeter dashboards")
    if check:
        ctx.exit(up_to_date("dashboards", output, files.stale(output, made)))
    for name, text in made.items():
        files.write((output / name).parent, {Path(name).name: text})
    click.echo("\n".join(f"wrote {output / name}" for name in made))
