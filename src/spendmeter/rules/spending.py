"""Alerts about budgets: thresholds, burn rates, the forecast, and a budget that no daemon shows."""

from __future__ import annotations

from collections.abc import Mapping

from spendmeter import metrics as m
from spendmeter.budgets import Budget, Budgets, Period, Threshold
from spendmeter.budgets.burn import Burn, burn_windows, nominal_ms, window_text
from spendmeter.budgets.model import UNITS, Unit
from spendmeter.records import usd
from spendmeter.rules.promql import BRIDGE, MakeAlert, Rule, held, highest, plain, record, series, where

THRESHOLD, BURN, FORECAST, MISSING = (f"SpendmeterBudget{x}" for x in ("Threshold", "Burn", "Forecast", "Missing"))
USED = f"budget:{m.PREFIX}_budget_used:ratio"  # of the limit
BURNING = f"budget_window:{m.PREFIX}_budget_burn:ratio"  # 1 uses up the limit in just one period
_SEVERITY = {"page": "critical", "ticket": "warning"}
_NUMBER = '{{ . | first | value | printf "%.0f" }}'
_SHOWN: dict[Unit, str] = {
    "usd": '${{ . | first | value | printf "%.2f" }}',
    "tokens": "{{ . | first | value | humanize }} tokens",
    "runs": f"{_NUMBER} runs",
}
_NOW = {"day": "today", "week": "this week", "month": "this month", "total": "in all"}


def rules(budgets: Budgets, make: MakeAlert) -> list[Rule]:
    """The group's rules: what is recorded for alerts and dashboards, then each budget's alerts in the file's order.

    Args:
        make: ``promql.alert`` with its runbook page.
    """
    out = [_used(unit) for unit in UNITS if any(b.unit == unit for b in budgets.budgets)]
    windows = {(b.unit, s) for b in budgets.budgets for burn in burns(b) for s in (burn.long_s, burn.short_s)}
    out += [_burning(unit, seconds) for unit in UNITS for seconds in sorted(s for u, s in windows if u == unit)]
    for budget in budgets.budgets:
        out += [_threshold(budget, threshold, make) for threshold in budget.thresholds]
        out += [_burn(budget, burn, make) for burn in burns(budget)]
        out += [_forecast(budget, make)] if forecasts(budget) else []
        out.append(_missing(budget, make))
    return out


def burns(budget: Budget) -> tuple[Burn, ...]:
    """The burn alerts that tell something before the limit is reached; a budget per task or agent has no windows."""
    length_ms = nominal_ms(budget.period)
    if budget.per or not budget.limit or not length_ms:
        return ()
    return tuple(b for b in burn_windows(length_ms) if b.factor * b.long_s * 1000 < length_ms)


def forecasts(budget: Budget) -> bool:
    """Whether there is an end of the period to look at."""
    return not budget.per and bool(budget.limit) and budget.period.kind not in ("rolling", "total")


def told(threshold: Threshold) -> str:
    """The label of a threshold, a plain decimal."""
    return f"{threshold.at.normalize():f}"


def _used(unit: Unit) -> Rule:
    return record(USED, highest("budget", f"{held(m.BUDGET_SPENT[unit])} / {held(m.BUDGET_LIMIT[unit])}"), unit=unit)


def _burning(unit: Unit, seconds: int) -> Rule:
    # The gauge is summed up from the ledger and exact. increase() over the spent gauge would be wrong: it falls with each new
    # period, and where a total is corrected downwards, and increase() takes every fall for a reset and adds what follows.
    window = window_text(seconds)
    spent = highest("budget", held(m.BUDGET_WINDOW_SPENT[unit], window=window))
    rate = highest("budget", f"{held(m.BUDGET_LIMIT[unit])} / {held(m.BUDGET_PERIOD)}")
    return record(BURNING, f"{spent} / {seconds}\n/ {rate}", unit=unit, window=window)


def _threshold(budget: Budget, threshold: Threshold, make: MakeAlert) -> Rule:
    expr = f"{USED}{where(budget=budget.name)} >= {told(threshold)}"
    summary = "Budget {{ $labels.budget }}: {{ $value | humanizePercentage }} of the limit is used"
    if not budget.limit:
        expr = f"{_value(m.BUDGET_SPENT, budget)} > 0"
        summary = "Budget {{ $labels.budget }} allows nothing, and something is spent"
    spent, limit = (_ask(family[budget.unit], _SHOWN[budget.unit]) for family in (m.BUDGET_SPENT, m.BUDGET_LIMIT))
    said = f"Spent {_now(budget.period)}: {spent} of {limit}."
    if budget.per:
        over = _ask(m.BUDGET_OVER, _NUMBER)
        said = f"Spent {_now(budget.period)} by the {plain(budget.per)} that spent most: {spent} of {limit}; {over} have used up theirs."
    return make(
        THRESHOLD, expr, for_="1m", severity=threshold.severity, summary=summary, description=_about(budget, said),
        **_labels(budget), threshold=told(threshold),
    )  # fmt: skip


