"""What sources saw, for eyes (Rich) and for pipes (aligned text, numbers in full)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from spendmeter.ledger.sources import COMPLETE, LESS, UNTOLD, Compared, OfCli, Session, Sum, View, amount
from spendmeter.ledger.sources import FIELDS as COMPARED
from spendmeter.projections.messages import messages
from spendmeter.projections.plan_tables import day
from spendmeter.projections.reports import aligned, printable
from spendmeter.projections.source_texts import LIMITS, NAMES, percent, words
from spendmeter.records import Usage, usd_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

Files = dict[str, tuple[int, int]]  # by CLI: session files read here, and how many of these are gone
_COLOURS = {COMPLETE: "green", LESS: "yellow", UNTOLD: "dim"}
_HEADS = ("cli", "sessions", "source", "seen in", "complete", "calls", "tokens", "share", "where seen")
_WIDE, _LEFT_OUT = 110, ("complete", "calls", "tokens")  # columns that a narrower terminal does without
_WORST = ("cli", "session", "last", "tokens")
_NONE = "–"


def text(found: Compared, files: Files) -> str:
    """Two tables, CLIs and sessions, each followed by what there is to say; unknown as "-"."""
    rows = [[*(x or "-" for x in _sum_cells(of, source, s, str)), words(s.view)] for of, source, s in _sums(found)]
    blocks = [aligned([[*_HEADS, "finding"], *rows], (0, 2, 9))]
    worst = [[*_head(one, str), *(_cell(v) or "-" for v in one.views.values()), _worst_words(one)] for one in found.sessions]
    if worst:
        blocks.append(aligned([[*_WORST, *NAMES.values(), "finding"], *worst], (0, 1, 2, 7)))
    return "\n".join([*blocks, *notes(found, files)]).rstrip("\n") + "\n"


def tables(found: Compared, files: Files, console: Console) -> Iterator[RenderableType]:
    """The same for a terminal."""
    from rich.text import Text

    table = _grid()
    kept = [i for i, name in enumerate(_HEADS) if console.width >= _WIDE or name not in _LEFT_OUT]
    for name in (_HEADS[i] for i in kept):
        table.add_column(_title(name), justify="left" if name in ("cli", "source") else "right", no_wrap=True)
    table.add_column("Finding", overflow="fold")
    before = None
    for of, source, s in _sums(found):
        cells = [x or _NONE for x in _sum_cells(of, source, s, messages("en").compact)]
        cells = ["", "", *cells[2:]] if of is before else cells
        table.add_row(*(cells[i] for i in kept), _finding(s.view))
        before = of
    yield table
    if found.sessions:
        yield Text("\nSessions of which most is missing", style="bold")
        yield _worst(found.sessions, wide=console.width >= _WIDE)
        yield Text(" spendmeter doctor --sources --session ID shows one in full", style="dim")
    yield from (Text(f" {line}", style="dim") for line in notes(found, files))


def notes(found: Compared, files: Files) -> list[str]:
    """What explains the figures: known limits of the sources that saw less, closed sessions, and files that are gone."""
    out = []
    for of, source, s in _sums(found):
        if (s.view.verdict in (LESS, UNTOLD) or s.untold) and (why := LIMITS.get((of.cli, source))):
            out.append(f"{of.cli}, {NAMES[source]}: {why}")
    for of in found.clis:
        read, gone = files.get(of.cli, (0, 0))
        if gone:
            out.append(f"{of.cli}: {gone:,} of {read:,} session files that were read here are gone; the ledger keeps what they told")
        if of.closed:
            out.append(
                f"{of.cli}: {of.closed:,} sessions are closed (retention): their totals stand, what each source saw is no longer kept"
            )
    return out


def session_text(one: Session) -> str:
    """All figures of one session: a row for each field, a column for the total and for each source; then the verdicts."""
    rows = [[x or "-" for x in row] for row in _figures(one, str)]
    return "\n".join([_name(one), aligned([_session_heads(one), *rows], (0,)) + "\n".join(_verdicts(one)) + "\n"])


def session_table(one: Session) -> Iterator[RenderableType]:
    """The same for a terminal."""
    from rich.text import Text

    yield Text(_name(one), style="bold")
    table = _grid()
    for i, name in enumerate(_session_heads(one)):
        table.add_column(name.capitalize(), justify="right" if i else "left", no_wrap=True)
    for row in _figures(one, messages("en").whole):
        table.add_row(*(x or _NONE for x in row))
    yield table
    yield from (Text(f" {line}") for line in _verdicts(one))


# -- cells -------------------------------------------------------------------------------------------------------------


def _sums(found: Compared) -> Iterator[tuple[OfCli, str, Sum]]:
    for of in found.clis:
        yield from ((of, source, s) for source, s in of.sums.items())


def _sum_cells(of: OfCli, source: str, s: Sum, number: Callable[[int], str]) -> list[str | None]:
    """Cells of ``_HEADS``; None where nothing is known."""
    share = of.share(source)
    told = [None if x is None else number(x) for x in (s.calls, s.used.tokens if share is not None else None)]
    shares = [None if x is None else percent(x) for x in (share, s.view.share)]
    return [of.cli, str(of.sessions), NAMES[source], str(s.sessions), str(s.complete), *told, *shares]


def _head(one: Session, number: Callable[[int], str]) -> list[str]:
    return [one.cli, printable(one.session), "-" if one.last_ms is None else day(one.last_ms), number(one.total.tokens)]


def _cell(view: View) -> str | None:
    """A source's share, "?" where it cannot be told, None where it saw nothing."""
    return None if view.seen is None else "?" if view.share is None else percent(view.share)


