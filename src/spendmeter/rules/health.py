"""Alerts about the metering itself: without it no budget can be trusted."""

from __future__ import annotations

from spendmeter import metrics as m
from spendmeter.rules.promql import MakeAlert, Rule, highest, series

DOWN = "SpendmeterDown"
EXPORT_FAILING, EXPORT_BACKLOG = "SpendmeterExportFailing", "SpendmeterExportBacklog"
SKIPS_PER_HOUR = 5  # a kill cuts a line now and then; a CLI whose format changed brings one with every call
DRIFT = 0.02
BACKLOG = 100  # spans and events that may wait
OVERRUN = 1.1
PUSHED_S = 300  # since the last push; the default is one a minute
_TARGET = "job, instance"


def rules(make: MakeAlert) -> list[Rule]:
    """The group's rules, in the order of urgency; *make* is ``promql.alert`` with its runbook page."""
    return [*_silent(make), *_unsure(make), *_stuck(make), _overrun(make)]


def _silent(make: MakeAlert) -> list[Rule]:
    seen = series(m.BUILD_INFO)
    # A Collector goes on showing what it was last sent. What was pushed has no up of its own job and instance, and says when it was sent.
    pushed = f"{series(m.EXPORT_LAST_SUCCESS, signal='metrics')} unless on ({_TARGET}) up"
    return [
        make(
            DOWN, f"absent({seen})\nor time() - max({pushed}) > {PUSHED_S}", for_="5m", severity="critical",
            summary="No data from Spendmeter",
            description="No daemon has shown or sent any metric for 5 minutes: nothing is known of spending, and no budget alert can fire.",
        ),
        make(
            "SpendmeterTargetDown", f"up == 0 and on ({_TARGET}) last_over_time({seen}[1d])\n"
            f"or time() - max by ({_TARGET}) ({pushed}) > {PUSHED_S}", for_="5m", severity="warning",
            summary="Nothing comes from the Spendmeter daemon {{ $labels.instance }}",
            description="It was there within the last day. What its ledger takes in meanwhile is counted once it is back.",
        ),
    ]  # fmt: skip


def _unsure(make: MakeAlert) -> list[Rule]:
    drift = f"abs({series(m.COST_DRIFT)} - 1)"
    return [
        make(
            "SpendmeterUnpricedModel", f"{highest('model', f'increase({series(m.UNPRICED_TOKENS)}[1h])')} > 0",
            for_="1m", severity="warning",
            summary="No price is known for model {{ $labels.model }}",
            description="{{ $value | humanize }} tokens in the last hour have no cost, so budgets in US dollars do not see them.",
        ),
        make(
            "SpendmeterSkips", f"{highest('source, reason', f'increase({series(m.SKIPPED)}[1h])')} > {SKIPS_PER_HOUR}",
            for_="5m", severity="warning",
            summary="What CLIs wrote is not understood: {{ $labels.reason }} ({{ $labels.source }})",
            description='{{ $value | printf "%.0f" }} lines or files in the last hour could not be used; usage may be missing.',
        ),
        make(
            "SpendmeterCostDrift", f"{highest('cli', drift)} > {DRIFT}", for_="1h", severity="warning",
            summary="The costs that {{ $labels.cli }} tells are not the list price",
            description="Over the last day they differ by {{ $value | humanizePercentage }}: "
            "a price has changed, or a discount is not known here.",
        ),
    ]  # fmt: skip


def _stuck(make: MakeAlert) -> list[Rule]:
    # Sessions that wait are normal on a busy host; that they wait and no counter moves for half an hour is not.
    moved = " or ".join(f"sum by ({_TARGET}) (increase({series(x)}[30m])) > 0" for x in (m.TOKENS_OUT, m.RUNS))
    unsettled = f"min_over_time({series(m.LEDGER_UNSETTLED)}[30m]) > 0\nunless on ({_TARGET}) ({moved})"
    pending = series(m.EXPORT_PENDING)
    growing = f"{highest('signal', f'delta({pending}[30m])')} > 0\nand {highest('signal', f'min_over_time({pending}[30m])')} > {BACKLOG}"
    return [
        make(
            "SpendmeterNotSettling", unsettled, for_="15m", severity="warning",
            summary="The ledger at {{ $labels.instance }} does not settle",
            description='{{ $value | printf "%.0f" }} sessions have waited for over half an hour, and no counter has moved. '
            "Reports and budgets are right; counters lag behind.",
        ),
        make(
            EXPORT_FAILING, f"{highest('signal', series(m.EXPORT_FAILURES))} > 0", for_="15m", severity="warning",
            summary="OTLP export of {{ $labels.signal }} fails",
            description='{{ $value | printf "%.0f" }} exports in a row have failed. '
            "Nothing is lost: the ledger keeps what has not been sent.",
        ),
        make(
            EXPORT_BACKLOG, growing, for_="15m", severity="warning",
            summary="The spool of {{ $labels.signal }} grows",
            description="{{ $value | humanize }} more wait than half an hour ago: the endpoint is slower than the runs are.",
        ),
        make(
            "SpendmeterNoticesPending", f"max(min_over_time({series(m.NOTICES_PENDING)}[15m])) > 0", for_="15m", severity="warning",
            summary="Budget notices are not delivered",
            description='{{ $value | printf "%.0f" }} notices have waited for over 15 minutes: a webhook or a command fails.',
        ),
    ]  # fmt: skip


def _overrun(make: MakeAlert) -> Rule:
    by = "plan, workflow"
    actual, estimated = highest(by, series(m.PLAN_ACTUAL_COST_USD)), highest(by, series(m.PLAN_ESTIMATED_COST_USD))
    return make(
        "SpendmeterPlanOverrun", f"{actual} / {estimated} > {OVERRUN}", for_="5m", severity="warning",
        summary="Plan {{ $labels.plan }} costs more than was planned",
        description="Workflow {{ $labels.workflow }} has used {{ $value | humanizePercentage }} of its estimate.",
    )  # fmt: skip
