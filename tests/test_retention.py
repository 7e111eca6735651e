"""Closing sessions that ended long ago: less in the ledger, and no total has changed, whatever is read again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete, func, select, update

from spendmeter import ingest
from spendmeter.cli import main
from spendmeter.ledger import Batch, Ledger, now_ms
from spendmeter.ledger import schema as t
from spendmeter.ledger.query import report
from spendmeter.ledger.retention import Retained, retain
from spendmeter.ledger.verify import verify
from spendmeter.records import Call, Finish, Moment, Tags, Usage
from tests.runs import Chain, all_chains
from tests.test_ledger import skipped, sums

TAGS = Tags("dev", "T-1")
EVERY = [c for c in all_chains() if any(w in c.name for w in ("resume", "subagent", "single"))]
FORKS = [(c, i) for c in all_chains() for i, f in enumerate(c.folders) if re.search(r"-\d+-fork", f.name) and i]
LATER = 10 * 366 * 86_400_000  # so much later, all has ended long ago
BY = ("agent", "task", "cli", "model", "day", "month", "session", "outcome")


@pytest.fixture
def ledger(both: Ledger) -> Ledger:
    return both


def take(ledger: Ledger, chain: Chain) -> None:
    """Reads all of a chain's sources, also those that were read before."""
    with ledger.write() as conn:
        conn.execute(delete(t.sources))
    ingest.ingest_paths(ledger, [str(p) for p in [*chain.stdouts(), *chain.files()]], tags=TAGS)


def close_all(ledger: Ledger) -> Retained:
    return retain(ledger, 86_400_000, at_ms=now_ms() + LATER)


def told(ledger: Ledger) -> dict[str, Any]:
    """All that the ledger says to anyone."""
    with ledger.read() as conn:
        rows = {x.name: sorted(map(repr, conn.execute(select(x)))) for x in (t.runs, t.entries, t.series, t.posted, t.spool)}
    return rows | {"reports": [report(ledger, [d], timezone=z) for d in BY for z in ("UTC", "Asia/Kolkata")]}


def count(ledger: Ledger, *tables: Any) -> int:
    with ledger.read() as conn:
        return sum(conn.execute(select(func.count()).select_from(x)).scalar_one() for x in tables)


@pytest.mark.parametrize("chain", EVERY, ids=[c.name for c in EVERY])
def test_closing_changes_no_total_and_reading_again_adds_nothing(chain: Chain, ledger: Ledger) -> None:
    """Runs, entries, counters and reports are the same after closing, and after all sources were read once more."""
    take(ledger, chain)
    before, skips, tables = told(ledger), skipped(ledger), (t.calls, t.parts, t.prompts, t.claims)
    rows = count(ledger, *tables)
    assert retain(ledger, 86_400_000, dry_run=True, at_ms=now_ms() + LATER) == close_all(ledger) != Retained()
    assert rows > count(ledger, *tables) == 0
    assert told(ledger) == before
    assert verify(ledger) == []
    take(ledger, chain)
    assert told(ledger) == before
    assert skipped(ledger) == skips
    assert verify(ledger) == []
    assert close_all(ledger) == Retained()


@pytest.mark.parametrize(("chain", "at"), FORKS, ids=[c.name for c, _ in FORKS])
def test_a_fork_of_a_closed_session_adds_what_is_its_own(chain: Chain, at: int, ledger: Ledger) -> None:
    """What its files repeat of its parent's usage is not counted again."""
    take(ledger, Chain(chain.cli, chain.folders[:at]))
    close_all(ledger)
    whole = Chain(chain.cli, chain.folders[: at + 1])
    take(ledger, whole)
    whole.check(sums(ledger))
    assert verify(ledger) == []
    take(ledger, whole)
    whole.check(sums(ledger))


def calls(session: str, ids: str, start: int) -> list[Call | Moment]:
    """A session that began at *start*, and a call of ten tokens for each letter of *ids*."""
    rows: list[Call | Moment] = [Moment("claude", session, "own", start)]
    return rows + [Call("claude", f"r:{i}", session, Usage(tokens_in=10, tokens_out=1), "m", "m", start + n) for n, i in enumerate(ids)]


