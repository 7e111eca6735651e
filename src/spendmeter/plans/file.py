"""Reads, checks and writes ``plan.yaml``; every mistake is named by file and line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from spendmeter import yamlfile
from spendmeter.errors import ConfigError
from spendmeter.plans.model import SLOT, Estimate, Figures, Plan, Slot
from spendmeter.plans.schema import COUNTS, ESTIMATE, NEEDS, PLAN
from spendmeter.records import to_nusd, usd, usd_text
from spendmeter.yamlfile import Node

FIGURES = (*COUNTS, "cost_usd")
_BEGIN = 'begin each estimate with "- workflow: ..."'


def read(path: Path) -> Plan:
    """The plan in the file at *path*.

    Raises:
        ConfigError: ``plan.yaml:12: <value seen>, <expectation>; <remedy>``
    """
    root, _ = yamlfile.read(path, ConfigError, "a plan with name and estimates")
    if root is None:
        raise ConfigError(f"{path}: an empty file where a plan was expected; give it a name and estimates")
    keys = root.mapping(tuple(PLAN))
    for key, example in NEEDS.items():
        if key not in keys:
            root.fail(f'a plan without "{key}"; write {example}')
    description = keys.get("description")
    return Plan(
        name=keys["name"].text(),
        estimates=_estimates(keys["estimates"]),
        description="" if description is None or description.is_null else description.text(),
    )


def _estimates(node: Node) -> tuple[Estimate, ...]:
    found: dict[Slot, tuple[Estimate, int]] = {}
    for child in node.items(_BEGIN):
        estimate = _estimate(child)
        if estimate.slot in found:
            named = ", ".join(f"{k} {v}" for k, v in zip(SLOT, estimate.slot, strict=True) if v) or "no workflow"
            first = found[estimate.slot][1]
            child.fail(f"a second estimate for {named}, which line {first} has; make them one, or tell them apart by stage or agent")
        found[estimate.slot] = estimate, child.line
    if not found:
        node.fail(f"a plan without an estimate; {_BEGIN}")
    return tuple(estimate for estimate, _ in found.values())


def _estimate(node: Node) -> Estimate:
    keys = {k: v for k, v in node.mapping(tuple(ESTIMATE)).items() if not v.is_null}
    workflow, stage, agent = (keys[name].text() if name in keys else None for name in SLOT)
    calls, prompt, total = (keys[name].whole(name, of, 0) if name in keys else None for name, of in COUNTS.items())
    if prompt is not None and total is not None and prompt > total:
        keys["prompt_tokens"].fail(f"prompt_tokens {prompt} is more than total_tokens {total}; total_tokens counts input and output")
    return Estimate((workflow, stage, agent), Figures(calls, prompt, total, _nusd(keys)))


def _nusd(keys: Mapping[str, Node]) -> int | None:
    if "cost_usd" not in keys:
        return None
    node = keys["cost_usd"]
    value = node.number("cost_usd")
    nusd = to_nusd(value)
    if nusd is None or usd(nusd) != value:
        node.fail(f"cost_usd {node.seen} is not an amount below 1000000000 with at most 9 decimals; write it as 0.90")
    return nusd


def write(plan: Plan, notes: Iterable[str], head: Iterable[str] = ()) -> str:
    """A plan.yaml that ``read`` takes; unknown figures are left out.

    Args:
        notes: a comment above each estimate.
        head: lines of comment above all.
    """
    lines = [*[f"# {line}" for line in head], f"name: {_scalar(plan.name)}"]
    lines += [f"description: {_scalar(plan.description)}"] if plan.description else []
    lines.append("estimates:")
    for e, note in zip(plan.estimates, notes, strict=True):
        slot: dict[str, Any] = {k: _scalar(v) for k, v in zip(SLOT, e.slot, strict=True) if v is not None}
        figures = {k: v for k, v in zip(COUNTS, e.figures[:3], strict=True) if v is not None}
        cost = {} if e.figures.cost_nusd is None else {"cost_usd": usd_text(e.figures.cost_nusd)}
        lines += [f"  # {note}", f"  - {{{', '.join(f'{k}: {v}' for k, v in (slot | figures | cost).items())}}}"]
    return "\n".join([*lines, ""])


def _scalar(text: str) -> str:
    """*text* as YAML writes it within a flow mapping, on one line."""
    return yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=1 << 30).strip()[1:-1]
