"""opencode: steps on stdout, the database that may be in use, exports."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from spendmeter import ingest
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.parsers import read, read_file
from spendmeter.parsers.changes import Changes
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.rule import Rule
from spendmeter.reconcile.split import split
from spendmeter.records import Call, Claim, Finish, Observation, Part, Skip, Tags, total
from tests.runs import ROOT, Chain

RUN = ROOT / "opencode" / "json-subagent-anthropic"
STORE = Path("home") / ".local" / "share" / "opencode" / "opencode.db"
STEP = {"total": 0, "input": 10, "output": 3, "reasoning": 2, "cache": {"read": 4, "write": 1}}
ONE = 20


def told(*rows: dict[str, Any]) -> list[Observation]:
    return read(io.BytesIO("\n".join(json.dumps(r) for r in rows).encode()), None, "x")[0]


def step(at: int, part: str, reason: str = "stop") -> dict[str, Any]:
    body = {"id": part, "sessionID": "s", "messageID": f"m{part}", "type": "step-finish", "reason": reason, "tokens": STEP, "cost": 0.5}
    return {"type": "step_finish", "timestamp": at, "sessionID": "s", "part": body}


def start(at: int) -> dict[str, Any]:
    return {"type": "step_start", "timestamp": at, "sessionID": "s", "part": {"type": "step-start"}}


def write(db: sqlite3.Connection, session: str, parent: str | None, steps: dict[str, int]) -> None:
    """Adds a session with one message and step for each of *steps* (part -> time)."""
    n = len(steps)
    sums = (10 * n, 3 * n, 2 * n, 4 * n, n, 0.5 * n)
    db.execute("insert into session values (?, ?, '/w', '1', ?, ?, ?, ?, ?, ?, 1)", (session, parent, *sums))
    for part, at in steps.items():
        prompt, head = {"role": "user", "time": {"created": at - 5}}, {"role": "assistant", "modelID": "m", "time": {"created": at}}
        db.execute("insert into message values (?, ?, ?)", (f"u{part}", session, json.dumps(prompt)))
        db.execute("insert into message values (?, ?, ?)", (f"m{part}", session, json.dumps(head)))
        data = {"type": "step-finish", "tokens": STEP, "cost": 0.5}
        db.execute("insert into part values (?, ?, ?, ?)", (part, f"m{part}", session, json.dumps(data)))
    db.commit()


def make(path: Path, mode: str = "delete") -> sqlite3.Connection:
    db = sqlite3.connect(path)
    db.execute(f"pragma journal_mode = {mode}")
    names = "tokens_input, tokens_output, tokens_reasoning, tokens_cache_read, tokens_cache_write, cost, time_updated"
    db.execute(f"create table session (id text, parent_id text, directory text, version text, {names})")
    db.execute("create table message (id text, session_id text, data text)")
    db.execute("create table part (id text, message_id text, session_id text, data text)")
    db.commit()
    return db


def book_of(*observations: list[Observation]) -> Book:
    book = Book()
    for some in observations:
        book.add_all(some)
    return book


def test_output_is_answer_and_reasoning_and_cost_is_opencodes() -> None:
    """``output`` leaves out reasoning and ``input`` what was cached; the cost is the CLI's own figure."""
    (call,) = [o for o in told(start(1), step(2, "a")) if isinstance(o, Call)]
    assert call.usage[:6] == (10, 4, 1, None, 5, 2)
    assert call.usage.cost_nusd == 500_000_000


def test_a_subagents_usage_belongs_to_the_session_that_started_it() -> None:
    """A captured run: stdout shows the main agent, the database both, under one session; together nothing counts twice."""
    printed, stored = read_file(RUN / "stdout")[0], read_file(RUN / STORE)[0]
    book = book_of(printed, stored)
    ((_, session),) = book.sessions
    assert {o.subagent is None for o in stored if isinstance(o, Call)} == {True, False}
    assert [o.part_id == session for o in stored if isinstance(o, Part)].count(False) == 1
    (run,) = split(book.sessions["opencode", session])
    assert (run.outcome, sum(len(p.calls) for p in run.pieces), run.unknown) == ("ok", 4, ())
    (alone,) = split(book_of(printed).sessions["opencode", session])
    assert [u.partition(":")[0] for u in alone.unknown] == ["model and subagents"]