@pytest.mark.parametrize("own_ms", [2_000_000, 500_000])
def test_calls_of_a_closed_session_stay_its_own(ledger: Ledger, own_ms: int) -> None:
    """Copies without a mark add nothing, even in a session that turns out to have begun earlier."""
    ledger.commit(Batch(calls("a", "xy", 1_000_000)))
    close_all(ledger)
    ledger.commit(Batch(calls("b", "xyz", own_ms)))
    assert sums(ledger)["tokens_in"] == 30
    close_all(ledger)
    ledger.commit(Batch([*calls("a", "xy", 1_000_000), *calls("b", "xyz", own_ms), *calls("c", "xyzw", 3_000_000)]))
    assert sums(ledger)["tokens_in"] == 40
    assert skipped(ledger) == {}
    assert verify(ledger) == []


def test_sessions_that_lean_on_each_other_are_closed_together(ledger: Ledger) -> None:
    """A session whose fork was used lately stays open with it; an unrelated one of the same age is closed."""
    now = now_ms()
    ledger.commit(Batch([*calls("a", "xy", 1_000_000), *calls("alone", "v", 1_000_000)]))
    ledger.commit(Batch(calls("b", "xyz", now)))
    with ledger.write() as conn:
        conn.execute(update(t.runs).where(t.runs.c.session != "b").values(ended_ms=1_000_000))
    assert retain(ledger, 86_400_000, dry_run=True) == retain(ledger, 86_400_000)
    with ledger.read() as conn:
        assert conn.execute(select(t.sessions.c.session).where(t.sessions.c.closed_ms.is_not(None))).scalars().all() == ["alone"]


def test_late_usage_of_a_closed_session_is_told_as_a_skip(ledger: Ledger) -> None:
    """It is not counted, but each call and each end of a run that is new is a skip, once however often it is read."""
    ledger.commit(Batch(calls("a", "xy", 1_000_000)))
    close_all(ledger)
    before = told(ledger)["entries"]
    late = [*calls("a", "xyzw", 1_000_000), Finish("claude", "a", "r9", "r9", "ok", Usage(tokens_in=20))]
    for _ in range(2):
        ledger.commit(Batch(late))
    assert told(ledger)["entries"] == before
    assert skipped(ledger) == {'["claude","session closed"]': 3}
    assert verify(ledger) == []


def test_verify_looks_at_closed_sessions_too(ledger: Ledger) -> None:
    """Rows of a closed session that are not what it put into the counters are named."""
    ledger.commit(Batch(calls("a", "xy", 1_000_000)))
    close_all(ledger)
    with ledger.write() as conn:
        conn.execute(update(t.entries).values(tokens_in=7))
    assert {(d.what, d.where.split()[0], d.stands, d.should_be) for d in verify(ledger)} == {
        ("series", "spendmeter.tokens_in", "20", "7"),
        ("series", "spendmeter.task.tokens_in", "20", "7"),
    }


def test_the_command_closes_what_the_setting_says(settings: Any, tmp_path: Path) -> None:
    """--older beats [retention] calls; without either it is a usage error, and less than a day is refused."""
    ledger = Ledger(settings)
    ledger.commit(Batch(calls("a", "xy", 1_000_000), seen_ms=1_000_000))
    ledger.close()
    config = tmp_path / "spendmeter.toml"

    def call(*args: str) -> Result:
        return CliRunner().invoke(main, ["--ledger", settings.ledger, "--config", str(config), "ledger", "retain", *args])

    config.write_text("")
    assert (call().exit_code, "no age is given" in call().stderr) == (2, True)
    assert (call("--older", "12h").exit_code, call("--older", "soon").exit_code) == (2, 2)
    config.write_text('[retention]\ncalls = "soon"\n')
    assert (call().exit_code, '[retention] calls "soon" is not a duration' in call().stderr) == (1, True)
    config.write_text('[retention]\ncalls = "400d"\n')
    assert json.loads(call("--dry-run", "--json").stdout) == {"dry_run": True, "sessions": 1, "facts": 2}
    assert json.loads(call("--older", "99999d", "--json").stdout) == {"dry_run": False, "sessions": 0, "facts": 0}
    assert call().stderr == "spendmeter: sessions closed: 1, rows of their facts dropped: 2; no total changes\n"
