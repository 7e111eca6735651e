"""Watches a run from a thread of its own and commits it when it has ended; nothing that fails here reaches the run."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spendmeter.errors import RunRefusedError
from spendmeter.runner.describe import describe
from spendmeter.runner.limits import Limits, Run, Stop
from spendmeter.runner.procs import belongs
from spendmeter.runner.warm import Loader

if TYPE_CHECKING:
    from spendmeter.parsers import Stream
    from spendmeter.records import Observation
    from spendmeter.runner.compose import AnyWatch
    from spendmeter.runner.finished import FinishedRun
    from spendmeter.runner.gate import AnyTicket
    from spendmeter.runner.spool import Pending

BACKLOG_BYTES = 64 << 20  # unread output that is held while the heavy parts load; beyond it the child waits
STUCK_S = 1.0
TICK_S = 0.1
REFRESH_S = 2.0


class Meter(threading.Thread):
    """Takes the child's output by ``show``, its end by ``end``; ``finished`` and ``lines`` (for stderr) tell the rest."""

    def __init__(self, run: Run, ticket: AnyTicket | None) -> None:
        super().__init__(daemon=True)
        self.finished = False
        self.lines: list[str] = []
        self.taken = 0  # bytes of output read so far, and steps done since: progress
        facts = run.facts
        self._facts, self._child_pid, self._wake = facts, run.child.pid, run.wake
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._shown = 0
        self._deaf = False
        self._status = self._ended_ms = 0
        self._notes: list[str] = []
        self._stream: Stream | None = None
        self._watches: list[AnyWatch] = []
        self._mark: Pending | None = None
        self._told: set[str] = set()
        self._refreshed_s = time.monotonic()
        self._loader = Loader(facts.options.ledger, facts.options.config, facts.options.remote)
        is_limited = ticket is not None or facts.options.max_cost_nusd is not None or facts.options.max_tokens is not None
        self._limits = Limits(run, ticket, self._loader) if is_limited else None
        self._run: FinishedRun | None = None
        self._is_recorded = False

    def show(self, data: bytes) -> None:
        """Takes a piece of output; waits only while more than BACKLOG_BYTES are unread, and not if reading is stuck."""
        if self._deaf:
            return
        self._shown += len(data)
        self._queue.put(data)
        taken, limit_s = self.taken, time.monotonic() + STUCK_S
        while self._shown - self.taken > BACKLOG_BYTES and not self.finished and not self._deaf:
            time.sleep(0.002)
            self._deaf = self.taken == taken and time.monotonic() > limit_s

    def end(self, status: int) -> None:
        """The child has ended with wait status *status*."""
        self._status, self._ended_ms = status, time.time_ns() // 1_000_000
        self._queue.put(None)

    @property
    def is_ending(self) -> bool:
        """Whether the run is being ended and something of it is still there."""
        return self._limits is not None and self._limits.is_ending

    @property
    def was_ended(self) -> bool:
        """Whether the run was ended by a limit."""
        return self._ended_by is not None

    @property
    def _ended_by(self) -> Stop | None:
        return self._limits.stop if self._limits is not None else None

    def run(self) -> None:
        """The thread: begin, follow, finish."""
        try:
            self._loader.start()
            self._attempt("session files are not watched", self._begin)
            self._attempt("the start of the run was not marked", self._write_mark)
            self._attempt("standard output is not read", self._open_stream)
            self._follow()
            self._finish()
        except BaseException as e:  # noqa: BLE001 - metering never breaks the run
            self.lines.append(f"this run was not recorded: {describe(e)}; 'spendmeter sync' can still read its session files")
        finally:
            self.finished = True
            self._wake()

    def give_up(self) -> None:
        """Called when the ledger takes too long: keeps the run for later. Once it is recorded there is nothing to keep."""
        run = self._run
        if self._is_recorded:
            return
        if run is None:
            self.lines.append("this run was not recorded in time; the next spendmeter command finishes it")
        else:
            self._keep(run, "the ledger did not answer in time; is it locked or unreachable?")

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as e:  # noqa: BLE001 - a part that fails leaves the others working
            self._notes.append(f"{what}: {describe(e)}")

    def _begin(self) -> None:
        from spendmeter.parsers import claude_files

        facts = self._facts
        watches: list[AnyWatch]
        if (cli := facts.command.cli) in (None, "claude"):
            watches = [claude_files.Watch(h, facts.cwd, facts.start_ns, facts.early) for h in claude_files.homes(facts.env)]
        else:
            from spendmeter.parsers import changes, places

            watches = [changes.Changes(cli, h, facts.start_ns) for h in places.PLACES[cli].homes(facts.env, None)]
        for watch in watches:
            watch.snapshot()
        self._watches = watches

    def _write_mark(self) -> None:
        from spendmeter.runner import spool

        self._mark = spool.create(self._folders(), self._facts.run_id, self._mark_data())

    def _open_stream(self) -> None:
        from spendmeter import parsers
        from spendmeter.errors import ParseError

        try:
            self._stream = parsers.open_stream(self._facts.command.cli, "run")
        except ParseError:  # a CLI that has no parser yet
            self._stream = parsers.open_stream(None, "run")

    def _follow(self) -> None:
        """Reads the output until the end, and looks at the session files meanwhile."""
        due_s = 0.0
        while True:
            try:
                data = self._queue.get(timeout=0 if self._limits is not None and self._limits.behind else TICK_S)
            except queue.Empty:
                data = b""
            if data is None:
                return
            if data:
                self._feed(data)
            if is_due := (now_s := time.monotonic()) >= due_s:
                self._attempt("session files are not watched", self._look)
                due_s = now_s + TICK_S
            if self._limits is not None and (is_due or self._limits.behind):
                self._keep_to(self._limits)

    def _keep_to(self, limits: Limits) -> None:
        if limits.look(self._stream, self.taken, self._sessions(), self._watches):
            self._attempt("that the run was ended is not marked", self._update_mark)

    def _feed(self, data: bytes) -> None:
        try:
            if self._stream is not None:
                self._stream.feed(data)
        except Exception as e:  # noqa: BLE001 - the session files may still tell all
            self._stream = None
            self._notes.append(f"standard output was not read to its end: {describe(e)}")
        finally:
            self.taken += len(data)

    def _look(self) -> None:
        known = self._sessions()
        for watch in self._watches:
            known |= watch.poll(self._is_ours)
        if not known and self._facts.command.cli and time.monotonic() - self._refreshed_s > REFRESH_S:
            for watch in self._watches:
                watch.refresh()
            self._refreshed_s = time.monotonic()
        if known - self._told:
            self._told = known
            self._update_mark()

    def _is_ours(self, pid: int) -> bool:
        return pid == self._child_pid or belongs(pid, self._facts.run_id)

    def _sessions(self) -> set[str]:
        named = {self._facts.command.session} if self._facts.command.session else set()
        return named | (set(self._stream.sessions) if self._stream is not None else set())

    def _finish(self) -> None:
        if self._limits is not None:
            self._limits.settle()
        self.taken += 1
        observations: list[Observation] = []
        if self._stream is not None:
            try:
                observations = self._stream.finish()
            except Exception as e:  # noqa: BLE001 - the session files may still tell all
                self._notes.append(f"standard output was not understood: {describe(e)}")
        self._run = self._observed(observations)
        self._commit(self._run)

    def _observed(self, observations: list[Observation]) -> FinishedRun:
        from spendmeter.runner.compose import compose

        run = compose(self._facts, self._watches, [self._child_pid], self._sessions(), observations)
        run.ended_ms = self._ended_ms
        if os.WIFEXITED(self._status):
            run.exit_code = os.WEXITSTATUS(self._status)
        else:
            run.signal = os.WTERMSIG(self._status)
        if self._deaf:
            self._notes.append("standard output was not read to its end: it came faster than it could be read")
        run.notes[:0] = self._notes
        self.lines += run.notes
        if stop := self._ended_by:
            run.stopped = stop.why
            run.notes.insert(0, stop.line)
        return run

    def _commit(self, run: FinishedRun) -> None:
        self._loader.join()
        self.taken += 1
        if self._loader.error is not None:
            self._keep(run, describe(self._loader.error))
            return
        try:
            if self._limits is not None and (line := self._limits.last_word(run, self._watches)):
                self.lines.append(line)
            self._hand_over(run)
        except RunRefusedError as e:
            self._keep(run, describe(e), is_final=True)
        except Exception as e:  # noqa: BLE001 - metering never breaks the run
            self._keep(run, describe(e))
        else:
            self._is_recorded = True
            if self._mark is not None:
                self._mark.remove()
            if self._facts.options.remote is None:  # else the daemon over there tells
                from spendmeter import notices

                self.lines += notices.after_run(self._facts.options.ledger, self._facts.options.config)

    def _hand_over(self, run: FinishedRun) -> None:
        options = self._facts.options
        if options.remote is None:
            from spendmeter import ingest

            ingest.commit_run(options.ledger, options.config, run)
        else:
            from spendmeter.runner import remote

            remote.commit_run(options.remote, run)

    def _keep(self, run: FinishedRun, why: str, *, is_final: bool = False) -> None:
        """Keeps *run* for later; where that *is_final*, nobody tries again by himself."""
        from spendmeter.runner import spool

        try:
            path = spool.write_pending(self._folders(), run)
            kept = f"set aside as {spool.set_aside(path)}" if is_final else f"kept in {path} for the next spendmeter command"
        except OSError as e:
            self.lines.append(f"this run was not recorded: {why}; nor could it be kept for later: {describe(e)}")
        else:
            if self._mark is not None and self._mark.path != path:
                self._mark.remove()
            self.lines.append(f"this run was not recorded yet: {why}; {kept}")

    def _folders(self) -> list[Any]:
        from spendmeter.runner import recover, spool

        options = self._facts.options
        if options.remote is not None:
            return spool.spool_dirs(options.remote, self._facts.env)
        return recover.folders(options.ledger, options.config, self._facts.env)

    def _update_mark(self) -> None:
        if self._mark is not None:
            self._mark.update(self._mark_data())

    def _mark_data(self) -> dict[str, Any]:
        from spendmeter.runner.compose import mark

        return mark(self._facts, self._watches, self._child_pid, self._sessions(), self._ended_by.why if self._ended_by else None)
