"""What ``spendmeter top`` shows: spend now, today and this month, who spends it, and the latest runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spendmeter.ledger import budgeting
from spendmeter.ledger.amounts import Amounts, Where
from spendmeter.ledger.budgeting import State
from spendmeter.ledger.periods import when_ms
from spendmeter.ledger.query import Report, RunLine, report, runs
from spendmeter.projections.budget_tables import as_table
from spendmeter.projections.messages import Messages
from spendmeter.projections.reports import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from spendmeter.ledger import Ledger

WINDOWS = (("Last hour", "1h"), ("Today", "today"), ("Last 7 days", "7d"))
BAR = 14
RUNS = 8
ROWS = 6
BUDGETS = 5
_COLOURS = {"ok": "green", "error": "red", "killed": "red", "max_budget": "yellow", "interrupted": "yellow", "max_turns": "yellow"}


@dataclass(frozen=True, slots=True)
class View:
    """One state of the ledger as it is shown."""

    at_ms: int
    spends: tuple[tuple[str, Amounts], ...]
    tables: tuple[tuple[str, Report], ...]
    runs: tuple[RunLine, ...]
    budgets: tuple[State, ...]


def view(ledger: Ledger, since: str, timezone: str, at_ms: int | None = None) -> View:
    """What is to be shown now; tables and runs go back to *since*, as ``periods.when_ms`` takes it.

    Raises:
        LedgerError: the ledger cannot be read, or *since* is no time.
    """
    now = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    spends = [(name, report(ledger, [], where=Where(when_ms(text, timezone, now))).total) for name, text in WINDOWS]
    where = Where(when_ms(since, timezone, now))
    tables = [(name, report(ledger, [by], where=where)) for name, by in (("Agent", "agent"), ("Task", "task"), ("Model", "model"))]
    return View(now, tuple(spends), tuple(tables), tuple(runs(ledger, where, RUNS)), tuple(fullest(ledger, now)[:BUDGETS]))


def fullest(ledger: Ledger, at_ms: int) -> list[State]:
    """Where the budgets of the ledger's settings stand, the fullest first."""
    found = budgeting.states(ledger, budgeting.defined(ledger), at_ms)
    return sorted(found, key=lambda s: (-(s.share or 0), not s.over))


def as_screen(it: View, m: Messages, console: Console, note: str = "") -> RenderableType:
    """The whole screen of *console*."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.text import Text

    width = console.width
    head = Text.assemble(*[part for name, a in it.spends for part in ((f"{name} ", "dim"), (_cost(a, m), "bold green"), ("   ", ""))])
    tables = [_table(name, found, m) for name, found in it.tables]
    pair: RenderableType = Columns(tables, padding=(1, 3)) if width >= 110 else Group(*tables)
    budgets = [as_table(it.budgets, console, it.at_ms), Text("")] if it.budgets else []
    return Group(head, Text(""), pair, Text(""), *budgets, _runs(it, m, width), Text(note, style="dim"))


def _table(name: str, found: Report, m: Messages) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head, justify in ((name, "left"), ("Cost", "right"), ("", "left"), ("Runs", "right")):
        table.add_column(head, justify=justify, no_wrap=True, max_width=24, overflow="ellipsis")  # type: ignore[arg-type]
    top = max((row.amounts.cost_nusd or 0 for row in found.rows), default=0)
    for row in found.rows[:ROWS]:
        part = (row.amounts.cost_nusd or 0) / top if top else 0
        bar = Text("━" * max(round(part * BAR), 1 if part else 0), style="cyan")
        table.add_row(Text(printable(row.keys[0]) or "–"), Text(_cost(row.amounts, m), style="green"), bar, m.whole(row.amounts.runs))
    if len(found.rows) > ROWS:
        table.add_row(Text(f"and {len(found.rows) - ROWS} more", style="dim"))
    return table


def _runs(it: View, m: Messages, width: int) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    heads = ["Ended", "Agent", "Task", "Outcome", "Cost", *(["In", "Out", "Took"] if width >= 80 else [])]
    for head in heads:
        table.add_column(head, justify="right" if head in ("Cost", "In", "Out", "Took") else "left", no_wrap=True, overflow="ellipsis")
    for run in it.runs:
        ago = "–" if run.ended_ms is None else f"{m.duration(max(0, it.at_ms - run.ended_ms))} ago"
        a = run.amounts
        rest = [_compact(a.tokens_in, m), _compact(a.tokens_out, m), "–" if run.duration_ms is None else m.duration(run.duration_ms)]
        outcome = Text(m.outcome(run.outcome), style=_COLOURS.get(run.outcome, "dim"))
        names = [Text(printable(x)) for x in (run.agent, run.task)]
        table.add_row(Text(ago, style="dim"), *names, outcome, Text(_cost(a, m), style="green"), *rest[: len(heads) - 5])
    return table


def _compact(n: int | None, m: Messages) -> str:
    return "–" if n is None else m.compact(n)


def _cost(a: Amounts, m: Messages) -> str:
    return "–" if a.cost_nusd is None else ("~" if a.estimated_nusd else "") + m.money(a.cost_nusd)


def told_budget(state: State) -> str:
    """``headless-credit 36%``"""
    value = f" {printable(state.value)}" if state.value else ""
    return f"{state.budget.name}{value} {int((state.share or 0) * 100)}%"


def statusline(told: Sequence[tuple[str, int | None]], m: Messages, extra: Sequence[str] = ()) -> str:
    """``$0.42 session · $3.10 today``: what is not known is left out."""
    return " · ".join([*(f"{m.money(nusd)} {name}" for name, nusd in told if nusd is not None), *extra]) or "no spend yet"


def today_and_month(ledger: Ledger, timezone: str) -> list[tuple[str, int | None]]:
    """("today", nano-USD) and ("this month", nano-USD); None where nothing is known."""
    now = time.time_ns() // 1_000_000
    month = when_ms(_month(now, timezone), timezone)
    since: Any = {"today": when_ms("today", timezone, now), "this month": month}
    return [(name, report(ledger, [], where=Where(ms)).total.cost_nusd) for name, ms in since.items()]


def _month(at_ms: int, timezone: str) -> str:
    from datetime import datetime

    from spendmeter.ledger.periods import zone

    return f"{datetime.fromtimestamp(at_ms / 1000, zone(timezone)):%Y-%m}"