def test_each_run_of_a_session_gets_its_own(tmp_path: Path, ledger: Ledger) -> None:
    """Two runs of one session and a killed one between them: each is tagged with its own steps, subagents too, in any order."""
    with closing(make(tmp_path / "opencode.db")) as db:
        write(db, "s", None, {"a": 1000, "b": 1100, "c": 2000, "d": 3000})
        write(db, "child", "s", {"e": 3100})
    for name, rows in {"T-1": (start(1000), step(1050, "a", "tool-calls"), step(1150, "b")), "T-3": (start(3000), step(3200, "d"))}.items():
        (tmp_path / name).write_text("\n".join(json.dumps(r) for r in rows))
        ingest.ingest_paths(ledger, [str(tmp_path / name)], tags=Tags("dev", name))
    ingest.ingest_paths(ledger, [str(tmp_path / "opencode.db")])
    with ledger.read() as conn:
        spent = func.sum(t.entries.c.tokens_in + t.entries.c.tokens_out + t.entries.c.cache_read + t.entries.c.cache_write_5m)
        key = t.entries.c.run_key == t.runs.c.run_key
        got = dict(conn.execute(select(t.runs.c.task, spent).join(t.entries, key).group_by(t.runs.c.task)).all())  # type: ignore[arg-type]
    assert got == {"T-1": 2 * ONE, "unknown": ONE, "T-3": 2 * ONE}


def test_a_database_in_use_is_read_without_disturbing_it(tmp_path: Path) -> None:
    """What is committed to the write-ahead log is read while a writer holds the database, which goes on; no file is made."""
    folder = tmp_path / "store"
    folder.mkdir()
    path = folder / "opencode.db"
    with closing(make(path, "wal")) as db:
        write(db, "s", None, {"a": 1000})
        db.execute("begin immediate")
        db.execute("insert into part values ('z', 'ma', 's', ?)", (json.dumps({"type": "step-finish", "tokens": STEP}),))
        before = {p.name for p in folder.iterdir()}
        assert [o.call_id for o in read_file(path)[0] if isinstance(o, Call)] == ["a"]
        assert {p.name for p in folder.iterdir()} == before
        db.commit()
        assert sorted(o.call_id for o in read_file(path)[0] if isinstance(o, Call)) == ["a", "z"]
    assert [p.name for p in folder.iterdir()] == ["opencode.db"]
    data = path.read_bytes()
    assert sorted(o.call_id for o in read_file(path)[0] if isinstance(o, Call)) == ["a", "z"]
    assert path.read_bytes() == data
    assert [p.name for p in folder.iterdir()] == ["opencode.db"]


def test_a_change_in_the_log_alone_is_seen(tmp_path: Path, ledger: Ledger) -> None:
    """While a database is in use its file does not change; ``sync`` sees that its write-ahead log has."""
    home = tmp_path / "h" / ".local" / "share" / "opencode"
    home.mkdir(parents=True)
    with closing(make(home / "opencode.db", "wal")) as db:
        write(db, "s", None, {"a": 1000})
        assert ingest.sync(ledger, home=tmp_path / "h").changed == 1
        assert ingest.sync(ledger, home=tmp_path / "h").unchanged == 1
        write(db, "s2", None, {"b": 2000})
        assert ingest.sync(ledger, home=tmp_path / "h").changed == 1


