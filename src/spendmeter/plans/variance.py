"""Planned against actual: the arithmetic. Money in nano-USD; unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from spendmeter.plans.model import Estimate, Figures, Slot, Snapshot, summed
from spendmeter.records import iso, usd_text


class Actual(NamedTuple):
    """What runs used; None where nothing tells of any of them. ``duration_ms`` is the sum over the runs."""

    calls: int | None = None
    prompt_tokens: int | None = None
    total_tokens: int | None = None
    reported_nusd: int | None = None
    estimated_nusd: int | None = None
    unpriced_tokens: int | None = None
    duration_ms: int | None = None
    runs: int = 0
    runs_without_usage: int = 0

    @property
    def figures(self) -> Figures:
        """Beside the plan's; the cost is reported plus estimated."""
        return Figures(self.calls, self.prompt_tokens, self.total_tokens, _sum((self.reported_nusd, self.estimated_nusd)))


_USAGE = Actual._fields[:6]


def total(items: Iterable[Actual]) -> Actual:
    """The sum of *items*: of what is known, field by field. Without a run that keeps its usage to itself, no usage is 0."""
    found = Actual(*[_sum(column) for column in zip(*items, strict=True)])  # type: ignore[arg-type]
    if found.unpriced_tokens is None and not found.runs_without_usage:  # every usage has a number of unpriced tokens
        found = found._replace(**dict.fromkeys(_USAGE, 0))
    return found if found.runs else found._replace(duration_ms=0)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def ratio(actual: int | None, estimated: int | None) -> Decimal | None:
    """*actual* over *estimated* to 4 places, rounded half up; None where one is unknown or nothing was estimated."""
    if actual is None or not estimated:
        return None
    return Decimal((20_000 * actual + estimated) // (2 * estimated)).scaleb(-4)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was planned beside what was used, of a plan or a part of it."""

    planned: Figures
    actual: Actual

    def as_dict(self) -> dict[str, Any]:
        """Each figure as ``{"estimated", "actual", "delta", "ratio"}``; money as decimal strings."""
        planned, used = self.planned, self.actual.figures
        counts = {name: _counted(getattr(planned, name), getattr(used, name)) for name in Figures._fields[:3]}
        return counts | {
            "cost_usd": {
                "estimated": usd_text(planned.cost_nusd), "actual_known": usd_text(self.actual.reported_nusd),
                "actual_estimated_from_rates": usd_text(self.actual.estimated_nusd), "actual_total": usd_text(used.cost_nusd),
                "delta": usd_text(_delta(planned.cost_nusd, used.cost_nusd)), "ratio": _number(ratio(used.cost_nusd, planned.cost_nusd)),
            },
            "runs": self.actual.runs, "runs_without_usage": self.actual.runs_without_usage,
            "unpriced_tokens": self.actual.unpriced_tokens,
        }  # fmt: skip


def _counted(estimated: int | None, actual: int | None) -> dict[str, Any]:
    delta = _delta(estimated, actual)
    return {"estimated": estimated, "actual": actual, "delta": delta, "ratio": _number(ratio(actual, estimated))}


def _delta(estimated: int | None, actual: int | None) -> int | None:
    return None if estimated is None or actual is None else actual - estimated


def _number(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class WorkflowVariance:
    """One workflow; None is that of runs that name none. ``stages`` and ``agents`` are empty where nothing tells them apart."""

    workflow: str | None
    whole: Comparison
    stages: tuple[tuple[str | None, Comparison], ...] = ()
    agents: tuple[tuple[str | None, Comparison], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON; "stages" and "agents" only where there are any."""
        out = {"workflow_id": self.workflow} | self.whole.as_dict()
        for name, parts in (("stage", self.stages), ("agent", self.agents)):
            if parts:
                out[f"{name}s"] = [{name: part} | c.as_dict() for part, c in parts]
        return out


@dataclass(frozen=True, slots=True)
class Variance:
    """A plan against its runs: workflows in the plan's order, then others by name. ``recorded_ms`` None: no snapshot is kept."""

    plan: str
    snapshot_id: str | None
    recorded_ms: int | None
    whole: Comparison
    workflows: tuple[WorkflowVariance, ...]

    def as_dict(self) -> dict[str, Any]:
        """The object of design.md section 8."""
        duration_ms, recorded_ms = self.whole.actual.duration_ms, self.recorded_ms
        return {
            "plan": self.plan, "snapshot_id": self.snapshot_id, "snapshot_resolved": recorded_ms is not None,
            "recorded_at": None if recorded_ms is None else iso(recorded_ms), **self.whole.as_dict(),
            "per_workflow": [w.as_dict() for w in self.workflows],
            "duration_seconds": None if duration_ms is None else duration_ms / 1000,
        }  # fmt: skip


Used = Sequence[tuple[Slot, Actual]]  # a slot may come more than once


def compare(named: str, snapshot_id: str | None, snapshot: Snapshot | None, used: Used) -> Variance:
    """The estimates of *snapshot* against what was *used*.

    Args:
        named: the plan's name where there is no snapshot to tell it.
        snapshot_id: likewise.
    """
    estimates = snapshot.plan.estimates if snapshot else ()
    whole = _comparison(estimates, used)
    workflows = tuple(_workflow(*part) for part in _parts(0, estimates, used))
    if snapshot is None:
        return Variance(named, snapshot_id, None, whole, workflows)
    return Variance(snapshot.plan.name, snapshot.snapshot_id, snapshot.recorded_ms, whole, workflows)


def _comparison(estimates: Sequence[Estimate], used: Used) -> Comparison:
    return Comparison(summed(e.figures for e in estimates), total(actual for _, actual in used))


def _workflow(name: str | None, estimates: Sequence[Estimate], used: Used) -> WorkflowVariance:
    staged = any(slot[1] for slot, _ in used)
    stages, agents = _split(1, estimates, used, always=staged), _split(2, estimates, used, always=False)
    return WorkflowVariance(name, _comparison(estimates, used), stages, agents)


def _split(at: int, estimates: Sequence[Estimate], used: Used, *, always: bool) -> tuple[tuple[str | None, Comparison], ...]:
    """By stage or agent. Estimates that name none are the rest of those that do; alone they are the whole, which has no parts."""
    named = any(e.slot[at] for e in estimates)
    if not named and not always:
        return ()
    return tuple((name, _comparison(e, u)) for name, e, u in _parts(at, estimates if named else (), used))


def _parts(at: int, estimates: Sequence[Estimate], used: Used) -> Iterator[tuple[str | None, Sequence[Estimate], Used]]:
    """*estimates* and *used* by one element of their slots: what is planned in its order, then the others by name, None last."""
    names = list(dict.fromkeys(e.slot[at] for e in estimates))
    names += sorted({slot[at] for slot, _ in used} - set(names), key=lambda n: (n is None, n or ""))
    for name in names:
        yield name, [e for e in estimates if e.slot[at] == name], [(s, a) for s, a in used if s[at] == name]
