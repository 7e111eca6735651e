"""What may end a run while it is under way: its own limits, and the budgets that its ticket watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from spendmeter.errors import SpendmeterError
from spendmeter.runner.admission import CentralTicket
from spendmeter.runner.describe import describe
from spendmeter.runner.ending import Ending
from spendmeter.runner.say import say

if TYPE_CHECKING:
    from spendmeter.ingest import Ready
    from spendmeter.parsers import Stream
    from spendmeter.projections.messages import Messages
    from spendmeter.runner.args import Options
    from spendmeter.runner.compose import AnyWatch
    from spendmeter.runner.facts import Facts
    from spendmeter.runner.finished import FinishedRun
    from spendmeter.runner.gate import AnyTicket
    from spendmeter.runner.live import Live, Reading
    from spendmeter.runner.process import Child
    from spendmeter.runner.warm import Loader

Beat = Callable[[int | None, int | None, AbstractSet[str], AbstractSet[tuple[str, str]]], str | None]  # of a ticket
BEAT_S = 0.1  # the ticket itself knows how often the ledger is to be asked
LAST_BEAT_S = 2.0
BLIND_S = 10.0  # a CLI may take a while to name its session


class Stop(NamedTuple):
    """Why a run is ended: ``why`` for the ledger ("max-cost", "max-tokens", "budget NAME"), ``line`` for people."""

    why: str
    line: str


class Run(NamedTuple):
    """The run as the limits need it. ``has_ended``: whether the child was waited for; ``wake`` is called when all of it is gone."""

    facts: Facts
    child: Child
    has_ended: Callable[[], bool]
    wake: Callable[[], None]


class Limits:
    """Watches what a run uses, from the meter's thread, and has it ended when it must be.

    Attributes:
        stop: why the run was ended, or None.
        behind: whether there is more to read at once.
    """

    def __init__(self, run: Run, ticket: AnyTicket | None, loader: Loader) -> None:
        """*ticket*: of the budgets that let the run in; *loader* loads what counting needs."""
        self.stop: Stop | None = None
        self.behind = False
        self._run, self._ticket, self._loader, self._options = run, ticket, loader, run.facts.options
        self._live: Live | None = None
        self._beats: _Beats | None = None
        self._ending: Ending | None = None
        self._said: set[str] = set()
        self._blind_since_s: float | None = None
        self._is_broken = False

    @property
    def is_ending(self) -> bool:
        """Whether the run is being ended and something of it is still there."""
        return self._ending is not None and not self._ending.is_done

    def look(self, stream: Stream | None, size: int, sessions: set[str], watches: list[AnyWatch]) -> bool:
        """Counts what the run has used by now; whether its end has just begun. Raises nothing: without limits the run goes on.

        Args:
            stream: what standard output has told, *size* bytes in all.
            sessions: known to be the run's.
        """
        if self._is_broken or self.stop is not None:
            return False
        try:
            return self._look(stream, size, sessions, watches)
        except Exception as e:  # noqa: BLE001 - metering never breaks the run
            self._is_broken, self.behind = True, False
            say(f"run: its limits are not watched: {describe(e)}")
            return False

    def settle(self) -> None:
        """Waits until what is being ended is gone, and ends the beats: the run's commit takes the reservation away."""
        if self._ending is not None:
            self._ending.join()
        if self._beats is not None:
            self._beats.end()

    def last_word(self, run: FinishedRun, watches: list[AnyWatch]) -> str | None:
        """A line where *run* has ended by itself and over a limit of its own, or where that cannot be told."""
        if self._is_broken or self.stop is not None:
            return None
        try:
            ready = self._ready()
            if ready is None:
                return None
            reading = self._counter(ready, watches).last(run)
            self._tell_unpriced(reading)
            found = passed(self._options, reading, 1)
            return found and f"used {found[1]}, over {found[2]}"
        except SpendmeterError:  # the commit will fail likewise, and say so
            return None
        except Exception as e:  # noqa: BLE001 - metering never breaks the run
            return f"its limits were not checked: {describe(e)}"

    def _look(self, stream: Stream | None, size: int, sessions: set[str], watches: list[AnyWatch]) -> bool:
        ready = self._ready()
        if ready is None:
            return False
        live = self._counter(ready, watches)
        reading = live.reading(stream, size, sessions)
        self.behind = live.behind
        stop = None
        if reading is not None:
            self._tell_unpriced(reading)
            found = passed(self._options, reading)
            stop = found and Stop(found[0], f"{found[1]} of {found[2]} used")
        self._tell_blind(live.blind)
        stop = stop or self._beat(ready, reading)
        return stop is not None and self._end(stop, ready.settings.budgets_grace_s)

    def _ready(self) -> Ready | None:
        if self._loader.error is not None:
            raise self._loader.error
        if not self._loader.imported:
            return None
        from spendmeter import ingest

        ready = ingest.ready(self._options.ledger, self._options.config)
        if ready is None and self._loader.trouble is not None:
            raise self._loader.trouble
        return ready

    def _counter(self, ready: Ready, watches: list[AnyWatch]) -> Live:
        if self._live is None:
            from spendmeter.runner.live import Live

            self._live = Live(self._run.facts, self._run.child.pid, watches, ready.prices)
        return self._live

    def _beat(self, ready: Ready, reading: Reading | None) -> Stop | None:
        """Hands what is known to the ticket; what it said meanwhile."""
        ticket = self._ticket
        if ticket is None:
            return None
        beat: Beat
        if isinstance(ticket, CentralTicket):
            central = ticket
            beat = lambda nusd, tokens, models, _: central.beat(nusd, tokens, models)  # noqa: E731 - its ledger reads no files of this host
        elif ready.ledger is not None:
            beat = partial(ticket.beat, ready.ledger)
        else:
            if self._loader.trouble is not None:
                self._tell(f"its budgets are not watched: {describe(self._loader.trouble)}")
            return None
        if self._beats is None:
            self._beats = _Beats(beat)
            self._beats.start()
        self._beats.reading = reading or self._beats.reading
        line = self._beats.line
        return Stop(f"budget {ticket.exceeded}", line) if line else None

    def _end(self, stop: Stop, grace_s: float) -> bool:
        """Begins the end of the run, unless it has ended by itself."""
        run = self._run
        ending = Ending(run.child, run.facts.run_id, run.has_ended, grace_s, run.wake)
        if run.has_ended() or not ending.is_needed():
            return False
        line = f"run ended: {stop.line}"
        say(line)
        ending.start()
        self.stop, self._ending, self.behind = Stop(stop.why, line), ending, False
        return True

    def _tell_unpriced(self, reading: Reading) -> None:
        if self._options.max_cost_nusd is not None:
            for model in sorted(reading.unpriced):
                self._tell(f"--max-cost cannot see the cost of model {model}: no price")

    def _tell_blind(self, why: str | None) -> None:
        now_s = time.monotonic()
        if why is None:
            self._blind_since_s = None
        elif self._blind_since_s is None:
            self._blind_since_s = now_s
        elif now_s - self._blind_since_s > BLIND_S:
            self._tell(f"its limits cannot see this run: {why}")

    def _tell(self, line: str) -> None:
        """Says *line* once."""
        if line not in self._said:
            self._said.add(line)
            say(f"run: {line}")


