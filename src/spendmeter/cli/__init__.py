"""The ``spendmeter`` command: one file per command, loaded when it is called, so that help is quick.

To add a command: ``cli/<name>.py`` with a click command named ``command``, and one line in ``COMMANDS``.
"""

from __future__ import annotations

import click

from spendmeter import __version__
from spendmeter.cli.app import App, LazyGroup, take_global

COMMANDS = {
    "Meter": {
        "run": "Run a command, meter it, pass everything through.",
        "ingest": "Read what a CLI printed or wrote into the ledger.",
        "sync": "Find and read every known CLI's session files.",
        "attribute": "Apply today's attribution rules to what is in the ledger.",
        "hook": "Read the session that a CLI's hook names, when the CLI calls it.",
        "send": "Send the runs that wait for a central daemon.",
        "parse": "Print what a file tells, as JSON lines; no ledger is touched.",
    },
    "Look": {
        "report": "Show usage and cost by agent, task, model, day, ...",
        "top": "Watch spend live: last hour, today, who spends it, the latest runs.",
        "statusline": "Print spend in one line, for CLIs that show one.",
        "summary": "Write the comment for a finished run or task.",
        "prices": "Show what a model costs on a day.",
    },
    "Limit": {
        "budget": "Show budgets, check a run against them, send their notices.",
        "rules": "Write Prometheus alert rules for the budgets, and the routes for Alertmanager.",
        "plan": "Compare what work was planned to take with what it took.",
    },
    "Serve": {
        "serve": "Run the daemon: /metrics, API, web page, OTLP in and out.",
        "mcp": "Serve agents the ledger as tools (MCP), on standard input and output.",
        "token": "Make, list and revoke tokens for the daemon's doors.",
        "export": "Send metrics, spans and events by OTLP.",
        "dashboards": "Write Grafana dashboards, and what Grafana is to load.",
    },
    "Check": {
        "doctor": "Check the installation and say what to mend.",
        "ledger": "Verify, copy or shrink the ledger, or tell about it.",
    },
}


@click.group(cls=LazyGroup, sections=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--ledger", metavar="URL", callback=take_global, expose_value=False, help="Ledger to use (SPENDMETER_LEDGER).")
@click.option("--config", metavar="FILE", callback=take_global, expose_value=False, help="Settings file (SPENDMETER_CONFIG).")
@click.version_option(__version__, prog_name="spendmeter", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Meter coding-agent CLIs: tokens and cost per agent and task, exactly.

    Exit codes: 0 done, 1 failed, 2 bad usage, 3 over budget; `run` returns the code of its command.
    """
    ctx.ensure_object(App)
