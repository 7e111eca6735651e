"""Every metric once: name, kind, unit, help, labels. Exporters, dashboards, rules and docs derive from here."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "spendmeter"
BASE = ("agent", "cli", "model")
OVERFLOW = "__overflow__"
DURATION_BUCKETS_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. ``source`` is the Usage field (or ledger sum) that a durable counter adds up, "" for others."""

    name: str  # OTel name
    kind: str  # counter | gauge | histogram
    unit: str  # UCUM, as OTel writes it
    help: str
    labels: tuple[str, ...]
    source: str = ""

    @property
    def prometheus(self) -> str:
        """The family's Prometheus name, without the ``_total`` of a counter's samples."""
        base = self.name.replace(".", "_")
        return f"{base}_seconds" if self.unit == "s" and not base.endswith("_seconds") else base

    @property
    def sample(self) -> str:
        """The name of the family's samples (of a histogram: its stem)."""
        return f"{self.prometheus}_total" if self.kind == "counter" else self.prometheus

    @property
    def money(self) -> bool:
        """Whether the ledger keeps it in nano-USD."""
        return self.unit == "{USD}"


def _counter(name: str, unit: str, text: str, labels: tuple[str, ...], source: str) -> Metric:
    return Metric(f"{PREFIX}.{name}", "counter", unit, text, labels, source)


TOKENS_IN = _counter("tokens_in", "{token}", "Uncached input tokens.", BASE, "tokens_in")
TOKENS_OUT = _counter("tokens_out", "{token}", "Output tokens, reasoning included.", BASE, "tokens_out")
CACHE_READ = _counter("cache_read", "{token}", "Input tokens read from the prompt cache.", BASE, "cache_read")
CACHE_WRITE = _counter("cache_write", "{token}", "Input tokens written to the prompt cache.", (*BASE, "ttl"), "cache_write")
REASONING = _counter("reasoning", "{token}", "The part of the output tokens that is reasoning.", BASE, "reasoning")
COST_USD = _counter("cost_usd", "{USD}", "Cost in US dollars, by where the figure comes from.", (*BASE, "cost_source"), "cost")
RUNS = _counter("runs", "{run}", "Finished runs by outcome.", ("agent", "cli", "outcome"), "runs")
TASK_TOKENS_IN = _counter("task.tokens_in", "{token}", "Uncached input tokens by task.", ("agent", "task"), "tokens_in")
TASK_TOKENS_OUT = _counter("task.tokens_out", "{token}", "Output tokens by task.", ("agent", "task"), "tokens_out")
TASK_CACHE_READ = _counter("task.cache_read", "{token}", "Cache-read tokens by task.", ("agent", "task"), "cache_read")
TASK_CACHE_WRITE = _counter("task.cache_write", "{token}", "Cache-write tokens by task.", ("agent", "task"), "cache_write")
TASK_COST_USD = _counter("task.cost_usd", "{USD}", "Cost in US dollars by task.", ("agent", "task"), "cost")
UNPRICED_TOKENS = _counter("unpriced_tokens", "{token}", "Tokens of models that no price table knows.", ("model",), "unpriced_tokens")
SKIPPED = _counter("skipped", "{item}", "Lines and files that could not be used.", ("source", "reason"), "skipped")
RUN_DURATION = Metric(f"{PREFIX}.run.duration", "histogram", "s", "Wall time of finished runs.", ("agent", "cli"), "duration")


def _gauge(name: str, unit: str, text: str, labels: tuple[str, ...] = ()) -> Metric:
    return Metric(f"{PREFIX}.{name}", "gauge", unit, text, labels)


PENDING_DEBIT = _gauge(
    "pending_debit", "{debit}", "What a counter stands above its ledger total, to be taken from its next increases.", ("metric",)
)
TASK_OVERFLOW = _gauge("task_overflow_series", "{series}", 'Task series added up under task="__overflow__".')
COST_DRIFT = _gauge("cost_drift_ratio", "1", "Cost told by the CLI over cost at list price.", ("cli",))
LAST_RUN = _gauge("last_run_timestamp_seconds", "s", "End of the agent's last run.", ("agent",))
LEDGER_SESSIONS = _gauge("ledger_sessions", "{session}", "Sessions in the ledger.")
LEDGER_CALLS = _gauge("ledger_calls", "{call}", "Model calls in the ledger.")
LEDGER_UNSETTLED = _gauge("ledger_unsettled_sessions", "{session}", "Sessions whose usage is not yet in the counters.")
LEDGER_SIZE = _gauge("ledger_size_bytes", "By", "Size of the ledger's database.")
LEDGER_CREATED = _gauge("ledger_created_timestamp_seconds", "s", "When the ledger was made: the start of every counter.")
EXPORT_PENDING = _gauge("export_pending", "{item}", "Spans and events waiting in the spool.", ("signal",))
EXPORT_LAST_SUCCESS = _gauge("export_last_success_timestamp_seconds", "s", "When an OTLP endpoint last took data.", ("signal",))
EXPORT_FAILURES = _gauge("export_consecutive_failures", "{failure}", "OTLP exports that failed since the last success.", ("signal",))


