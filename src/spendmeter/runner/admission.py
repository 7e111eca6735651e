"""Asks a central daemon whether a run may start, and, as long as it is under way, whether it may go on.

The first is asked before the run's child starts, so only quick modules are imported here. The daemon keeps what it has set aside for
the run for a minute after the last word from here: what a dead host holds falls away by itself.
"""

from __future__ import annotations

import os
import select
import signal
import time

from spendmeter.errors import RemoteError
from spendmeter.runner import central
from spendmeter.runner.describe import describe

TYPE_CHECKING = False  # importing typing costs 5 ms before the child starts
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet
    from typing import Any

PATH = "/api/v1/admissions"
LIMIT_S = 2.0  # how long the start of a run may wait for the daemon
PATIENT_S = 10.0  # and where it may not start unasked
PAUSE_S = 0.5  # before a daemon that is busy is asked again
RENEW_S = 15.0  # what is set aside is renewed so often where nothing has changed,
WATCH_S = 3.0  # so often where a budget may end the run, for others spend of it too,
PACE_S = 1.0  # and no more often than that where something has changed
PATIENCE_S = 1.5  # for each of those: the run goes on meanwhile
_MOST_NUSD = 10**15  # a limit above a million dollars ends nothing
_TAGS = ("agent", "task", "cli", "model", "repo", "attrs")


class Admission:
    """As ``guard.Admission``: whether the run may start, what is said to that, and what is set aside for it, if anything."""

    def __init__(self, allowed: bool, lines: list[str], ticket: CentralTicket | None) -> None:
        self.allowed, self.lines, self.ticket = allowed, lines, ticket


