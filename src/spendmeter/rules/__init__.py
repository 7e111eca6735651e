"""Prometheus alert rules and Alertmanager routing, generated from the budgets. Pure but for ``files.write``."""

from __future__ import annotations

from functools import partial
from typing import Any

from spendmeter import metrics as m
from spendmeter.budgets import Budgets
from spendmeter.rules import health, routing, spending
from spendmeter.rules.promql import alert

RUNBOOKS = "docs/runbooks/alerts.md"
WEBHOOK = "http://127.0.0.1:9095"


def build(budgets: Budgets, runbook_url: str = RUNBOOKS) -> dict[str, Any]:
    """The rule file: ``{"groups": [{"name", "rules"}]}``; without budgets only the group about the metering itself.

    Args:
        runbook_url: of the page with a heading for every alert; its anchor is put behind it.
    """
    make = partial(alert, runbook_url)
    groups = {"budgets": spending.rules(budgets, make), "health": health.rules(make)}
    return {"groups": [{"name": f"{m.PREFIX}-{name}", "rules": rules} for name, rules in groups.items() if rules]}


def alertmanager(budgets: Budgets, webhook: str = WEBHOOK) -> dict[str, Any]:
    """``alertmanager.yml``: routes by owner and severity, inhibition, and a webhook under *webhook* for each receiver."""
    return routing.config(budgets, webhook)


def prometheus() -> dict[str, Any]:
    """A ``prometheus.yml`` that scrapes a daemon of this host, evaluates the rules and tells an Alertmanager of this host."""
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["rules/spendmeter.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
        "scrape_configs": [{"job_name": m.PREFIX, "static_configs": [{"targets": ["127.0.0.1:9464"]}]}],
    }
