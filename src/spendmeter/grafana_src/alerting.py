"""Alert rules in the form of Grafana's file provisioning, made from those of Prometheus: for those who would rather have Grafana alert.

Grafana has no recording rules here, so what they record is put in their place; and its templates cannot ask Prometheus, so what
does is left out, and the alert leads to the dashboard that shows it.

Source:
    https://grafana.com/docs/grafana/latest/alerting/set-up/provision-alerting-resources/file-provisioning/
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from spendmeter import metrics as m
from spendmeter.grafana_src import FIRST_PANEL, PROMETHEUS_UID, uid
from spendmeter.rules.promql import Rule

FOLDER = "Spendmeter"
INTERVAL = "1m"
LOOKS_BACK_S = 600  # of no meaning for an instant query, but Grafana wants it
_MATCHERS = r"(?:\{([^}]*)\})?"  # of a selector; names of budgets have no braces and no quotes
_METRIC = re.compile(rf"\b({m.PREFIX}_[a-z_]+){_MATCHERS}")
_MATCHER = re.compile(r'(\w+)="([^"]*)"')


def provisioned(groups: Mapping[str, Any]) -> dict[str, Any]:
    """*groups*, as ``rules.build`` makes them, as a file for ``provisioning/alerting``."""
    recorded = [rule for group in groups["groups"] for rule in group["rules"] if "record" in rule]
    return {"apiVersion": 1, "groups": [_group(group, recorded) for group in groups["groups"]]}


def inlined(expr: str, recorded: Sequence[Rule]) -> str:
    """*expr* with each recorded series in it replaced by what is recorded, for the same labels."""
    for name in sorted({rule["record"] for rule in recorded}):
        mine = [rule for rule in recorded if rule["record"] == name]
        expr = re.sub(re.escape(name) + _MATCHERS, lambda found, mine=mine: _recorded(mine, found[1] or ""), expr)  # type: ignore[misc]
    return expr


def _recorded(rules: Sequence[Rule], matchers: str) -> str:
    """The recorded expressions that *matchers* choose, narrowed by those of them that are not labels of the rule itself."""
    wanted = dict(_MATCHER.findall(matchers))
    chosen = []
    for rule in rules:
        own = rule["labels"]
        if all(own.get(name, value) == value for name, value in wanted.items()):
            rest = ", ".join(f'{name}="{value}"' for name, value in wanted.items() if name not in own)
            chosen.append(_METRIC.sub(lambda found, rest=rest: _narrowed(found, rest), rule["expr"]))  # type: ignore[misc]
    return f"({' or '.join(chosen)})"


def _narrowed(found: re.Match[str], rest: str) -> str:
    inside = ", ".join(x for x in (found[2], rest) if x)
    return f"{found[1]}{{{inside}}}" if inside else found[1]


def _group(group: Mapping[str, Any], recorded: Sequence[Rule]) -> dict[str, Any]:
    made = [_rule(rule, recorded) for rule in group["rules"] if "alert" in rule]
    return {"orgId": 1, "name": group["name"], "folder": FOLDER, "interval": INTERVAL, "rules": made}


def _rule(rule: Rule, recorded: Sequence[Rule]) -> dict[str, Any]:
    labels: dict[str, str] = rule["labels"]
    told = [labels[x] for x in ("budget", "threshold", "window") if x in labels]
    title = " ".join([rule["alert"], *told])  # Grafana wants one of its own for each
    mine = [x for x in recorded if x["labels"]["unit"] == labels.get("unit")]
    said = {name: _annotation(text) for name, text in rule["annotations"].items()}
    return {
        "uid": f"{m.PREFIX}-{hashlib.sha256(title.encode()).hexdigest()[:16]}",
        "title": title,
        "condition": "B",
        "data": [_query(inlined(rule["expr"], mine)), _any_value()],
        "dashboardUid": uid("budgets" if "budget" in labels else "operations"),
        "panelId": FIRST_PANEL,
        "for": rule["for"],
        "noDataState": "OK",  # as in Prometheus: no series, no alert
        "execErrState": "Error",
        "labels": {name: value.replace("$", "$$") for name, value in labels.items()},  # Grafana puts variables of its environment in
        "annotations": {name: text for name, text in said.items() if text},
    }


def _query(expr: str) -> dict[str, Any]:
    query = {"refId": "A", "expr": expr, "instant": True, "range": False}
    return {"refId": "A", "datasourceUid": PROMETHEUS_UID, "relativeTimeRange": {"from": LOOKS_BACK_S, "to": 0}, "model": query}


def _any_value() -> dict[str, Any]:
    """A series is an alert, whatever its value: Grafana would hold a 0 for none."""
    query = {"refId": "B", "type": "math", "expression": "is_number($A) || is_nan($A) || is_inf($A)"}
    return {"refId": "B", "datasourceUid": "__expr__", "relativeTimeRange": {"from": 0, "to": 0}, "model": query}


def _annotation(text: str) -> str:
    if "| query }}" in text:
        text = text.rpartition("{{ end }}")[2].partition(". ")[2]
    return re.sub(r"\$value\b", "$values.A.Value", text)
