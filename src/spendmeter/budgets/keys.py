"""The keys of ``budgets.yaml`` as JSON Schema, each once: what the file may hold, its schema and its reference follow from here."""

from __future__ import annotations

from typing import Any

from spendmeter.budgets.model import ACTIONS, SEVERITIES
from spendmeter.budgets.periods import LENGTHS_MS, WEEKDAYS, Kind
from spendmeter.records import MAX_USD
from spendmeter.yamlfile import MOST

CALENDAR: tuple[Kind, ...] = ("day", "week", "month", "total")
THRESHOLDS = ("0.5", "0.8", "1")
LEAST_SHARE, MOST_SHARE = "0.001", "10"  # of a threshold; above, somebody meant per cent

NAME = "[A-Za-z0-9._-]{1,64}"
LENGTH = f"([1-9][0-9]{{0,5}})([{''.join(LENGTHS_MS)}])"
DAY_OF_MONTH = "[1-9]|[12][0-9]|3[01]"
VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"
WEBHOOK = "https?://[!-~]+"

_TEXT: dict[str, Any] = {"type": "string", "pattern": r"\S"}
_GLOB = _TEXT | {"type": ["string", "number", "boolean"]}  # a task 12 and a team on need no quotes
_NAME = _TEXT | {"pattern": f"^{NAME}$"}
_USD = {"type": "number", "minimum": 0, "maximum": MAX_USD}
_COUNT = {"type": "integer", "minimum": 0, "maximum": MOST}
_SHARE = {"type": "number", "minimum": float(LEAST_SHARE), "maximum": float(MOST_SHARE)}
_GLOBS = {"anyOf": [_GLOB, {"type": "array", "items": _GLOB, "minItems": 1}]}
WEEKDAY = {"enum": list(WEEKDAYS)}
MONTHDAY = {"type": "integer", "minimum": 1, "maximum": 31}

FILE: dict[str, dict[str, Any]] = {
    "budgets": {"description": "The budgets; may be empty.", "type": "array"},
    "notify": {"description": "Who is told when a threshold is crossed.", "type": "array"},
}

BUDGET: dict[str, dict[str, Any]] = {
    "name": _NAME | {"description": "Name of the budget, of which there is no other in the file.", "examples": ["all-agents"]},
    "match": {
        "description": "Runs that count: a glob, or a list of them, by agent, task, cli, model, repo or any attribute; all if left out.",
        "type": "object", "additionalProperties": _GLOBS,
    },
    "per": _TEXT | {"description": "A tag or an attribute each of whose values has a limit of its own.", "examples": ["task"]},
    "period": {
        "description": "day, week, month, total, or the length of a rolling period: minutes, hours or days.",
        "type": "string", "pattern": f"^({'|'.join(CALENDAR)}|{LENGTH})$", "examples": ["month", "5h", "30d"],
    },
    "timezone": _TEXT | {"description": "IANA time zone of days, weeks and months.", "default": "UTC", "examples": ["Europe/Berlin"]},
    "starts": {
        "description": "First weekday of a week, or first day of a month; in a shorter month its last day.",
        "anyOf": [WEEKDAY, MONTHDAY],
    },
    "limit_usd": _USD | {"description": "US dollars that may be spent in one period."},
    "limit_tokens": _COUNT | {"description": "Tokens that may be used in one period: all that are billed, cached ones too."},
    "limit_runs": _COUNT | {"description": "Runs that may end in one period."},
    "thresholds": {
        "description": "Shares of the limit at which somebody is told: 0.8, or {at: 0.8, severity: warning}.",
        "type": "array", "uniqueItems": True, "default": [float(x) for x in THRESHOLDS],
    },
    "action": {
        "description": "What happens at the limit: alert tells, warn tells at a start, block starts no run, kill also ends runs under way.",
        "enum": list(ACTIONS), "default": ACTIONS[0],
    },
    "reserve_usd": _USD | {"description": "US dollars that a run is expected to cost where its agent has no history."},
    "reserve_tokens": _COUNT | {"description": "Tokens that a run is expected to use where its agent has no history."},
    "least_usd": _USD | {"description": "US dollars that a burn-rate window must hold before it alerts."},
    "least_tokens": _COUNT | {"description": "Tokens that a burn-rate window must hold before it alerts."},
    "owner": _TEXT | {"description": "Who answers for the budget."},
    "description": _TEXT | {"description": "What the budget is for."},
    "notify": {"description": "Names of the notifiers to tell; all if left out.", "type": "array", "items": _NAME},
}  # fmt: skip
BUDGET_NEEDS = ("name", "period")

THRESHOLD: dict[str, dict[str, Any]] = {
    "at": _SHARE | {"description": "Share of the limit: 1 is all of it.", "examples": [0.8]},
    "severity": {"description": "By default info below 0.8, warning below 1, else critical.", "enum": list(SEVERITIES)},
}
THRESHOLD_NEEDS = ("at",)

NOTIFIER: dict[str, dict[str, Any]] = {
    "name": _NAME | {"description": "Name of the notifier, of which there is no other in the file.", "examples": ["ops"]},
    "webhook": {"description": "URL that a notice is posted to.", "type": "string", "pattern": f"^{WEBHOOK}$"},
    "secret_env": _TEXT | {"description": "Environment variable with the secret that signs the posts.", "pattern": f"^{VARIABLE}$"},
    "command": {"description": "Command and arguments that a notice is given to.", "type": "array", "items": _TEXT, "minItems": 1},
}
NOTIFIER_NEEDS = ("name",)