def _burn(budget: Budget, burn: Burn, make: MakeAlert) -> Rule:
    long, short = window_text(burn.long_s), window_text(burn.short_s)
    fast, still = (f"{BURNING}{where(budget=budget.name, window=window)} > {burn.factor:g}" for window in (long, short))
    expr = [fast, f"and on (budget) {still}", *_least(m.BUDGET_WINDOW_SPENT, budget, window=long)]
    expr.append(f"unless on (budget) {highest('budget', held(m.BUDGET_OVER, budget=budget.name))} > 0")
    spent = _ask(m.BUDGET_WINDOW_SPENT[budget.unit], _SHOWN[budget.unit], window=long)
    lasts = _ask(m.BUDGET_PERIOD, "{{ . | first | value | humanizeDuration }}", " / %f", " $value")
    return make(
        BURN, "\n".join(expr), for_="2m", severity=_SEVERITY[burn.severity],
        summary='Budget {{ $labels.budget }} burns {{ $value | printf "%.1f" }} times as fast as its limit allows',
        description=_about(budget, f"Spent in the last {long}: {spent}. At this pace a whole limit lasts {lasts}."),
        **_labels(budget), window=long,
    )  # fmt: skip


def _forecast(budget: Budget, make: MakeAlert) -> Rule:
    forecast, limit = (_value(family, budget) for family in (m.BUDGET_FORECAST, m.BUDGET_LIMIT))
    expr = [f"{forecast} / {limit} > 1", f"and on (budget) {USED}{where(budget=budget.name)} < 1", *_least(m.BUDGET_SPENT, budget)]
    shown = _SHOWN[budget.unit]
    ahead, spent, most = (_ask(family[budget.unit], shown) for family in (m.BUDGET_FORECAST, m.BUDGET_SPENT, m.BUDGET_LIMIT))
    return make(
        FORECAST, "\n".join(expr), for_="1h", severity="warning",
        summary="Budget {{ $labels.budget }} is on the way to {{ $value | humanizePercentage }} of its limit",
        description=_about(budget, f"Forecast for the period's end: {ahead} of {most}. Spent so far: {spent}."), **_labels(budget),
    )  # fmt: skip


def _missing(budget: Budget, make: MakeAlert) -> Rule:
    # These rules know the budget and the daemon does not: its file has changed, or cannot be read. No other alert would tell.
    limit = series(m.BUDGET_LIMIT[budget.unit], budget=budget.name)
    return make(
        MISSING, f"absent_over_time({limit}[{BRIDGE}])\nunless on () absent_over_time({series(m.BUILD_INFO)}[{BRIDGE}])",
        for_="10m", severity="warning", summary="No daemon knows budget {{ $labels.budget }}",
        description=_about(budget, "It is in these rules but not in the budgets that the daemon has read, so none of its alerts can fire."),
        **_labels(budget),
    )  # fmt: skip


def _labels(budget: Budget) -> dict[str, str]:
    return {"budget": budget.name, "unit": budget.unit, "owner": budget.owner}


def _value(family: Mapping[str, m.Metric], budget: Budget, **labels: str) -> str:
    return highest("budget", held(family[budget.unit], budget=budget.name, **labels))


def _least(family: Mapping[str, m.Metric], budget: Budget, **labels: str) -> list[str]:
    """The guard that keeps one run on a small base from paging."""
    if not budget.least:
        return []
    amount = f"{usd(budget.least).normalize():f}" if budget.unit == "usd" else str(budget.least)
    return [f"and on (budget) {_value(family, budget, **labels)} >= {amount}"]


def _ask(metric: m.Metric, shown: str, by: str = "", argument: str = "", **labels: str) -> str:
    """A template that asks for a gauge of the alert's budget while it is sent, and shows it."""
    query = f"max({held(metric, budget='%q', **labels)})".replace('"%q"', "%q")
    return f"{{{{ with printf `{query}{by}` $labels.budget{argument} | query }}}}{shown}{{{{ end }}}}"


def _now(period: Period) -> str:
    return _NOW.get(period.kind) or f"in the last {window_text((period.length_ms or 0) // 1000)}"


def _about(budget: Budget, said: str) -> str:
    """What is the case, and what its owner wrote about the budget."""
    return f"{said} {plain(budget.description)}".strip()
