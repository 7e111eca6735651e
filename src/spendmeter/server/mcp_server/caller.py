"""Who asks: the run that this process is part of, as ``spendmeter run`` tells its child."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from spendmeter.budgets import Subject


@dataclass(frozen=True, slots=True)
class Caller:
    """What need not be said again in arguments. ``run_id``: of the run under way; None is not known."""

    subject: Subject
    run_id: str | None = None


NOBODY = Caller(Subject())


def of_process(env: Mapping[str, str], repo: str | None = None) -> Caller:
    """The caller of a server on stdio, which shares its client's environment and folder.

    Tags of the run under way go before SPENDMETER_AGENT and SPENDMETER_TASK: a flag of ``spendmeter run`` goes before these too.
    """
    run_id = env.get("SPENDMETER_RUN_ID") or None
    told = _attributes(env.get("OTEL_RESOURCE_ATTRIBUTES", "")) if run_id else {}
    agent, task = (_known(told.get(f"spendmeter.{name}")) or env.get(f"SPENDMETER_{name.upper()}") or None for name in ("agent", "task"))
    return Caller(Subject(agent, task, repo=repo), run_id)


def _attributes(text: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in text.split(","))
    return {key.strip(): unquote(value.strip()) for key, eq, value in pairs if eq}


def _known(tag: str | None) -> str | None:
    return None if tag == "unknown" else tag
