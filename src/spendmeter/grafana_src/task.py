"""Task: one unit of work, by whom it was done and what it cost, against its plan."""

from __future__ import annotations

from spendmeter import metrics as m
from spendmeter.grafana_src import parts as p
from spendmeter.grafana_src.board import Board, Section, links
from spendmeter.grafana_src.promql import PLANS, RANGE, STEP, TASK_TOKENS, Scope, apart, kind, share, total
from spendmeter.grafana_src.sdk import dashboard, table, tempo, tempo_values

NAME = "task"
VARIABLES = ("task", "agent", "plan", "job", "instance")
_ALL = Scope(VARIABLES, single=("task", "plan"))
_FAR = "Task series leave Prometheus' page after a week without usage (task_ttl); choose a range in which the task was worked on."
_PLANNED = [
    (name, *pair, unit) for pair, (name, unit) in zip(PLANS, (("cost", p.USD), ("tokens", p.TOKENS), ("calls", p.COUNT)), strict=True)
]


def board() -> Board:
    """The dashboard."""
    traces = dashboard.DatasourceVariable(p.TEMPO_VARIABLE).label("Tempo data source").type("tempo")
    return Board(
        NAME, "Task", "One task: what it cost and how that came about, by agent, against its plan, and its runs as traces.",
        "now-7d", VARIABLES, [_glance(), _cost(), _agents(), _plan(), _traces()], single=_ALL.single, extra=(traces,),
    )  # fmt: skip


def _glance() -> Section:
    so_far = total(apart({kind(x): _reached(x) for x in TASK_TOKENS}))
    return Section("$task", [
        p.number("Cost so far", f"Of the task from its beginning. {_FAR}", total(_reached(m.TASK_COST_USD)), p.USD, w=6),
        p.number("Cost in the range", "Of what settled in the range.", _ALL.rise(m.TASK_COST_USD), p.USD, w=6),
        p.number("Tokens so far", "Everything that is billed: input, cache reads and writes, output.", so_far, p.TOKENS, w=6),
        p.number("Agents at work", "Who used tokens for the task.", f"count({total(_reached(m.TASK_TOKENS_OUT), 'agent')})", p.COUNT, w=6),
    ])  # fmt: skip


def _cost() -> Section:
    built = p.Line(total(_ALL.select(m.TASK_COST_USD), "agent"), "{{agent}}")
    return Section("Cost", [
        p.lines(
            "Cost build-up", "Cost of the task from its beginning, by agent: the counters as they are.", [built], p.USD, stacked=True, w=10,
        ),
        p.bars(
            "Cost by agent", "Cost of what settled from point to point. Points lead to the traces of the runs, where exemplars are kept.",
            [p.Line(_ALL.rise(m.TASK_COST_USD, "agent", STEP), "{{agent}}")], p.USD, w=7,
        ),
        p.bars(
            "Tokens by kind", "Tokens of what settled from point to point.",
            [p.Line(_ALL.rise(TASK_TOKENS, "kind", STEP), "{{kind}}")], p.TOKENS, w=7,
        ),
    ])  # fmt: skip


def _agents() -> Section:
    columns = [p.Column("Cost so far", total(_reached(m.TASK_COST_USD), "agent"), p.USD)]
    heads = ("Input", "Cache read", "Cache write", "Output")
    columns += [p.Column(head, total(_reached(x), "agent"), p.TOKENS) for head, x in zip(heads, TASK_TOKENS, strict=True)]
    return Section("Agents", [
        p.rows(
            "Agents", f"Who did what for the task, from its beginning. {_FAR}", ["agent"], columns, w=24, h=7, links=links(agent="agent"),
        ),
    ])  # fmt: skip


def _plan() -> Section:
    by = "workflow"
    columns = [
        p.Column(f"{word} {name}", _ALL.gauge(metric, by), unit)
        for name, estimated, actual, unit in _PLANNED
        for word, metric in (("Estimated", estimated), ("Actual", actual))
    ]
    shares = [
        p.Line(share(_ALL.gauge(actual, by), _ALL.gauge(estimated, by)), f"{{{{workflow}}}}: {name}")
        for name, estimated, actual, _ in _PLANNED
    ]
    why = "A plan is chosen by itself: metrics do not tell which task a plan is for. From the ledger, whatever the range."
    return Section("Plan against actual: $plan", [
        p.rows("Plan and actual", f"What each workflow of the plan was to use, and has used. {why}", ["workflow"], columns, w=14, h=8),
        p.meter(
            "Used of the plan", "Actual by estimate: 1 is what was planned.", shares, p.SHARE, w=10, most=1.5,
            steps=((None, p.GREEN), (1, p.ORANGE), (1.1, p.RED)),
        ),
    ])  # fmt: skip


def _traces() -> Section:
    told = ", ".join(f"span.{m.PREFIX}.{x}" for x in ("agent", "cli", "outcome", "cost_usd"))
    query = (
        f'{{ span.{m.PREFIX}.task = "$task" && span.{m.PREFIX}.outcome != nil }} | select({told})'  # only a run's own span has an outcome
    )
    target = (
        tempo.Dataquery().query_type("traceql").query(query).limit(200).table_type(tempo_values.SearchTableType.SPANS)
        .ref_id("A").datasource(p.TEMPO)
    )  # fmt: skip
    panel = (
        table.Panel().title("Runs").datasource(p.TEMPO).span(24).height(10).unit(p.COUNT).with_target(target)
        .description("Each run is one trace. Needs the traces in Tempo; the metrics do not tell single runs.")
    )  # fmt: skip
    return Section("Runs, from traces", [panel], collapsed=True)


def _reached(metric: m.Metric) -> str:
    """What each series stood at last: all from the task's beginning."""
    return f"last_over_time({_ALL.select(metric)}[{RANGE}])"
