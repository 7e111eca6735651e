"""Comments for issue trackers: one line when a run has finished, Markdown when a task has."""

from __future__ import annotations

from collections.abc import Sequence

from spendmeter.ledger.query import Amounts, RunLine, TaskTotals
from spendmeter.plans.variance import Variance
from spendmeter.projections import plan_texts
from spendmeter.projections.messages import Messages
from spendmeter.projections.plan_texts import one_line

ICONS = {
    "ok": "✅", "error": "❌", "max_budget": "💸", "max_turns": "🔁", "interrupted": "✋", "killed": "🛑", "unknown": "⚪",
}  # fmt: skip


def finish_line(run: RunLine, m: Messages) -> str:
    """``✅ Developer done · 45.2k in / 12.1k out · $0.21``, and `` · 60.1k cached`` where there was cache.

    "in" is uncached input, as everywhere in spendmeter; "cached" is cache reads and writes.
    """
    a = run.amounts
    cached = m.text("run.cached", n=m.compact(a.cached)) if a.cached else ""
    return m.text(
        "run.line", icon=ICONS.get(run.outcome, ICONS["unknown"]), agent=_agent(run.agent, m), outcome=one_line(m.outcome(run.outcome)),
        usage=_usage(a, m), cost=m.text("run.cost_unknown") if a.cost_nusd is None else m.money(a.cost_nusd), cached=cached,
    )  # fmt: skip


def task_markdown(task: TaskTotals, m: Messages, plans: Sequence[Variance] = ()) -> str:
    """A heading, a table with a line per agent and a total, how the runs ended, how long it took; Markdown.

    Args:
        plans: those that the task's runs name, a line each.
    """
    heads = [m.text(f"task.{name}") for name in ("agent", "runs", "tokens_in", "tokens_out", "cached", "cost")]
    lines = [f"### {m.text('task.title', task=one_line(task.task))}", "", _table_line(heads), "|---|" + "---:|" * (len(heads) - 1)]
    lines += [_table_line(_cells(_agent(name, m), a, m)) for name, a in task.agents]
    if len(task.agents) > 1:
        lines.append(_table_line([f"**{cell}**" for cell in _cells(m.text("task.total"), task.total, m)]))
    return "\n".join([*lines, "", *[f"- {note}" for note in _notes(task, m, plans)], ""])


def _cells(name: str, a: Amounts, m: Messages) -> list[str]:
    counts = [m.compact(x) if x is not None else "–" for x in (a.tokens_in, a.tokens_out, a.cached)]
    return [name, m.whole(a.runs), *counts, m.money(a.cost_nusd) if a.cost_nusd is not None else "–"]


def _table_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _notes(task: TaskTotals, m: Messages, plans: Sequence[Variance]) -> list[str]:
    ordered = sorted(task.outcomes.items(), key=lambda x: -x[1])
    told = ", ".join(m.text("task.outcome_count", n=m.whole(n), outcome=m.outcome(name)) for name, n in ordered)
    runs = m.count("task.run_count", task.total.runs)  # none where the task was only given parts of others' runs
    out = [m.text("task.runs_told", runs=runs, outcomes=told)] if told else []
    if task.first_ms is not None and task.last_ms is not None:
        span = m.duration(task.last_ms - task.first_ms)
        work = None if task.work_ms is None else m.duration(task.work_ms)
        same = work in (None, span)
        out.append(m.text("task.duration_span", span=span) if same else m.text("task.duration", work=work, span=span))
    if task.total.estimated_nusd:
        out.append(m.text("task.estimated", cost=m.money(task.total.estimated_nusd)))
    if task.total.unpriced_tokens:
        out.append(m.count("task.unpriced", task.total.unpriced_tokens))
    return out + [plan_texts.line(v, m) for v in plans]


def _usage(a: Amounts, m: Messages) -> str:
    if a.tokens_in is None and a.tokens_out is None:
        return m.text("run.usage_unknown")
    tokens_in, tokens_out = (m.compact(x) if x is not None else "?" for x in (a.tokens_in, a.tokens_out))
    return m.text("run.usage", tokens_in=tokens_in, tokens_out=tokens_out)


def _agent(name: str, m: Messages) -> str:
    """A name as the start of a sentence."""
    shown = one_line(m.text("unknown_agent") if name in ("", "unknown") else name)
    return shown[:1].upper() + shown[1:]
