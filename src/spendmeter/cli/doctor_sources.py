"""``spendmeter doctor --sources``: what each source saw, and where one saw less."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spendmeter.cli.app import App, bad, console, emit
from spendmeter.cli.homes import folders

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger
    from spendmeter.ledger.sources import Compared, Session

LATELY = "7d"
Files = dict[str, tuple[int, int]]


def show(app: App, since: str | None, clis: Sequence[str], session: str | None, *, as_json: bool) -> None:
    """Prints the comparison of a while, or of one session."""
    from spendmeter.ledger import sources
    from spendmeter.ledger.periods import when_ms
    from spendmeter.parsers import names

    since_ms = bad("--since", lambda: when_ms(since or LATELY))
    with app.ledger() as ledger:
        if session is None:
            _show(sources.compare(ledger, since_ms, clis or names()), _files(ledger), since_ms, as_json=as_json)
        else:
            _show_session(sources.of_session(ledger, session, clis or names()), as_json=as_json)


def _files(ledger: Ledger) -> Files:
    """By CLI: how many session files of this user were read to their end, and how many of these are gone."""
    from spendmeter.finding import digest_of

    read = ledger.sources()
    out: Files = {}
    for cli, folder in folders(os.environ):
        root, digest = os.path.join(os.path.realpath(folder), ""), digest_of(cli)  # noqa: PTH118 - compared as text
        mine = [path for path, (_, told) in read.items() if told == digest and path.startswith(root)]
        before = out.get(cli, (0, 0))
        out[cli] = before[0] + len(mine), before[1] + sum(not Path(path).exists() for path in mine)
    return out


def _show(found: Compared, files: Files, since_ms: int, *, as_json: bool) -> None:
    from spendmeter.projections import source_tables, source_texts
    from spendmeter.records import iso

    if as_json:
        clis = [source_texts.cli_as_dict(of, files.get(of.cli)) for of in found.clis]
        emit({"since": iso(since_ms), "clis": clis, "sessions": [source_texts.session_as_dict(one) for one in found.sessions]})
    elif not found.clis:
        click.echo(f"No session since {iso(since_ms)[:16]} UTC. Look further back with --since 30d.")
    elif terminal := console():
        for part in source_tables.tables(found, files, terminal):
            terminal.print(part)
    else:
        click.echo(source_tables.text(found, files), nl=False)


def _show_session(found: Sequence[Session], *, as_json: bool) -> None:
    from spendmeter.projections import source_tables, source_texts

    if as_json:
        emit({"since": None, "clis": [], "sessions": [source_texts.session_as_dict(one) for one in found]})
    elif terminal := console():
        for one in found:
            for part in source_tables.session_table(one):
                terminal.print(part)
    else:
        click.echo("\n".join(source_tables.session_text(one) for one in found), nl=False)
