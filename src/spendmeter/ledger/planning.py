"""Plan snapshots, and what the runs that name a plan have used.

A run names its plan by name or by a snapshot's id. The usage is that of the plan's runs within the window, by the minute as in
reports; runs and their durations count at their end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Select, case, delete, exists, func, select

from spendmeter import metrics as m
from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger, now_ms, tagging
from spendmeter.ledger import schema as t
from spendmeter.ledger.amounts import SUMS, Amounts, Where
from spendmeter.ledger.bulk import upsert
from spendmeter.ledger.posting import label
from spendmeter.ledger.query import runs, within
from spendmeter.ledger.store import dump
from spendmeter.plans.history import History
from spendmeter.plans.model import ID_LENGTH, Figures, Plan, Slot, Snapshot, of_dict, summed
from spendmeter.plans.variance import Actual, Comparison, Used, Variance, compare, total
from spendmeter.records import NANO

if TYPE_CHECKING:
    from spendmeter.config import Settings
    from spendmeter.ledger.gauges import Gauges

PRUNED_KEY = "plans_pruned"  # meta: how many snapshots were dropped since the ledger was made
OTHER = "__other__"  # runs of a workflow that the plan does not have
UNNAMED = "unknown"
_ALL = Where()

# -- snapshots ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recorded:
    """What recording a plan did: ``new`` is False where the plan had not changed; ``pruned`` is how many snapshots it drove out."""

    snapshot: Snapshot
    new: bool
    pruned: int


def record(ledger: Ledger, plan: Plan, at_ms: int | None = None) -> Recorded:
    """Keeps *plan* as a snapshot, in force from now on; of all snapshots only the ``settings.plans_keep`` last seen stay.

    Raises:
        LedgerError: the ledger cannot be written.
    """
    now, name = now_ms() if at_ms is None else at_ms, plan.fingerprint
    with ledger.write() as conn:
        last = conn.execute(select(func.max(t.plans.c.seen_ms))).scalar_one()
        known = conn.execute(select(t.plans.c.recorded_ms).where(t.plans.c.snapshot_id == name)).scalar_one_or_none()
        seen = now if last is None else max(now, int(last) + 1)  # another host's clock may be ahead: the last one is in force all the same
        made = Snapshot(name, plan, now if known is None else int(known), seen)
        row = {"snapshot_id": name, "name": plan.name, "body": dump(plan.as_dict()), "recorded_ms": made.recorded_ms, "seen_ms": seen}
        upsert(conn, t.plans, [row])
        return Recorded(made, known is None, _prune(conn, ledger.settings.plans_keep))


def _prune(conn: Connection, keep: int) -> int:
    """Drops what was seen longest ago; the one just recorded was seen last."""
    ids = conn.execute(select(t.plans.c.snapshot_id).order_by(t.plans.c.seen_ms.desc())).scalars().all()
    gone = ids[max(1, keep) :]
    if gone:
        conn.execute(delete(t.plans).where(t.plans.c.snapshot_id.in_(gone)))
        upsert(conn, t.meta, [{"key": PRUNED_KEY, "value": str(_pruned(conn) + len(gone))}])
    return len(gone)


def _pruned(conn: Connection) -> int:
    return int(conn.execute(select(t.meta.c.value).where(t.meta.c.key == PRUNED_KEY)).scalar_one_or_none() or 0)


def snapshots(ledger: Ledger) -> tuple[list[Snapshot], int]:
    """Every snapshot, the last seen first, and how many were ever pruned."""
    with ledger.read() as conn:
        return _kept(conn), _pruned(conn)


def _kept(conn: Connection) -> list[Snapshot]:
    rows = conn.execute(select(t.plans).order_by(t.plans.c.seen_ms.desc()))
    return [Snapshot(r.snapshot_id, of_dict(json.loads(r.body)), int(r.recorded_ms), int(r.seen_ms)) for r in rows]


def latest(kept: Iterable[Snapshot]) -> dict[str, Snapshot]:
    """The snapshot in force of each plan, by the plan's name; *kept* as ``snapshots`` gives them."""
    out: dict[str, Snapshot] = {}
    for snapshot in kept:
        out.setdefault(snapshot.plan.name, snapshot)
    return out


# -- variance ----------------------------------------------------------------------------------------------------------

_Used = Mapping[str, Used]  # by what runs name as their plan


