"""Cache & efficiency: what the prompt cache does, and what a result costs."""

from __future__ import annotations

from spendmeter import metrics as m
from spendmeter.grafana_src import parts as p
from spendmeter.grafana_src.board import Board, Section, links
from spendmeter.grafana_src.promql import INPUT, RANGE, STEP, Scope, apart, share, total
from spendmeter.grafana_src.sdk import dashboard, model

NAME = "cache"
VARIABLES = ("agent", "cli", "model", "job", "instance")
_ALL = Scope(VARIABLES)
_RUNS = _ALL.without("model")
# What a token costs by a token of uncached input, at the list prices of Claude models; a test compares them with the price table.
WEIGHTS = {"read_weight": "0.1", "write_5m_weight": "1.25", "write_1h_weight": "2"}
_NOTE = """**US dollars saved cannot be told from metrics**: prices are not metrics, nor is what would have been sent without a cache.

What can be told is the weight of the input: each token counted as many times as it costs by a token of uncached input
(*reads* ×$read_weight, *5 minute writes* ×$write_5m_weight, *1 hour writes* ×$write_1h_weight: Claude's list prices; change them above
for other models). **Saved** = 1 − weighed input / the same tokens all uncached. Below 0: writing has cost more than reading has brought."""


def board() -> Board:
    """The dashboard."""
    weights = [
        dashboard.TextBoxVariable(name).label(name.replace("_", " ").capitalize()).default_value(value)
        .current(model.VariableOption(text=value, value=value))
        .description("What such a token costs by a token of uncached input.")
        for name, value in WEIGHTS.items()
    ]  # fmt: skip
    return Board(
        NAME, "Cache & efficiency", "How much of the input comes from the prompt cache, what it brings, and what a successful run costs.",
        "now-7d", VARIABLES, [_glance(), _reads(), _writes(), _efficiency()], extra=tuple(weights),
    )  # fmt: skip


def _glance() -> Section:
    written = _ALL.rise(m.CACHE_WRITE)
    return Section("At a glance", [
        p.number("Cache read share", "Of all input tokens, those that came from the prompt cache.", _read_share(), p.SHARE),
        p.number("Read", "Input tokens that came from the cache.", _ALL.rise(m.CACHE_READ), p.TOKENS),
        p.number("Written", "Input tokens that were written to the cache.", written, p.TOKENS),
        p.number("Reads per write", "How often a written token was read. A 5 minute write pays from the first read on.",
                 share(_ALL.rise(m.CACHE_READ), written), p.TIMES),
        p.number("Saved by caching", "By weight, as explained below: of what the same input would cost without a cache.", _saved(), p.SHARE,
                 steps=((None, p.RED), (0, p.YELLOW), (0.5, p.GREEN))),
        p.number("Cost per successful run", "All cost of the range by the runs that ended ok: failures are paid for by successes.",
                 share(_RUNS.rise(m.COST_USD), _RUNS.rise(m.RUNS, outcome='="ok"')), p.USD),
    ])  # fmt: skip


def _reads() -> Section:
    return Section("Reads", [
        p.lines("Cache read share by model", "Of all input tokens from point to point.", [p.Line(_read_share("model", STEP), "{{model}}")],
                p.SHARE, w=8, most=1),
        p.lines("Cache read share by agent", "Of all input tokens from point to point.", [p.Line(_read_share("agent", STEP), "{{agent}}")],
                p.SHARE, w=8, most=1),
        p.bars("Input by kind", "Uncached, read and written, from point to point.",
               [p.Line(_ALL.rise(INPUT, "kind", STEP), "{{kind}}")], p.TOKENS, w=8),
    ])  # fmt: skip


def _writes() -> Section:
    written = share(_RUNS.rise(m.CACHE_WRITE, "agent", STEP), _RUNS.rise(m.RUNS, "agent", STEP))
    columns = [
        p.Column("Input", _ALL.rise(m.TOKENS_IN, "model"), p.TOKENS),
        p.Column("Read", _ALL.rise(m.CACHE_READ, "model"), p.TOKENS),
        p.Column("Written for 5m", _ALL.rise(m.CACHE_WRITE, "model", ttl='="5m"'), p.TOKENS),
        p.Column("Written for 1h", _ALL.rise(m.CACHE_WRITE, "model", ttl='="1h"'), p.TOKENS),
        p.Column("Reads per write", share(_ALL.rise(m.CACHE_READ, "model"), _ALL.rise(m.CACHE_WRITE, "model")), p.TIMES),
        p.Column("Read share", _read_share("model"), p.SHARE, ((None, p.BLUE),)),
    ]
    return Section("Writes", [
        p.bars("Writes by lifetime", "Tokens written to be kept for 5 minutes or for 1 hour, which costs more.",
               [p.Line(_ALL.rise(m.CACHE_WRITE, "ttl", STEP), "{{ttl}}")], p.TOKENS, w=8),
        p.lines("Cold start: written per run", "A run that begins cold writes its whole prompt; one that is resumed in time reads it.",
                [p.Line(written, "{{agent}}")], p.TOKENS, w=8, step="10m"),
        p.note("What caching saved", "What can be told of it, and what not.", _NOTE, w=8, h=9),
        p.rows("Models", "What the cache did for each model in the range.", ["model"], columns, w=24, h=7),
    ])  # fmt: skip


def _efficiency() -> Section:
    ok = _RUNS.rise(m.RUNS, "agent", outcome='="ok"')
    columns = [
        p.Column("Cost per successful run", share(_RUNS.rise(m.COST_USD, "agent"), ok), p.USD),
        p.Column("Ok", ok, p.COUNT),
        p.Column("Not ok", _RUNS.rise(m.RUNS, "agent", outcome='!="ok"'), p.COUNT),
        p.Column("Output per US dollar", share(_RUNS.rise(m.TOKENS_OUT, "agent"), _RUNS.rise(m.COST_USD, "agent")), p.TOKENS),
        p.Column("Reasoning share", share(_RUNS.rise(m.REASONING, "agent"), _RUNS.rise(m.TOKENS_OUT, "agent")), p.SHARE, ((None, p.BLUE),)),
    ]
    over_time = share(_RUNS.rise(m.COST_USD, "agent", STEP), _RUNS.rise(m.RUNS, "agent", STEP, outcome='="ok"'))
    return Section("Efficiency", [
        p.rows("Agents", "What a result costs, by agent. Runs are not told apart by model: that filter does not apply.", ["agent"], columns,
               w=14, links=links(agent="agent")),
        p.lines("Cost per successful run over time", "From point to point, in which a run ended ok.", [p.Line(over_time, "{{agent}}")],
                p.USD, w=10, step="10m"),
    ])  # fmt: skip


def _read_share(by: str = "", over: str = RANGE) -> str:
    return share(_ALL.rise(m.CACHE_READ, by, over), _ALL.rise(INPUT, by, over))


def _saved() -> str:
    """1 less the weighed input by the input."""
    weighed = {"in": _ALL.grown(m.TOKENS_IN), "read": f"{_ALL.grown(m.CACHE_READ)} * $read_weight"}
    for ttl in ("5m", "1h"):
        grown = _ALL.grown(m.CACHE_WRITE, ttl=f'="{ttl}"')
        weighed[ttl] = f"{grown} * $write_{ttl}_weight"
    return f"1 - {share(total(apart(weighed)), _ALL.rise(INPUT))}"
