"""Budgets: limit, spent, what is left, how quickly it goes, and what alerts say."""

from __future__ import annotations

from spendmeter import metrics as m
from spendmeter.grafana_src import parts as p
from spendmeter.grafana_src.board import Board, Section
from spendmeter.grafana_src.promql import Scope, alerts, either
from spendmeter.grafana_src.shared import firing, foretold, of_limit, used, used_now, used_up
from spendmeter.rules.promql import highest
from spendmeter.rules.spending import BURNING

NAME = "budgets"
VARIABLES = ("budget", "job", "instance")
_ALL = Scope(VARIABLES)
_UNITS = {"usd": ("US dollars", p.USD), "tokens": ("tokens", p.TOKENS), "runs": ("runs", p.COUNT)}
_STATES = {"1": ("pending", p.YELLOW), "2": ("firing", p.RED)}


def board() -> Board:
    """The dashboard."""
    each = [_unit(unit, title, shown) for unit, (title, shown) in _UNITS.items()]
    return Board(
        NAME, "Budgets", "Every budget in its current period: limit, spent, reserved, left, forecast, burn and alerts.",
        "now-7d", VARIABLES, [_glance(), *each, _speed(), _alerts()],
    )  # fmt: skip


def _glance() -> Section:
    return Section("Now", [used_up(_ALL, w=4, h=7), used_now(_ALL, w=10), foretold(_ALL, w=10)])


def _unit(unit: str, title: str, shown: str) -> Section:
    """The budgets that limit one unit."""
    families = {
        "Spent": m.BUDGET_SPENT, "Limit": m.BUDGET_LIMIT, "Left": m.BUDGET_REMAINING, "Reserved": m.BUDGET_RESERVED,
        "Forecast": m.BUDGET_FORECAST,
    }  # fmt: skip
    columns = [p.Column(name, _ALL.gauge(family[unit], "budget"), shown) for name, family in families.items()]
    start, length = _ALL.gauge(m.BUDGET_PERIOD_START, "budget"), _ALL.gauge(m.BUDGET_PERIOD, "budget")
    ours = f"and on (budget) {_ALL.gauge(m.BUDGET_LIMIT[unit], 'budget')}"
    columns += [
        p.Column("Used", of_limit(_ALL, m.BUDGET_SPENT, unit), p.SHARE, p.USED),
        p.Column("Period ends", f"1000 * ({start} + {length}) {ours}", p.AGO),
    ]
    if unit == "usd":
        columns.append(p.Column("Tokens without a price", f"{_ALL.gauge(m.BUDGET_UNPRICED, 'budget')} {ours}", p.TOKENS))
    over_time = [p.Line(_ALL.gauge(m.BUDGET_SPENT[unit], "budget"), "{{budget}}")]
    return Section(f"Budgets in {title}", [
        p.rows(
            f"Budgets in {title}", "From the ledger. Left is below 0 where more was spent than allowed; reserved is for runs under way. "
            "What a token without a price cost is not in spent.", ["budget"], columns, w=16, h=8,
        ),
        p.lines(f"Spent, in {title}", "In the current period: falls to 0 when a new one begins.", over_time, shown, w=8, h=8),
    ], collapsed=unit != "usd")  # fmt: skip


def _speed() -> Section:
    burning = highest("budget, window", f'{BURNING}{{budget=~"$budget"}}')
    windows = either(*(of_limit(_ALL, m.BUDGET_WINDOW_SPENT, unit, "budget, window") for unit in _UNITS))
    return Section("How quickly it goes", [
        p.lines(
            "Used over time", "Spent as a share of the limit, with the usual thresholds.",
            [p.Line(used(_ALL, m.BUDGET_SPENT), "{{budget}}")], p.SHARE, steps=p.USED, w=8,
        ),
        p.lines(
            "Burn windows", "What share of the whole period's limit went in the window that ends at each point.",
            [p.Line(windows, "{{budget}} in {{window}}")], p.SHARE, w=8,
        ),
        p.lines(
            "Burn rate", "1 uses up the limit in just one period. Burn alerts compare a short and a long window. "
            "Recorded by the rules that spendmeter rules writes: empty without them.",
            [p.Line(burning, "{{budget}} in {{window}}")], p.TIMES, w=8,
        ),
    ])  # fmt: skip


def _alerts() -> Section:
    state = either(f"2 * {highest('alertname, budget', alerts('firing'))}", highest("alertname, budget", alerts("pending")))
    return Section("Alerts", [
        p.states(
            "Alerts over time",
            "Spendmeter's alerts as Prometheus knows them (spendmeter rules). Those that Grafana manages are under Alerting.",
            p.Line(state, "{{alertname}} {{budget}}"), _STATES, w=18,
        ),
        firing(w=6, h=8),
    ])  # fmt: skip
