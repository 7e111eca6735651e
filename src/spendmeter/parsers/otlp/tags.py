"""Resource attributes as tags: what the user set in ``OTEL_RESOURCE_ATTRIBUTES``, and nothing that says who or where they are."""

from __future__ import annotations

import re

from spendmeter.parsers.fields import text
from spendmeter.parsers.otlp.model import Attrs
from spendmeter.records import Tags

_AGENT, _TASK = ("spendmeter.agent", "agent"), ("spendmeter.task", "task", "task.id")
_STANDARD = re.compile(  # namespaces of the semantic conventions, and what CLIs say of themselves
    r"(?:account|anthropic|app|aws|azure|browser|cicd|claude_code|client|cloud|code|codex|container|deployment|device|enduser|error|faas|"
    r"gcp|gemini|gen_ai|github|google|heroku|host|http|installation|k8s|log|network|oci|openshift|organization|os|otel|peer|process|qwen|"
    r"server|service|session|telemetry|terminal|test|thread|tls|url|user|user_agent|vcs|webengine|wsl)\..*|env|os|os_version|host|user|email"
)
_KEY = re.compile(r"[A-Za-z][\w.-]{0,63}")
MOST = 16  # attributes besides agent and task
LENGTH = 128


def of_resource(resource: Attrs) -> Tags | None:
    """Agent, task and other keys of the user's own; None where the resource names none.

    Values that hold an ``@`` are left out: none of them is worth an e-mail address in a ledger.
    """
    told = {key: value for key in resource if (value := _value(resource, key)) is not None}
    agent, task = (next((told[k] for k in names if k in told), "unknown") for names in (_AGENT, _TASK))
    rest = {k: v for k, v in sorted(told.items()) if k not in (*_AGENT, *_TASK) and _KEY.fullmatch(k) and not _STANDARD.fullmatch(k)}
    tags = Tags(agent, task, {k.removeprefix("spendmeter."): v for k, v in list(rest.items())[:MOST]})
    return None if tags == Tags() else tags


def _value(resource: Attrs, key: str) -> str | None:
    value = resource[key]
    shown = text(str(value).lower() if isinstance(value, bool) else str(value))
    return shown[:LENGTH] if shown and "@" not in shown else None
