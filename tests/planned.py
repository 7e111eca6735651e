"""Plans made in place, and captured runs of them."""

from __future__ import annotations

from spendmeter.ingest import ingest_paths, sync
from spendmeter.ledger import Ledger
from spendmeter.plans.model import Estimate, Figures, Plan
from spendmeter.records import Tags
from tests.runs import ROOT

RUNS = ROOT / "claude"


def plan(name: str = "book", /, **calls: int | None) -> Plan:
    """A plan with a number of calls for each workflow, ten prompt and two output tokens and a cent for each call."""
    made = []
    for workflow, n in calls.items():
        figures = Figures() if n is None else Figures(n, 10 * n, 12 * n, 10_000_000 * n)
        made.append(Estimate((workflow, None, None), figures))
    return Plan(name, tuple(made))


def take(ledger: Ledger, name: str, tags: Tags) -> None:
    ingest_paths(ledger, [str(RUNS / name / "stdout")], tags=tags)
    sync(ledger, home=RUNS / name / "home")
