"""``spendmeter export``."""

from __future__ import annotations

import click

from spendmeter.cli.app import App, pass_app


@click.command("export")
@click.option("--once", is_flag=True, required=True, help="Send what waits, then end (spendmeter serve sends all the time).")
@pass_app
def command(app: App, once: bool) -> None:
    """Send metrics, spans and events by OTLP.

    The endpoint and its headers are the standard OTEL_EXPORTER_OTLP_* variables. What cannot be sent stays and goes next time.
    """
    from spendmeter.projections.export import Exporter

    with app.ledger() as ledger:
        Exporter(ledger).once()
