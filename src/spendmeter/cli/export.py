"""``spendmeter export``."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict

import click

from spendmeter.cli.app import App, as_json, emit, say


@click.command("export")
@click.option("--once", is_flag=True, required=True, help="Send what waits, then end; spendmeter serve sends all the time.")
@as_json
@click.pass_context
def command(ctx: click.Context, once: bool, as_json: bool) -> None:
    """Send metrics, spans and events by OTLP.

    The endpoint and its headers are the standard OTEL_EXPORTER_OTLP_* variables. What cannot be sent stays and goes next time; the exit
    code is then 1.
    """
    if not once:
        raise click.UsageError("write --once; to send all the time run spendmeter serve")
    from spendmeter.projections.export import Exporter

    with ctx.ensure_object(App).ledger() as ledger:
        ledger.settle()
        with closing(Exporter(ledger)) as exporter:
            is_on, sent = exporter.on, exporter.once()
    if as_json:
        emit({"configured": is_on, **asdict(sent), "failed": sent.failed})
    elif not is_on:
        say("nothing to send to; set OTEL_EXPORTER_OTLP_ENDPOINT, e.g. http://localhost:4318")
    elif sent.busy:
        say("another process exports this ledger at the moment")
    for signal, told in () if as_json else sorted(sent.signals.items()):
        click.echo(f"{signal}: {told.items} sent{f', {told.refused} refused' if told.refused else ''}")
        if told.failure:
            say(f"{signal}: {told.failure}")
    ctx.exit(1 if sent.failed else 0)
