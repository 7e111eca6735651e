"""Hours that are added up say what their entries say, folded or not, whatever has changed since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from spendmeter.config import Settings
from spendmeter.ingest import ingest_paths, sync
from spendmeter.ledger import Ledger, now_ms, query, rollup
from spendmeter.ledger import schema as t
from spendmeter.ledger.amounts import Where
from spendmeter.ledger.verify import verify
from spendmeter.records import Tags
from tests.made import NOON, Made, empty
from tests.runs import ROOT

HOUR, MINUTE = 3_600_000, 60_000
FIXED = hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
AMOUNT = st.none() | st.integers(0, 1000)
ENTRY = st.fixed_dictionaries({
    "model": st.sampled_from(["m", "n", "~", "=m"]), "minute_ms": st.integers(0, 400).map(lambda n: NOON + n * MINUTE),
    "tokens_in": AMOUNT, "tokens_out": AMOUNT, "reported_nusd": AMOUNT, "calls": AMOUNT, "unpriced_tokens": st.integers(0, 3),
})  # fmt: skip
RUN = st.tuples(
    st.lists(ENTRY, max_size=4, unique_by=lambda e: (e["model"], e["minute_ms"])),
    st.fixed_dictionaries({
        "agent": st.sampled_from(["a", "b", "", "~", "ä"]), "task": st.sampled_from(["T-1", "T-2"]), "repo": st.none() | st.just("r"),
        "ended_ms": st.integers(0, 400).map(lambda n: NOON + n * MINUTE),
    }),
)  # fmt: skip
EDGE = st.none() | st.integers(-30, 450).map(lambda n: NOON + n * MINUTE + 17)
DIMS = [d for d in rollup.DIMS if d]


@FIXED
@given(runs=st.lists(RUN, max_size=6), folded=st.integers(0, 8), more=st.lists(RUN, max_size=3), since=EDGE, until=EDGE)
def test_every_sum_is_that_of_the_entries(
    made: Made, runs: list[Any], folded: int, more: list[Any], since: int | None, until: int | None
) -> None:
    """By each dimension and by none, in any window, with any hours folded and any changed since; runs are counted alike."""
    empty(made.ledger)
    for entries, run in runs:
        made.run(*entries, **run)
    made.ledger.fold(NOON + folded * HOUR)
    for entries, run in more:
        made.run(*entries, **run)
    where = Where(since, until)
    with made.ledger.read() as conn:
        assert rollup.differences(conn) == []
        for dim in rollup.DIMS:
            by = (dim,) if dim else ()
            plain = {r.keys[0] if dim else "": r.amounts for r in query._rows(conn, by, where, "UTC")}
            assert rollup.sums(conn, dim, where) == plain
            for key, amounts in plain.items():
                if dim and key is not None:
                    assert rollup.sums(conn, dim, where, key) == {key: amounts}


@FIXED
@given(runs=st.lists(RUN, max_size=6), zone=st.sampled_from(["UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia"]), since=EDGE)
def test_days_are_those_of_the_report(made: Made, runs: list[Any], zone: str, since: int | None) -> None:
    """Spend by day and agent, where days begin at whole hours and where they do not."""
    empty(made.ledger)
    for entries, run in runs:
        made.run(*entries, **run)
    made.ledger.fold(NOON + 3 * HOUR)
    quick = query.spent_by(made.ledger, "day", "agent", Where(since), zone)
    plain = query.report(made.ledger, ["day", "agent"], where=Where(since), timezone=zone)
    used = {r.keys: r.amounts._replace(runs=0) for r in plain.rows if r.amounts._replace(runs=0) != query.Amounts()}
    assert {r.keys: r.amounts._replace(runs=0) for r in quick.rows if r.amounts._replace(runs=0) != query.Amounts()} == used


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(Settings(f"sqlite:///{tmp_path / 'ledger.db'}", settle_s=0))
    yield made
    made.close()


def test_what_is_read_again_or_tagged_later_moves_the_hours_too(ledger: Ledger) -> None:
    """Captured runs: printed first, folded, then their files, then another word on whose they were; verify finds no difference."""
    folders = sorted((ROOT / "claude").iterdir())[:12]
    for folder in folders:
        ingest_paths(ledger, [str(folder / "stdout")], tags=Tags("early", "T-1"))
    assert ledger.fold(now_ms() + HOUR) > 0  # the current hour too
    for folder in folders:
        sync(ledger, home=folder / "home")
    ingest_paths(ledger, [str(f / "stdout") for f in folders[::2]], tags=Tags("late", "T-2"))
    assert verify(ledger) == []
    ledger.fold(now_ms() + HOUR)
    assert verify(ledger) == []
    with ledger.read() as conn:
        assert conn.execute(select(func.count()).select_from(t.stale_hours)).scalar_one() == 0
        for dim in DIMS:
            plain = {r.keys[0]: r.amounts for r in query._rows(conn, (dim,), Where(), "UTC")}
            assert rollup.sums(conn, dim, Where()) == plain


def test_a_wrong_hour_is_found(ledger: Ledger) -> None:
    """verify names an hour whose sums are not those of its entries."""
    ingest_paths(ledger, [str(ROOT / "claude" / "json-tool" / "stdout")], tags=Tags("a", "T-1"))
    ledger.fold(now_ms() + HOUR)
    with ledger.write() as conn:
        conn.execute(text("update hours set tokens_in = tokens_in + 1 where dim = 'agent'"))
    assert [d.what for d in verify(ledger)] == ["hours"]


def test_a_window_reads_no_whole_table(ledger: Ledger) -> None:
    """Entries by their minute, hours by theirs."""
    Made(ledger).run({"tokens_in": 1})
    with ledger.read() as conn:
        fresh = rollup._of(rollup._fresh(conn, Where(NOON - HOUR + 5)))
        for part in (rollup._raw("agent", fresh, None), rollup._clean("agent", Where(NOON), None)):
            stmt = part.compile(conn, compile_kwargs={"literal_binds": True})
            plan = " | ".join(r[3] for r in conn.execute(text(f"explain query plan {stmt}")))
            assert "SCAN entries" not in plan
            assert "SCAN hours" not in plan


def test_many_scattered_stale_hours_are_read_once(ledger: Ledger) -> None:
    """More stretches than one query names: the sums are the same."""
    made = Made(ledger)
    for i in range(rollup.RANGES_MAX + 20):
        made.run({"tokens_in": 1, "minute_ms": NOON + 2 * i * HOUR})
    whole = Where(NOON - HOUR // 2, NOON + 500 * HOUR + 7)
    with ledger.read() as conn:
        assert rollup.sums(conn, "agent", whole)["developer"].tokens_in == rollup.RANGES_MAX + 20
    assert ledger.fold(NOON + 1000 * HOUR) == rollup.RANGES_MAX + 20
    with ledger.read() as conn:
        assert rollup.sums(conn, "agent", whole)["developer"].tokens_in == rollup.RANGES_MAX + 20
