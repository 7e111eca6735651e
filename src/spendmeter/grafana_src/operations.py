"""Operations: whether the metering itself is sound."""

from __future__ import annotations

from spendmeter import metrics as m
from spendmeter.grafana_src import parts as p
from spendmeter.grafana_src.board import Board, Section
from spendmeter.grafana_src.promql import RANGE, STEP, Scope, total
from spendmeter.grafana_src.shared import daemons

NAME = "operations"
VARIABLES = ("job", "instance")
_ALL = Scope(VARIABLES)
_EACH = "{{instance}}"


def board() -> Board:
    """The dashboard."""
    return Board(
        NAME, "Operations", "Daemon, ledger, export and prices: whether what the other dashboards show is sound.",
        "now-24h", VARIABLES, [_daemon(), _counted(), _export(), _ledger(), _trust()],
    )  # fmt: skip


def _daemon() -> Section:
    page = p.Line(_ALL.gauge(m.SCRAPE_SECONDS, "instance"), _EACH)
    return Section("Daemon", [
        daemons(_ALL, w=4),
        p.number("Version", "Of the daemon.", _ALL.gauge(m.BUILD_INFO, "version"), p.COUNT, legend="{{version}}", empty="none"),
        p.number("Sessions", "In the ledger.", _ledger_sum(m.LEDGER_SESSIONS), p.COUNT),
        p.number("Calls", "Model calls in the ledger, as far as they are told one by one.", _ledger_sum(m.LEDGER_CALLS), p.COUNT),
        p.number("Ledger size", "Of its database.", _ledger_sum(m.LEDGER_SIZE), p.BYTES),
        p.number("Ledger made", "When the ledger was made: the start of every counter.", f"1000 * {_ALL.gauge(m.LEDGER_CREATED)}", p.AGO),
        p.lines("Time to make the page", "How long the last /metrics page took; Prometheus gives up after its scrape_timeout (10 s).",
                [page], p.SECONDS, h=7),
        p.rows("Last run by agent", "When each agent's last run ended.", ["agent"],
               [p.Column("Last run", f"1000 * {_ALL.gauge(m.LAST_RUN, 'agent')}", p.AGO)], h=7),
    ])  # fmt: skip


def _counted() -> Section:
    fell = " + ".join(total(f"resets({_ALL.select(x)}[{RANGE}])") for x in (m.TOKENS_OUT, m.RUNS))
    return Section("Is everything counted?", [
        p.number("Skipped", "Lines and files of the range that could not be used.", _ALL.rise(m.SKIPPED), p.COUNT,
                 steps=p.ANY_IS_ODD, empty="0"),
        p.number("Tokens without a price", "Of the range; their cost is unknown, not 0.", _ALL.rise(m.UNPRICED_TOKENS), p.TOKENS,
                 steps=p.ANY_IS_ODD, empty="0"),
        p.number("Unsettled sessions", "Their usage is in the ledger and not yet in the counters.",
                 _ledger_sum(m.LEDGER_UNSETTLED), p.COUNT),
        p.number("Counters fell", "In the range. Ours never fall: if they did, the ledger was replaced, and totals over it are off.",
                 fell, p.COUNT, steps=p.ANY_IS_BAD, empty="0"),
        p.number("Task series in overflow", 'Added up under task="__overflow__", as max_tasks is reached.', _ledger_sum(m.TASK_OVERFLOW),
                 p.COUNT, steps=p.ANY_IS_ODD),
        p.number("Notices pending", "Budget notices that wait to be delivered.", _ledger_sum(m.NOTICES_PENDING), p.COUNT,
                 steps=p.ANY_IS_ODD),
        p.bars("Skipped by reason", "A kill cuts a line now and then; a CLI whose format changed brings one with every call.",
               [p.Line(_ALL.rise(m.SKIPPED, "source, reason", STEP), "{{source}}: {{reason}}")], p.COUNT, w=8, h=8),
        p.bars("Tokens without a price by model", "Give such a model a price in the override file.",
               [p.Line(_ALL.rise(m.UNPRICED_TOKENS, "model", STEP), "{{model}}")], p.TOKENS, w=8, h=8),
        p.lines("Unsettled sessions over time", "They settle within a minute; that they stay means that the ledger cannot be written.",
                [p.Line(_ALL.gauge(m.LEDGER_UNSETTLED, "instance"), _EACH)], p.COUNT, w=8, h=8),
    ])  # fmt: skip


def _export() -> Section:
    return Section("OTLP export", [
        p.lines("Waiting in the spool", "Spans and events that are not sent yet. Nothing is lost: they wait in the ledger.",
                [p.Line(_ALL.gauge(m.EXPORT_PENDING, "instance, signal"), "{{signal}} {{instance}}")], p.COUNT, w=8, h=8),
        p.lines("Failures in a row", "Exports that failed since the last one that did not.",
                [p.Line(_ALL.gauge(m.EXPORT_FAILURES, "instance, signal"), "{{signal}} {{instance}}")], p.COUNT, w=8, h=8),
        p.rows("Last success", "When an OTLP endpoint last took data.", ["signal", "instance"],
               [p.Column("Last success", f"1000 * {_ALL.gauge(m.EXPORT_LAST_SUCCESS, 'signal, instance')}", p.AGO)], w=8, h=8),
    ])  # fmt: skip


def _ledger() -> Section:
    return Section("Ledger", [
        p.lines("Size", "Of the ledger's database.", [p.Line(_ALL.gauge(m.LEDGER_SIZE, "instance"), _EACH)], p.BYTES, w=8, h=8),
        p.lines("Pending debit", "What a counter stands above its ledger total since that was corrected; taken from its next increases.",
                [p.Line(_ALL.gauge(m.PENDING_DEBIT, "metric"), "{{metric}}")], p.COUNT, w=8, h=8),
        p.lines("Notices and pruned plans", "Budget notices that wait; plan snapshots dropped because newer ones took their place.",
                [p.Line(_ALL.gauge(m.NOTICES_PENDING, "instance"), "notices {{instance}}"),
                 p.Line(_ALL.gauge(m.PLANS_PRUNED, "instance"), "pruned plans {{instance}}")], p.COUNT, w=8, h=8),
    ])  # fmt: skip


def _trust() -> Section:
    drift = p.Line(_ALL.gauge(m.COST_DRIFT, "cli"), "{{cli}}")
    return Section("Prices", [
        p.lines("Cost drift", "Cost told by the CLI by cost at list price, over the last day: 1 is the same. Off by more than 0.02: "
                "a price has changed, or a discount is not known here.", [drift], p.TIMES, w=24, h=8),
    ])  # fmt: skip


def _ledger_sum(metric: m.Metric) -> str:
    """Over ledgers: each instance shows one."""
    return total(_ALL.gauge(metric, "instance"))
