"""The ledger: one transaction per commit, exact under parallel writers and kill -9, counters that never fall."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select

from spendmeter import ingest
from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.ledger import Batch, Ledger, Process
from spendmeter.ledger import schema as t
from spendmeter.ledger.verify import verify
from spendmeter.records import Call, Claim, Finish, Level, Moment, Tags, Usage
from tests.runs import FIELDS, Chain, all_chains, chains

CHAINS = chains()
EVERY = all_chains()
TAGS = Tags("dev", "T-1")
NewUrl = Callable[[], str]


@pytest.fixture
def ledger(both: Ledger) -> Ledger:
    return both


def sums(ledger: Ledger) -> dict[str, int]:
    with ledger.read() as conn:
        row = conn.execute(select(*[func.sum(t.entries.c[f]) for f in FIELDS])).one()
    return {f: v or 0 for f, v in zip(FIELDS, row, strict=True)}


def counters(ledger: Ledger) -> dict[tuple[str, str], int]:
    with ledger.read() as conn:
        return {(r.family, r.labels): r.value for r in conn.execute(select(t.series))}


def dump(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    """All that follows from the facts, without what depends on when and in which order things came."""
    out = {}
    with ledger.read() as conn:
        for table, names in (
            (t.runs, ["run_key", "agent", "task", "outcome", "duration_ms", "notes"]),
            (t.entries, ["run_key", "model", *FIELDS, "reported_nusd", "estimated_nusd"]),
        ):
            out[table.name] = sorted((tuple(r) for r in conn.execute(select(*[table.c[n] for n in names]))), key=repr)
    return out


@pytest.mark.parametrize("chain", EVERY, ids=[c.name for c in EVERY])
def test_every_captured_run_is_exact_through_the_ledger(chain: Chain, ledger: Ledger) -> None:
    """Stdout and transcripts ingested in turn, then again in another order: the truth, and verify is clean."""
    paths = [str(p) for p in [*chain.stdouts(), *chain.files()]]
    for path in paths:
        ingest.ingest_paths(ledger, [path], tags=TAGS)
    chain.check(sums(ledger))
    first, shown = dump(ledger), counters(ledger)
    random.Random(1).shuffle(paths)
    for path in paths:
        ingest.ingest_paths(ledger, [path], tags=Tags("dev", "T-1", {}))
    assert dump(ledger) == first
    assert counters(ledger) == shown
    assert verify(ledger) == []


def test_order_of_sources_does_not_matter(new_url: NewUrl) -> None:
    """The resume chain ingested in eight random orders gives one and the same ledger."""
    chain = next(c for c in CHAINS if "resume" in c.name)
    paths = [str(p) for p in [*chain.stdouts(), *chain.files()]]
    found = []
    for seed in range(8):
        ledger = Ledger(Settings(new_url(), settle_s=3600))
        random.Random(seed).shuffle(paths)
        for path in paths:
            ingest.ingest_paths(ledger, [path], tags=TAGS)
        found.append(dump(ledger))
        assert verify(ledger) == []
        ledger.close()
    assert found == found[:1] * 8


def test_copies_without_a_mark_count_once(ledger: Ledger) -> None:
    """A fork whose copied rows name no owner (older versions) adds only its own calls, whichever file comes first."""

    def calls(session: str, ids: list[str], start: int) -> list[Call | Moment]:
        rows: list[Call | Moment] = [Moment("claude", session, "own", start)]
        return rows + [Call("claude", f"r:{i}", session, Usage(tokens_in=10, tokens_out=1), "m", "m", start + n) for n, i in enumerate(ids)]

    ledger.commit(Batch(calls("b", ["1", "2", "3"], 2000)))
    ledger.commit(Batch(calls("a", ["1", "2"], 1000)))
    assert sums(ledger)["tokens_in"] == 30
    with ledger.read() as conn:
        shares = dict(
            conn.execute(
                select(t.runs.c.session, func.sum(t.entries.c.tokens_in))
                .join(t.entries, t.entries.c.session_id == t.runs.c.session_id)
                .group_by(t.runs.c.session)
            ).all()
        )  # type: ignore[arg-type]
    assert shares == {"a": 20, "b": 10}
    assert verify(ledger) == []


def test_a_fall_becomes_a_debit(ledger: Ledger) -> None:
    """When a session turns out to hold less than was counted, its counter stands still until usage has caught up."""
    key = ("spendmeter.tokens_in", '["dev","claude","m"]')
    level = Level("claude", "s", "m", Usage(tokens_in=100, tokens_out=1), reading="r1")
    claim = Claim("claude", "s", "run:r1", TAGS, "r1")
    finish = Finish("claude", "s", "r1", "r1", "ok", Usage(tokens_in=100, tokens_out=1), Usage(tokens_in=40, tokens_out=1))
    ledger.commit(Batch([level, finish], [claim], settled=True))
    assert counters(ledger)[key] == 100
    parent = Finish("claude", "p", "r0", "r0", "ok", Usage(tokens_in=60), Usage(tokens_in=60))
    ledger.commit(
        Batch(
            [parent, Level("claude", "p", "m", Usage(tokens_in=60), reading="r0")],
            [Claim("claude", "p", "run:r0", TAGS, "r0")],
            settled=True,
        )
    )
    assert sums(ledger)["tokens_in"] == 100  # 60 of the parent, 40 of the fork
    assert counters(ledger)[key] == 100
    more = Level("claude", "s", "m", Usage(tokens_in=130, tokens_out=2), reading="r2")
    ledger.commit(
        Batch(
            [more, Finish("claude", "s", "r2", "r2", "ok", Usage(tokens_in=130), Usage(tokens_in=30))],
            [Claim("claude", "s", "run:r2", TAGS, "r2")],
            settled=True,
        )
    )
    assert sums(ledger)["tokens_in"] == counters(ledger)[key] == 130
    assert verify(ledger) == []


def test_usage_is_counted_once_it_is_settled(new_url: NewUrl) -> None:
    """Stdout alone is in reports at once and in the counters after ``settle`` seconds; with its files at once."""
    chain = next(c for c in CHAINS if c.name.endswith("json-single"))
    ledger = Ledger(Settings(new_url(), settle_s=60))
    ingest.ingest_paths(ledger, [str(chain.stdouts()[0])], tags=TAGS)
    chain.check(sums(ledger))
    assert counters(ledger) == {}
    ledger.settle(int(time.time() * 1000) + 61_000)
    assert counters(ledger)["spendmeter.tokens_in", '["dev","claude","claude-sonnet-4-5-20250929"]'] == sums(ledger)["tokens_in"]
    other = Ledger(Settings(new_url(), settle_s=60))
    ingest.ingest_paths(other, [str(p) for p in [*chain.stdouts(), *chain.files()]], tags=TAGS)
    assert counters(other)
    ledger.close()
    other.close()


WRITER = """
import sys
from pathlib import Path
from spendmeter import ingest
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.records import Tags
ledger = Ledger(Settings(sys.argv[1], settle_s=0))
for path in sys.argv[2:]:
    ingest.ingest_paths(ledger, [path], tags=Tags("dev", "T-1"))
    print(path, flush=True)