def _budget(name: str, text: str, labels: tuple[str, ...] = ("budget",)) -> dict[str, Metric]:
    """The gauge for budgets in US dollars, in tokens and in runs: by what the budget limits."""
    units = {"usd": "{USD}", "tokens": "{token}", "runs": "{run}"}
    return {limits: _gauge(f"budget.{name}_{limits}", unit, text, labels) for limits, unit in units.items()}


BUDGET_LIMIT = _budget("limit", "What the budget allows in one period.")
BUDGET_SPENT = _budget("spent", "Spent in the current period; of a budget per task or agent, by the one that spent most.")
BUDGET_REMAINING = _budget("remaining", "Limit less spent, below 0 where it is overspent.")
BUDGET_RESERVED = _budget("reserved", "Set aside for runs that are under way.")
BUDGET_FORECAST = _budget("forecast", "What will be spent at the period's end if it goes on as lately.")
BUDGET_WINDOW_SPENT = _budget("window_spent", "Spent in the window that ends now.", ("budget", "window"))
_BUDGETS = (BUDGET_LIMIT, BUDGET_SPENT, BUDGET_REMAINING, BUDGET_RESERVED, BUDGET_FORECAST, BUDGET_WINDOW_SPENT)
BUDGET_OVER = _gauge(
    "budget.over", "{limit}", "Limits of the budget that are used up: 0 or 1, or a number of tasks or agents.", ("budget",)
)
BUDGET_UNPRICED = _gauge("budget.unpriced_tokens", "{token}", "Tokens in the current period whose cost nobody knows.", ("budget",))
BUDGET_PERIOD_START = _gauge("budget.period_start_timestamp_seconds", "s", "When the current period began.", ("budget",))
BUDGET_PERIOD = _gauge("budget.period_seconds", "s", "Length of the current period.", ("budget",))
NOTICES_PENDING = _gauge("notices_pending", "{notice}", "Budget notices that wait to be delivered.")
_PLAN = ("plan", "workflow")
PLAN_ESTIMATED_COST_USD = _gauge("plan.estimated_cost_usd", "{USD}", "What the plan's workflow was to cost.", _PLAN)
PLAN_ESTIMATED_TOKENS = _gauge("plan.estimated_tokens", "{token}", "Tokens that the plan's workflow was to use.", _PLAN)
PLAN_ESTIMATED_CALLS = _gauge("plan.estimated_calls", "{call}", "Model calls that the plan's workflow was to make.", _PLAN)
PLAN_ACTUAL_COST_USD = _gauge("plan.actual_cost_usd", "{USD}", "What the runs that name the plan's workflow have cost.", _PLAN)
PLAN_ACTUAL_TOKENS = _gauge("plan.actual_tokens", "{token}", "Tokens that they have used.", _PLAN)
PLAN_ACTUAL_CALLS = _gauge("plan.actual_calls", "{call}", "Model calls that they have made.", _PLAN)
PLANS_PRUNED = _gauge("plans_pruned", "{snapshot}", "Plan snapshots that were dropped because newer ones took their place.")

SCRAPE_SECONDS = _gauge("scrape_duration_seconds", "s", "How long the last /metrics page took to make.")
BUILD_INFO = _gauge("build_info", "{info}", "Always 1; the version is a label.", ("version",))

DURABLE = (
    TOKENS_IN, TOKENS_OUT, CACHE_READ, CACHE_WRITE, REASONING, COST_USD, RUNS,
    TASK_TOKENS_IN, TASK_TOKENS_OUT, TASK_CACHE_READ, TASK_CACHE_WRITE, TASK_COST_USD, UNPRICED_TOKENS, SKIPPED, RUN_DURATION,
)  # fmt: skip
GAUGES = (
    PENDING_DEBIT, TASK_OVERFLOW, COST_DRIFT, LAST_RUN, LEDGER_SESSIONS, LEDGER_CALLS, LEDGER_UNSETTLED, LEDGER_SIZE,
    LEDGER_CREATED, EXPORT_PENDING, EXPORT_LAST_SUCCESS, EXPORT_FAILURES,
    *(x for family in _BUDGETS for x in family.values()), BUDGET_OVER, BUDGET_UNPRICED, BUDGET_PERIOD_START, BUDGET_PERIOD, NOTICES_PENDING,
    PLAN_ESTIMATED_COST_USD, PLAN_ESTIMATED_TOKENS, PLAN_ESTIMATED_CALLS, PLAN_ACTUAL_COST_USD, PLAN_ACTUAL_TOKENS, PLAN_ACTUAL_CALLS,
    PLANS_PRUNED, SCRAPE_SECONDS, BUILD_INFO,
)  # fmt: skip
ALL = {m.name: m for m in (*DURABLE, *GAUGES)}
