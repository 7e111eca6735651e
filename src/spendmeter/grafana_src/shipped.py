"""The files that ``spendmeter dashboards`` writes. Needs no SDK: dashboards are those that were built for the release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spendmeter import rules
from spendmeter.budgets import Budgets
from spendmeter.errors import ConfigError
from spendmeter.grafana_src import alerting, provisioning
from spendmeter.rules.files import text

DASHBOARDS = "dashboards"
_HERE = Path(__file__).parent / DASHBOARDS  # in an installed package
_SOURCE = Path(__file__).parents[3] / "grafana" / DASHBOARDS  # in a checkout


def dashboards() -> dict[str, str]:
    """Path under ``grafana/`` -> the JSON of a dashboard.

    Raises:
        ConfigError: they are not there.
    """
    for folder in (_HERE, _SOURCE):
        if found := {f"{DASHBOARDS}/{path.name}": path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))}:
            return found
    raise ConfigError(f"{_HERE}: no dashboards; they belong to the package, so install spendmeter anew")


def provisioned(budgets: Budgets, dashboards_path: str, prometheus_url: str, tempo_url: str, by: str) -> dict[str, str]:
    """Path under ``grafana/`` -> the YAML of what Grafana can load. Alerts lie apart: where Prometheus alerts, they would tell all twice.

    Args:
        dashboards_path: folder of the dashboards as Grafana sees it.
        by: the command that writes them.
    """
    made: Mapping[str, Mapping[str, Any]] = {
        "provisioning/datasources/spendmeter.yml": provisioning.datasources(prometheus_url, tempo_url),
        "provisioning/dashboards/spendmeter.yml": provisioning.provider(dashboards_path),
        "alerting/spendmeter.yml": alerting.provisioned(rules.build(budgets)),
    }
    return {name: text(document, by=by) for name, document in made.items()}
