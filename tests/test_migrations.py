"""Ledgers of every earlier schema, with usage in them, become ledgers of today that say the same and go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, insert, select

from spendmeter import ingest
from spendmeter.config import Settings
from spendmeter.ledger import Ledger, copying
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report
from spendmeter.ledger.verify import verify
from spendmeter.records import Tags
from tests.made import MIGRATIONS, earlier
from tests.runs import Chain, all_chains
from tests.test_ledger import counters, dump, sums

EARLIER = sorted(r.revision for r in ScriptDirectory.from_config(MIGRATIONS).walk_revisions() if r.revision != t.HEAD)
OLD = [c for c in all_chains() if "resume" in c.name]
NEW = next(c for c in all_chains() if c.name.endswith("json-opus"))


def take(ledger: Ledger, chain: Chain) -> None:
    ingest.ingest_paths(ledger, [str(p) for p in [*chain.stdouts(), *chain.files()]], tags=Tags("dev", "T-1", {"plan": "book"}))


@pytest.fixture
def today(ledger: Ledger) -> Ledger:
    """A ledger of today's schema with usage."""
    for chain in OLD:
        take(ledger, chain)
    return ledger


def put(conn: Connection, ledger: Ledger) -> None:
    """Fills the tables and columns that are there already with what *ledger* holds."""
    old = MetaData()
    old.reflect(conn)
    with ledger.read() as source:
        for table in t.META.sorted_tables:
            if table.name in old.tables:
                names = old.tables[table.name].columns.keys()
                rows = [{k: v for k, v in r.items() if k in names} for r in source.execute(select(table)).mappings()]
                if rows:
                    conn.execute(insert(old.tables[table.name]), rows)
                copying.go_on_numbering(conn, table)


@pytest.mark.parametrize("revision", EARLIER)
def test_a_ledger_of_an_earlier_schema_says_the_same_and_goes_on(revision: str, today: Ledger, new_url: Callable[[], str]) -> None:
    """Same rows, counters and reports after the migration; what it held adds nothing again, and new usage counts as in a new ledger."""
    url = new_url()
    with earlier(url, revision) as conn:
        put(conn, today)
    moved = Ledger(Settings(url, settle_s=0))
    for step in ("as it came", "folded", "read again", "with new usage"):
        if step == "folded":
            moved.fold()
        for ledger in (moved, today) if step == "with new usage" else ():
            take(ledger, NEW)
        if step == "read again":
            take(moved, OLD[0])
        assert (step, dump(moved)) == (step, dump(today))
        assert (step, counters(moved), sums(moved)) == (step, counters(today), sums(today))
        assert [report(moved, [d]) for d in ("agent", "day", "model")] == [report(today, [d]) for d in ("agent", "day", "model")]
        assert (step, verify(moved)) == (step, [])
    assert moved.facts_about()["ledger_id"] == today.facts_about()["ledger_id"]
    moved.close()
