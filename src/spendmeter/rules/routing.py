"""Alertmanager: who is told about what, and what keeps quiet while something worse is the case."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from spendmeter.budgets import Budgets
from spendmeter.rules import health, spending

TOKEN_FILE = "webhook.token"  # noqa: S105 - the name of the file that holds the secret, beside alertmanager.yml


def config(budgets: Budgets, webhook: str) -> dict[str, Any]:
    """The content of ``alertmanager.yml``: routes by owner, then by severity.

    Args:
        webhook: address under which each receiver has its path, such as ``/page/team-web``.
    """
    owners = sorted({b.owner for b in budgets.budgets if b.owner})
    return {
        "route": {
            "receiver": _receiver(""), "group_by": ["alertname", "budget"],
            "group_wait": "30s", "group_interval": "5m", "repeat_interval": "12h",
            "routes": [*({"matchers": [_is("owner", x)], "receiver": _receiver(x), "routes": [_page(x)]} for x in owners), _page("")],
        },
        "inhibit_rules": _inhibitions(budgets),
        "receivers": [_webhook(name, webhook) for x in ("", *owners) for name in (_receiver(x), _receiver(x, page=True))],
    }  # fmt: skip


def _page(owner: str) -> dict[str, Any]:
    return {"matchers": [_is("severity", "critical")], "receiver": _receiver(owner, page=True), "repeat_interval": "1h"}


def _receiver(owner: str, *, page: bool = False) -> str:
    kind = "page" if page else "notify"
    return f"{kind}/{owner}" if owner else kind


def _webhook(name: str, webhook: str) -> dict[str, Any]:
    # webhook_configs know url_file since Alertmanager 0.26 only; a token in a file works with older ones too.
    authorization = {"credentials_file": TOKEN_FILE}
    url = f"{webhook.rstrip('/')}/{quote(name)}"
    return {"name": name, "webhook_configs": [{"url": url, "http_config": {"authorization": authorization}}]}


def _inhibitions(budgets: Budgets) -> list[dict[str, Any]]:
    """What is quiet while what fires; the first is the worst."""
    at = [x for _, x in sorted({(t.at, spending.told(t)) for b in budgets.budgets for t in b.thresholds})]
    full = [x for x in at if float(x) >= 1]
    threshold = _is("alertname", spending.THRESHOLD)
    out = [_quiet([_is("alertname", health.DOWN)], ['alertname=~"Spendmeter.+"', f'alertname!="{health.DOWN}"'])]
    if full:
        out.append(_quiet([threshold, _any("threshold", full)], [_any("alertname", [spending.BURN, spending.FORECAST])], "budget"))
    out += [_quiet([threshold, _is("threshold", x)], [threshold, _any("threshold", at[:i])], "budget") for i, x in enumerate(at) if i]
    out.append(_quiet([_is("severity", "critical"), 'budget!=""'], [_any("severity", ["warning", "info"]), 'budget!=""'], "budget"))
    return [*out, _quiet([_is("alertname", health.EXPORT_FAILING)], [_is("alertname", health.EXPORT_BACKLOG)], "signal")]


def _quiet(source: list[str], target: list[str], *equal: str) -> dict[str, Any]:
    return {"source_matchers": source, "target_matchers": target} | ({"equal": list(equal)} if equal else {})


def _is(label: str, value: str) -> str:
    return f"{label}={json.dumps(value, ensure_ascii=False)}"


def _any(label: str, values: list[str]) -> str:
    return f"{label}=~{json.dumps('|'.join(map(re.escape, values)), ensure_ascii=False)}"
