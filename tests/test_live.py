"""What a run under way has used so far is what its ledger will say of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from spendmeter import ingest
from spendmeter.ledger import Batch, Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.derive import gather
from spendmeter.ledger.store import Store
from spendmeter.parsers import Stream, changes, claude_files, places, read_file
from spendmeter.prices import PriceTable
from spendmeter.reconcile.book import Book
from spendmeter.records import Call, Level, Usage
from spendmeter.runner import live as module
from spendmeter.runner.args import Options
from spendmeter.runner.childenv import Trace
from spendmeter.runner.compose import AnyWatch, compose, finish_mark, mark
from spendmeter.runner.detect import Command
from spendmeter.runner.facts import Facts
from spendmeter.runner.live import Live, Pace, Reading
from spendmeter.runner.spool import from_json, to_json
from tests.made import Shared
from tests.runs import ROOT, Chain, all_chains

CHAINS = all_chains()
PRICES = PriceTable.load()
NOTHING = Reading(None, 0)
AT_10_ON_THE_22ND = 1_795_341_600_000
ID = "0b5e2d52-6a4b-4d3c-8b5a-6d2f7c1e9a10"
FORK = "5f0c7a9e-1d83-4b0e-9a55-3c1f6b7e2d44"
TIME = re.compile(r'"(?:timestamp|startTime)":"(20\d\d-\d\d-\d\dT[\d:.]+Z)"')


class World:
    """A home in which the runs of one chain happen again, line by line."""

    def __init__(self, folder: Path, chain: Chain) -> None:
        self.home, self.chain, self.cwd = folder / "home", chain, str(folder)
        self.home.mkdir(exist_ok=True)

    def facts(self, case: Path) -> Facts:
        argv = json.loads((case / "scenario.json").read_text())["argv"]
        options, run_id = Options(), os.urandom(16).hex()
        options.command, options.task, options.agent = [self.chain.cli, *argv], case.name, "dev"
        facts = Facts(options, Command(options.command), Trace(run_id, None), run_id, self.cwd)
        facts.env, facts.started_ms = {"HOME": str(self.home)}, self._began_ms(case)
        return facts

    def prepare(self, case: Path) -> None:
        """Gives what is there already the words that it has after the run: some are redacted otherwise, line by line."""
        for path in (p for p in (case / "home").rglob("*.jsonl") if (self.home / p.relative_to(case / "home")).exists()):
            target, lines = self.home / path.relative_to(case / "home"), path.read_bytes().splitlines(keepends=True)
            target.write_bytes(b"".join(lines[: target.read_bytes().count(b"\n")]))
        time.sleep(0.02)  # the file system's clock has such steps

    def _began_ms(self, case: Path) -> int:
        """Time of the first row that the run wrote; in a database, just after the last message before it."""
        for path in self.home.rglob("*.db"):
            with closing(sqlite3.connect(path)) as db:
                return int(db.execute("select max(time_created) from message").fetchone()[0]) + 1
        times = []
        for path in (case / "home").rglob("*.jsonl"):
            target, text = self.home / path.relative_to(case / "home"), path.read_bytes()
            times += TIME.findall(text[target.stat().st_size if target.exists() else 0 :].decode())
        known = max((x for path in self.home.rglob("*.jsonl") for x in TIME.findall(path.read_text())), default="")
        times = [x for x in times if x > known] or times  # a file that is new may repeat when its session began
        return min((int(datetime.fromisoformat(x).timestamp() * 1000) for x in times), default=1)

    def watches(self, facts: Facts) -> list[AnyWatch]:
        cli = self.chain.cli
        made: list[AnyWatch]
        if cli == "claude":
            made = [claude_files.Watch(h, self.cwd, facts.start_ns) for h in claude_files.homes(facts.env)]
        else:
            made = [changes.Changes(cli, h, facts.start_ns) for h in places.PLACES[cli].homes(facts.env, None)]
        for watch in made:
            watch.snapshot()
        return made

    def again(self, case: Path) -> Iterator[bytes]:
        """The run once more: lines of its files and of its output in turn, the last of each at the end; yields what is printed."""
        files = [p for p in sorted((case / "home").rglob("*")) if p.is_file()]
        steps = [step for p in files for step in _spread(self._growth(p, self.home / p.relative_to(case / "home")))]
        for _, step in sorted([*steps, *_spread((case / "stdout").read_bytes().splitlines(keepends=True))], key=lambda s: s[0]):
            if isinstance(step, bytes):
                yield step
                continue
            step()
            yield b""

    def _growth(self, source: Path, target: Path) -> list[Callable[[], object]]:
        target.parent.mkdir(parents=True, exist_ok=True)
        old, new = target.read_bytes() if target.exists() else b"", source.read_bytes()
        assert new.startswith(old) or source.suffix == ".db"
        if source.suffix != ".jsonl":
            return [partial(target.write_bytes, new)]
        return [partial(append, target, line) for line in new[len(old) :].splitlines(keepends=True)]


def in_ledger(ledger: Ledger, task: str) -> Reading:
    """What the ledger holds for *task*."""
    e, on = t.entries.c, (t.entries.c.session_id == t.runs.c.session_id) & (t.entries.c.run_key == t.runs.c.run_key)
    sums = [
        func.sum(c)
        for c in (e.reported_nusd, e.estimated_nusd, e.tokens_in, e.cache_read, e.cache_write_5m, e.cache_write_1h, e.tokens_out)
    ]
    with ledger.read() as conn:
        reported, estimated, *tokens = conn.execute(select(*sums).join(t.runs, on).where(t.runs.c.task == task)).one()
    cost = None if reported is None and estimated is None else (reported or 0) + (estimated or 0)
    return Reading(cost, sum(x or 0 for x in tokens))


def _spread(steps: Sequence[Any]) -> list[tuple[float, Any]]:
    return [((i + 1) / len(steps), step) for i, step in enumerate(steps)]


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for its turn."""
    for name in ("LOOK_S", "COUNT_S", "WHOLE_S"):
        monkeypatch.setattr(module, name, 0.0)
    for name in ("LOOK_SHARE", "COUNT_SHARE"):
        monkeypatch.setattr(module, name, 1e9)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: c.name)
