"""``spendmeter run``: handed on untouched to the runner, which reads its own flags."""

from __future__ import annotations

from typing import Any

import click

from spendmeter.cli.app import App


class _Forward(click.Command):
    """Leaves every argument, ``--`` and ``--help`` too, to the runner."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keeps *args* as they are."""
        ctx.args = list(args)
        return []

    def get_help(self, ctx: click.Context) -> str:
        """What the runner says of itself."""
        from spendmeter.runner.args import help_text

        return help_text().rstrip()

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; its exit code is ours."""
        from spendmeter.runner import main

        flags = ctx.ensure_object(App).flags
        known = [word for name in ("ledger", "config") if flags[name] is not None for word in (f"--{name}", str(flags[name]))]
        ctx.exit(main([*known, "run", *ctx.args]))


command = _Forward("run", add_help_option=False, help="Run a command, meter it, pass everything through.")
