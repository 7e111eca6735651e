"""``spendmeter mcp``."""

from __future__ import annotations

import click

from spendmeter.cli.app import App, pass_app
from spendmeter.errors import ConfigError

_EXTRA = {"anyio", "mcp", "mcp_types", "pydantic", "starlette"}


@click.command("mcp")
@pass_app
def command(app: App) -> None:
    """Serve agents the ledger as tools (MCP), on standard input and output.

    To be started by the agent's CLI, not by hand: claude mcp add spendmeter -- spendmeter mcp
    """
    try:
        from spendmeter.server.mcp_server.stdio import run
    except ModuleNotFoundError as e:
        package = (e.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        raise ConfigError(f"mcp needs the package {package}; install spendmeter[mcp]") from None
    run(app.settings, app.flags["ledger"], app.flags["config"])