"""


def writer(url: str, paths: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url, *paths], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )


def test_parallel_writers_lose_and_double_nothing(new_url: NewUrl) -> None:
    """Four processes ingest the same runs at once, each in its own order: the truth once."""
    url = new_url()
    picked = [c for c in CHAINS if "resume" in c.name or "subagent" in c.name]
    paths = [str(p) for c in picked for p in [*c.stdouts(), *c.files()]]
    running = []
    for seed in range(4):
        random.Random(seed).shuffle(paths)
        running.append(writer(url, list(paths)))
    for p in running:
        p.communicate(timeout=120)
        assert p.returncode == 0
    ledger = Ledger(Settings(url, settle_s=0))
    got = sums(ledger)
    assert got == {f: sum(c.truth(least=True)[f] for c in picked) for f in FIELDS}
    assert verify(ledger) == []
    ledger.close()


@pytest.mark.parametrize("delay_ms", [0, 15, 40, 90, 160, 300])
def test_kill_9_in_the_middle_loses_and_doubles_nothing(new_url: NewUrl, delay_ms: int) -> None:
    """A writer killed at any moment leaves whole commits; going on from there gives the truth."""
    url = new_url()
    chain = next(c for c in CHAINS if "resume" in c.name)
    paths = [str(p) for p in [*chain.stdouts(), *chain.files()]]
    victim = writer(url, paths)
    assert victim.stdout is not None
    victim.stdout.readline()
    time.sleep(delay_ms / 1000)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    ledger = Ledger(Settings(url, settle_s=0))
    assert verify(ledger) == []
    ingest.ingest_paths(ledger, paths, tags=TAGS)
    chain.check(sums(ledger))
    assert verify(ledger) == []
    ledger.close()


def test_verify_says_what_differs(ledger: Ledger) -> None:
    """A series, an entry and a run that were tampered with are each named."""
    chain = next(c for c in CHAINS if c.name.endswith("json-single"))
    ingest.ingest_paths(ledger, [str(p) for p in [*chain.stdouts(), *chain.files()]], tags=TAGS)
    with ledger.write() as conn:
        conn.execute(t.series.update().where(t.series.c.family == "spendmeter.tokens_out").values(target=1, value=1))
        conn.execute(t.entries.update().values(tokens_in=7))
    found = {(d.what, d.where.split()[0]) for d in verify(ledger)}
    assert ("series", "spendmeter.tokens_out") in found
    assert ("entries", "claude") in found


def test_migrations_make_the_declared_schema(ledger: Ledger) -> None:
    """A new ledger's tables are those of schema.py."""
    with ledger.read() as conn:
        differences = [d for d in compare_metadata(MigrationContext.configure(conn), t.META) if "alembic_version" not in str(d)]
        assert differences == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "is not a URL; write e.g. sqlite:///"),
        ("mysql://h/d", 'ledger "mysql://..." is not supported'),
        ("sqlite:////proc/nowhere/l.db", "choose another place with --ledger"),
    ],
)
def test_a_bad_ledger_url_is_named_with_a_remedy(url: str, says: str) -> None:
    """What is wrong with the ledger's address is said with a remedy."""
    with pytest.raises(LedgerError, match=says):
        Ledger(Settings(url))


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    """Another file in the ledger's place is left alone and named."""
    path = tmp_path / "l.db"
    path.write_bytes(b"these are my notes\n" * 100)
    with pytest.raises(LedgerError, match="not a database; the file is something else"):
        Ledger(Settings(f"sqlite:///{path}"))
    assert path.read_bytes().startswith(b"these are my notes")


