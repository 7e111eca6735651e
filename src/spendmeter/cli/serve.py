"""``spendmeter serve``."""

from __future__ import annotations

import click

from spendmeter.cli.app import App, pass_app
from spendmeter.errors import ConfigError

_EXTRA = {"fastapi", "jinja2", "starlette", "uvicorn"}


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="Port to listen on; 0 takes a free one.")
@pass_app
def command(app: App, host: str, port: int) -> None:
    """Run the daemon: /metrics, API, web page, OTLP export.

    It listens to this host alone unless --host says otherwise.
    """
    try:
        from spendmeter.server import run
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] in _EXTRA:
            raise ConfigError(f"serve needs {e.name}; install spendmeter[server]") from None
        raise
    with app.ledger(needs_recovery=True):
        pass  # opens it and finishes what dead wrappers left, before anything is shown
    run(app.settings, host, port, config=app.flags["config"])
