"""``spendmeter doctor``."""

from __future__ import annotations

import os
import time

import click

from spendmeter.cli.app import CLI, TEXT, App, as_json, console, emit
from spendmeter.cli.checks import OK, PROBLEM, WARNING, Finding, Site, examine

_MARKS = {OK: ("✓", "green"), WARNING: ("!", "yellow"), PROBLEM: ("✗", "red")}


@click.command("doctor")
@click.option("--sources", is_flag=True, help="Compare what output, files and telemetry told of each session.")
@click.option("--since", metavar="TIME", type=TEXT, help="With --sources: sessions used since then, 30d or 2026-11-01; by default 7d.")
@click.option("--cli", "clis", type=CLI, metavar="NAME", multiple=True, help="With --sources: only this CLI; may be given many times.")
@click.option("--session", type=TEXT, metavar="ID", help="With --sources: this session in full, however old.")
@as_json
@click.pass_context
def command(ctx: click.Context, sources: bool, since: str | None, clis: tuple[str, ...], session: str | None, as_json: bool) -> None:
    """Check the installation and say what to mend.

    Exit code 1 if there is a problem; a warning is none. With --sources: what each source saw of the sessions of a while, and where
    one saw less than all of them together; a difference is no problem.
    """
    app = ctx.ensure_object(App)
    if sources:
        if since and session:
            raise click.UsageError("--session shows one session whatever its age; leave out --since")
        from spendmeter.cli.doctor_sources import show

        show(app, since, clis, session, as_json=as_json)
        return
    if since or clis or session:
        raise click.UsageError("--since, --cli and --session go with --sources")
    site = Site(os.environ, app.flags["config"], app.flags["ledger"], time.time_ns() // 1_000_000)
    found = list(examine(site))
    healthy = not any(f.level == PROBLEM for f in found)
    if as_json:
        emit({"ok": healthy, "checks": [f._asdict() for f in found]})
    else:
        _show(found)
    ctx.exit(0 if healthy else 1)


def _show(found: list[Finding]) -> None:
    terminal = console()
    if terminal is None:
        for f in found:
            click.echo(f"{f.level:<8} {f.name:<13} {f.detail}{f' -> {f.remedy}' if f.remedy else ''}")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for f in found:
        mark, colour = _MARKS[f.level]
        detail = Text(f.detail)
        if f.remedy:
            detail.append(f"\n→ {f.remedy}", style=colour)
        table.add_row(Text(mark, style=colour), Text(f.name), detail)
    terminal.print(table)
    counts = [f"{n} {level}{'s' * (n != 1)}" for level in (PROBLEM, WARNING) if (n := sum(f.level == level for f in found))]
    terminal.print(Text(", ".join(counts) or "all well", style="bold"))
