"""A ledger seen by hosts with rules of their own, and facts to be attributed."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import pytest

from spendmeter import attribution
from spendmeter.ledger import Batch, Ledger, query
from spendmeter.records import Call, Claim, Context, Observation, Usage
from tests.made import NOON
from tests.test_ledger import counters

Raw = list[dict[str, Any]]
Host = Callable[[Raw | None], Ledger]
DAY_MS = 86_400_000
BY_BRANCH: Raw = [
    {"match": {"cwd": "/home/dev/*", "branch": "feat/(?P<key>[A-Z]+-[0-9]+).*"}, "set": {"agent": "developer", "task": "{key}"}}
]
HELPER: Raw = [{"match": {"subagent": "*"}, "set": {"agent": "helper"}}, {"match": {"cwd": "*"}, "set": {"agent": "developer"}}]


@pytest.fixture
def host(both: Ledger) -> Host:
    """Gives the ledger as a host has it open whose settings have these rules; all go through one engine."""

    def open_(rules: Raw | None) -> Ledger:
        ledger = copy(both)
        ledger.settings = replace(both.settings, attribution=rules)
        ledger.rules = attribution.load(ledger.settings)
        return ledger

    return open_


def whose(ledger: Ledger) -> dict[tuple[str | None, ...], int]:
    """Tokens by agent and task."""
    return {r.keys: r.amounts.tokens for r in query.report(ledger, ["agent", "task"]).rows}


def by_agent(ledger: Ledger, family: str = "spendmeter.tokens_in") -> dict[str, int]:
    """What a counter shows, by its first label."""
    out: dict[str, int] = {}
    for (name, labels), value in counters(ledger).items():
        if name == family:
            agent = labels.split('"')[1]
            out[agent] = out.get(agent, 0) + value
    return {agent: n for agent, n in out.items() if n}


def call(session: str, n: int, tokens: int, *, subagent: str | None = None, model: str = "m", at_ms: int = NOON) -> Call:
    return Call("claude", f"r:{session}{n}", session, Usage(tokens_in=tokens), model, model, at_ms + n, subagent=subagent)


def put(ledger: Ledger, *facts: Observation, claims: list[Claim] | None = None, settled: bool = True) -> None:
    """Commits facts and, where they are settled, has them counted."""
    ledger.commit(Batch(facts, claims or [], settled=settled))


def at(session: str, cwd: str = "/home/dev/shop", branch: str | None = "feat/ABC-1") -> Context:
    return Context("claude", session, cwd, branch)
