"""One run with its models and its calls, as the ledger itself cuts the session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger, derive
from spendmeter.ledger import schema as t
from spendmeter.ledger.amounts import NOTHING, SUMS, Amounts
from spendmeter.ledger.query import Row, RunLine, run_totals
from spendmeter.ledger.store import Store
from spendmeter.reconcile.facts import CallFact
from spendmeter.reconcile.split import split
from spendmeter.records import usd_text
from spendmeter.server.book import Book


class NoRunError(Exception):
    """No run has the key, or several have; the text says which."""


@dataclass(frozen=True, slots=True)
class RunDetails:
    """A run, its usage by model (dearest first) and its calls (oldest first) where a source tells them."""

    run: RunLine
    by_model: tuple[Row, ...]
    calls: tuple[CallFact, ...]

    def as_dict(self) -> dict[str, Any]:
        """The run's own fields, ``by_model`` and ``call_list``."""
        rows = [{"model": r.keys[0]} | r.amounts.as_dict() for r in self.by_model]
        return self.run.as_dict() | {"by_model": rows, "call_list": [call_dict(c) for c in self.calls]}


def details(book: Book, key: str) -> RunDetails:
    """The run that *key* names: "last", a run key, a run id, a session, or the start of one.

    Raises:
        NoRunError: none or several are named so.
        LedgerError: the ledger cannot be read.
    """
    ledger = book.ledger()
    try:
        run = run_totals(ledger, key)
    except LedgerError as e:
        book.check()  # raises if it is the ledger that fails
        raise NoRunError(str(e)) from None
    return RunDetails(run, _by_model(ledger, run), _calls(ledger, run))


def call_dict(c: CallFact) -> dict[str, Any]:
    """A call for JSON."""
    used = c.usage
    return {
        "call_id": c.call_id, "at_ms": c.at_ms, "asked": c.asked, "answered": c.answered, "role": c.role, "subagent": c.subagent,
        "tokens_in": used.tokens_in, "tokens_out": used.tokens_out, "cache_read": used.cache_read, "cache_write": used.cache_write,
        "reasoning": used.reasoning, "cache_write_5m": used.cache_write_5m, "cache_write_1h": used.cache_write_1h,
        "cost_usd": usd_text(used.cost_nusd),
    }  # fmt: skip


def _by_model(ledger: Ledger, run: RunLine) -> tuple[Row, ...]:
    e = t.entries.c
    found: dict[str, Amounts] = {}
    with ledger.read() as conn:
        for row in conn.execute(select(t.entries).where(e.session_id == _session_id(conn, run), e.run_key == run.run_key)):
            found[row.model] = found.get(row.model, NOTHING).plus(Amounts(*[getattr(row, s) for s in SUMS]))
    rows = [Row((model,), a._replace(runs=1)) for model, a in found.items()]
    return tuple(sorted(rows, key=lambda r: (-(r.amounts.cost_nusd or 0), r.keys[0] or "")))


def _session_id(conn: Connection, run: RunLine) -> int:
    r = t.runs.c
    return int(conn.execute(select(r.session_id).where(r.cli == run.cli, r.session == run.session, r.run_key == run.run_key)).scalar_one())


def _calls(ledger: Ledger, run: RunLine) -> tuple[CallFact, ...]:
    with ledger.read() as conn:
        store = Store(conn, 0)
        slices = split(*derive.gather(store, _session_id(conn, run)))
    calls = [c for s in slices if s.run_key == run.run_key for p in s.pieces for c in p.calls]
    return tuple(sorted(calls, key=lambda c: (c.at_ms or 0, c.call_id)))
