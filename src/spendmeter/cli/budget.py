"""``spendmeter budget``: each of its commands is a module of its own, ``budget_<name>``."""

from __future__ import annotations

from pathlib import Path

from spendmeter.cli.app import App, LazyGroup
from spendmeter.errors import ConfigError

COMMANDS = {
    "Commands": {
        "list": "Show where every budget stands.",
        "check": "Tell whether a run is within every budget that covers it.",
        "notify": "Tell the notifiers of thresholds that were crossed, each once.",
    }
}

command = LazyGroup("budget", sections=COMMANDS, prefix="budget_", help="Show budgets, check a run against them, send their notices.")


def budgets_file(app: App) -> Path:
    """Where the budgets are.

    Raises:
        ConfigError: the settings name no file.
    """
    if app.settings.budgets_file is None:
        raise ConfigError(
            "no budgets are set up; write budgets.yaml (docs/reference/budgets.md) and name it in SPENDMETER_BUDGETS, "
            'or in spendmeter.toml under [budgets] as file = "budgets.yaml"'
        )
    return app.settings.budgets_file