def test_a_read_only_folder_will_do(tmp_path: Path) -> None:
    """A database on a read-only disk, in write-ahead mode but at rest, is read."""
    folder = tmp_path / "ro"
    folder.mkdir()
    with closing(make(folder / "opencode.db", "wal")) as db:
        write(db, "s", None, {"a": 1000})
    folder.chmod(0o500)
    try:
        assert [o.call_id for o in read_file(folder / "opencode.db")[0] if isinstance(o, Call)] == ["a"]
    finally:
        folder.chmod(0o700)


def test_deleted_messages_were_paid_for() -> None:
    """A session's own sum may hold more than its messages (a reverted answer): that counts."""
    stored = [o for o in read_file(RUN / STORE)[0] if not isinstance(o, Call)]
    calls = [o for o in read_file(RUN / STORE)[0] if isinstance(o, Call)]
    for some in (calls, calls[1:], []):
        book = book_of([*stored, *some])
        (facts,) = book.sessions.values()
        assert total(Rule(facts).cells().values()).tokens == total(c.usage for c in calls).tokens


def test_an_export_tells_the_same_calls(tmp_path: Path) -> None:
    """``opencode export`` holds the calls under the same ids."""
    with closing(make(tmp_path / "opencode.db")) as db:
        write(db, "s", None, {"a": 1000})
    part = {"id": "a", "sessionID": "s", "messageID": "ma", "type": "step-finish", "tokens": STEP, "cost": 0.5}
    message = {"info": {"id": "ma", "role": "assistant", "modelID": "m", "time": {"created": 1000}}, "parts": [part, {"type": "text"}]}
    exported = read(io.BytesIO(json.dumps({"info": {"id": "s"}, "messages": [message]}, indent=2).encode()), None, "x")[0]
    assert exported == [o for o in read_file(tmp_path / "opencode.db")[0] if isinstance(o, Call)]


def test_an_error_ends_the_run() -> None:
    """An ``error`` event is a run's end, with what it had used till then."""
    seen = told(start(1), step(2, "a", "tool-calls"), {"type": "error", "timestamp": 9, "sessionID": "s", "error": {"name": "private"}})
    (finish,) = [o for o in seen if isinstance(o, Finish)]
    assert (finish.outcome, finish.own.tokens, finish.duration_ms) == ("error", ONE, 8)
    assert "private" not in repr(seen)


@pytest.mark.parametrize("cut", [100, 4096, 100_000])
def test_a_cut_database_is_a_skip(tmp_path: Path, cut: int) -> None:
    """Half a database (a copy under way) tells nothing and is named."""
    path = tmp_path / "opencode.db"
    shutil.copy(RUN / STORE, path)
    with path.open("r+b") as handle:
        handle.truncate(cut)
    assert all(isinstance(o, Skip) for o in read_file(path)[0])


def chain(name: str) -> list[Path]:
    folders = sorted((ROOT / "opencode").glob(f"{name}-[0-9]-*"))
    assert folders
    return folders


def shares(ledger: Ledger) -> dict[str, int]:
    """All tokens by task."""
    e = t.entries.c
    spent = func.sum(e.tokens_in + e.tokens_out + e.cache_read + e.cache_write_5m)
    with ledger.read() as conn:
        rows = conn.execute(select(t.runs.c.task, spent).join(t.entries, e.run_key == t.runs.c.run_key).group_by(t.runs.c.task))
        return {task: int(n) for task, n in rows if n}


def billed(folder: Path) -> int:
    """What the server billed for one run, its title and what was cut short left out."""
    return sum(Chain("opencode", (folder,)).truth(least=True).values())


