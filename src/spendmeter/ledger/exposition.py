"""What the counters show to the world: the ledger's series as one page, every new label set at 0 first.

A store computes increases from what it has seen, so a series that first appears at its final value adds nothing. A new
label set is therefore shown at what it showed last (0) for ``zero_first`` seconds, counted from the page that first really
went out with it; that moment is kept in the ledger. A page costs what its series cost, whatever the ledger's history.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, text

from spendmeter import metrics as m
from spendmeter.errors import LedgerError
from spendmeter.ledger import gauges, now_ms
from spendmeter.ledger.gauges import Gauges

if TYPE_CHECKING:
    from spendmeter.ledger import Ledger

Channel = Literal["scrape", "push"]
Row = tuple[int, str, int, str | None]  # series id, label values as JSON, value, exemplar as JSON

SHOWN: dict[Channel, str] = {"scrape": "shown_ms", "push": "pushed_ms"}
HASTE_MS = 500  # how long a page waits for another writer; what it wanted to write can wait for the next
_TASK = f"{m.PREFIX}.task."
_RUN = m.RUN_DURATION.name
_EDGES = {repr(edge): i for i, edge in enumerate(m.DURATION_BUCKETS_S)}


class Sample(NamedTuple):
    """One number of the page; money in nano-USD, durations in ms. ``exemplar``: trace_id, task, at_ms, value."""

    metric: m.Metric
    suffix: str  # of a histogram: _bucket, _sum, _count
    labels: tuple[tuple[str, str], ...]
    value: int
    exemplar: dict[str, Any] | None = None


@dataclass(slots=True)
class Histogram:
    """Durations of finished runs under one label set; ``buckets`` cumulative, in the order of DURATION_BUCKETS_S."""

    labels: tuple[str, ...]
    buckets: list[int] = field(default_factory=lambda: [0] * len(m.DURATION_BUCKETS_S))
    sum_ms: int = 0
    count: int = 0


@dataclass(slots=True)
class Memo:
    """What a renderer keeps from page to page by series id: the labels' text, and each exemplar as it was and its text."""

    labels: dict[int, str] = field(default_factory=dict)
    exemplars: dict[int, tuple[str, str]] = field(default_factory=dict)

    def trim(self, size: int) -> None:
        """Forgets all once it holds far more than the *size* series of a page: some have left. Renderers may go on with the old."""
        if len(self.labels) > 2 * size + 1000:
            self.labels, self.exemplars = {}, {}


@dataclass(slots=True)
class _State:
    """What a process keeps between the pages of one ledger and channel."""

    channel: Channel
    at_ms: int = 0  # of the last page: a clock that is set back must not hide a value again
    marks: dict[int, int] = field(default_factory=dict)  # first showings that are not yet in the ledger
    memo: Memo = field(default_factory=Memo)
    lock: threading.Lock = field(default_factory=threading.Lock)


_STATES: WeakKeyDictionary[Ledger, dict[Channel, _State]] = WeakKeyDictionary()


@dataclass(slots=True)
class Page:
    """One showing of every series. Call ``sent`` once it has really gone out."""

    ledger: Ledger
    at_ms: int
    started: float  # time.perf_counter() when the work on it began
    counters: dict[m.Metric, list[Row]]
    histograms: list[Histogram]
    gauges: Gauges
    ledger_id: str
    created_ms: int
    _state: _State
    _new: list[int]

    @property
    def memo(self) -> Memo:
        """Text that a renderer keeps from page to page."""
        return self._state.memo

    def gauge(self, metric: m.Metric) -> list[tuple[tuple[str, ...], int | float]]:
        """(label values, value) of a gauge, in the metric's own unit."""
        if metric is m.SCRAPE_SECONDS:
            return [((), round(time.perf_counter() - self.started, 6))]
        return self.gauges.get(metric, [])

    def samples(self) -> Iterator[Sample]:
        """Every counter and histogram sample; missing buckets are there too."""
        for metric, rows in self.counters.items():
            for _, labels, value, exemplar in rows:
                pairs = tuple(zip(metric.labels, json.loads(labels), strict=True))
                yield Sample(metric, "", pairs, value, json.loads(exemplar) if exemplar else None)
        for h in self.histograms:
            who = tuple(zip(m.RUN_DURATION.labels, h.labels, strict=True))
            for edge, count in zip((*_EDGES, "+Inf"), (*h.buckets, h.count), strict=True):
                yield Sample(m.RUN_DURATION, "_bucket", (*who, ("le", edge)), count)
            yield Sample(m.RUN_DURATION, "_sum", who, h.sum_ms)
            yield Sample(m.RUN_DURATION, "_count", who, h.count)

    def sent(self) -> None:
        """Notes that this page went out: from now on its new series count as shown.

        A ledger that cannot be written at the moment keeps nothing from being shown: the note is made with a later page.
        """
        state = self._state
        with state.lock:
            for series_id in self._new:
                state.marks.setdefault(series_id, self.at_ms)
            if state.marks:
                with contextlib.suppress(LedgerError):
                    _note(self.ledger, SHOWN[state.channel], state.marks)
                    state.marks.clear()