class _Beats(threading.Thread):
    """Tells the ticket what is used, in a thread of its own: a ledger that is locked, a daemon that is slow, keeps nobody from counting.

    ``reading`` is the newest one; ``line`` what the ticket has said.
    """

    def __init__(self, beat: Beat) -> None:
        super().__init__(daemon=True)
        self.reading: Reading | None = None
        self.line: str | None = None
        self._beat = beat
        self._end = threading.Event()

    def run(self) -> None:
        """The thread."""
        while self.line is None and not self._end.wait(BEAT_S):
            r = self.reading
            try:
                self.line = self._beat(*((r.nusd, r.tokens, r.models, r.sessions) if r else (None, None, frozenset(), frozenset())))
            except SpendmeterError:  # the next beat tries again
                continue
            except Exception as e:  # noqa: BLE001 - metering never breaks the run
                say(f"run: its budgets are not watched: {describe(e)}")
                return

    def end(self) -> None:
        """No more beats."""
        self._end.set()
        self.join(LAST_BEAT_S)


def passed(options: Options, reading: Reading, more: int = 0) -> tuple[str, str, str] | None:
    """(name, what is used, the limit) of the limit of its own that a run has reached, or passed by *more* at least."""
    cost, tokens = options.max_cost_nusd, options.max_tokens
    if cost is not None and reading.nusd is not None and reading.nusd >= cost + more:
        return "max-cost", _messages().money(reading.nusd), f"--max-cost {_messages().money(cost)}"
    if tokens is not None and reading.tokens >= tokens + more:
        return "max-tokens", f"{_messages().whole(reading.tokens)} tokens", f"--max-tokens {_messages().whole(tokens)}"
    return None


def _messages() -> Messages:
    from spendmeter.projections.messages import messages

    return messages()
