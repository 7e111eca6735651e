"""``spendmeter hook``."""

from __future__ import annotations

import os
import sys

import click

from spendmeter.cli.app import App, pass_app, say
from spendmeter.runner.describe import describe

STDIN_MAX = 32 << 20


@click.command("hook", context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, metavar="claude|codex|gemini [JSON]", type=click.UNPROCESSED)
@pass_app
def command(app: App, words: tuple[str, ...]) -> None:
    """Read the session that a CLI's hook names, when the CLI calls it.

    Takes what the CLI hands over: Claude Code and Gemini CLI on standard input, Codex as the last argument. SPENDMETER_AGENT and
    SPENDMETER_TASK say whose usage it is. Under `spendmeter run` there is nothing to do. The exit code is always 0, so that no CLI is
    ever stopped by it; after 1.5 s it goes on in the background.
    """
    if os.environ.get("SPENDMETER_RUN_ID") or os.environ.get("SPENDMETER_OFF", "0") not in ("", "0"):
        return
    try:
        line = _line(app, words)
    except Exception as e:  # noqa: BLE001 - e.g. no process could be started; the CLI is not to hear of it
        line = describe(e)
    if line:
        say(f"hook: {line}")


def _line(app: App, words: tuple[str, ...]) -> str:
    from spendmeter.runner.hooks import CLIS, detached, take

    cli = words[0] if words else ""
    if cli not in CLIS:
        return f"the first word is to be one of {', '.join(CLIS)}"
    payload = words[-1].encode("utf-8", "replace") if len(words) > 1 else _stdin()
    return detached(lambda: take(cli, payload, os.environ, ledger=app.flags["ledger"], config=app.flags["config"]))


def _stdin() -> bytes:
    return b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read(STDIN_MAX)
