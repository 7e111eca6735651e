"""A report for eyes (Rich), for pipes (aligned text) and for spreadsheets (CSV)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spendmeter.ledger.query import ATTR, Amounts, Report
from spendmeter.projections.messages import Messages, messages
from spendmeter.records import usd_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BAR = 12  # cells of the cost share's bar
_BLOCKS = " ▏▎▍▌▋▊▉█"
_TIGHT: dict[str, Any] = {"pad_edge": False, "padding": (0, 1, 0, 0)}  # with the divider two cells between columns
_KEY_MAX = 40  # cells of a key before it is cut


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers; columns with a greater ``rank`` go first when there is no room."""

    name: str
    head: str
    rank: int
    value: Callable[[Amounts], int | None]


_COLUMNS = (
    _Column("runs", "Runs", 3, lambda a: a.runs),
    _Column("calls", "Calls", 5, lambda a: a.calls),
    _Column("tokens_in", "Input", 1, lambda a: a.tokens_in),
    _Column("cache_read", "Cache read", 2, lambda a: a.cache_read),
    _Column("cache_write", "Cache write", 4, lambda a: a.cache_write),
    _Column("tokens_out", "Output", 0, lambda a: a.tokens_out),
    _Column("reasoning", "Reasoning", 6, lambda a: a.reasoning),
)


def as_csv(report: Report) -> str:
    """Every row with every field, in full; unknown is empty. The total is left to the reader's own sum."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*report.by, *Amounts().as_dict()])
    for row in report.rows:
        writer.writerow([*row.keys, *row.amounts.as_dict().values()])
    return out.getvalue()


def as_text(report: Report) -> str:
    """Columns parted by two blanks or more, numbers in full, unknown as "-", the total last; empty for no rows."""
    if not report.rows:
        return ""
    heads = [*report.by, *[c.name for c in _COLUMNS], "cost_usd"]
    lines = [heads, *[_plain_cells(row.keys, row.amounts) for row in report.rows]]
    if report.by:
        lines.append(_plain_cells(["total", *[None] * (len(report.by) - 1)], report.total))
    return aligned(lines, range(len(report.by)))


def aligned(lines: Sequence[Sequence[str]], left: Container[int]) -> str:
    """Columns parted by two blanks, those in *left* flush left, the others flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = [[c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(x, widths, strict=True))] for x in lines]
    return "".join("  ".join(cells).rstrip() + "\n" for cells in padded)


def _plain_cells(keys: Sequence[str | None], a: Amounts) -> list[str]:
    numbers = ["-" if (n := c.value(a)) is None else str(n) for c in _COLUMNS]
    return [*[printable(k) or "-" for k in keys], *numbers, usd_text(a.cost_nusd) or "-"]


