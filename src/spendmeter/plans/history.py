"""Estimates drawn from what earlier runs took: nearest-rank percentiles over exact integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spendmeter.plans import file
from spendmeter.plans.model import Estimate, Figures, Plan
from spendmeter.records import usd_text

PERCENTS = (50, 90)


def nearest_rank(values: Sequence[int], percent: int) -> int | None:
    """The least of *values* that at least *percent* per cent of them do not exceed; None for none.

    Of n sorted values it is the one at rank ceil(percent / 100 * n), so it is always one that occurred.
    """
    return sorted(values)[max(1, -(-percent * len(values) // 100)) - 1] if values else None


@dataclass(frozen=True, slots=True)
class History:
    """What each run of an agent within a workflow took; None is a workflow that was not named."""

    agent: str
    workflow: str | None
    runs: tuple[Figures, ...]

    def at(self, percent: int) -> Figures:
        """The percentile of each figure, over the runs of which it is known."""
        columns = zip(*self.runs, strict=True)
        return Figures(*[nearest_rank([v for v in column if v is not None], percent) for column in columns])

    def estimate(self, percent: int) -> Estimate:
        """One run's percentile as what is to be expected."""
        return Estimate((self.workflow, None, self.agent), self.at(percent))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: each figure as ``{"known", "median", "p90"}``, known being the number of runs that tell it."""
        median, p90 = (self.at(p)._asdict() for p in PERCENTS)
        out: dict[str, Any] = {"agent": self.agent, "workflow": self.workflow, "runs": len(self.runs)}
        for name, column in zip(Figures._fields, zip(*self.runs, strict=True), strict=True):
            shown: Mapping[str, Any] = {"median": median[name], "p90": p90[name]}
            if name == "cost_nusd":
                shown = {k: usd_text(v) for k, v in shown.items()}
            out["cost_usd" if name == "cost_nusd" else name] = {"known": len(column) - column.count(None), **shown}
        return out

    @property
    def note(self) -> str:
        """How many runs it is drawn from, and both percentiles of each figure, in one line."""
        told = self.as_dict()
        figures = [f"{name} {_told(told[name], len(self.runs))}" for name in file.FIGURES]
        return f"{_runs(len(self.runs))}, median / p90: {', '.join(figures)}"


def _told(figure: Mapping[str, Any], runs: int) -> str:
    if not figure["known"]:
        return "unknown"
    return f"{figure['median']} / {figure['p90']}" + (f" (of {_runs(figure['known'])})" if figure["known"] < runs else "")


def _runs(n: int) -> str:
    return f"{n} run{'s' * (n != 1)}"


def drawn(name: str, found: Sequence[History], percent: int) -> str:
    """A plan.yaml with an estimate of one run for each of *found*."""
    plan = Plan(name, tuple(h.estimate(percent) for h in found))
    figure = "median" if percent == 50 else f"{percent}th percentile"
    head = (
        f"Drawn from {_runs(sum(len(h.runs) for h in found))}: each figure is the {figure} (nearest rank) of ONE run.",
        "Multiply it by the runs that you plan, then: spendmeter plan record FILE",
    )
    return file.write(plan, [h.note for h in found], head)
