"""Overview: what one look must tell."""

from __future__ import annotations

from spendmeter import metrics as m
from spendmeter.grafana_src import parts as p
from spendmeter.grafana_src.board import Board, Section, link, links
from spendmeter.grafana_src.promql import INPUT, STEP, TARGET, TASK_TOKENS, TOKENS, Scope, share, zero
from spendmeter.grafana_src.shared import daemons, failures, firing, foretold, outcomes, used_now, used_up

NAME = "overview"
VARIABLES = ("agent", "cli", "model", "task", "job", "instance")
_ALL = Scope(VARIABLES)
_RUNS = _ALL.without("model")
_CALENDAR = "Days and months are those of the time zone that is shown. Prometheus knows only what it has kept: 15 days by default."
_RELATIVE = "Where a fixed time is picked, Grafana shows that instead."


def board() -> Board:
    """The dashboard."""
    return Board(
        NAME, "Overview", "Spending of coding agents: now, against budgets, by agent, task and model, and whether the metering is sound.",
        "now-24h", VARIABLES, [_glance(), _budgets(), _spend(), _tokens(), _runs()],
    )  # fmt: skip


def _glance() -> Section:
    cost, whole = _ALL.rise(m.COST_USD), Scope(TARGET)
    lost = " + ".join(f"({zero(whole.rise(x))})" for x in (m.UNPRICED_TOKENS, m.SKIPPED))
    return Section("At a glance", [
        used_up(_ALL, w=3),
        firing(w=3),
        p.number("Last hour", f"Cost of what settled in the last hour. {_RELATIVE}", cost, p.USD, w=3, since="1h"),
        p.number("Today", f"Cost since midnight. {_CALENDAR} {_RELATIVE}", cost, p.USD, w=3, since="now/d"),
        p.number("This month", f"Cost since the first of the month. {_CALENDAR} {_RELATIVE}", cost, p.USD, w=3, since="now/M"),
        failures(_ALL, w=3),
        p.number(
            "Not counted", "Tokens that no price is known for, and lines or files that could not be read. Anything but 0 deserves a look.",
            lost, p.COUNT, w=3, steps=p.ANY_IS_ODD, link=link("Operations", "operations"),
        ),
        daemons(whole, w=3),
    ])  # fmt: skip


def _budgets() -> Section:
    return Section("Budgets", [used_now(_ALL, w=12), foretold(_ALL, w=12)])


def _spend() -> Section:
    columns = [
        p.Column("Cost", _ALL.rise(m.COST_USD, "agent"), p.USD),
        p.Column("Runs", _ALL.rise(m.RUNS, "agent"), p.COUNT),
        p.Column("Cost per run", share(_RUNS.rise(m.COST_USD, "agent"), _RUNS.rise(m.RUNS, "agent")), p.USD),
        p.Column("Tokens", _ALL.rise(TOKENS, "agent"), p.TOKENS),
        p.Column("Last run", f"1000 * {_ALL.gauge(m.LAST_RUN, 'agent')}", p.AGO),
    ]
    tasks = [
        p.Column("Cost", _ALL.rise(m.TASK_COST_USD, "task"), p.USD),
        p.Column("Tokens", _ALL.rise(TASK_TOKENS, "task"), p.TOKENS),
    ]
    return Section("Where the money goes", [
        p.bars(
            "Cost by agent", "Cost of what settled from point to point; the bars add up to the total of the range.",
            [p.Line(_ALL.rise(m.COST_USD, "agent", STEP), "{{agent}}")], p.USD,
            link=link("This agent", "agent", agent="__field.labels.agent"),
        ),
        p.bars(
            "Cost by model", "The same by the model that answered.", [p.Line(_ALL.rise(m.COST_USD, "model", STEP), "{{model}}")], p.USD,
        ),
        p.rows(
            "Top agents", "Agents by cost in the range. The filter by model does not apply to runs.", ["agent"], columns,
            links=links(agent="agent"),
        ),
        p.rows(
            "Top tasks", f"The ten tasks that cost most in the range; {m.OVERFLOW} stands for those beyond max_tasks. "
            "The filters by CLI and model do not apply.", ["task"], tasks, top=10, links=links(task="task"),
        ),
    ])  # fmt: skip


def _tokens() -> Section:
    cached = share(_ALL.rise(m.CACHE_READ, "model", STEP), _ALL.rise(INPUT, "model", STEP))
    return Section("Tokens", [
        p.bars(
            "Tokens by model", "Everything that is billed: uncached input, cache reads and writes, output with its reasoning.",
            [p.Line(_ALL.rise(TOKENS, "model", STEP), "{{model}}")], p.TOKENS, w=8,
        ),
        p.bars(
            "Tokens by kind", "The same by what it was.", [p.Line(_ALL.rise(TOKENS, "kind, ttl", STEP), "{{kind}} {{ttl}}")], p.TOKENS, w=8,
        ),
        p.lines(
            "Cache read share by model", "Of all input tokens, those that came from the prompt cache. Gaps: no input.",
            [p.Line(cached, "{{model}}")], p.SHARE, w=8, most=1,
        ),
    ])  # fmt: skip


def _runs() -> Section:
    return Section("Runs", [
        outcomes(_ALL, w=12),
        p.lines(
            "Duration of runs", "Wall time of the runs that finished from point to point, as well as the buckets tell.",
            [p.Line(_ALL.quantile(q, STEP), f"{q:.0%} are quicker") for q in (0.5, 0.9)], p.SECONDS, step="10m",
        ),
    ])  # fmt: skip
