"""Where budgets stand, for eyes (Rich) and for pipes (aligned text, numbers in full)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any

from spendmeter.budgets.model import SEVERITIES
from spendmeter.ledger.budgeting import State
from spendmeter.projections.messages import messages
from spendmeter.projections.reports import aligned, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

BAR = 12  # cells
PER_SHOWN = 5  # values of a budget with per, those that have spent most
_NAME_MAX, _NAME_LEAST = 40, 20  # cells of a name: at most, and before a column goes for it
_UNKNOWN = "–"
# Of a terminal's 256 colours two with contrast enough on black and on white, which its own yellow has not on white.
_STYLES = {"": "green", "info": "cyan", "warning": "color(166)", "critical": "bold color(160)"}
_PLAIN = ("budget", "value", "period", "spent", "limit", "unit", "share", "reserved", "forecast", "ends", "action")


def as_text(states: Sequence[State]) -> str:
    """A line for each, amounts in the budget's unit; "-" is unknown or does not apply. Empty for none."""
    return aligned([_PLAIN, *[_plain(s) for s in states]], (0, 1, 2, 5, 9, 10)) if states else ""


def _plain(s: State) -> list[str]:
    b, told = s.budget, s.as_dict()
    spent, limit, reserved, forecast = (told[f"{name}_{b.unit}"] for name in ("spent", "limit", "reserved", "forecast"))
    cells = (b.name, printable(s.value), b.period.text, spent, limit, b.unit, told["share"], reserved, forecast,
             told["period"]["end"], b.action)  # fmt: skip
    return [str(x) if x not in (None, "") else "-" for x in cells]


# -- on a terminal -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """``rank``: columns with a greater one go first where there is no room, those with 0 stay. ``once``: the same for every value."""

    head: str
    rank: int
    cell: Callable[[State], Text]
    left: bool = False
    once: bool = False


def as_table(states: Sequence[State], console: Console, at_ms: int) -> RenderableType:
    """A table that fits *console*; of a budget with ``per`` the values that have spent most."""
    from rich.console import Group
    from rich.measure import Measurement
    from rich.text import Text

    columns = _columns(states, at_ms)
    endless = console.options.update(max_width=1000)
    while Measurement.get(console, endless, _table(states, columns, _NAME_LEAST)).maximum > console.width:
        last = max(columns, key=lambda c: c.rank)
        if not last.rank:
            break
        columns.remove(last)
    return Group(_table(states, columns), *[Text(f" {note}", style="dim") for note in _notes(states)])


def _columns(states: Sequence[State], at_ms: int) -> list[_Column]:
    columns = [
        _Column("Period", 5, lambda s: _text(_period(s)), left=True, once=True),
        _Column("Spent", 0, lambda s: _amount(s, s.spent, _style(s))),
        _Column("Limit", 1, lambda s: _amount(s, s.budget.limit)),
        _Column("", 7, _bar, left=True),
        _Column("Used", 0, lambda s: _text(_percent(s.share), _style(s))),
        _Column("Reserved", 6, lambda s: _amount(s, s.reserved or None)),
        _Column("Forecast", 3, lambda s: _amount(s, s.forecast, _foretold(s))),
        _Column("Resets in", 4, lambda s: _text(_resets(s, at_ms)), once=True),
        _Column("Action", 2, lambda s: _text(s.budget.action), left=True, once=True),
    ]
    told = {"Reserved": any(s.reserved for s in states), "Forecast": any(s.forecast is not None for s in states)}
    return [c for c in columns if told.get(c.head, True)]


def _table(states: Sequence[State], columns: Sequence[_Column], name_max: int = _NAME_MAX) -> Any:
    from rich import box
    from rich.table import Table

    names = ["Budget", *(["For"] if any(s.budget.per is not None for s in states) else [])]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, max_width=name_max)  # may be narrowed, where the others may not
    for c in columns:
        table.add_column(c.head, justify="left" if c.left else "right", no_wrap=True)
    for _, found in groupby(states, key=lambda s: s.budget.name):
        for cells in _lines(list(found), columns, len(names) > 1):
            table.add_row(*cells)
    return table


def _lines(found: Sequence[State], columns: Sequence[_Column], by_value: bool) -> Iterator[list[Text]]:
    """The lines of one budget; *by_value*: whether there is a column for values."""
    blank, whole = _text(""), messages("en").whole
    for i, s in enumerate(found[:PER_SHOWN]):
        names = [_text(s.budget.name) if i == 0 else blank, *([_text(_value(s))] if by_value else [])]
        yield [*names, *[blank if c.once and i else c.cell(s) for c in columns]]
    if rest := found[PER_SHOWN:]:
        over = sum(s.over for s in rest)
        yield [blank, _text(f"and {whole(len(rest))} more{f', {whole(over)} over' if over else ''}", "dim")]


def _value(s: State) -> str:
    per = printable(s.budget.per)
    if s.value is not None:
        return f"{per} {printable(s.value)}"
    return "" if s.budget.per is None else f"no {per}" if s.spent or s.reserved else _UNKNOWN


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style="dim" if text == _UNKNOWN else style, no_wrap=True, overflow="ellipsis")


def _period(s: State) -> str:
    """Without the zone, and without a start that is every month's."""
    return s.budget.period.text.partition(",")[0].removesuffix(" from 1").removesuffix(" from monday")


def _amount(s: State, amount: int | None, style: str = "") -> Text:
    m = messages("en")
    show = {"usd": m.money, "tokens": m.compact, "runs": m.whole}[s.budget.unit]
    return _text(_UNKNOWN if amount is None else show(amount), style)


def _percent(share: Decimal | None) -> str:
    """Rounded down: 100% is never less than all of it."""
    return _UNKNOWN if share is None else messages("en").text("number.percent", n=int(share * 100))


def _style(s: State) -> str:
    """By the worst severity that has been reached; to have spent all of the limit is the worst in any case."""
    worst = max((x.severity for x in s.crossed), key=SEVERITIES.index, default="")
    return _STYLES[SEVERITIES[-1] if s.over and s.spent else worst]


def _foretold(s: State) -> str:
    """Marks a forecast that is above the limit."""
    return _STYLES["warning"] if (s.forecast or 0) > s.budget.limit else ""


def _bar(s: State) -> Text:
    """Heavy what is spent, light what is left: to be told apart without colours too."""
    from rich.text import Text

    share = s.share if s.share is not None else Decimal(s.spent > 0)
    halves = max(min(2 * BAR, int(share * 2 * BAR)), int(s.spent > 0))
    full = "━" * (halves // 2) + "╾" * (halves % 2)
    return Text.assemble((full, _style(s)), ("─" * (BAR - len(full)), "dim"))


def _resets(s: State, at_ms: int) -> str:
    rolls = s.window.end_ms is None or s.budget.period.kind == "rolling"
    return _UNKNOWN if rolls else messages("en").duration((s.window.end_ms or 0) - at_ms)


def _notes(states: Sequence[State]) -> list[str]:
    m, missing = messages("en"), dict[str, int]()
    for s in states:
        missing[s.budget.name] = missing.get(s.budget.name, 0) + s.unpriced_tokens
    return [
        f"! {m.whole(n)} tokens of unpriced models are not in budget {name}; see: spendmeter doctor" for name, n in missing.items() if n
    ]  # fmt: skip