def test_a_newer_schema_is_not_touched(new_url: NewUrl) -> None:
    """A ledger that a newer spendmeter has migrated is refused, with what to do."""
    settings = Settings(new_url())
    made = Ledger(settings)
    with made.write() as conn:
        conn.exec_driver_sql("update alembic_version set version_num = '9999'")
    made.close()
    with pytest.raises(LedgerError, match=r"schema 9999, this spendmeter knows up to .*; update spendmeter"):
        Ledger(settings)


@pytest.mark.parametrize("inner_first", [True, False])
def test_of_two_wrappers_the_inner_one_names_the_run(ledger: Ledger, inner_first: bool) -> None:
    """A wrapped orchestrator that wraps its CLI: the run belongs to the inner agent, whichever commits first, once."""

    def batch(agent: str, started: int) -> Batch:
        seen = [
            Level("claude", "s", "m", Usage(tokens_in=5, tokens_out=1), reading="r"),
            Finish("claude", "s", "r", "r", "ok", Usage(tokens_in=5)),
        ]
        process = Process("claude", "s", "r", f"id-{agent}", 0, None, started, 9000)
        return Batch(seen, [Claim("claude", "s", "run:r", Tags(agent, "T-1"), "r")], [process], settled=True)

    both = [batch("inner", 2000), batch("outer", 1000)]
    for b in both if inner_first else reversed(both):
        ledger.commit(b)
    with ledger.read() as conn:
        assert [tuple(r) for r in conn.execute(select(t.runs.c.agent, t.runs.c.started_ms))] == [("inner", 2000)]
    assert sums(ledger)["tokens_in"] == 5


def skipped(ledger: Ledger) -> dict[str, int]:
    """Value of each series of spendmeter_skipped_total, by its labels."""
    return {labels: value for (family, labels), value in counters(ledger).items() if family == "spendmeter.skipped"}


def test_a_last_line_that_is_being_written_is_no_skip(ledger: Ledger, tmp_path: Path) -> None:
    """A transcript that is read while it grows counts no skip, and is read again though nothing of it has changed since."""
    whole = (CHAINS[0].transcripts()[0]).read_bytes()
    growing = tmp_path / "a" / "s.jsonl"
    growing.parent.mkdir()
    for upto in range(500, len(whole), len(whole) // 7):
        growing.write_bytes(whole[:upto])
        ingest.ingest_paths(ledger, [str(growing)], tags=TAGS)
    assert ingest.ingest_paths(ledger, [str(growing)], tags=TAGS).unchanged == 0
    assert skipped(ledger) == {}


def test_a_line_that_stayed_cut_is_counted_once_per_file(ledger: Ledger, tmp_path: Path) -> None:
    """Long after the last write it is a skip: one for each file, however files are named, however often they are read."""
    for folder in ("a", "b"):
        path = tmp_path / folder / "run.jsonl"
        path.parent.mkdir()
        path.write_bytes(b'{"type":"assistant","sessionId":"x","mess')
        os.utime(path, (1e9, 1e9))
        for _ in range(2):
            ingest.ingest_paths(ledger, [str(path)], tags=TAGS)
    assert skipped(ledger) == {'["jsonl","cut short"]': 2}
    assert verify(ledger) == []