def variances(ledger: Ledger, where: Where = _ALL) -> list[Variance]:
    """Every plan that is recorded or that a run names, by name, each against its snapshot in force; of *where* the window counts."""
    with ledger.read() as conn:
        kept = _kept(conn)
        used = _used(conn, None, where)
        ids = {s.snapshot_id for s in kept}
        names = {s.plan.name for s in kept} | (_named(conn) - ids)
        return [_variance(name, kept, used) for name in sorted(names)]


def variance(ledger: Ledger, key: str, where: Where = _ALL) -> Variance:
    """The plan *key* against its snapshot in force, or the snapshot with the id *key*; of *where* the window counts.

    A plan's runs are those that name it or any of its snapshots. For a snapshot, runs that name another one stay out.

    Raises:
        LedgerError: no plan is recorded by that name, and no run names it.
    """
    with ledger.read() as conn:
        kept = _kept(conn)
        tags = _tags(key, kept)
        if tags == {key} and not _is_id(key) and key not in (named := _named(conn)):
            raise LedgerError(_unknown(key, {s.plan.name for s in kept} | named))
        return _variance(key, kept, _used(conn, tags, where))


def of_task(ledger: Ledger, task: str) -> list[Variance]:
    """Each plan that the task's runs name, against all of the plan's runs."""
    named = select(t.runs.c.plan).where(t.runs.c.task == task, t.runs.c.plan > "").distinct()
    with ledger.read() as conn:
        tags = sorted(conn.execute(named).scalars())
        kept = _kept(conn) if tags else []
        return [_variance(tag, kept, _used(conn, _tags(tag, kept), _ALL)) for tag in tags]


def _variance(key: str, kept: list[Snapshot], used: _Used) -> Variance:
    snapshot = latest(kept).get(key) or next((s for s in kept if s.snapshot_id == key), None)
    mine = [x for tag in sorted(_tags(key, kept)) for x in used.get(tag, ())]
    return compare(key, key if _is_id(key) else None, snapshot, mine)


def _tags(key: str, kept: list[Snapshot]) -> set[str]:
    """What the runs of the plan or snapshot *key* name as their plan."""
    own = {s.snapshot_id for s in kept if s.plan.name == key}
    return {key} | own if own else {key} | {s.plan.name for s in kept if s.snapshot_id == key}


def _is_id(key: str) -> bool:
    return len(key) == ID_LENGTH and set(key) <= set("0123456789abcdef")


def _named(conn: Connection) -> set[str]:
    return set(conn.execute(select(t.runs.c.plan).where(t.runs.c.plan > "").distinct()).scalars())


def _unknown(key: str, names: Collection[str]) -> str:
    folded = {n.casefold(): n for n in sorted(names)}
    near = [folded[n] for n in get_close_matches(key.casefold(), list(folded), 3, 0.6)]
    if near:
        return f'plan "{key}" is not recorded and no run names it; did you mean {" or ".join(near)}?'
    return f'plan "{key}" is not recorded and no run names it; record it (spendmeter plan record FILE) or see: spendmeter plan list'


def _used(conn: Connection, tags: Collection[str] | None, where: Where) -> _Used:
    """What the runs that name one of *tags* used; None stands for every plan that is named."""
    r, e = t.runs.c, t.entries.c
    cut = r.plan, r.workflow, r.stage, r.agent
    mine = r.plan > "" if tags is None else r.plan.in_(sorted(tags))
    of_run = (e.session_id == r.session_id) & (e.run_key == r.run_key)
    without = func.sum(case((exists().where(of_run), 0), else_=1))
    ended = select(*cut, func.sum(r.duration_ms), func.count(), without).where(mine, *within(r.ended_ms, where)).group_by(*cut)
    shares = *cut[:-1], tagging.of_entry("agent")
    usage = select(*shares, *[func.sum(e[s]) for s in SUMS]).select_from(t.runs).join(t.entries, of_run)
    usage = usage.where(mine, *within(e.minute_ms, where)).group_by(*shares)
    out: dict[str, list[tuple[Slot, Actual]]] = {}
    asked: list[tuple[Select[Any], Callable[..., Actual]]] = [(ended, _ended), (usage, _usage)]
    for query, made in asked:
        for tag, workflow, stage, agent, *sums in conn.execute(query):
            actual = made(*[None if x is None else int(x) for x in sums])
            out.setdefault(tag, []).append(((workflow or None, stage or None, agent), actual))
    return out


