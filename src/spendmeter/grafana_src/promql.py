"""The dashboards' queries. Amounts are exact: what a counter has at the end of a time less what it had at its start.

``increase()`` spreads what it saw over the whole time, which misses by one scrape in every series' life: much, for a series of
one short run. Ours are zero first and never fall, so a difference says it exactly, and the parts of a time add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from spendmeter import metrics as m
from spendmeter.rules.promql import highest

RANGE, STEP = "$__range", "$__interval"  # of the dashboard, or the panel's own; from point to point of a graph
# How far back a start is looked for where the daemon was silent just then. A graph does so at every point: that must cost little.
LOOKBACK = {RANGE: "1d", STEP: "1h"}
INPUT = (m.TOKENS_IN, m.CACHE_READ, m.CACHE_WRITE)
TOKENS = (*INPUT, m.TOKENS_OUT)
TASK_TOKENS = (m.TASK_TOKENS_IN, m.TASK_CACHE_READ, m.TASK_CACHE_WRITE, m.TASK_TOKENS_OUT)
PLANS = (  # each as (estimated, actual); a plan need not estimate all of them
    (m.PLAN_ESTIMATED_COST_USD, m.PLAN_ACTUAL_COST_USD),
    (m.PLAN_ESTIMATED_TOKENS, m.PLAN_ACTUAL_TOKENS),
    (m.PLAN_ESTIMATED_CALLS, m.PLAN_ACTUAL_CALLS),
)
TARGET = ("job", "instance")  # labels that Prometheus adds: which daemon it was


@dataclass(frozen=True, slots=True)
class Scope:
    """The queries of a dashboard: every selector is narrowed by those of its *variables* that the metric has as labels.

    Of those in ``single`` one value is chosen. Grafana escapes it for a text, not for a pattern as it does several.
    """

    variables: tuple[str, ...]
    single: tuple[str, ...] = ()

    def without(self, variable: str) -> Scope:
        """The same where *variable* does not apply: runs, for one, are not told apart by model, nor is what is shared out over them."""
        return replace(self, variables=tuple(x for x in self.variables if x != variable))

    def select(self, metric: m.Metric, suffix: str = "", **labels: str) -> str:
        """A selector; *labels* are matchers of its own, operator first: ``outcome='="ok"'``."""
        mine = {x: f'{"=" if x in self.single else "=~"}"${x}"' for x in self.variables if x in (*metric.labels, *TARGET)}
        return f"{metric.sample}{suffix}{{{', '.join(f'{k}{v}' for k, v in (mine | labels).items())}}}"

    def grown(self, metrics: m.Metric | tuple[m.Metric, ...], over: str = RANGE, suffix: str = "", **labels: str) -> str:
        """What each series has grown by; with several *metrics*, each with its name as the label ``kind``."""
        if isinstance(metrics, m.Metric):
            return _grown(self.select(metrics, suffix, **labels), over)
        return apart({kind(x): self.grown(x, over, suffix, **labels) for x in metrics})

    def rise(self, metrics: m.Metric | tuple[m.Metric, ...], by: str = "", over: str = RANGE, suffix: str = "", **labels: str) -> str:
        """What they have grown by, added up."""
        return total(self.grown(metrics, over, suffix, **labels), by)

    def gauge(self, metric: m.Metric, by: str = "", **labels: str) -> str:
        """A gauge, one value for each *by*."""
        return highest(by, self.select(metric, **labels))

    def quantile(self, q: float, over: str = RANGE) -> str:
        """Of the durations of runs, in seconds."""
        return f"histogram_quantile({q}, {self.rise(m.RUN_DURATION, 'le', over, '_bucket')})"


def _grown(series: str, over: str) -> str:
    start = f"(last_over_time({series}[{LOOKBACK[over]}] offset {over}) or min_over_time({series}[{over}]))"
    return f"(max_over_time({series}[{over}]) - {start})"


def alerts(state: str) -> str:
    """Spendmeter's own that are ``pending`` or ``firing``, as Prometheus keeps them."""
    return f'ALERTS{{alertname=~"{m.PREFIX.capitalize()}.+", alertstate="{state}"}}'


def apart(exprs: Mapping[str, str]) -> str:
    """All of them, told apart by the label ``kind``: series of different metrics would hide each other, their names do not count."""
    return either(*(f'label_replace({expr}, "kind", "{name}", "", "")' for name, expr in exprs.items()))


def kind(metric: m.Metric) -> str:
    """What a metric counts, as graphs name it: ``cache read``."""
    return metric.name.rpartition(".")[2].replace("_", " ")


def total(expr: str, by: str = "") -> str:
    """A sum."""
    return f"sum by ({by}) ({expr})"


def share(part: str, whole: str, join: str = "") -> str:
    """A quotient that has no value where *whole* is nothing. *join*: how the two are matched."""
    return f"{part}\n/{join} ({whole} > 0)"


def either(*exprs: str) -> str:
    """The first that has a value, for each label set."""
    return "\nor ".join(exprs)


def not_ok(scope: Scope) -> str:
    """Share of the finished runs that ended as anything but ok; a scope in which none failed has no series of them."""
    bad = zero(scope.rise(m.RUNS, outcome='!="ok"'))
    return share(f"({bad})", scope.rise(m.RUNS))


def zero(expr: str) -> str:
    """0 where there is no series: nothing of the kind has happened yet."""
    return f"{expr} or vector(0)"