def exposition(ledger: Ledger, channel: Channel, at_ms: int | None = None) -> Page:
    """The page that *channel* is to show at *at_ms* (now): settles what is due, then reads every series.

    Raises:
        LedgerError: the ledger cannot be read. That it cannot be written at the moment is no error.
    """
    started = time.perf_counter()
    state = _STATES.setdefault(ledger, {}).setdefault(channel, _State(channel))
    at = state.at_ms = max(state.at_ms, now_ms() if at_ms is None else at_ms)
    with contextlib.suppress(LedgerError):
        _settle(ledger, at)
    with ledger.read() as conn:
        rows = _rows(conn, _series(SHOWN[channel], at - int(ledger.settings.task_ttl_s * 1000)))
        facts = dict(_rows(conn, "select key, value from meta"))
        slow = gauges.read(ledger, conn, at, facts)
    counters: dict[m.Metric, list[Row]] = {x: [] for x in m.DURABLE if x.kind == "counter"}
    page = Page(ledger, at, started, counters, [], slow, facts["ledger_id"], int(facts["created_ms"]), state, [])
    _fill(page, rows, ledger.settings.zero_first_s)
    state.memo.trim(len(rows))
    return page


def _series(shown: str, gone_ms: int) -> str:
    """The series that are on the page: all but those of tasks that were neither used nor first shown since *gone_ms*."""
    return (
        f"select id, family, labels, target, value, held, {shown}, exemplar from series "  # noqa: S608 - a fixed name and a number
        f"where moved_ms >= {gone_ms} or coalesce({shown}, 0) >= {gone_ms} or family not like '{_TASK}%'"
    )


def _rows(conn: Connection, sql: str) -> list[Any]:
    """Raw tuples: a page may have 100 000 of them."""
    cursor = conn.connection.cursor()
    try:
        cursor.execute(sql)
        return list(cursor.fetchall())
    finally:
        cursor.close()


def _fill(page: Page, rows: list[Any], zero_first_s: float) -> None:
    """Puts each series where it belongs, at the value that it may show by now."""
    lists = {metric.name: page.counters[metric].append for metric in page.counters}
    marks, new = page._state.marks, page._new
    ready = page.at_ms if zero_first_s <= 0 else page.at_ms - int(zero_first_s * 1000)
    debits: dict[str, int] = {}
    durations: list[Any] = []
    for row in rows:
        series_id, family, labels, target, value, held, shown, exemplar = row
        debits[family] = debits.get(family, 0) + value - target
        put = lists.get(family)
        if put is None:
            if family.startswith(_RUN):
                durations.append(row)
            continue
        if shown is None:
            shown = marks.get(series_id)
        if shown is None:
            new.append(series_id)
            shown = page.at_ms
        if shown <= ready:
            put((series_id, labels, value, exemplar))
        else:
            put((series_id, labels, held, None))
    page.histograms = _histograms(page, durations, ready)
    page.gauges[m.PENDING_DEBIT] = _debits(debits)


def _histograms(page: Page, rows: list[Any], ready: int) -> list[Histogram]:
    """Histograms as wholes: all of one shows its values once its count may, for missing buckets were shown at 0 with it."""
    open_: set[str] = set()
    out: dict[str, Histogram] = {}
    for series_id, family, labels, _, _, _, shown, _ in rows:
        first = shown if shown is not None else page._state.marks.get(series_id)
        if first is None:
            page._new.append(series_id)
            first = page.at_ms
        if family == f"{_RUN}_count":
            out[labels] = Histogram(tuple(json.loads(labels)))
            if first <= ready:
                open_.add(labels)
    for _, family, labels, _, value, _, _, _ in rows:
        if family == f"{_RUN}_bucket":
            *who, edge = json.loads(labels)
            whole = json.dumps(who, separators=(",", ":"), ensure_ascii=False)
            if whole in open_ and edge in _EDGES:
                out[whole].buckets[_EDGES[edge]] = value
        elif labels in open_:
            setattr(out[labels], "count" if family.endswith("_count") else "sum_ms", value)
    return list(out.values())


def _debits(by_family: dict[str, int]) -> list[tuple[tuple[str, ...], int | float]]:
    """What counters stand above their totals, by Prometheus name and in its unit; 0 too, once the family is known."""
    out: list[tuple[tuple[str, ...], int | float]] = []
    for family, debit in sorted(by_family.items()):
        metric = m.ALL.get(family, m.RUN_DURATION)
        name = metric.sample + (family.removeprefix(_RUN) if metric is m.RUN_DURATION else "")
        scale = 1_000_000_000 if metric.money else 1000 if name.endswith("_seconds_sum") else 1
        out.append(((name,), debit if scale == 1 or not debit else debit / scale))
    return out


def _settle(ledger: Ledger, at_ms: int) -> None:
    with ledger.read() as conn:
        due = conn.execute(text("select 1 from sessions where settle_at_ms <= :at limit 1"), {"at": at_ms}).first()
    if due:
        with ledger.write(HASTE_MS) as conn:
            ledger._settle(conn, at_ms)


def _note(ledger: Ledger, column: str, marks: dict[int, int]) -> None:
    with ledger.write(HASTE_MS) as conn:
        conn.execute(
            text(f"update series set {column} = :at where id = :id and {column} is null"),  # noqa: S608 - a fixed name
            [{"id": series_id, "at": at} for series_id, at in marks.items()],
        )