def _worst_words(one: Session) -> str:
    """The finding on the source that misses most."""
    source, view = max(one.views.items(), key=lambda item: (item[1].seen is not None, item[1].gap))
    return f"{NAMES[source]} {words(view)}" if view.gap else ", ".join(f"{NAMES[s]} not seen" for s, v in one.views.items() if v.gap)


def _worst(sessions: Sequence[Session], *, wide: bool) -> Table:
    table = _grid()
    heads = [*_WORST, *NAMES.values()]
    kept = [i for i, name in enumerate(heads) if wide or name not in ("last", "tokens")]
    for name in (heads[i] for i in kept):
        table.add_column(
            _title(name), no_wrap=True, overflow="ellipsis", justify="right" if name in (*NAMES.values(), "tokens") else "left"
        )
    for one in sessions:
        cells: list[str | Text] = [*_head(one, messages("en").compact), *(_coloured(_cell(v), v) for v in one.views.values())]
        table.add_row(*(cells[i] for i in kept))
    return table


def _coloured(cell: str | None, view: View) -> Text:
    from rich.text import Text

    return Text(_NONE, "dim") if cell is None else Text(cell, _COLOURS[view.verdict])


def _finding(view: View) -> Text:
    from rich.text import Text

    return Text(words(view), _COLOURS.get(view.verdict, "dim"))


def _figures(one: Session, number: Callable[[int], str]) -> Iterator[list[str | None]]:
    told: list[tuple[int | None, Usage | None]] = [(one.calls, one.total)]
    told += [(v.seen.calls, v.seen.usage) if v.seen else (None, None) for v in one.views.values()]
    yield ["calls", *(None if calls is None else number(calls) for calls, _ in told)]
    for name in COMPARED:
        values = [None if used is None else amount(used, name) for _, used in told]
        yield [name, *(None if x is None else usd_text(x) if name == "cost" else number(x) for x in values)]


def _session_heads(one: Session) -> list[str]:
    return ["", "ledger", *(NAMES[source] for source in one.views)]


def _name(one: Session) -> str:
    return f"{one.cli} {printable(one.session)}"


def _verdicts(one: Session) -> Iterable[str]:
    if one.closed:
        yield "closed (retention): its totals stand, what each source saw is no longer kept"
    for source, view in one.views.items():
        why = LIMITS.get((one.cli, source)) if view.verdict in (LESS, UNTOLD) else None
        yield f"{NAMES[source]}: {words(view)}{f' ({why})' if why else ''}"


def _title(name: str) -> str:
    return "CLI" if name == "cli" else name.capitalize()


def _grid() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
