"""What a plan is: plain values, and the fingerprint that names a snapshot of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from spendmeter.records import iso, usd_text

Slot = tuple[str | None, str | None, str | None]  # workflow, stage, agent
SLOT = ("workflow", "stage", "agent")
ID_LENGTH = 16  # hex digits of a snapshot's id


class Figures(NamedTuple):
    """What work takes; None is not known. ``prompt_tokens`` is all input, cached too, ``total_tokens`` that and the output."""

    calls: int | None = None
    prompt_tokens: int | None = None
    total_tokens: int | None = None
    cost_nusd: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the runs of one slot are to take together. A slot's None is whatever the runs name, or that they name nothing."""

    slot: Slot
    figures: Figures


@dataclass(frozen=True, slots=True)
class Plan:
    """A ``plan.yaml``: estimates in the order of the file, each slot once."""

    name: str
    estimates: tuple[Estimate, ...]
    description: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hex digits: the same for the same name and estimates, however they are ordered, written or described."""
        lines = sorted(json.dumps([*e.slot, *e.figures]) for e in self.estimates)
        return sha256(json.dumps([self.name, *lines]).encode()).hexdigest()[:ID_LENGTH]

    @property
    def figures(self) -> Figures:
        """What all of it is to take."""
        return summed(e.figures for e in self.estimates)

    def as_dict(self) -> dict[str, Any]:
        """For the ledger; ``of_dict`` takes it back."""
        estimates = [dict(zip(SLOT, e.slot, strict=True)) | e.figures._asdict() for e in self.estimates]
        return {"name": self.name, "description": self.description, "estimates": estimates}


def of_dict(body: Mapping[str, Any]) -> Plan:
    """The plan that ``Plan.as_dict`` gave."""
    estimates = tuple(
        Estimate((e["workflow"], e["stage"], e["agent"]), Figures(*[e[name] for name in Figures._fields])) for e in body["estimates"]
    )
    return Plan(body["name"], estimates, body["description"])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A plan as it was recorded; of several with one name the one with the greatest ``seen_ms`` is in force."""

    snapshot_id: str
    plan: Plan
    recorded_ms: int
    seen_ms: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is estimated is the sum of all estimates."""
        figures = self.plan.figures._asdict()
        return {
            "plan": self.plan.name, "snapshot_id": self.snapshot_id, "recorded_at": iso(self.recorded_ms), "seen_at": iso(self.seen_ms),
            "description": self.plan.description, "estimates": len(self.plan.estimates), "cost_usd": usd_text(figures.pop("cost_nusd")),
            **figures,
        }  # fmt: skip


def summed(figures: Iterable[Figures]) -> Figures:
    """The sum; a figure that is unknown in one of them is unknown in all, and every one is where there are none."""
    return Figures(*[None if None in column else sum(column) for column in zip(*figures, strict=True)])
