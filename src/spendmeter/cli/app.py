"""What all commands share: settings, the ledger, lazy loading, errors into exit codes, and tags from flags."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click

from spendmeter.errors import SpendmeterError

if TYPE_CHECKING:
    from rich.console import Console

    from spendmeter.config import Settings
    from spendmeter.ledger import Ledger
    from spendmeter.records import Tags

T = TypeVar("T")
INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class App:
    """The global flags and what follows from them."""

    def __init__(self) -> None:
        self.flags: dict[str, str | None] = {"ledger": None, "config": None}

    @cached_property
    def settings(self) -> Settings:
        """The settings in force."""
        from spendmeter.config import load

        return load(self.flags["config"], self.flags["ledger"])

    @contextlib.contextmanager
    def ledger(self, *, needs_recovery: bool = False) -> Iterator[Ledger]:
        """The ledger, with the runs of dead wrappers finished; only where *needs_recovery* must that succeed."""
        from spendmeter.ledger import Ledger
        from spendmeter.runner.recover import recover

        ledger = Ledger(self.settings)
        with contextlib.closing(ledger):
            try:
                recover(self.flags["ledger"], self.flags["config"])
            except SpendmeterError as e:
                if needs_recovery:
                    raise
                say(f"unfinished runs could not be recorded: {e}")
            yield ledger


pass_app = click.make_pass_decorator(App, ensure=True)


def take_global(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Callback of --ledger and --config, which may stand before or after the command."""
    if value is not None and param.name is not None:
        ctx.ensure_object(App).flags[param.name] = text(value)


def say(message: str) -> None:
    """One line on standard error."""
    click.echo(f"spendmeter: {message}", err=True)


def emit(document: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def console() -> Console | None:
    """A Rich console on standard output, or None where that is no terminal."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return Console(highlight=False)


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error, moved by (done, all); None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("")
        yield lambda done, all_: shown.update(task, completed=done, total=all_)


def text(value: str) -> str:
    """*value* from argv, which may hold any bytes, as text that any database takes."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "�")


def bad(hint: str, read: Callable[[], T]) -> T:
    """What *read* returns; its error is one of usage, in the flag *hint*."""
    try:
        return read()
    except SpendmeterError as e:
        raise click.BadParameter(str(e), param_hint=hint) from None


def _meant(given: str, known: Sequence[str]) -> str:
    """The end of a message on *given*, which is none of *known*: the nearest of them, if one is near."""
    from difflib import get_close_matches

    near = get_close_matches(given, known, 1)
    return f'; did you mean "{near[0]}"?' if near else ""


class TextType(click.ParamType[str]):
    """Any text, clean."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """*value* without bytes that are no text."""
        return text(value)


class PairType(click.ParamType[tuple[str, str]]):
    """KEY=VALUE."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """(key, value)."""
        key, eq, told = text(value).partition("=")
        if not eq or not key:
            self.fail(f'"{key}" is not KEY=VALUE, as in plan=book', param, ctx)
        return key, told


class CliType(click.ParamType[str]):
    """Name of a coding-agent CLI that can be read."""

    name = "cli"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """*value*, if there is a parser for it."""
        from spendmeter.parsers import names

        if value not in names():
            self.fail(f'"{text(value)}" is not one of {", ".join(names())}{_meant(value, names())}', param, ctx)
        return value


TEXT, PAIR, CLI = TextType(), PairType(), CliType()


def with_tags(f: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --agent, --task and --attr, given to the command as ``tags`` (None where none is given)."""

    def command(agent: str | None, task: str | None, attr: Sequence[tuple[str, str]], **rest: Any) -> Any:
        return f(tags=_tags(agent, task, dict(attr)), **rest)

    command.__doc__ = f.__doc__
    command.__dict__ |= f.__dict__
    command = click.option("--attr", metavar="KEY=VALUE", type=PAIR, multiple=True, help="Any other tag; may be given many times.")(command)
    command = click.option("--task", metavar="KEY", type=TEXT, envvar="SPENDMETER_TASK", help="Unit of work that it was for.")(command)
    return click.option("--agent", metavar="NAME", type=TEXT, envvar="SPENDMETER_AGENT", help="Role that did the work.")(command)


def _tags(agent: str | None, task: str | None, attrs: Mapping[str, str]) -> Tags | None:
    from spendmeter.records import Tags

    return Tags(agent or "unknown", task or "unknown", attrs) if agent or task or attrs else None


def as_json(f: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(f)


class LazyGroup(click.Group):
    """A group whose commands are modules of ``spendmeter.cli``, imported when called; errors become exit codes here.

    ``prefix``: of the modules' names, before the commands'.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, str]], prefix: str = "", **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.sections, self.prefix = sections, prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of help."""
        return [name for section in self.sections.values() for name in section]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command, with the global flags added to it; they may stand on either side of its name."""
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"spendmeter.cli.{self.prefix}{name}").command
        for flag in ("ledger", "config"):
            if not any(p.name == flag for p in command.params):
                command.params.append(click.Option([f"--{flag}"], callback=take_global, expose_value=False, hidden=True))
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; a name that is none of ours is told with the nearest one."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f'there is no command "{text(args[0])}"{_meant(args[0], known)}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, without loading any."""
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def main(self, *args: Any, **rest: Any) -> Any:
        """As click's, help included; standard output that cannot be written is one line and exit code 1."""
        try:
            return super().main(*args, **rest)
        except OSError as e:
            if e.errno not in NO_ROOM or e.filename is not None:
                raise
            _give_up_output()
            say(f"standard output cannot be written ({e.strerror}); free some space, or send it somewhere else")
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; what spendmeter raises becomes one line on standard error and exit code 1."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr] # an ASCII terminal is no reason to fail
        try:
            return super().invoke(ctx)
        except SpendmeterError as e:
            say(" ".join(str(e).split()))
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(INTERRUPTED)


def _give_up_output() -> None:
    """What is still buffered goes nowhere: the interpreter's own flush at the end would fail once more, with a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
