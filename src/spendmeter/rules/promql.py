"""PromQL and rules in small pieces, all names from ``metrics``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from spendmeter import metrics as m

Rule = dict[str, Any]  # as it stands in a rule file
MakeAlert = Callable[..., Rule]

BRIDGE = "5m"  # what a gauge said so lately still holds: a restart of the daemon ends no alert, and its silence is an alert by then


def series(metric: m.Metric, **labels: str) -> str:
    """A selector; label values may hold anything."""
    return f"{metric.sample}{where(**labels)}"


def where(**labels: str) -> str:
    """Label matchers. JSON's escapes are PromQL's."""
    pairs = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def held(metric: m.Metric, **labels: str) -> str:
    """A gauge that stays over a short silence. The range sees through staleness, a plain selector does not."""
    return f"last_over_time({series(metric, **labels)}[{BRIDGE}])"


def highest(by: str, expr: str) -> str:
    """One value where several daemons show the same ledger: a sum would count it twice."""
    return f"max by ({by}) ({expr})"


def record(name: str, expr: str, **labels: str) -> Rule:
    """A recording rule; rules of one name differ in their *labels*."""
    return {"record": name, "expr": expr, "labels": labels}


def alert(runbook_url: str, name: str, expr: str, *, for_: str, severity: str, summary: str, description: str, **labels: str) -> Rule:
    """An alerting rule.

    Args:
        runbook_url: of the page with a heading for every alert.
        summary, description: Go templates; text of users goes through ``plain`` first.
        labels: besides ``severity``; empty ones are left out.
    """
    return {
        "alert": name,
        "expr": expr,
        "for": for_,
        "labels": {"severity": severity} | {key: plain(value) for key, value in labels.items() if value},
        "annotations": {"summary": summary, "description": description, "runbook_url": f"{plain(runbook_url)}#{name.lower()}"},
    }


def plain(text: str) -> str:
    """*text* of a user as it stands, whatever a Go template would make of it."""
    return text.replace("{{", '{{ "{{" }}')
