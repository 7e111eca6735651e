"""The durable ledger: facts in, exact totals out. One class over SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, update

from spendmeter import attribution
from spendmeter.config import Settings
from spendmeter.ledger import derive, posting, rollup, shifts, tagging
from spendmeter.ledger import schema as t
from spendmeter.ledger.bulk import among, batches, upsert
from spendmeter.ledger.costing import Prices
from spendmeter.ledger.engine import BUSY_MS, open_engine, patience, reconnecting, translated
from spendmeter.ledger.store import Store, dump
from spendmeter.records import Claim, Observation, Skip


def now_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Process:
    """What the wrapper knows of a run that no CLI tells."""

    cli: str
    session: str
    run_key: str
    run_id: str
    exit_code: int | None = None
    signal: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    repo: str | None = None
    branch: str | None = None
    commit: str | None = None
    notes: Sequence[str] = ()
    stopped: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit brings. ``settled``: all of its sessions' files were read and its tags are final."""

    observations: Sequence[Observation]
    claims: Sequence[Claim] = ()
    processes: Sequence[Process] = ()
    settled: bool = False
    seen_ms: int | None = None  # dates usage that nothing else dates
    sources: Sequence[tuple[str, str, str]] = ()  # (path, identity, digest) of files read to their end
    releases: str | None = None  # run id whose reservation this usage takes the place of


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit touched: session ids, and those whose totals changed."""

    sessions: frozenset[int] = frozenset()
    changed: frozenset[int] = frozenset()
    skips: dict[str, int] = field(default_factory=dict)


class Ledger:
    """The ledger at ``settings.ledger``. Safe for any number of processes; every commit is one transaction.

    Args:
        settings: where it is and how counters behave.
        busy_ms: how long a commit waits for another writer.
        prices: the table to price with; by default genai-prices and the override file, loaded on first use.

    Raises:
        LedgerError: it cannot be opened or brought to the current schema.
        ConfigError: an attribution rule of the settings is wrong.
    """

    def __init__(self, settings: Settings, prices: Prices | None = None, busy_ms: int = BUSY_MS) -> None:
        self.settings, self.busy_ms = settings, busy_ms
        self.rules = attribution.load(settings)
        self._engine = open_engine(settings.ledger, busy_ms)
        self._prices = prices

    @property
    def prices(self) -> Prices:
        """The price table."""
        if self._prices is None:
            from spendmeter.prices import PriceTable

            self._prices = PriceTable.load(self.settings.prices_file)
        return self._prices

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    @contextlib.contextmanager
    def write(self, busy_ms: int | None = None) -> Iterator[Connection]:
        """A transaction that writes, one at a time; database errors come out as LedgerError.

        Args:
            busy_ms: how long to wait for another writer, where that differs from the ledger's own patience.
        """
        wait_ms = self.busy_ms if busy_ms is None else busy_ms
        with translated(self.settings.ledger), self._engine.connect() as conn, patience(conn, wait_ms, self.busy_ms), conn.begin():
            if conn.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE does the same
                conn.exec_driver_sql(f"set local lock_timeout = {wait_ms}")
                conn.exec_driver_sql("select pg_advisory_xact_lock(7317311)")
            yield conn

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that reads one state."""
        options = {"reading": True, **({} if self._engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"})}
        with translated(self.settings.ledger), self._engine.connect().execution_options(**options) as conn, conn.begin():
            yield conn

    def commit(self, batch: Batch) -> Committed:
        """Joins a batch into the ledger and brings totals and counters along, in one transaction.

        Committing the same again changes nothing, so it is tried again for some seconds where the connection is lost midway.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        prices = self.prices  # loaded before the lock is taken

        def once() -> Committed:
            with self.write() as conn:
                return self.commit_in(conn, batch, prices)

        return reconnecting(once)

    def commit_in(self, conn: Connection, batch: Batch, prices: Prices) -> Committed:
        """As ``commit``, within a transaction of ``write`` that does more besides."""
        now = now_ms()
        store = Store(conn, batch.seen_ms or now)
        facts: Iterable[Observation | Claim] = [o for o in batch.observations if not isinstance(o, Skip)]
        outer = self._outer(store, batch.processes)
        store.add([*facts, *(c for c in batch.claims if (c.cli, c.session, c.run_key) not in outer)])
        skipped = self._skip(conn, [*(o for o in batch.observations if isinstance(o, Skip)), *store.late], now)
        for process in batch.processes:
            if (process.cli, process.session, process.run_key) not in outer:
                self._process(store, process)
        store.flush()
        changed = self._derive(store, prices, now, settled=batch.settled)
        if batch.releases:
            conn.execute(delete(t.reservations).where(t.reservations.c.run_id == batch.releases))
        upsert(conn, t.sources, [{"path": path, "identity": mark, "digest": digest} for path, mark, digest in batch.sources])
        self._settle(conn, now)
        return Committed(frozenset(store.ids.values()), frozenset(changed), skipped)

    def _derive(self, store: Store, prices: Prices, now: int, *, settled: bool) -> set[int]:
        """Brings the rows of all sessions along that lean on what has grown; those that have changed."""
        conn = store.conn
        touched = {sid for sid in derive.affected(conn, store.grown) if not store.is_closed(sid)}
        derive.remember(store, touched)
        adopted = tagging.adopt(conn, self.rules, touched & store.grown)
        rows = derive.derive(store, touched, prices)
        changed = derive.replace(store, rows)
        shifts.leave(conn, {sid: rows[sid] for sid in adopted - store.fresh}, self.settings)
        dues = []
        s = t.sessions.c
        for head in among(conn, select(s.id, s.settle_at_ms, s.has_file), s.id, changed):
            tagged = all((r["agent"], r["task"]) != ("unknown", "unknown") for r in rows[head.id][0])
            due = now if settled or (head.has_file and tagged) else now + int(self.settings.settle_s * 1000)
            dues.append({"sid": head.id, "due": due if head.settle_at_ms is None else min(due, head.settle_at_ms)})
        if dues:
            last = conn.execute(select(func.max(s.moved))).scalar_one() or 0
            conn.execute(_DUE, [d | {"number": last + 1} for d in dues])
        return changed

    def _outer(self, store: Store, processes: Sequence[Process]) -> set[tuple[str, str, str | None]]:
        """Runs that a wrapper around the wrapper reports too: the inner one, which started later, knows whose they are."""
        out: set[tuple[str, str, str | None]] = set()
        for p in processes:
            same = (t.processes.c.session_id == store.session_id(p.cli, p.session)) & (t.processes.c.run_key == p.run_key)
            known = store.conn.execute(select(t.processes.c.run_id, t.processes.c.started_ms).where(same)).first()
            if known and known.run_id != p.run_id and (known.started_ms or 0) > (p.started_ms or 0):
                out.add((p.cli, p.session, p.run_key))
        return out

    def _process(self, store: Store, p: Process) -> None:
        sid = store.session_id(p.cli, p.session)
        names = [c.name for c in t.processes.columns if c.name not in ("session_id", "notes")]
        upsert(store.conn, t.processes, [{"session_id": sid, "notes": dump(list(p.notes)), **{n: getattr(p, n) for n in names}}])
        store.grown.add(sid)

    def _skip(self, conn: Connection, skips: list[Skip], now: int) -> dict[str, int]:
        """Files what could not be used, each place once."""
        out: dict[str, int] = {}
        rows: dict[str, dict[str, Any]] = {}
        for s in skips:
            out[s.reason] = out.get(s.reason, 0) + 1
            name = hashlib.sha256(f"{s.source}\0{s.line}\0{s.length}\0{s.reason}".encode("utf-8", "replace")).hexdigest()[:32]
            kind = PurePath(s.source).suffix[1:] or "stream"
            rows[name] = {"id": name, "source": posting.label(kind)[:16], "reason": s.reason, "at_ms": now}
        upsert(conn, t.skips, list(rows.values()))
        if skips:
            posting.post(conn, {posting.SKIPS: posting.Share(posting.skip_amounts(conn))}, now, self.settings)
        return out

    def settle(self, at_ms: int | None = None) -> None:
        """Puts usage that has waited long enough into the counters."""
        now = now_ms() if at_ms is None else at_ms
        with self.read() as conn:
            if not conn.execute(select(t.sessions.c.id).where(t.sessions.c.settle_at_ms <= now).limit(1)).first():
                return
        with self.write() as conn:
            self._settle(conn, now)

    def fold(self, at_ms: int | None = None) -> int:
        """Adds up the hours before this one that have changed, so that long views are quick; how many."""
        now, done = now_ms() if at_ms is None else at_ms, 0
        while rollup.due(self, now):
            with self.write() as conn:
                done += rollup.fold(conn, now)
        return done

    def _settle(self, conn: Connection, now: int) -> None:
        for due in batches(conn.execute(select(t.sessions.c.id).where(t.sessions.c.settle_at_ms <= now)).scalars().all()):
            rows = derive.stored(conn, due)
            over = posting.slots(conn, {pair for each in rows.values() for pair in posting.pairs(*each)}, now, self.settings)
            left = shifts.of(conn, due)
            posting.post(conn, {sid: self._share(rows[sid], over, left.get(sid, {}), now) for sid in due}, now, self.settings)
            posting.enqueue(conn, rows)
            conn.execute(update(t.sessions).where(t.sessions.c.id.in_(due)).values(settle_at_ms=None))

    def _share(self, rows: derive.Rows, over: set[tuple[str, str]], left: posting.Amounts, now: int) -> posting.Share:
        last = max(rows[0], key=lambda r: r["ended_ms"] or 0, default=None)
        exemplar = dump(_exemplar(last, self.settings) | {"at_ms": now}) if last else None
        return posting.Share(shifts.applied(posting.amounts(*rows, over, self.settings), left), exemplar)

    def moved(self, conn: Connection) -> int:
        """A number that rises whenever any usage in the ledger changes; two equal answers mean equal rows."""
        return int(conn.execute(select(func.max(t.sessions.c.moved))).scalar_one() or 0)

    def source_digest(self, path: str) -> tuple[str, str] | None:
        """(identity, digest) of a source when it was last read to its end."""
        with self.read() as conn:
            row = conn.execute(select(t.sources).where(t.sources.c.path == path)).first()
            return (row.identity, row.digest) if row else None

    def sources(self) -> dict[str, tuple[str, str]]:
        """(identity, digest) by path of all sources that were read to their end."""
        with self.read() as conn:
            return {path: (mark, digest) for path, mark, digest in conn.execute(select(t.sources))}

    def identity(self) -> dict[str, Any]:
        """What costs little to tell, however long the history: ``{"ledger_id", "created_ms", "sessions", "unsettled"}``."""
        with self.read() as conn:
            return _identity(conn)

    def facts_about(self) -> dict[str, Any]:
        """As ``identity``, and ``"calls"`` (counted one by one) and ``"bytes"``, None where the database does not tell."""
        with self.read() as conn:
            out = _identity(conn) | {"calls": conn.execute(select(func.count()).select_from(t.calls)).scalar_one(), "bytes": None}
            if conn.dialect.name == "sqlite":
                out["bytes"] = conn.exec_driver_sql("select page_count * page_size from pragma_page_count, pragma_page_size").scalar_one()
        return out


def _identity(conn: Connection) -> dict[str, Any]:
    meta = {r.key: r.value for r in conn.execute(select(t.meta))}
    unsettled = select(func.count()).select_from(t.sessions).where(t.sessions.c.settle_at_ms.is_not(None))
    return {
        "ledger_id": meta["ledger_id"],
        "created_ms": int(meta["created_ms"]),
        "sessions": conn.execute(select(func.count()).select_from(t.sessions)).scalar_one(),
        "unsettled": conn.execute(unsettled).scalar_one(),
    }


def _exemplar(run: dict[str, Any], settings: Settings) -> dict[str, Any]:
    return {"trace_id": run["trace_id"], "span_id": run["span_id"], "task": posting.label(run["task"], settings)}


# Writers come one at a time, so the ledger's next number is never given twice.
_DUE = update(t.sessions).where(t.sessions.c.id == bindparam("sid")).values(settle_at_ms=bindparam("due"), moved=bindparam("number"))