def test_it_rises_to_what_the_ledger_will_say(tmp_path: Path, shared: Shared, chain: Chain) -> None:
    """Every captured run, resumed and forked ones too, line by line: never more than in the end, and then the same."""
    world, ledger = World(tmp_path, chain), shared()
    for case in chain.folders:
        world.prepare(case)
        facts = world.facts(case)
        watches, stream = world.watches(facts), Stream(chain.cli, "run")
        live, size, readings = Live(facts, os.getpid(), watches, PRICES), 0, [NOTHING]
        for printed in world.again(case):
            stream.feed(printed)
            size += len(printed)
            readings.append(live.reading(stream, size, set(stream.sessions)) or readings[-1])
        run = compose(facts, watches, [os.getpid()], stream.sessions, stream.finish())
        run.ended_ms = facts.started_ms + 1
        last = live.last(run)
        ingest.commit_finished(ledger, run)
        assert last[:2] == in_ledger(ledger, case.name)[:2]
        assert [r for r in readings if r.tokens > last.tokens] == []


class Growing:
    """One session of Claude Code whose transcript the test writes, and the run that it belongs to."""

    def __init__(self, folder: Path, began_ms: int = 0) -> None:
        self.world, self.began_ms = World(folder, CHAINS[0]), began_ms
        self.path = self.world.home / ".claude" / "projects" / "-w" / f"{ID}.jsonl"
        self.path.parent.mkdir(parents=True)

    def begin(self, *flags: str) -> None:
        """The run starts now; what was written is older."""
        time.sleep(0.02)
        options = Options()
        options.command = ["claude", *flags]
        self.facts = Facts(options, Command(options.command), Trace("a" * 32, None), "a" * 32, self.world.cwd)
        self.facts.env, self.facts.started_ms = {"HOME": str(self.world.home)}, self.began_ms
        self.watches = self.world.watches(self.facts)
        self.live = Live(self.facts, os.getpid(), self.watches, PRICES)

    def tokens(self) -> int | None:
        """What has been used, where that is news."""
        found = self.live.reading(None, 0, {ID})
        return found.tokens if found is not None else None


def row(call: str, tokens_in: int, at: str, session: str = ID) -> bytes:
    """A line of a transcript: one call."""
    used = {"input_tokens": tokens_in, "output_tokens": 0}
    message = {"id": f"m-{call}", "model": "claude-sonnet-4-5", "usage": used}
    told = {"type": "assistant", "sessionId": session, "requestId": call, "timestamp": f"2026-11-22T10:{at}Z", "message": message}
    return json.dumps(told).encode() + b"\n"


def test_a_line_that_is_half_written_is_not_there_yet(tmp_path: Path) -> None:
    """And counts once its end has come; where nothing is new there is no reading."""
    run = Growing(tmp_path)
    run.begin()
    line = row("a", 100, "00:00")
    append(run.path, line + line[:40])
    assert run.tokens() == 100
    assert run.tokens() is None
    append(run.path, line[40:].replace(b'"a"', b'"b"'))
    assert run.tokens() == 200


