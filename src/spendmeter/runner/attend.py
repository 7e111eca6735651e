"""One metered run, from the child's start to our own end."""

from __future__ import annotations

import os
import sys
import time

from spendmeter.runner import process
from spendmeter.runner.args import Options
from spendmeter.runner.childenv import Trace, child_env
from spendmeter.runner.detect import Command
from spendmeter.runner.facts import Facts
from spendmeter.runner.glance import glance
from spendmeter.runner.mask import Mask
from spendmeter.runner.say import say

TYPE_CHECKING = False  # importing typing costs 5 ms before the child starts, the meter and its like as much
if TYPE_CHECKING:
    from typing import NoReturn

    from spendmeter.runner.gate import AnyTicket
    from spendmeter.runner.meter import Meter
    from spendmeter.runner.pump import Pump
    from spendmeter.runner.relay import Relay

SWITCH_S = 0.0005  # the copying thread waits no longer than this for one that imports
STALL_S = 10.0  # how long the ledger may take, once the child has ended, without any progress
HURRY_S = 0.3  # and how long after somebody asked us to go


def attend(path: str, options: Options, ticket: AnyTicket | None = None) -> NoReturn:
    """Starts the program at *path*, attends it and ends as it ends; with code 3 where it was ended by a limit.

    Args:
        ticket: what the run has set aside of its budgets, if anything.

    Raises:
        CannotRunError: it cannot be executed.
        OSError: there are no descriptors, processes or room left; nothing was started.
    """
    wake = process.pipe()
    mask = Mask()
    facts = _facts(options, ticket)
    env = child_env(os.environ, facts.run_id, facts.trace, options.agent, options.task)
    try:
        child = process.start(path, options.command, env, mask.restore, lambda: _glance(facts))
    except OSError:
        mask.restore()
        raise
    from spendmeter.runner.pump import Pump

    pump, was_ended = Pump(child.out, wake[0]), False
    try:
        status, was_ended = _follow(facts, child, mask, pump, wake[1], ticket)
    except BaseException as e:  # noqa: BLE001 - e.g. no thread could be started: the run goes on all the same
        say(f"run: not metered: {type(e).__name__}")
        status = _only_wait(child.pid, pump)
    _leave(pump, status, was_ended=was_ended)


def _facts(options: Options, ticket: AnyTicket | None) -> Facts:
    run_id = ticket.run_id if ticket else os.urandom(16).hex()
    try:
        cwd = os.getcwd()  # noqa: PTH109 - pathlib would delay the child by 4 ms
    except OSError:  # it was removed
        cwd = None
    trace = Trace(run_id, os.environ.get("TRACEPARENT"))
    return Facts(options, Command(options.command), trace, run_id, cwd)


def _glance(facts: Facts) -> None:
    if facts.command.cli in (None, "claude"):
        facts.early = glance(facts.env, facts.cwd, facts.command.resumed)


def _follow(facts: Facts, child: process.Child, mask: Mask, pump: Pump, wake: int, ticket: AnyTicket | None) -> tuple[int, bool]:
    """Attends the child to its end and has the run recorded; its wait status, and whether it was ended by a limit."""
    guard = process.guard(child, facts.run_id)
    from spendmeter.runner.limits import Run
    from spendmeter.runner.meter import Meter
    from spendmeter.runner.relay import Relay, nudge

    sys.setswitchinterval(SWITCH_S)
    relayed = Relay(child, facts.run_id, mask, wake)
    meter = Meter(Run(facts, child, lambda: relayed.status is not None, lambda: nudge(wake)), ticket)
    relayed.start()
    meter.start()
    pump.wait(lambda: relayed.status is not None, meter.show)
    pump.wait(lambda: not meter.is_ending, meter.show)  # of a run that is being ended, all that its last process prints counts
    pump.drain(meter.show)
    status = relayed.status or 0
    meter.end(status)
    pump.wait(lambda: meter.finished, None, _Patience(meter, relayed).until_s)
    if not meter.finished:
        meter.give_up()
    if lines := [*meter.lines, *([pump.problem] if pump.problem else [])]:
        say("; ".join(lines))
    process.dismiss(guard)
    return status, meter.was_ended


def _only_wait(pid: int, pump: Pump) -> int:
    pump.wait(lambda: pump.source is None, None)
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:  # the relay has had it
        return 0


def _leave(pump: Pump, status: int, *, was_ended: bool) -> NoReturn:
    from spendmeter.runner.gate import OVER_BUDGET
    from spendmeter.runner.relay import end_like

    try:
        if pump.source is not None:
            process.leave_pump(pump.source)
    finally:
        end_like(status if not was_ended else OVER_BUDGET << 8)


class _Patience:
    """Until when the meter may go on after the child's end: STALL_S after its last progress, or HURRY_S after a signal."""

    def __init__(self, meter: Meter, relayed: Relay) -> None:
        self._meter, self._relayed = meter, relayed
        self._taken = -1
        self._limit_s = self._hurry_s = float("inf")

    def until_s(self) -> float:
        """The monotonic time, as things stand."""
        if self._relayed.hurried:
            self._hurry_s = min(self._hurry_s, time.monotonic() + HURRY_S)
        if self._taken != self._meter.taken:
            self._taken, self._limit_s = self._meter.taken, time.monotonic() + STALL_S
        return min(self._limit_s, self._hurry_s)
