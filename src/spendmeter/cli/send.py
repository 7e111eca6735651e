"""``spendmeter send``."""

from __future__ import annotations

import os

import click

from spendmeter.cli.app import as_json, emit, say
from spendmeter.runner.args import UsageError, daemon_url


@click.command("send")
@click.option("--remote", metavar="URL", envvar="SPENDMETER_REMOTE", show_envvar=True, required=True, help="The daemon that they are for.")
@as_json
@click.pass_context
def command(ctx: click.Context, remote: str, as_json: bool) -> None:
    """Send the runs that wait for a central daemon.

    `spendmeter run --remote URL` keeps a run here while the daemon is away. The next such run sends it too. Exit code 1: some still wait.
    """
    from spendmeter.runner.remote import send_waiting, waiting

    try:
        url = daemon_url("--remote", remote)
    except UsageError as e:
        raise click.UsageError(str(e)) from None
    sent = send_waiting(url)
    left = waiting(url, os.environ)
    if as_json:
        emit({"sent": sent.number, "waiting": left, "problem": sent.problem})
    else:
        click.echo(f"{sent.number} sent, {left} waiting")
    if sent.problem:
        if not as_json:
            say(sent.problem)
        ctx.exit(1)
