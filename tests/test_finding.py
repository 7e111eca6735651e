"""Which files are read again, by whom, and what becomes of readers that die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from spendmeter import finding
from spendmeter.config import Settings
from spendmeter.errors import ParseError
from spendmeter.finding import Found, known_to
from spendmeter.ingest import sync
from spendmeter.ledger import Ledger
from spendmeter.ledger.engine import upgrade
from spendmeter.ledger.verify import verify
from spendmeter.parsers.pool import Job, Pool
from spendmeter.parsers.reading import Source, read_source
from tests.runs import ROOT


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of Claude Code with many transcripts, one of them half-written."""
    found = sorted((ROOT / "claude").glob("*/home/**/*.jsonl"))
    assert len(found) > 30
    for i, path in enumerate(found):
        folder = tmp_path / "home" / ".claude" / "projects" / f"p{i}"
        folder.mkdir(parents=True)
        shutil.copy(path, folder / path.name)
        os.utime(folder / path.name, (1.7e9, 1.7e9))
    (folder / "torn.jsonl").write_bytes(path.read_bytes()[:-40])
    return tmp_path / "home"


def jobs_of(home: Path) -> list[Job]:
    return Found({}, home, ["claude"]).jobs


def told(read: Source | OSError) -> tuple[str, Counter[str]]:
    assert isinstance(read, Source)
    return read.mark, Counter(map(repr, read.observations))


def test_several_readers_tell_what_one_tells(home: Path) -> None:
    """Every file comes once, with the same mark and the same observations, whoever has read it."""
    jobs = jobs_of(home)
    pool = Pool(jobs, 3)
    found = {job.path: told(source) for job, source in pool.sources()}
    pool.close()
    assert found == {job.path: told(read_source(job.path, "claude")) for job in jobs}


def test_what_a_dead_reader_leaves_is_read_all_the_same(home: Path) -> None:
    """Readers killed in the middle cost no file and double none."""
    jobs = jobs_of(home) * 20
    pool = Pool(jobs, 2)
    seen: Counter[Path] = Counter()
    for n, (job, source) in enumerate(pool.sources()):
        assert told(source)[1] is not None
        seen[job.path] += 1
        if n == 3:
            for process in list(pool._processes):
                os.kill(process.pid, signal.SIGKILL)
    pool.close()
    assert seen == Counter(job.path for job in jobs)


def test_a_pool_that_is_closed_early_leaves_nobody_behind(home: Path) -> None:
    """After ``close`` no reader runs and no thread waits, whatever was still to be read."""
    pool = Pool(jobs_of(home) * 50, 2)
    next(pool.sources())
    pool.close()
    assert pool._processes
    assert all(p.poll() is not None for p in pool._processes)
    assert not any(t.is_alive() for t in pool._readers)


def test_a_file_that_is_gone_is_passed_over_and_one_that_cannot_be_read_is_named(home: Path, ledger: Ledger) -> None:
    """Neither costs any other file; the error says which."""
    broken = home / ".claude" / "projects" / "p0" / "broken.jsonl"
    broken.mkdir()
    with pytest.raises(ParseError, match=r"broken\.jsonl: cannot be read \(Is a directory\)"):
        sync(ledger, home=home)
    broken.rmdir()
    again = sync(ledger, home=home)
    assert (again.sources, again.changed) == (1, 0)  # the torn one
    jobs = jobs_of(home)
    jobs[0].path.unlink()
    pool = Pool(jobs, 1)
    assert [type(s).__name__ for job, s in pool.sources() if job.path == jobs[0].path] == ["FileNotFoundError"]
    pool.close()


def test_the_ledger_is_the_same_however_many_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Totals do not depend on who read what, and in which order that came."""
    totals = []
    for parallel in (1 << 40, 1):
        monkeypatch.setattr(finding, "PARALLEL", parallel)
        ledger = Ledger(Settings(f"sqlite:///{tmp_path}/{parallel}.db", settle_s=0))
        done = sync(ledger, home=home)
        assert verify(ledger) == []
        with ledger.read() as conn:
            rows = conn.execute(
                text("select model, sum(tokens_in), sum(tokens_out), sum(cache_read), sum(calls) from entries group by model")
            )
            totals.append((sorted(map(tuple, rows)), done.sources, done.sessions))
        ledger.close()
    assert totals[0] == totals[1]


def test_nothing_new_opens_no_ledger(home: Path, tmp_path: Path) -> None:
    """A second ``sync`` reads the ledger's list of sources and no more: SQLAlchemy is not even loaded."""
    (home / ".claude" / "projects").rename(home / ".claude" / "was")
    (home / ".claude" / "projects" / "p").mkdir(parents=True)
    shutil.copy(next((home / ".claude" / "was").glob("p1/*.jsonl")), home / ".claude" / "projects" / "p")
    code = """
import sys
from spendmeter.cli import main
try:
    main(["--ledger", sys.argv[1], "sync", "--home", sys.argv[2]])
except SystemExit as e:
    assert not e.code, e.code
print("sqlalchemy" in sys.modules)
"""
    seen = [
        subprocess.run(
            [sys.executable, "-c", code, f"sqlite:///{tmp_path}/l.db", str(home)], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert seen[0][0].startswith("1 source read, 0 unchanged")
    assert seen[1] == ["0 sources read, 1 unchanged; 0 sessions, 0 with new usage", "False"]
    assert seen[0][1] == "True"


def test_what_a_ledger_knows_is_told_or_not_at_all(tmp_path: Path) -> None:
    """A ledger to come knows nothing; what is no SQLite file of ours, or no file, is for the ledger itself to say."""
    assert known_to(f"sqlite:///{tmp_path}/none.db") == {}
    (tmp_path / "text.db").write_text("no database " * 100)
    assert known_to(f"sqlite:///{tmp_path}/text.db") is None
    assert known_to("postgresql://db/x") is None
    assert known_to("sqlite://") is None


def test_a_new_ledger_has_the_schema_that_all_migrations_make(new_url: Callable[[], str]) -> None:
    """Tables, columns, keys and indexes are the same by either way."""
    Ledger(Settings(made_at_once := new_url())).close()
    step_by_step = new_url()
    engine = create_engine(step_by_step.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as conn:
        upgrade(conn)
    engine.dispose()
    assert _schema(made_at_once) == _schema(step_by_step)


def _schema(url: str) -> dict[str, object]:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as conn:
        seen = inspect(conn)
        out: dict[str, object] = {
            name: (
                {(c["name"], str(c["type"]), c["nullable"]) for c in seen.get_columns(name)},
                sorted(seen.get_pk_constraint(name)["constrained_columns"]),
                sorted(
                    (
                        i["name"],
                        tuple(i["column_names"]),
                        bool(i["unique"]),
                        str(sorted((k, str(v)) for k, v in i.get("dialect_options", {}).items())),
                    )
                    for i in seen.get_indexes(name)
                ),
                sorted(tuple(u["column_names"]) for u in seen.get_unique_constraints(name)),
            )
            for name in seen.get_table_names()
        }
        out["version"] = conn.execute(text("select version_num from alembic_version")).scalar_one()
    engine.dispose()
    return out


def test_thousands_of_small_files_do_not_fill_the_pipes(home: Path) -> None:
    """A reader that has more answers than its pipe holds is listened to before it is asked for more."""
    job = min(jobs_of(home), key=lambda j: j.size)._replace(size=0)  # so that all of them are one reader's
    pool = Pool([job] * 1000, 1)
    assert sum(isinstance(source, Source) for _, source in pool.sources()) == 1000
    pool.close()
