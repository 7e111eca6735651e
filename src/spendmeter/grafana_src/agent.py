"""Agent: one role, all it does."""

from __future__ import annotations

from spendmeter import metrics as m
from spendmeter.grafana_src import parts as p
from spendmeter.grafana_src.board import Board, Section, links
from spendmeter.grafana_src.promql import INPUT, STEP, TASK_TOKENS, TOKENS, Scope, share
from spendmeter.grafana_src.shared import failures, outcomes

NAME = "agent"
VARIABLES = ("agent", "cli", "model", "job", "instance")
_ALL = Scope(VARIABLES, single=("agent",))
_RUNS = _ALL.without("model")
_SLOW = "10m"  # where a point wants more than one run


def board() -> Board:
    """The dashboard."""
    return Board(
        NAME, "Agent", "One agent: cost, tokens, runs, durations, models and tasks.", "now-7d", VARIABLES,
        [_glance(), _cost(), _tokens(), _runs(), _split()], single=_ALL.single,
    )  # fmt: skip


def _glance() -> Section:
    runs = _ALL.rise(m.RUNS)
    return Section("$agent", [
        p.number("Cost", "Of what settled in the range: exact, the counter's end less its start.", _ALL.rise(m.COST_USD), p.USD),
        p.number("Runs", "Finished in the range.", runs, p.COUNT, empty="0"),
        p.number("Cost per run", "Cost by runs, both of the range. All models count.", share(_RUNS.rise(m.COST_USD), runs), p.USD),
        failures(_ALL, w=4),
        p.number(
            "Cache read share", "Of all input tokens, those that came from the prompt cache.",
            share(_ALL.rise(m.CACHE_READ), _ALL.rise(INPUT)), p.SHARE,
        ),
        p.number("Last run", "When the agent's last run ended, whatever the range.", f"1000 * {_ALL.gauge(m.LAST_RUN)}", p.AGO),
    ])  # fmt: skip


def _cost() -> Section:
    return Section("Cost", [
        p.bars("Cost by model", "What settled from point to point.", [p.Line(_ALL.rise(m.COST_USD, "model", STEP), "{{model}}")], p.USD),
        p.bars(
            "Cost by source", "reported: the CLI's own figure. estimated: tokens at list price. Tokens without a price cost nothing here.",
            [p.Line(_ALL.rise(m.COST_USD, "cost_source", STEP), "{{cost_source}}")], p.USD, w=6,
        ),
        p.lines(
            "Cost per run over time", "From point to point, in which a run ended. All models count.",
            [p.Line(share(_RUNS.rise(m.COST_USD, over=STEP), _ALL.rise(m.RUNS, over=STEP)), "cost per run")], p.USD, w=6, step=_SLOW,
        ),
    ])  # fmt: skip


def _tokens() -> Section:
    cached = share(_ALL.rise(m.CACHE_READ, over=STEP), _ALL.rise(INPUT, over=STEP))
    reasoning = share(_ALL.rise(m.REASONING, over=STEP), _ALL.rise(m.TOKENS_OUT, over=STEP))
    per_run = share(_RUNS.rise(TOKENS, over=STEP), _ALL.rise(m.RUNS, over=STEP))
    return Section("Tokens", [
        p.bars(
            "Tokens by kind", "tokens in: uncached input. cache write: by how long it is kept. tokens out: all output.",
            [p.Line(_ALL.rise(TOKENS, "kind, ttl", STEP), "{{kind}} {{ttl}}")], p.TOKENS, w=8,
        ),
        p.lines(
            "Reasoning and cache read share", "Reasoning of all output; cache reads of all input.",
            [p.Line(cached, "cache reads"), p.Line(reasoning, "reasoning")], p.SHARE, w=8, most=1,
        ),
        p.lines(
            "Tokens per run", "From point to point, in which a run ended. All models count.", [p.Line(per_run, "tokens per run")],
            p.TOKENS, w=8, step=_SLOW,
        ),
    ])  # fmt: skip


def _runs() -> Section:
    buckets = _ALL.rise(m.RUN_DURATION, "le", STEP, "_bucket")
    return Section("Runs", [
        outcomes(_ALL, w=8),
        p.lines(
            "Duration quantiles", "Wall time within which half, nine tenths and nearly all runs ended, as well as the buckets tell.",
            [p.Line(_ALL.quantile(q, STEP), f"{q:.0%} are quicker") for q in (0.5, 0.9, 0.99)], p.SECONDS, w=8, step=_SLOW,
        ),
        p.spread("Durations", "How many runs took up to how many seconds, from point to point.", buckets),
    ])  # fmt: skip


def _split() -> Section:
    models = [
        p.Column("Cost", _ALL.rise(m.COST_USD, "model"), p.USD),
        p.Column("Input", _ALL.rise(m.TOKENS_IN, "model"), p.TOKENS),
        p.Column("Cache read", _ALL.rise(m.CACHE_READ, "model"), p.TOKENS),
        p.Column("Cache write", _ALL.rise(m.CACHE_WRITE, "model"), p.TOKENS),
        p.Column("Output", _ALL.rise(m.TOKENS_OUT, "model"), p.TOKENS),
    ]
    tasks = [p.Column("Cost", _ALL.rise(m.TASK_COST_USD, "task"), p.USD), p.Column("Tokens", _ALL.rise(TASK_TOKENS, "task"), p.TOKENS)]
    return Section("Models and tasks", [
        p.rows("Models", "What each model was given and gave in the range.", ["model"], models),
        p.rows(
            "Tasks", "What the agent did in the range, by task. The filters by CLI and model do not apply.", ["task"], tasks,
            links=links(task="task"),
        ),
    ])  # fmt: skip
