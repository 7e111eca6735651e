"""All dashboards, and the text of every file under ``grafana/`` as ``make gen`` writes it."""

from __future__ import annotations

from spendmeter.budgets import Budgets
from spendmeter.grafana_src import PROMETHEUS_URL, TEMPO_URL, agent, budgets, cache, operations, overview, shipped, task
from spendmeter.grafana_src.board import Board

IN_COMPOSE = "/var/lib/spendmeter/dashboards"  # where compose.yaml mounts the dashboards


def boards() -> list[Board]:
    """In the order of a first look."""
    return [module.board() for module in (overview, agent, task, budgets, cache, operations)]


def texts(example: Budgets) -> dict[str, str]:
    """Path under ``grafana/`` -> its text; the alerts are those of the budgets of *example*."""
    made = {f"{shipped.DASHBOARDS}/{board.uid}.json": board.text() for board in boards()}
    return made | shipped.provisioned(example, IN_COMPOSE, PROMETHEUS_URL, TEMPO_URL, by="make gen")