class CentralTicket:
    """What a daemon has set aside for a run of this process.

    ``kills``: whether a budget may end the run. ``exceeded``: the name of the one that has to, once ``beat`` has said so.
    """

    def __init__(self, remote: str, run: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """*told*: the daemon's answer to *run*."""
        self.run_id, self.kills = str(run["run_id"]), bool(told["kills"])
        self.exceeded: str | None = None
        self._remote, self._path = remote, f"{PATH}/{run['run_id']}"
        self._run = {name: run[name] for name in _TAGS} | {name: told[name] for name in ("expected_usd", "expected_tokens")}
        self._left: list[dict[str, Any]] = told["left"]
        self._models: set[str] = set()
        self._told: object = (None, None, frozenset())
        self._asked_s = time.monotonic()

    def beat(self, used_nusd: int | None, used_tokens: int | None, models: AbstractSet[str]) -> str | None:
        """Renews what is set aside, and looks whether a budget has run out meanwhile. To be called often, by one thread.

        What was left of a budget when the daemon was last heard ends the run also while that is away.

        Args:
            used_nusd: what the run has used so far, as far as is known; likewise *used_tokens*.
            models: those that it is known to have called.

        Returns:
            The line that says which budget is used up and ends the run; None where none is.

        Raises:
            RemoteError, ConfigError: the daemon was not reached; a later beat tries again.
        """
        self._models |= models
        used = (used_nusd, used_tokens, frozenset(self._models))
        wait_s = PACE_S if used != self._told else WATCH_S if self.kills else RENEW_S
        if time.monotonic() - self._asked_s >= wait_s:
            self._asked_s = time.monotonic()
            told = self._renewed(used_nusd, used_tokens)
            self._told, self._left = used, told["left"]
            if told["exceeded"]:
                self.exceeded = central.plain(str(told["exceeded"]))
                return central.plain(str(told["line"]))
        return self._passed(used_nusd, used_tokens)

    def drop(self) -> None:
        """Gives back what was set aside; where that fails, it expires by itself."""
        _apart(lambda: central.ask(self._remote, "DELETE", self._path, None, LIMIT_S), LIMIT_S)

    def _renewed(self, used_nusd: int | None, used_tokens: int | None) -> dict[str, Any]:
        from spendmeter.records import usd_text

        run = self._run | {"used_usd": usd_text(used_nusd), "used_tokens": used_tokens, "models": sorted(self._models)}
        return _checked(self._remote, central.ask(self._remote, "PUT", self._path, run, PATIENCE_S), ("exceeded", "line", "left"))

    def _passed(self, used_nusd: int | None, used_tokens: int | None) -> str | None:
        for x in self._left:
            most, used = (_nusd(x["left_usd"]), used_nusd) if x["left_usd"] is not None else (x["left_tokens"], used_tokens)
            if most is not None and used is not None and used >= most:
                self.exceeded = central.plain(str(x["budget"]))
                return f"over budget {self.exceeded}: {_quantity(x, used)} used by this run, {_quantity(x, most)} were left for it"
        return None


def enter(remote: str, run: Mapping[str, Any], limit_s: float) -> Admission:
    """What the daemon at *remote* says to *run*, the document that its door takes, after *limit_s* at most; a busy one is asked again.

    Raises:
        RemoteError: it says nothing, or nothing of use.
    """
    until_s = time.monotonic() + limit_s
    while True:
        found = _apart(lambda: central.ask(remote, "POST", PATH, run, limit_s), until_s - time.monotonic())
        if not (found and found.get("busy")) or time.monotonic() + 2 * PAUSE_S > until_s:
            break
        time.sleep(PAUSE_S)
    if found is None:
        raise RemoteError(f"{remote}: no answer within {limit_s:g} s; is it running, and reachable from here?")
    if "error" in found:
        raise RemoteError(str(found["error"]))
    told = _checked(remote, found, ("allowed", "lines", "held", "kills", "expected_usd", "expected_tokens", "left"))
    lines = [central.plain(str(line)) for line in told["lines"]]
    if not told["allowed"]:
        return Admission(False, lines or ["the daemon does not say why"], None)
    return Admission(True, lines, CentralTicket(remote, run, told) if told["held"] else None)


def document(run_id: str, tags: Mapping[str, Any], max_cost_nusd: int | None, max_tokens: int | None) -> dict[str, Any]:
    """The run as the daemon's door takes it; *tags* as of ``budgets.Subject``."""
    cost = None
    if max_cost_nusd is not None and max_cost_nusd <= _MOST_NUSD:
        from spendmeter.records import usd_text

        cost = usd_text(max_cost_nusd)
    tokens = max_tokens if max_tokens is None or max_tokens <= _MOST_NUSD // 1000 else None
    return {"run_id": run_id, **tags, "max_cost_usd": cost, "max_tokens": tokens}


def _checked(remote: str, told: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    left = told.get("left")
    is_known = isinstance(left, list) and all(isinstance(x, dict) and {"budget", "left_usd", "left_tokens"}.issubset(x) for x in left)
    if is_known and set(names).issubset(told):
        return told
    raise RemoteError(f"{remote}: its answer is not understood; is that its address, and is its spendmeter as new as this one?")


def _apart(work: Callable[[], dict[str, Any]], limit_s: float) -> dict[str, Any] | None:
    """What *work* returns, or its error in one line as ``error`` and whether it is ``busy``; None after *limit_s*.

    Done in a process of its own, as looking up a name knows no time limit, and a thread that hangs must not be there at a fork.
    """
    import json

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, json.dumps(_told(work)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    data = _read(read_end, time.monotonic() + limit_s)
    os.close(read_end)
    try:
        if data is None:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):  # nobody waits for children where SIGCHLD is ignored
        pass
    return None if data is None else central.decoded(data)


def _told(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except Exception as e:  # noqa: BLE001 - told to the run's own process
        return {"error": describe(e).partition(": ")[2] or describe(e), "busy": isinstance(e, central.BusyError)}


def _read(fd: int, until_s: float) -> bytes | None:
    """All that comes from *fd*; None where it has not ended by *until_s*."""
    data = b""
    while (left_s := until_s - time.monotonic()) > 0 and select.select([fd], [], [], left_s)[0]:
        part = os.read(fd, central.ANSWER_BYTES)
        if not part:
            return data
        data += part
    return None


def _nusd(text: object) -> int | None:
    from spendmeter.records import to_nusd

    return to_nusd(text)


def _quantity(left: Mapping[str, Any], amount: int) -> str:
    from spendmeter.projections.messages import messages

    return messages().money(amount) if left["left_usd"] is not None else f"{messages().whole(amount)} tokens"