def printable(text: str | None) -> str:
    """*text* as one line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "�" for c in text or "")


def as_table(report: Report, console: Console, title: str = "") -> RenderableType:
    """A table that fits *console*: numbers in full where there is room, else short; then columns are left out."""
    m = messages("en")
    columns = list(_COLUMNS)
    for compact, bars in ((False, True), (True, True), (True, False)):
        if _width(report, columns, m, compact=compact, bars=bars) <= console.width:
            return _table(report, columns, m, compact=compact, bars=bars, title=title)
    while columns and _width(report, columns, m, compact=True, bars=False) > console.width:
        columns.remove(max(columns, key=lambda c: c.rank))
    return _table(report, columns, m, compact=True, bars=False, title=title)


def _width(report: Report, columns: Sequence[_Column], m: Messages, *, compact: bool, bars: bool) -> int:
    from rich.cells import cell_len

    rows = [*[r.amounts for r in report.rows], report.total]
    keys = [max([len(_head(by)), 5, *[cell_len(printable(r.keys[i])) for r in report.rows]]) for i, by in enumerate(report.by)]
    numbers = [max(len(c.head), *[len(_number(c.value(a), m, compact=compact)) for a in rows]) for c in columns]
    cost = max(4, *[len(_cost(a, m, report)) for a in rows])
    return sum(min(_KEY_MAX, k) + 2 for k in keys) + sum(n + 2 for n in numbers) + cost + (BAR + 7 if bars else 0)


def _table(report: Report, columns: Sequence[_Column], m: Messages, *, compact: bool, bars: bool, title: str) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", show_footer=bool(report.by), show_edge=False, **_TIGHT)
    for i, by in enumerate(report.by):
        foot = "Total" if i == 0 else ""
        table.add_column(_head(by), footer=foot, overflow="ellipsis", max_width=_KEY_MAX, footer_style="bold")
    for c in columns:
        foot = _number(c.value(report.total), m, compact=compact)
        table.add_column(c.head, footer=foot, justify="right", no_wrap=True, footer_style="bold")
    table.add_column("Cost", footer=_cost(report.total, m, report), justify="right", no_wrap=True, style="green", footer_style="bold green")
    if bars:
        table.add_column("Share", no_wrap=True, min_width=BAR + 5)
    for row in report.rows:
        keys = [Text(printable(k)) if k is not None else Text("–", style="dim") for k in row.keys]
        numbers = [_dim(_number(c.value(row.amounts), m, compact=compact)) for c in columns]
        table.add_row(*keys, *numbers, _dim(_cost(row.amounts, m, report)), *([_share(row.amounts, report.total)] if bars else []))
    return _with_notes(table, report.total, m)


def _with_notes(table: Any, total: Amounts, m: Messages) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    notes = []
    if total.estimated_nusd:
        notes.append(f"~ {m.money(total.estimated_nusd)} of the cost is estimated at list prices")
    if total.unpriced_tokens:
        notes.append(f"! {m.whole(total.unpriced_tokens)} tokens of unpriced models are not in the cost; see: spendmeter doctor")
    return Group(table, *[Text(f" {note}", style="dim") for note in notes])


def _dim(text: str) -> Any:
    from rich.text import Text

    return Text(text, style="dim") if text in ("–", "0") else Text(text)


def _head(by: str) -> str:
    return printable(by[len(ATTR) :]) if by.startswith(ATTR) else by.capitalize() if by != "cli" else "CLI"


def _number(n: int | None, m: Messages, *, compact: bool) -> str:
    return "–" if n is None else m.compact(n) if compact else m.whole(n)


def _cost(a: Amounts, m: Messages, report: Report) -> str:
    """Money with as many places in all rows; "~" marks what is estimated in whole or in part."""
    if a.cost_nusd is None:
        return "–"
    mark = "~" if a.estimated_nusd else ""
    if a.cost_nusd and (report.total.cost_nusd or 0) < 1_000_000_000:
        places = f"{a.cost_nusd / 1e9:.4f}"
        return f"{mark}${places}" if float(places) else f"{mark}<$0.0001"
    shown = m.money(a.cost_nusd)
    return mark + (shown if a.cost_nusd == 0 or a.cost_nusd >= 10_000_000 else "<$0.01")


def _share(a: Amounts, total: Amounts) -> Any:
    """A bar and a percentage of the total cost."""
    from rich.text import Text

    if not total.cost_nusd or a.cost_nusd is None:
        return Text("")
    part = a.cost_nusd / total.cost_nusd
    eighths = round(part * BAR * 8)
    bar = "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()
    return Text.assemble((bar.ljust(BAR), "cyan"), (f"{part:>5.0%}", "dim"))


def empty_hint(*, filtered: bool, runs: int) -> str:
    """What to say, and to do next, where a report has no rows."""
    if filtered and runs:
        return f"No usage matches; the ledger holds {runs} run{'s' * (runs != 1)}. Widen --since/--until or leave out a filter."
    return (
        "The ledger is empty. To fill it:\n"
        "  spendmeter sync                                          read the sessions that your CLIs have already written\n"
        "  spendmeter run --agent NAME --task KEY -- claude -p ...  meter a new run"
    )
