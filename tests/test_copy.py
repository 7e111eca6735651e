"""A ledger moved from one database to another: the same rows, and counters that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from spendmeter import ingest
from spendmeter.cli import main
from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.ledger import Ledger, copying, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.copying import copy
from spendmeter.ledger.exposition import exposition
from spendmeter.ledger.query import report
from spendmeter.ledger.verify import verify
from spendmeter.projections.prometheus import render
from spendmeter.records import Tags
from tests.pg import Server
from tests.runs import all_chains
from tests.test_ledger import counters, sums

OTHER = next(c for c in all_chains() if c.name.endswith("json-opus"))
PICKED = [c for c in all_chains() if "resume" in c.name or "subagent" in c.name]


@pytest.fixture
def full(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Runs of every CLI, its series shown, its hours folded; copied in many small batches."""
    monkeypatch.setattr(copying, "BATCH", 7)
    for chain in PICKED:
        ingest.ingest_paths(ledger, [str(p) for p in [*chain.stdouts(), *chain.files()]], tags=Tags("dev", chain.name))
    ledger.fold()
    exposition(ledger, "scrape", now_ms()).sent()
    return ledger


@pytest.fixture
def targets(tmp_path: Path, server: Server) -> list[str]:
    """A place on PostgreSQL and one back on SQLite."""
    return [server.database(), f"sqlite:///{tmp_path / 'back.db'}"]


def everything(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table; databases order texts each in its own way."""
    with ledger.read() as conn:
        return {x.name: sorted((tuple(r) for r in conn.execute(select(x))), key=repr) for x in t.META.sorted_tables}


def rows_of(ledger: Ledger) -> dict[str, int]:
    return {name: len(rows) for name, rows in everything(ledger).items() if rows}


def open_(url: str) -> Ledger:
    return Ledger(Settings(url, zero_first_s=0, settle_s=0))


def page(ledger: Ledger, at_ms: int) -> list[str]:
    """The page at a moment, without what a database tells of itself."""
    text = render(exposition(ledger, "scrape", at_ms))[1].decode()
    return sorted(x for x in text.splitlines() if "ledger_size" not in x and "scrape_duration" not in x)


def test_there_and_back_every_row_is_the_same(full: Ledger, targets: list[str]) -> None:
    """SQLite to PostgreSQL and back: equal rows in all tables, the same ledger id, equal pages and reports, and verify is clean."""
    first, at, by = everything(full), now_ms(), ["agent", "task", "model", "day"]
    shown, told = page(full, at), report(full, by)
    source = full
    for url in targets:
        done = copy(source, url)
        assert done.rows == rows_of(full)
        source.close()
        source = open_(url)
        assert everything(source) == first
        assert (report(source, by), page(source, at)) == (told, shown)
        assert verify(source) == []
    source.close()


def test_a_copy_goes_on_where_the_ledger_stood(full: Ledger, targets: list[str]) -> None:
    """New usage gives the same rows and counters in the copy as in the original, and what was in it already adds nothing."""
    copy(full, targets[0])
    moved = open_(targets[0])
    for ledger in (full, moved):
        for chain in [*PICKED[:2], OTHER]:
            ingest.ingest_paths(ledger, [str(p) for p in [*chain.stdouts(), *chain.files()]], tags=Tags("new", "T-2"))
        assert verify(ledger) == []
    assert sums(moved) == sums(full)
    assert counters(moved) == counters(full)
    moved.close()


def test_an_interrupted_copy_leaves_an_empty_ledger(full: Ledger, targets: list[str]) -> None:
    """Half a copy is none: the target holds nothing, and the next copy into it is whole."""

    def stop(done: int, all_: int) -> None:
        if done > all_ // 2:
            raise KeyboardInterrupt

    for url in targets:
        with pytest.raises(KeyboardInterrupt):
            copy(full, url, stop)
        half = open_(url)
        assert {name for name, rows in everything(half).items() if rows} == {"meta"}
        assert half.facts_about()["ledger_id"] != full.facts_about()["ledger_id"]
        half.close()
        copy(full, url)
        whole = open_(url)
        assert everything(whole) == everything(full)
        whole.close()


def test_a_target_that_is_not_empty_is_left_alone(full: Ledger, targets: list[str]) -> None:
    """The copy itself is such a target: nothing is ever mixed."""
    for url in targets:
        copy(full, url)
        with pytest.raises(LedgerError, match="holds aliases already; name an empty database"):
            copy(full, url)
        with pytest.raises(LedgerError, match="holds aliases already"):
            copy(full, full.settings.ledger)


def test_a_copy_that_is_not_equal_is_not_kept(full: Ledger, targets: list[str]) -> None:
    """A row that the target's database swallows is noticed, and the target stays empty."""
    made = open_(targets[1])
    with made.write() as conn:
        conn.exec_driver_sql("create trigger lossy before insert on entries begin select raise(ignore); end")
    with pytest.raises(LedgerError, match=r"is not equal: entries holds \(0, None.*; nothing was kept"):
        copy(full, targets[1])
    assert {name for name, rows in everything(made).items() if rows} == {"meta"}
    made.close()


def test_the_command_says_what_was_copied(full: Ledger, targets: list[str]) -> None:
    """One line, or one JSON document; where the target cannot be had, exit code 1 and the reason."""

    def call(*args: str) -> Result:
        return CliRunner().invoke(main, ["--ledger", full.settings.ledger, "ledger", "copy", *args])

    told = json.loads(call("--to", targets[0], "--json").stdout)
    rows = sum(map(len, everything(full).values()))
    assert told == {"ledger_id": full.facts_about()["ledger_id"], "to": told["to"], "rows": rows_of(full)}
    assert call("--to", targets[1]).stderr == f"spendmeter: copied {rows} rows to {targets[1]}; row counts and totals are equal\n"
    again = call("--to", targets[1])
    assert (again.exit_code, "holds aliases already" in again.stderr) == (1, True)
