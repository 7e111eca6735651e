"""Sends metrics, spans and events to OTLP endpoints: each run leaves the spool only once an endpoint has taken it.

Only the daemon's thread and ``spendmeter export --once`` call this, so no endpoint can hold up a run.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, select

from spendmeter.errors import ConfigError, SpendmeterError
from spendmeter.ledger import Ledger, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.exposition import exposition
from spendmeter.ledger.gauges import EXPORT_KEY, SPOOLED
from spendmeter.ledger.store import dump
from spendmeter.projections import events, otlp, spans, spool
from spendmeter.projections.otlp import SIGNALS, Outcome, Signal, Verdict
from spendmeter.projections.otlp_metrics import metrics_data
from spendmeter.projections.spool import FinishedRun, Spooled, Waiting

RUNS_MAX = 256  # runs in one request
ITEMS_MAX = 2000  # spans in one request, unless one run has more: about 1 MB
REFUSALS_MAX = 4  # single runs that are refused before anything was taken: then it is the endpoint, not the run
POLL_S = 5.0
PATIENCE_S = (60.0, 3600.0)  # first and longest wait before a refused run is tried again
BACKOFF_MAX_S = 300.0
LEASE_MS = 60_000
_log = logging.getLogger("spendmeter.export")


@dataclass(slots=True)
class Sent:
    """What one pass did for one signal. ``refused`` runs were not taken as they are; they stay and are tried again later."""

    items: int = 0  # data points, or runs
    refused: int = 0
    failure: str = ""


@dataclass(slots=True)
class Report:
    """What one pass did. ``busy``: another process exports this ledger at the moment, so this one sent nothing."""

    signals: dict[Signal, Sent] = field(default_factory=dict)
    busy: bool = False

    @property
    def failed(self) -> bool:
        """Whether anything could not be sent."""
        return any(s.failure or s.refused for s in self.signals.values())


class Exporter:
    """Exports *ledger* by the standard OTEL_* variables; a signal that they do not ask for is off.

    Args:
        ledger: whose metrics and runs are sent.
        signals: the signals to send, by default those that the environment asks for.
        clock: milliseconds since the epoch.

    Raises:
        ConfigError: an OTEL_EXPORTER_OTLP_* variable has no meaning.
    """

    def __init__(self, ledger: Ledger, signals: Sequence[Signal] | None = None, clock: Callable[[], int] = now_ms) -> None:
        self._ledger, self._clock = ledger, clock
        wanted = [s for s in SIGNALS if otlp.configured(s)] if signals is None else list(signals)
        self._exporters: dict[Signal, Any] = {s: otlp.make_exporter(s) for s in wanted}
        self._lease = spool.Lease(ledger)
        self._lease_ms = LEASE_MS
        self._spools = {s: _Spool(self, s) for s in SPOOLED if s in wanted}  # type: ignore[arg-type]
        self._said: dict[Signal, str] = {}
        self._stop = threading.Event()
        with ledger.read() as conn:
            meta = {str(r.key): str(r.value) for r in conn.execute(select(t.meta))}
        self._states: dict[Signal, dict[str, int]] = {s: json.loads(meta.get(EXPORT_KEY + s, "{}")) for s in wanted}
        self._held_ms = 0
        self.resource = otlp.resource(meta["ledger_id"])

    @property
    def on(self) -> bool:
        """Whether any signal is to be sent."""
        return bool(self._exporters)

    def close(self) -> None:
        """Ends what is under way and gives the lease back."""
        if not self._stop.is_set():
            self._stop.set()
            for exporter in self._exporters.values():
                exporter.shutdown()
            self._lease.drop()

    def once(self, signals: Sequence[Signal] = SIGNALS, at_ms: int | None = None) -> Report:
        """Sends the metrics as they are and every run that waits. Never raises for an endpoint; the report says why not.

        Raises:
            LedgerError: the ledger cannot be read or written.
        """
        report = Report()
        todo = [s for s in signals if s in self._exporters and (s == "metrics" or self._spools[s].pending())]
        if not todo:
            return report
        if not self.hold():
            report.busy = True
            return report
        for signal in todo:
            report.signals[signal] = self._metrics(at_ms) if signal == "metrics" else self._spools[signal].drain()
            self._note(signal, report.signals[signal])
        if self._lease_ms == LEASE_MS:
            self._lease.drop()
        return report

    def hold(self) -> bool:
        """Takes or keeps the lease."""
        self._held_ms = self._clock()
        return not self._stop.is_set() and self._lease.take(self._held_ms, self._lease_ms)

    def send(self, signal: Signal, data: Any) -> Outcome:
        """One request, within the lease."""
        if self._clock() - self._held_ms > self._lease_ms // 3 and not self.hold():
            return Outcome(Verdict.LATER, "another process exports")
        return otlp.send(self._exporters[signal], data)

    def _metrics(self, at_ms: int | None) -> Sent:
        """All points or, from the first request that fails on, none: the next pass says the same and more."""
        page = exposition(self._ledger, "push", self._clock() if at_ms is None else at_ms)
        done = Sent()
        for request in metrics_data(page, self.resource):
            outcome = self.send("metrics", request)
            if outcome.verdict is not Verdict.SENT:
                done.failure = outcome.reason
                return done
            done.items += sum(len(x.data.data_points) for r in request.resource_metrics for s in r.scope_metrics for x in s.metrics)
        page.sent()
        return done

    def _note(self, signal: Signal, sent: Sent) -> None:
        """Keeps what the gauges tell and says a change in one line."""
        why = sent.failure or (f"{sent.refused} runs refused" if sent.refused else "")
        state = self._states[signal]
        state |= {"failures": state.get("failures", 0) + 1} if sent.failure else {"failures": 0, "success_ms": self._clock()}
        with self._ledger.write() as conn:
            spool.put(conn, EXPORT_KEY + signal, dump(state))
        said = self._said.get(signal, "")
        if why == otlp.VAGUE and said:
            why = said
        if why != said:
            _log.warning("OTLP %s: %s", signal, f"{why}; kept, and tried again" if why else "sent again")
        self._said[signal] = why

    def forget(self) -> None:
        """Takes signals that are not exported out of the gauges."""
        with self._ledger.write() as conn:
            for signal in SIGNALS:
                if signal not in self._exporters:
                    conn.execute(delete(t.meta).where(t.meta.c.key == EXPORT_KEY + signal))

    def loop(self, stop: threading.Event) -> None:
        """Exports until *stop* is set: metrics each OTEL_METRIC_EXPORT_INTERVAL, runs every few seconds, slower after failures."""
        self.forget()
        if not self.on:
            return
        every = interval_s()
        self._lease_ms = int(max(LEASE_MS, 2 * every * 1000) + 1)  # kept from pass to pass: one process speaks for the ledger
        next_metrics, next_runs, pause = 0.0, 0.0, POLL_S
        while not stop.is_set():
            now = time.monotonic()
            if now >= next_metrics:
                next_metrics = now + every
                self._try(("metrics",))
            if now >= next_runs:
                pause = POLL_S if self._try(("traces", "logs")) else min(2 * pause, BACKOFF_MAX_S)
                next_runs = time.monotonic() + pause
            stop.wait(max(0.05, min(next_metrics, next_runs) - time.monotonic()))
        self.close()

    def _try(self, signals: Sequence[Signal]) -> bool:
        try:
            return not self.once(signals).failed
        except SpendmeterError as e:
            _log.warning("export: %s", e)
        except Exception as e:  # noqa: BLE001 - the thread lives as long as the daemon
            _log.warning("export: %s: %s", type(e).__name__, e)
        return False


def interval_s() -> float:
    """OTEL_METRIC_EXPORT_INTERVAL (milliseconds) in seconds, 60 where it is not set.

    Raises:
        ConfigError: it is not a positive number.
    """
    raw = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip() or "60000"
    if not raw.isdigit() or not int(raw):
        raise ConfigError(f'OTEL_METRIC_EXPORT_INTERVAL "{raw}" is not a number of milliseconds above 0')
    return int(raw) / 1000


class _Spool:
    """One signal's way out of the spool."""

    def __init__(self, exporter: Exporter, signal: Spooled) -> None:
        self._out, self._signal = exporter, signal
        self._later: dict[str, tuple[int, float]] = {}  # refused runs by content: when to try again, and the wait after that
        self._doubted = False  # the last pass had nothing taken: maybe it was the endpoint

    def pending(self) -> bool:
        """Whether any run waits that may be tried now."""
        return next(self._batches(), None) is not None

    def _batches(self) -> Iterator[list[Waiting]]:
        now, after = self._out._clock(), 0
        while rows := spool.waiting(self._out._ledger, self._signal, after, RUNS_MAX):
            after = rows[-1].id
            due = [w for w in rows if self._later.get(w.mark, (0, 0.0))[0] <= now]
            if due:
                yield due

    def drain(self) -> Sent:
        """Sends until nothing waits or the endpoint cannot take more."""
        done, refused = Sent(), list[Waiting]()
        for batch in self._batches():
            self._isolate(batch, done, refused)
            if done.failure or not self._out.hold():
                break
        self._put_off(refused, trusted=done.items > 0)
        done.refused = len(refused)
        if refused and not done.items and not done.failure:
            done.failure = f"refused, {len(refused)} of {len(refused)} runs tried"
        return done

    def _isolate(self, batch: list[Waiting], done: Sent, refused: list[Waiting]) -> None:
        """Sends *batch*, halving what is refused until the refused runs stand alone."""
        runs = spool.load(self._out._ledger, batch, with_calls=self._signal == "traces")
        gone = [w for w in batch if w.id not in runs]
        spool.mark_sent(self._out._ledger, self._signal, gone)
        stack = self._by_size([w for w in batch if w.id in runs], runs)
        while stack:
            part = stack.pop()
            outcome = self._send([runs[w.id] for w in part])
            if outcome.verdict is Verdict.SENT:
                spool.mark_sent(self._out._ledger, self._signal, part)
                done.items += len(part)
            elif outcome.verdict is Verdict.LATER:
                done.failure = outcome.reason
                return
            elif len(part) > 1:
                half = len(part) // 2
                stack += [part[half:], part[:half]]
            else:
                refused += part
                if not done.items and len(refused) >= REFUSALS_MAX:
                    done.failure = outcome.reason
                    return

    def _by_size(self, batch: list[Waiting], runs: dict[int, FinishedRun]) -> list[list[Waiting]]:
        """*batch* in parts of bounded size, the first last: a stack."""
        parts: list[list[Waiting]] = []
        room = 0
        for w in batch:
            need = 1 + (len(runs[w.id].calls) if self._signal == "traces" else 0)
            if not parts or need > room:
                parts.append([])
                room = ITEMS_MAX
            parts[-1].append(w)
            room -= need
        return parts[::-1]

    def _send(self, runs: list[FinishedRun]) -> Outcome:
        resource = self._out.resource
        if self._signal == "logs":
            return self._out.send("logs", [events.event(r, resource) for r in runs])
        items = [s for r in runs for s in spans.spans(r, resource)]
        for i in range(0, len(items), ITEMS_MAX):  # more than one only for a run that is that long
            outcome = self._out.send("traces", items[i : i + ITEMS_MAX])
            if outcome.verdict is not Verdict.SENT:
                return outcome
        return Outcome(Verdict.SENT)

    def _put_off(self, refused: list[Waiting], *, trusted: bool) -> None:
        """Refused runs wait longer each time; those that were refused with everything else get their chance once it is over."""
        now = self._out._clock()
        if trusted and self._doubted:
            self._later = {mark: (0, wait) for mark, (_, wait) in self._later.items()}
        self._doubted = not trusted and bool(refused)
        for w in refused:
            wait = min(2 * self._later[w.mark][1], PATIENCE_S[1]) if w.mark in self._later else PATIENCE_S[0]
            self._later[w.mark] = now + int(wait * 1000), wait
