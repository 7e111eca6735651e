"""``spendmeter run``: asks the budgets, starts the command, lets it be itself, and records what it used.

Only quick modules of the standard library are imported before the child runs: tests/test_runner_parts.py holds the list.
"""

from __future__ import annotations

import os
import signal

from spendmeter.runner import gate
from spendmeter.runner.args import Options, UsageError, help_text, parse
from spendmeter.runner.locate import CannotRunError, become, failure, locate
from spendmeter.runner.say import say

TYPE_CHECKING = False  # importing typing costs 5 ms before the child starts
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from spendmeter.runner.gate import AnyTicket

BAD_USAGE = 2


def main(argv: Sequence[str]) -> int:
    """Runs what *argv* (global flags, ``run``, its flags, the command) says; returns only when nothing was started."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # die of it as any command would, without a traceback
    try:
        options = parse(argv, os.environ)
    except UsageError as e:
        say(str(e))
        return BAD_USAGE
    if options.help:
        os.write(1, help_text().encode())
        return 0
    try:
        path = locate(options.command[0], os.environ)
        if os.environ.get("SPENDMETER_OFF", "0") in ("", "0"):
            _metered(path, options, gate.enter(options, os.environ))
        _unmetered(path, options)
    except gate.RefusedError as e:
        say(str(e))
        return gate.OVER_BUDGET
    except CannotRunError as e:
        say(f"run: {e}")
        return e.code


def _metered(path: str, options: Options, ticket: AnyTicket | None) -> None:
    """Returns only where the child could not be started for want of descriptors, processes or room."""
    from spendmeter.runner.attend import attend

    try:
        attend(path, options, ticket)
    except CannotRunError:
        gate.leave(ticket, options)
        raise
    except OSError as e:
        say(f"run: not metered: {e.strerror}; is ulimit -n, -u or -s too low?")


def _unmetered(path: str, options: Options) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python itself had them ignored
        signal.signal(number, signal.SIG_DFL)
    try:
        become(path, options.command, os.environ)
    except OSError as e:
        raise failure(options.command[0], e.errno or 0) from None