@pytest.mark.parametrize("order", ["as they ended", "files last", "files first", "backwards"])
@pytest.mark.parametrize("name", ["resume", "kills", "undo", "compaction", "errors"])
def test_each_captured_run_of_a_session_gets_its_own(name: str, order: str, ledger: Ledger) -> None:
    """Runs that continued a session, forked it, were killed or undone: each one's share is what it was billed.

    Of a run that printed no usage the share is known and whose it was is not.
    """
    folders = chain(name)
    files = [
        lambda f=f: ingest.sync(ledger, home=f / "home") for f in (folders if order in ("as they ended", "backwards") else folders[-1:])
    ]
    printed = [lambda f=f: ingest.ingest_paths(ledger, [str(f / "stdout")], tags=Tags("dev", f.name)) for f in folders]
    if order == "as they ended":
        steps = [step for pair in zip(printed, files, strict=True) for step in pair]
    else:
        steps = printed + files if order == "files last" else files + printed if order == "files first" else (printed + files)[::-1]
    for step_ in steps:
        step_()
    expected: dict[str, int] = {}
    for folder in folders:
        task = folder.name if "step_finish" in (folder / "stdout").read_text() else "unknown"
        expected[task] = expected.get(task, 0) + billed(folder)
    assert shares(ledger) == expected


def test_a_fork_is_not_billed_for_what_it_copied() -> None:
    """A fork repeats its parent's messages under new ids, and its own sum holds them."""
    (fork,) = [f for f in chain("resume") if f.name.endswith("fork")]
    book = book_of(read_file(fork / STORE)[0])
    sums = sorted(total(Rule(facts).cells().values()).tokens for facts in book.sessions.values())
    assert sums == sorted([billed(fork), sum(billed(f) for f in chain("resume")[:3])])


def test_an_exported_fork_leaves_out_what_it_copied() -> None:
    """As in the database: messages that are older than their session are its parent's."""
    rows = [
        {"info": {"id": m, "role": "assistant", "modelID": "m", "time": {"created": at}}, "parts": [step(at, m)["part"]]}
        for m, at in (("old", 500), ("new", 1500))
    ]
    exported = read(io.BytesIO(json.dumps({"info": {"id": "s", "time": {"created": 1000}}, "messages": rows}).encode()), None, "x")[0]
    assert [o.call_id for o in exported if isinstance(o, Call)] == ["new"]


def test_undone_answers_were_paid_for() -> None:
    """Undoing takes messages away, and off the session's sum; the log of events has them."""
    folders = chain("undo")
    (facts,) = book_of(read_file(folders[-1] / STORE)[0]).sessions.values()
    assert total(Rule(facts).cells().values()).tokens == sum(billed(f) for f in folders)


def test_a_silent_run_holds_no_call_of_the_run_before_it() -> None:
    """A wrapped run in text form has an end and no start: it starts where the run before it ended, calls too."""
    base, second = chain("undo")[:2]
    stored = read_file(second / STORE)[0]
    (session,) = {o.session for o in stored if isinstance(o, Call)}
    book = book_of(read_file(base / "stdout")[0], stored)
    claim = Claim(
        "opencode", session, "c", Tags("dev", "text"), run_key="wrapped", end_ms=max(o.at_ms or 0 for o in stored if isinstance(o, Call))
    )
    book.sessions["opencode", session].add_claim(claim)
    got = [(len(p.calls), p.usage.tokens) for run in split(book.sessions["opencode", session]) for p in run.pieces]
    assert got == [(2, billed(base)), (2, billed(second))]


def test_a_silent_run_is_the_session_that_took_a_prompt(tmp_path: Path) -> None:
    """A database holds all sessions; the one that took a prompt since the run began is the run's, of two neither is."""
    home = tmp_path / "h" / ".local" / "share" / "opencode"
    home.mkdir(parents=True)
    with closing(make(home / "opencode.db")) as db:
        write(db, "before", None, {"a": 1000})
        watch = Changes("opencode", home, 2_000_000_000)
        watch.snapshot()
        write(db, "mine", None, {"b": 3000})
        assert [p.name for p, _ in watch.after(())] == ["opencode.db"]
        assert (watch.found, watch.reason) == ({"mine"}, None)
        write(db, "other", None, {"c": 3000})
        both = Changes("opencode", home, 2_000_000_000)
        assert (both.after(()), both.reason) == ([], "2 sessions changed, cannot tell which is this run's")