@pytest.mark.parametrize("how", ["cut short", "another file"])
def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path, how: str) -> None:
    """What is in it now comes along, and what it repeats counts once; while it is gone there is no news."""
    run = Growing(tmp_path)
    run.begin()
    append(run.path, row("a", 100, "00:00") + row("a", 100, "00:00"))
    assert run.tokens() == 100
    if how == "another file":
        run.path.unlink()
        assert run.tokens() == 0
    run.path.write_bytes(row("a", 100, "00:00"))
    assert run.tokens() == 100
    append(run.path, row("d", 3, "00:03"))
    assert run.tokens() == 103


def test_a_new_file_of_a_subagent_comes_along(tmp_path: Path) -> None:
    """As soon as it is there."""
    run = Growing(tmp_path)
    run.begin()
    append(run.path, row("a", 100, "00:00"))
    assert run.tokens() == 100
    sub = run.path.with_suffix("") / "subagents" / "agent-x.jsonl"
    sub.parent.mkdir(parents=True)
    append(sub, row("b", 11, "00:01"))
    assert run.tokens() == 111


@pytest.mark.parametrize("known", [True, False])
def test_what_the_session_had_used_before_is_no_part_of_the_run(tmp_path: Path, known: bool) -> None:
    """Its size at the start tells, or where the file had changed before that was noted, the times of its rows."""
    run = Growing(tmp_path, AT_10_ON_THE_22ND + 30_000)
    append(run.path, row("a", 5000, "00:00") + row("b", 5000, "00:10"))
    run.begin("--resume", ID)
    if not known:
        run.facts.start_ns = 0
        run.watches[0].start_ns = 0
        run.watches[0].snapshot()
    assert run.tokens() == 0
    append(run.path, row("c", 7, "00:40"))
    assert run.tokens() == 7


def test_every_process_that_a_script_starts_counts(tmp_path: Path) -> None:
    """Two of them go on in one older session and print a result each: all of it is of this run, and nothing older."""
    run = Growing(tmp_path, AT_10_ON_THE_22ND + 30_000)
    append(run.path, row("a", 5000, "00:00"))
    run.begin("--resume", ID)
    stream = Stream("claude", "run")
    for name, used, whole, at in (("b", 7, 5007, "00:40"), ("c", 11, 5018, "00:55")):
        prompt = {"type": "queue-operation", "operation": "enqueue", "sessionId": ID, "timestamp": f"2026-11-22T10:{at}Z"}
        append(run.path, json.dumps(prompt).encode() + b"\n" + row(name, used, at))
        told = {"modelUsage": {"claude-sonnet-4-5": {"inputTokens": whole}}, "usage": {"input_tokens": used}, "subtype": "success"}
        stream.feed(json.dumps({"type": "result", "session_id": ID, "uuid": name, **told}).encode() + b"\n")
    found = run.live.reading(stream, 1, {ID})
    assert found is not None
    assert found.tokens == 18


def test_calls_that_a_fork_repeats_without_saying_whose_they_are_count_for_its_parent(tmp_path: Path) -> None:
    """Older versions: what was spent before the fork ends no run."""
    run = Growing(tmp_path)
    append(run.path, row("a", 5000, "00:00"))
    run.begin("--resume", ID, "--fork-session")
    append(run.path.with_name(f"{FORK}.jsonl"), row("a", 5000, "00:00", FORK) + row("b", 7, "00:40", FORK))
    found = run.live.reading(None, 0, {FORK})
    assert found is not None
    assert found.tokens == 7


def test_what_a_reading_guesses_binds_nobody(tmp_path: Path) -> None:
    """A session is guessed while it is the only one that changed; that a second one changes is still seen."""
    run = Growing(tmp_path)
    run.begin()
    append(run.path, row("a", 100, "00:00"))
    found = run.live.reading(None, 0, set())
    assert found is not None
    assert (found.tokens, run.live.blind) == (100, None)
    append(run.path.with_name(f"{FORK}.jsonl"), row("b", 10, "00:01", FORK))
    assert run.live.reading(None, 0, set()) == NOTHING
    assert run.live.blind == "2 sessions changed, cannot tell which is this run's"
    assert [w.found for w in run.watches] == [set()]


CASE = ROOT / "opencode" / "json-subagent-anthropic"


