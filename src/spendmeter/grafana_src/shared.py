"""Panels that more than one dashboard has, each narrowed by the dashboard's own variables."""

from __future__ import annotations

from spendmeter import metrics as m
from spendmeter.grafana_src import parts as p
from spendmeter.grafana_src.board import link
from spendmeter.grafana_src.promql import STEP, Scope, alerts, either, not_ok, share, total

By = dict[str, m.Metric]  # usd | tokens | runs -> gauge


def used(scope: Scope, gauge: By) -> str:
    """A gauge of each budget as a share of its limit, in whichever unit that is."""
    return either(*(of_limit(scope, gauge, unit) for unit in m.BUDGET_LIMIT))


def of_limit(scope: Scope, gauge: By, unit: str, by: str = "budget") -> str:
    """A gauge as a share of the limit, for the budgets that limit *unit*."""
    joined = "" if by == "budget" else " on (budget) group_left ()"
    return share(scope.gauge(gauge[unit], by), scope.gauge(m.BUDGET_LIMIT[unit], "budget"), joined)


def used_up(scope: Scope, *, w: int, h: int = 4) -> p.Panel:
    """How many limits are used up."""
    return p.number(
        "Budgets used up", "Limits that are used up in their current period; of a budget per task or agent, each counts.",
        total(scope.gauge(m.BUDGET_OVER, "budget")), p.COUNT, w=w, h=h, steps=p.ANY_IS_BAD, link=link("Budgets", "budgets"),
        empty="no budgets",
    )  # fmt: skip


def used_now(scope: Scope, *, w: int) -> p.Panel:
    """How much of each budget is gone."""
    return p.meter(
        "Used", "Spent in the current period as a share of the limit; of a budget per task or agent, by the one that spent most. "
        "From the ledger: exact, whatever Prometheus has missed.", [p.Line(used(scope, m.BUDGET_SPENT), "{{budget}}")], p.SHARE,
        steps=p.USED, w=w, h=7,
    )  # fmt: skip


def foretold(scope: Scope, *, w: int) -> p.Panel:
    """How much of each budget will be gone."""
    return p.meter(
        "Forecast", "What will be used at the period's end if it goes on as lately, as a share of the limit. Rolling periods have no end.",
        [p.Line(used(scope, m.BUDGET_FORECAST), "{{budget}}")], p.SHARE, steps=p.USED, w=w, h=7, most=2,
    )  # fmt: skip


def firing(*, w: int, h: int = 4) -> p.Panel:
    """How many alerts fire."""
    return p.number(
        "Alerts firing", "Now, of Spendmeter's own, whatever is chosen above. Those that Grafana manages are not among them.",
        f"count({alerts('firing')})", p.COUNT, w=w, h=h, steps=p.ANY_IS_BAD, empty="none", link=link("Budgets", "budgets"),
    )  # fmt: skip


def daemons(scope: Scope, *, w: int) -> p.Panel:
    """How many daemons there are."""
    return p.number(
        "Daemons", "That show metrics now. None: nothing is known of spending, and no alert about it can fire.",
        f"count({scope.select(m.BUILD_INFO)})", p.COUNT, w=w, steps=((None, p.RED), (1, p.GREEN)), empty="none",
        link=link("Operations", "operations"),
    )  # fmt: skip


def failures(scope: Scope, *, w: int) -> p.Panel:
    """How many runs went wrong."""
    return p.number(
        "Runs not ok", "Share of the finished runs that ended as anything but ok: error, max_turns, max_budget, interrupted, killed.",
        not_ok(scope), p.SHARE, w=w, steps=p.FAILED, empty="no runs",
    )  # fmt: skip


def outcomes(scope: Scope, *, w: int) -> p.Panel:
    """How runs ended, over time."""
    line = p.Line(scope.rise(m.RUNS, "outcome", STEP), "{{outcome}}")
    return p.bars("Runs by outcome", "Runs that finished from point to point.", [line], p.COUNT, w=w)
