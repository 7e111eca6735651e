"""Plans and their variance for eyes (Rich) and for pipes (aligned text, numbers in full)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from spendmeter.plans.model import Figures, Snapshot
from spendmeter.plans.variance import Comparison, Variance
from spendmeter.projections.messages import Messages, messages
from spendmeter.projections.plan_texts import change
from spendmeter.projections.reports import aligned, printable
from spendmeter.records import usd_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

FIELDS = {"Cost": "cost_nusd", "Calls": "calls", "Prompt": "prompt_tokens", "Tokens": "total_tokens"}
_MAIN = ("Cost", "Calls", "Tokens")  # the prompt is in the tokens
_CUTS: tuple[tuple[Sequence[str], Sequence[str]], ...] = (  # columns, and those with a percentage: the first cut that there is room for
    (tuple(FIELDS), tuple(FIELDS)), (_MAIN, _MAIN), (_MAIN, ("Cost", "Tokens")), (_MAIN, ("Cost",)), (("Cost",), ("Cost",)),
)  # fmt: skip
_NAME_MAX = 36
_UNKNOWN = "–"


def variance_text(found: Sequence[Variance]) -> str:
    """For each plan a line and a table: actual and planned figures, money as decimal strings, unknown as "-"."""
    heads = ["workflow", *[f"{kind}{name}" for name in ("cost_usd", *Figures._fields[:3]) for kind in ("", "planned_")], "runs"]
    blocks = []
    for v in found:
        rows = [[name, *_plain(c), str(c.actual.runs)] for name, c in _rows(v)]
        blocks.append(f"{_title(v)}\n{aligned([heads, *rows], (0,))}")
    return "\n".join(blocks)


def _plain(c: Comparison) -> list[str]:
    used, planned = c.actual.figures, c.planned
    cost = [usd_text(used.cost_nusd), usd_text(planned.cost_nusd)]
    counts = [x for pair in zip(used[:3], planned[:3], strict=True) for x in pair]
    return ["-" if x is None else str(x) for x in (*cost, *counts)]


def _rows(v: Variance) -> Iterator[tuple[str, Comparison]]:
    for w in v.workflows:
        yield _name(w.workflow, "(none)"), w.whole
        for kind, parts in (("stage", w.stages), ("agent", w.agents)):
            for name, c in parts:
                yield f"  {kind} {_name(name, '(none)')}", c
    yield "total", v.whole


def _name(text: str | None, none: str) -> str:
    return none if text is None else printable(text)


def _title(v: Variance) -> str:
    m, a = messages("en"), v.whole.actual
    snapshot = "no snapshot is kept" if v.recorded_ms is None else f"snapshot {v.snapshot_id} of {day(v.recorded_ms)} UTC"
    ran = m.count("task.run_count", a.runs) + (f", {m.duration(a.duration_ms)}" if a.duration_ms else "")
    return f"{printable(v.plan)} · {snapshot} · {ran}"


def day(at_ms: int) -> str:
    """2026-11-02 12:00"""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}"


def variance_table(v: Variance, console: Console) -> RenderableType:
    """What each workflow, its stages and agents used, what was planned and how far off that is; as many figures as fit *console*."""
    from rich.console import Group
    from rich.text import Text

    m = messages("en")
    table = _fitting(console, (_table(v, m, *cut) for cut in _CUTS))
    notes = [Text(f" {note}", style="dim") for note in _notes(v, m)]
    return Group(Text(_title(v), style="bold"), Text(""), table, *notes, Text(""))


def _fitting(console: Console, tables: Iterable[Table]) -> Table:
    """The first that is not wider than *console*, else the last."""
    from rich.measure import Measurement

    for table in tables:
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            break
    return table


def _table(v: Variance, m: Messages, columns: Sequence[str], with_change: Sequence[str]) -> Table:
    from rich.text import Text

    table = _grid()
    table.add_column("Workflow", overflow="ellipsis", no_wrap=True, max_width=_NAME_MAX)
    for name in columns:
        for head in (name, "planned", *(("±",) if name in with_change else ())):
            table.add_column(head, justify="right", no_wrap=True, header_style="" if head == name else "dim")
    rows = list(_rows(v))
    for i, (name, c) in enumerate(rows):
        last = i == len(rows) - 1
        cells = [cell for column in columns for cell in _cells(c, column, m)[: 3 if column in with_change else 2]]
        style = "bold" if last else "dim" if name.startswith("  ") else ""
        table.add_row(Text(name.capitalize() if last else name), *cells, style=style, end_section=i == len(rows) - 2)
    return table


def _grid() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _cells(c: Comparison, column: str, m: Messages) -> list[Text]:
    """Actual, planned, and by how much the one is off the other."""
    from rich.text import Text

    used, planned = (getattr(x, FIELDS[column]) for x in (c.actual.figures, c.planned))
    mark = "~" if column == "Cost" and c.actual.estimated_nusd else ""
    figures = [Text(_UNKNOWN, "dim") if x is None else Text(_shown(column, m)(x)) for x in (used, planned)]
    over = used is not None and planned is not None and used > planned
    return [Text(mark) + figures[0], figures[1], Text(change(planned, used, m), "red" if over else "green")]


def _shown(column: str, m: Messages) -> Callable[[int], str]:
    return m.money if column == "Cost" else m.whole if column == "Calls" else m.compact


def _notes(v: Variance, m: Messages) -> list[str]:
    a, notes = v.whole.actual, []
    if v.recorded_ms is None:
        notes.append("Nothing to compare with: record the plan with spendmeter plan record FILE")
    if a.estimated_nusd:
        notes.append(f"~ {m.money(a.estimated_nusd)} of the cost is estimated at list prices")
    if a.unpriced_tokens:
        notes.append(f"! {m.whole(a.unpriced_tokens)} tokens of unpriced models are not in the cost; see: spendmeter doctor")
    if a.runs_without_usage:
        notes.append(f"! {m.whole(a.runs_without_usage)} of {m.whole(a.runs)} runs told no usage; they add nothing here")
    return notes


# -- the list ----------------------------------------------------------------------------------------------------------

_LIST = ("plan", "snapshot", "in force", "recorded", "last seen", "estimates", "cost", "calls", "tokens")


def list_text(kept: Sequence[Snapshot], in_force: Sequence[Snapshot]) -> str:
    """A line per snapshot, the last seen first; unknown as "-", times in UTC."""
    rows = []
    for s in kept:
        f = s.plan.figures
        told = ("yes" if s in in_force else "no", day(s.recorded_ms), day(s.seen_ms), str(len(s.plan.estimates)))
        numbers = (usd_text(f.cost_nusd), f.calls, f.total_tokens)
        rows.append([printable(s.plan.name), s.snapshot_id, *told, *["-" if x is None else str(x) for x in numbers]])
    return aligned([_LIST, *rows], range(5)) if rows else ""


def list_table(kept: Sequence[Snapshot], in_force: Sequence[Snapshot], console: Console) -> Table:
    """The same for a terminal; snapshots that newer ones have replaced are dim."""
    return _fitting(console, (_list(kept, in_force, dated) for dated in (("recorded", "last seen"), ("recorded",))))


def _list(kept: Sequence[Snapshot], in_force: Sequence[Snapshot], dated: Sequence[str]) -> Table:
    from rich.text import Text

    m, table = messages("en"), _grid()
    for head in ("plan", "snapshot", *dated):
        table.add_column(head.capitalize(), no_wrap=True, overflow="ellipsis", max_width=_NAME_MAX)
    for head in _LIST[-4:]:
        table.add_column(head.capitalize(), justify="right", no_wrap=True)
    for s in kept:
        times = [day(ms) for ms in (s.recorded_ms, s.seen_ms)[: len(dated)]]
        cells = [*times, str(len(s.plan.estimates))]
        cells += [_UNKNOWN if (x := getattr(s.plan.figures, FIELDS[n])) is None else _shown(n, m)(x) for n in ("Cost", "Calls", "Tokens")]
        table.add_row(Text(printable(s.plan.name)), s.snapshot_id, *cells, style="" if s in in_force else "dim")
    return table
