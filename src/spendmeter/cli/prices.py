"""``spendmeter prices``."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from spendmeter.cli.app import TEXT, App, as_json, bad, console, emit, pass_app
from spendmeter.errors import PriceError

if TYPE_CHECKING:
    from spendmeter.prices import PriceTable, Rates

_HEADS = {
    "input": "Input", "output": "Output", "cache_read": "Cache read", "cache_write_5m": "Write 5m", "cache_write_1h": "Write 1h",
    "web_search": "1k web",
}  # fmt: skip


@click.command("prices")
@click.argument("model", required=False, type=TEXT)
@click.option("--at", metavar="DATE", type=TEXT, help="On this day (default: today).")
@as_json
@pass_app
def command(app: App, model: str | None, at: str | None, as_json: bool) -> None:
    """Show what a model costs on a day.

    USD per million tokens; without MODEL all models. A price of your own goes into the override file (SPENDMETER_PRICES_FILE).
    """
    from spendmeter.ledger.periods import when_ms
    from spendmeter.prices import PriceTable

    at_ms = bad("--at", lambda: when_ms(at or "today"))
    table = PriceTable.load(app.settings.prices_file)
    names = [model] if model is not None else list(table.models())
    found = [(name, rates) for name in names if (rates := table.rates(name, at_ms)) is not None]
    if model is not None and not found:
        raise PriceError(_unknown(model, table))
    day = datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()
    if as_json:
        emit({"at": day, "table": table.version, "models": [_plain(name, rates) for name, rates in found]})
    else:
        _show(found, f"{day} · {table.version}")


def _plain(name: str, rates: Rates) -> dict[str, Any]:
    bands = [{"above_tokens": b.above, "usd_per_mtok": {k: _usd(v) for k, v in b.usd.items() if k != "web_search"}} for b in rates.bands]
    search = rates.usd.get("web_search")
    return {
        "model": name, "priced_as": rates.model, "source": rates.source, "valid_from": rates.valid_from and rates.valid_from.isoformat(),
        "bands": bands, "usd_per_1k_web_searches": None if search is None else _usd(search),
    }  # fmt: skip


def _usd(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _lines(found: list[tuple[str, Rates]]) -> list[list[str]]:
    out = []
    for name, rates in found:
        for band in rates.bands:
            shown = name if not band.above else f"{name} above {band.above:,} tokens"
            out.append([shown, *[_usd(round(band.usd[k], 6)) if k in band.usd else "-" for k in _HEADS], rates.source])
    return out


def _show(found: list[tuple[str, Rates]], caption: str) -> None:
    heads = ["Model", *_HEADS.values(), "Source"]
    lines = _lines(found)
    terminal = console()
    if terminal is None:
        widths = [max(len(x[i]) for x in [heads, *lines]) for i in range(len(heads))]
        for line in [heads, *lines]:
            cells = [c.ljust(w) if i in (0, 7) else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            click.echo("  ".join(cells).rstrip())
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    caption = f"USD per million tokens, {caption}"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if head in ("Model", "Source") else "right", overflow="fold", no_wrap=head == "Model")
    for line in lines:
        table.add_row(*[Text(cell) for cell in line])
    terminal.print(table)


def _unknown(model: str, table: PriceTable) -> str:
    near = table.near(model)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f'no price for model "{model}"{hint or ";"} a price of your own goes into the override file, see docs/reference/prices.md'