def test_a_database_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    """opencode's, while it is in use: calls of a subagent count, which it does not print."""
    world = World(tmp_path, Chain("opencode", (CASE,)))
    facts, path = world.facts(CASE), world.home / ".local" / "share" / "opencode" / "opencode.db"
    shutil.copytree(CASE / "home", world.home, dirs_exist_ok=True)
    with sqlite3.connect(path) as db:
        steps = db.execute("""select * from part where data like '%"step-finish"%' order by time_created""").fetchall()
        sums = [json.loads(s[-1])["tokens"]["total"] for s in steps]
        db.execute("""delete from part where data like '%"step-finish"%'""")
        db.execute("update session set tokens_input = 0, tokens_output = 0, tokens_cache_read = 0, tokens_cache_write = 0, cost = 0")
    stream = Stream("opencode", "run")
    stream.feed((CASE / "stdout").read_bytes().partition(b"\n")[0] + b"\n")
    live, readings = Live(facts, os.getpid(), world.watches(facts), PRICES), []
    for step in steps:
        with sqlite3.connect(path) as db:
            db.execute("pragma journal_mode = wal")
            db.execute(f"insert into part values ({', '.join('?' * len(step))})", step)
            db.commit()
            found = live.reading(stream, 0, set(stream.sessions))
        db.close()
        assert found is not None
        readings.append(found.tokens)
    assert len({s[2] for s in steps}) == 2  # two sessions: one is the subagent's
    assert readings == [sum(sums[: i + 1]) for i in range(len(sums))]


SOURCES = [(c, p) for c in CHAINS for p in [*c.stdouts(), *c.transcripts()]]


@pytest.mark.parametrize(("chain", "path"), SOURCES, ids=[f"{c.name}-{p.name}" for c, p in SOURCES])
def test_asking_a_stream_in_between_changes_nothing(chain: Chain, path: Path) -> None:
    """After every line of every captured source."""
    session = places.session_of(path, chain.cli)
    stream = Stream(chain.cli, path.name, session)
    for line in path.read_bytes().splitlines(keepends=True):
        stream.feed(line)
        stream.so_far()
    assert stream.finish() == read_file(path, chain.cli)[0]


@pytest.mark.parametrize("chain", CHAINS, ids=[c.name for c in CHAINS])
def test_a_book_gathers_what_the_ledger_gathers(shared: Shared, chain: Chain) -> None:
    """Whose a call is, what was copied from whom and what the ancestors had read: the same in memory and in the database."""
    book, ledger = Book(), shared()
    observations = [o for p in [*chain.stdouts(), *chain.files()] for o in read_file(p, chain.cli)[0]]
    book.add_all(observations)
    ledger.commit(Batch(observations))
    with ledger.read() as conn:
        store = Store(conn, 0)
        for r in conn.execute(select(t.sessions)).all():
            mine, foreign = gather(store, r.id)
            ours, theirs = book.gather(book.at(r.cli, r.session))
            assert (ours.calls.keys(), ours.copies) == (mine.calls.keys(), mine.copies)
            assert (theirs.copied.keys(), {(v.epoch, v.reading, v.model, v.usage) for v in theirs.ancestor_levels}) == (
                foreign.copied.keys(),
                {(v.epoch, v.reading, v.model, v.usage) for v in foreign.ancestor_levels},
            )
            assert foreign.peer_totals <= theirs.peer_totals  # the ledger looks only for one that it waits for


def test_a_copied_book_is_its_own() -> None:
    """What is added to the copy is not in the first, and the other way round."""
    book = Book()
    book.add_all([Call("claude", "a", "s", Usage(1))])
    copy = book.copy()
    copy.add_all([Call("claude", "a", "s", Usage(5)), Call("claude", "b", "s", Usage(2)), Level("claude", "s", "m", Usage(9))])
    book.add_all([Call("claude", "c", "s", Usage(3))])
    mine, theirs = book.at("claude", "s"), copy.at("claude", "s")
    assert {c.call_id: c.usage.tokens for c in mine.calls.values()} == {"a": 1, "c": 3}
    assert {c.call_id: c.usage.tokens for c in theirs.calls.values()} == {"a": 5, "b": 2}
    assert (len(mine.levels), len(theirs.levels)) == (0, 1)


def test_a_pace_keeps_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long comes the more seldom."""
    clock = {"thread_time": 0.0, "monotonic": 50.0}
    for name in clock:
        monkeypatch.setattr(time, name, partial(clock.__getitem__, name))
    pace = Pace(0.0, 0.25)
    with pace:
        clock |= {"thread_time": 0.5, "monotonic": 60.0}
    clock["monotonic"] = 61.75
    assert not pace.is_due()
    clock["monotonic"] = 62.0
    assert pace.is_due()


def test_why_a_run_was_ended_survives_its_wrapper(tmp_path: Path) -> None:
    """In the mark of a run under way, in a run that is kept for later; files of older versions say nothing of it."""
    run = Growing(tmp_path)
    run.begin()
    marked = json.loads(json.dumps(mark(run.facts, run.watches, 1, {ID}, "max-cost")))
    kept = json.loads(json.dumps(to_json(finish_mark(marked))))
    assert (finish_mark(marked).stopped, from_json(kept).stopped) == ("max-cost", "max-cost")
    del marked["stopped"], kept["stopped"]
    assert (finish_mark(marked).stopped, from_json(kept).stopped) == (None, None)
