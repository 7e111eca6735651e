"""Asks the budgets whether a run may start, before its child does.

Where none can keep it from starting, nothing is imported for that: tests/test_gate.py holds it.
"""

from __future__ import annotations

import os
import time

from spendmeter.runner.say import say

TYPE_CHECKING = False  # importing typing costs 5 ms before the child starts
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from spendmeter.budgets import Budgets, Subject
    from spendmeter.config import Settings
    from spendmeter.guard import Admission, Ticket
    from spendmeter.ledger import Ledger
    from spendmeter.runner import admission
    from spendmeter.runner.args import Options

    AnyTicket = Ticket | admission.CentralTicket

OVER_BUDGET = 3
PATIENCE_MS = 15_000  # for a ledger that gets nowhere, before the child starts
BUSY_S = 45.0  # and for one that gets on, but keeps us waiting
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 4.0  # each twice the last: in all longer than what a dead wrapper leaves behind takes to be ended
_NAMED_BY = ("SPENDMETER_BUDGETS", "SPENDMETER_BUDGETS_FILE")
_ON_ERROR = "SPENDMETER_BUDGETS_ON_ERROR"
_ACTIONS = rb"\b(warn|block|kill)\b"
_BLOCKS = rb"""(?m)^[^#\n]*\bon_error\s*=\s*["']block["']"""


class RefusedError(Exception):
    """The run must not start; the message is the one line that says why."""


def enter(options: Options, env: Mapping[str, str]) -> AnyTicket | None:
    """Lets the run in; what it has set aside, or None where no budget asks for that. With --remote the budgets are the daemon's.

    Raises:
        RefusedError: a budget is in its way, or the budgets cannot be checked and are set to block then.
    """
    config = _config(options.config or env.get("SPENDMETER_CONFIG"))
    if options.remote is None and not any(env.get(name) for name in _NAMED_BY) and b"budgets" not in config:
        return None
    found = _checked(options, env, config)
    if found is None:
        return None
    if not found.allowed:
        raise RefusedError(f"run not started: {found.lines[0]}")
    for line in found.lines:
        say(line)
    return found.ticket


def _checked(options: Options, env: Mapping[str, str], config: bytes) -> Admission | admission.Admission | None:
    """What the budgets say; None where none is asked, or none can be and the run may start all the same."""
    settings = None
    try:
        if options.remote is not None:
            return _asked_there(options.remote, options, must_be=_blocks(config, env))
        from spendmeter.config import load

        settings = load(options.config, options.ledger, env)
        file = settings.budgets_file
        return _asked(file, settings, options) if file is not None and _may_guard(file) else None
    except Exception as e:  # noqa: BLE001 - a guard that fails keeps no run from starting unless it is told to
        from spendmeter.runner.describe import describe

        if settings.budgets_block_on_error if settings else _blocks(config, env):
            raise RefusedError(f"run not started: its budgets cannot be checked: {describe(e)}") from None
        say(f"run: its budgets are not checked: {describe(e)}")
        return None


def leave(ticket: AnyTicket | None, options: Options) -> None:
    """Gives back what was set aside for a run whose child could not be started."""
    if ticket is None:
        return
    from contextlib import closing, suppress

    from spendmeter.errors import SpendmeterError
    from spendmeter.runner.admission import CentralTicket

    with suppress(SpendmeterError, OSError):
        if isinstance(ticket, CentralTicket):
            ticket.drop()
            return
        from spendmeter.config import load
        from spendmeter.ledger import Ledger

        with closing(Ledger(load(options.config, options.ledger), busy_ms=PATIENCE_MS)) as ledger:
            ticket.drop(ledger)


def _config(path: str | None) -> bytes:
    """What the settings file holds; of one that cannot be read, that it may name budgets."""
    if not path:
        return b""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib would delay the child by 4 ms
            return file.read()
    except OSError:
        return b"budgets"


def _blocks(config: bytes, env: Mapping[str, str]) -> bool:
    """What settings that are wrong say of budgets that cannot be checked."""
    import re

    return env[_ON_ERROR] == "block" if env.get(_ON_ERROR) else re.search(_BLOCKS, config) is not None


def _may_guard(file: Path) -> bool:
    """Whether any action in the budgets' file is of concern to a start; a look at the text spares reading it."""
    import re

    return re.search(_ACTIONS, file.read_bytes()) is not None


def _asked_there(remote: str, options: Options, *, must_be: bool) -> admission.Admission:
    """What the daemon at *remote* says; a run that *must_be* asked for waits longer for it."""
    from spendmeter.runner import admission

    run = admission.document(os.urandom(16).hex(), _tags(options), options.max_cost_nusd, options.max_tokens)
    return admission.enter(remote, run, admission.PATIENT_S if must_be else admission.LIMIT_S)


def _asked(file: Path, settings: Settings, options: Options) -> Admission | None:
    """What the budgets say; the ledger is closed again, as none may be open over a fork."""
    from spendmeter.budgets import Subject
    from spendmeter.budgets.file import load

    budgets, subject = load(file), Subject(**_tags(options))
    if not any(b.action != "alert" and b.may_cover(subject) for b in budgets.budgets):
        return None
    from contextlib import closing

    from spendmeter.ledger import Ledger

    with closing(Ledger(settings, busy_ms=PATIENCE_MS)) as ledger:
        return _admitted(ledger, budgets, subject, options)


def _admitted(ledger: Ledger, budgets: Budgets, subject: Subject, options: Options) -> Admission:
    """Takes in the runs of dead wrappers first; where another process does that just now, waits for it if room may come of it."""
    from contextlib import suppress

    from spendmeter.runner import recover

    pause_s = FIRST_PAUSE_S
    while True:
        with suppress(Exception):  # what it has set aside stays so, then
            recover.recover(options.ledger, options.config)
        found = _patient(ledger, budgets, subject, options)
        if not found.waits or pause_s > LAST_PAUSE_S:
            return found
        time.sleep(pause_s)
        pause_s *= 2


def _patient(ledger: Ledger, budgets: Budgets, subject: Subject, options: Options) -> Admission:
    """Asks again where the ledger was busy all the while, but got on: many start at once."""
    from spendmeter import guard
    from spendmeter.errors import LedgerError
    from spendmeter.runner import recover, spool

    folders = recover.folders(options.ledger, options.config, os.environ)
    until_s = time.monotonic() + BUSY_S
    while True:
        before = _standing(ledger)
        try:
            return guard.admit(
                ledger, budgets, subject, os.urandom(16).hex(), max_cost_nusd=options.max_cost_nusd, max_tokens=options.max_tokens,
                is_pending=lambda run_id: spool.is_pending(folders, run_id),
            )  # fmt: skip
        except LedgerError:
            if _standing(ledger) == before or time.monotonic() > until_s:
                raise


def _standing(ledger: Ledger) -> object:
    """Another one after anything was written of runs."""
    from spendmeter.ledger import reservations

    with ledger.read() as conn:
        return ledger.moved(conn), reservations.held(conn, 0)


def _tags(options: Options) -> dict[str, Any]:
    """The run as ``budgets.Subject`` has it."""
    from spendmeter.runner.detect import Command
    from spendmeter.runner.repo import repo_of

    try:
        cwd = os.getcwd()  # noqa: PTH109 - as the meter asks
    except OSError:  # it was removed
        cwd = None
    command = Command(options.command)
    return {
        "agent": options.agent, "task": options.task, "cli": command.cli, "model": command.model, "repo": repo_of(cwd).name,
        "attrs": options.attrs,
    }  # fmt: skip
