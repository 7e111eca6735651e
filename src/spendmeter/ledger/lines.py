"""What is told of a run, and of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spendmeter.ledger.amounts import Amounts


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run with all that it used."""

    run_key: str
    cli: str
    session: str
    agent: str
    task: str
    outcome: str
    implied: bool
    attrs: Mapping[str, str]
    models: tuple[str, ...]
    started_ms: int | None
    ended_ms: int | None
    duration_ms: int | None
    exit_code: int | None
    repo: str | None
    branch: str | None
    notes: tuple[str, ...]
    amounts: Amounts

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "amounts"}
        return plain | {"attrs": dict(self.attrs), "models": list(self.models), "notes": list(self.notes)} | self.amounts.as_dict()


@dataclass(frozen=True, slots=True)
class TaskTotals:
    """A task: agents dearest first, outcomes with their numbers of runs, work time summed over runs and the span they lie in."""

    task: str
    agents: tuple[tuple[str, Amounts], ...]
    total: Amounts
    outcomes: Mapping[str, int]
    work_ms: int | None
    first_ms: int | None
    last_ms: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task, "agents": [{"agent": a} | x.as_dict() for a, x in self.agents], "total": self.total.as_dict(),
            "outcomes": dict(self.outcomes), "work_ms": self.work_ms, "first_ms": self.first_ms, "last_ms": self.last_ms,
        }  # fmt: skip
