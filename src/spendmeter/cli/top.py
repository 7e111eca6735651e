"""``spendmeter top``."""

from __future__ import annotations

import time

import click

from spendmeter.cli.app import TEXT, App, bad, pass_app

PAUSE_S = 0.5


@click.command("top")
@click.option("--since", metavar="TIME", type=TEXT, default="today", show_default=True, help="How far back: today, 24h, 7d, 2026-11, ...")
@click.option("--timezone", metavar="ZONE", type=TEXT, default="UTC", show_default=True, help="Where days begin, such as Europe/Berlin.")
@click.option("--once", is_flag=True, help="Print it once and end.")
@pass_app
def command(app: App, since: str, timezone: str, once: bool) -> None:
    """Watch spend live: last hour, today, who spends it, the latest runs.

    It looks again whenever a run lands. Ctrl-C ends it.
    """
    from rich.console import Console
    from rich.live import Live

    from spendmeter.ledger.periods import when_ms, zone
    from spendmeter.projections.messages import messages
    from spendmeter.projections.top import as_screen, view

    bad("--timezone", lambda: zone(timezone))
    bad("--since", lambda: when_ms(since, timezone))
    console, m = Console(highlight=False), messages("en")
    with app.ledger() as ledger:
        if once or not console.is_terminal:
            console.print(as_screen(view(ledger, since, timezone), m, console))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            seen, drawn_s = -1, float("-inf")
            while True:
                with ledger.read() as conn:
                    moved = ledger.moved(conn)
                if moved != seen or time.monotonic() - drawn_s > 10:  # times grow old on the screen too
                    live.update(as_screen(view(ledger, since, timezone), m, console, "Ctrl-C ends"), refresh=True)
                    seen, drawn_s = moved, time.monotonic()
                time.sleep(PAUSE_S)