def _ended(duration_ms: int | None, count: int, without_usage: int) -> Actual:
    return Actual(duration_ms=duration_ms, runs=count, runs_without_usage=without_usage)


def _usage(*sums: int | None) -> Actual:
    a = Amounts(*sums)  # type: ignore[arg-type]
    return Actual(a.calls, a.prompt_tokens, a.total_tokens, a.reported_nusd, a.estimated_nusd, a.unpriced_tokens)


# -- history -----------------------------------------------------------------------------------------------------------


def history(ledger: Ledger, where: Where) -> list[History]:
    """What the runs that *where* takes in, by their end, took each; by workflow and agent.

    Raises:
        LedgerError: there is no such run; says what to do.
    """
    found: dict[tuple[str, str], list[Figures]] = {}
    for run in runs(ledger, where):
        found.setdefault((run.attrs.get("workflow", ""), run.agent), []).append(_figures(run.amounts))
    if not found:
        raise LedgerError("no run to draw estimates from; widen --since or leave out a filter, or meter a run first: spendmeter run")
    ordered = sorted(found.items(), key=lambda x: (not x[0][0], *x[0]))  # runs that name no workflow last
    return [History(agent, workflow or None, tuple(figures)) for (workflow, agent), figures in ordered]


def _figures(a: Amounts) -> Figures:
    """Of one run. A figure of which a part is unknown would be too low an estimate: it is left out."""
    cost_nusd = None if a.unpriced_tokens else a.cost_nusd
    if a.prompt_tokens is None or a.tokens_out is None:
        return Figures(a.calls, cost_nusd=cost_nusd)
    return Figures(a.calls, a.prompt_tokens, a.total_tokens, cost_nusd)


# -- gauges ------------------------------------------------------------------------------------------------------------

_GAUGES = (
    (m.PLAN_ESTIMATED_CALLS, m.PLAN_ACTUAL_CALLS, "calls"),
    (m.PLAN_ESTIMATED_TOKENS, m.PLAN_ACTUAL_TOKENS, "total_tokens"),
    (m.PLAN_ESTIMATED_COST_USD, m.PLAN_ACTUAL_COST_USD, "cost_nusd"),
)
_SEEN: WeakKeyDictionary[Ledger, tuple[tuple[int, int], Gauges]] = WeakKeyDictionary()


def gauges(ledger: Ledger, conn: Connection) -> Gauges:
    """The plan gauges; the sums are made anew only when usage or plans have changed."""
    mark = ledger.moved(conn), int(conn.execute(select(func.max(t.plans.c.seen_ms))).scalar_one() or 0)
    held = _SEEN.get(ledger)
    if held is None or held[0] != mark:
        held = _SEEN[ledger] = mark, _gauges(conn, ledger.settings)
    return held[1]


def _gauges(conn: Connection, settings: Settings) -> Gauges:
    out: Gauges = {metric: [] for pair in _GAUGES for metric in pair[:2]} | {m.PLANS_PRUNED: [((), _pruned(conn))]}
    kept = _kept(conn)
    used = _used(conn, {tag for s in kept for tag in (s.snapshot_id, s.plan.name)}, _ALL) if kept else {}
    for labels, c in _labelled(kept, used, settings).items():
        for estimated, actual, field in _GAUGES:
            for metric, figures in ((estimated, c.planned), (actual, c.actual.figures)):
                value = getattr(figures, field)
                if value is not None:
                    out[metric].append((labels, value / NANO if metric.money else value))
    return out


def _labelled(kept: list[Snapshot], used: _Used, settings: Settings) -> dict[tuple[str, str], Comparison]:
    """Comparisons by the labels plan and workflow; names that one label stands for are added up."""
    parts: dict[tuple[str, str], list[Comparison]] = {}
    for name, snapshot in latest(kept).items():
        of_plan = {e.slot[0] for e in snapshot.plan.estimates}
        for w in _variance(name, kept, used).workflows:
            workflow = label(w.workflow or UNNAMED, settings) if w.workflow in of_plan else OTHER
            parts.setdefault((label(name, settings), workflow), []).append(w.whole)
    return {labels: Comparison(summed(c.planned for c in cs), total(c.actual for c in cs)) for labels, cs in parts.items()}
