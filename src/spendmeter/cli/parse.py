"""``spendmeter parse``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from spendmeter.cli.app import CLI, say
from spendmeter.errors import ParseError
from spendmeter.records import Observation, Usage, usd_text

HEAD = 4096  # bytes that tell a binary file


@click.command("parse")
@click.option("--cli", type=CLI, metavar="NAME", help="The CLI that wrote it; by default every row tells.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.pass_context
def command(ctx: click.Context, cli: str | None, paths: tuple[str, ...]) -> None:
    """Print what a file tells, as JSON lines; no ledger is touched.

    PATH is a file, a folder, or - for standard input. One observation a line; unknown is null; never any text of a conversation.
    """
    failed = False
    for path in paths:
        try:
            for observation in _observations(path, cli):
                click.echo(json.dumps(plain(observation), ensure_ascii=False))
        except ParseError as e:
            say(str(e))
            failed = True
    ctx.exit(1 if failed else 0)


def plain(o: Observation) -> dict[str, Any]:
    """*o* as JSON: ``kind`` is what it is, its own kind is under ``call_kind``, ``part_kind``, ...; usage is an object."""
    kind = type(o).__name__.lower()
    fields = {name: getattr(o, name) for name in o.__slots__}
    return {"kind": kind} | {f"{kind}_kind" if name == "kind" else name: _value(name, v) for name, v in fields.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Usage):
        told = value._asdict()
        return told | {"cost_usd": usd_text(told.pop("cost_nusd"))}
    if name == "by_model" and value is not None:
        return {model: _value("", used) for model, used in value}
    return dict(value) if name == "traits" else value


def _observations(path: str, cli: str | None) -> Iterator[Observation]:
    from spendmeter.parsers import read, read_file
    from spendmeter.parsers.sources import files

    if path == "-":
        yield from read(sys.stdin.buffer, cli, "stdin")[0]
        return
    for file in files(Path(path)):
        yield from read_file(file, cli)[0]
