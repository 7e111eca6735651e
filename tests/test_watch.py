"""Transcripts that grow while they are read: torn at every byte, cut, moved, copied, they end in the ledger of reading them whole."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spendmeter.cli.watching import Watching
from spendmeter.config import Settings
from spendmeter.errors import LedgerError, ParseError
from spendmeter.finding import Found, Result
from spendmeter.ingest import sync, take_in
from spendmeter.ledger import Ledger
from spendmeter.ledger.verify import verify
from spendmeter.parsers import Stream, growing
from spendmeter.parsers.growing import Growing, Tails
from spendmeter.parsers.reading import GROWING_S, read_source
from spendmeter.parsers.scan import Scanner
from tests.runs import ROOT, Chain, chains
from tests.test_ledger import dump, sums

WITH_SUBAGENTS = [c for c in chains() if any("subagents" in p.parts for p in c.transcripts())]
SMALL = ["claude/json-single", "codex/json-single", "gemini/json-subagent", "qwen/json-single", "copilot/json-single-anthropic"]
WIDE = '{"type":"progress","text":"Größe 数字 🧾"}\n'.encode()  # to be torn within a character
SLOW_S = 90.0


def lay(home: Path, chain: Chain) -> dict[Path, bytes]:
    """What the chain's last run left, by where it is to be written under *home*; a line of other alphabets among the rest."""
    source = chain.folders[-1] / "home"
    found = {home / p.relative_to(source): p.read_bytes() for p in sorted(source.rglob("*")) if p.is_file()}
    return {path: data.replace(b"\n", b"\n" + WIDE, 1) for path, data in found.items() if path.suffix == ".jsonl"}


def named(name: str) -> Chain:
    return next(c for c in chains(name.partition("/")[0]) if c.name == name)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def look(ledger: Ledger, tails: Tails, home: Path) -> Result:
    """A round of ``sync --watch``."""
    found = Found(ledger.sources(), home)
    found.jobs = tails.due(found.jobs)
    return take_in(ledger, found, tails.read(found.jobs))


def whole(folder: Path, home: Path) -> dict[str, list[tuple[object, ...]]]:
    """The ledger of reading all of *home* once."""
    ledger = Ledger(Settings(f"sqlite:///{folder}/whole.db", settle_s=3600))
    with contextlib.closing(ledger):
        sync(ledger, home=home)
        return dump(ledger)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new ledger's file, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "l.db"
    Ledger(Settings(f"sqlite:///{path}")).close()
    return path


# -- torn at every byte ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_a_transcript_cut_at_any_byte_adds_nothing_to_the_whole(name: str, tmp_path: Path, empty: Path) -> None:
    """Synced up to each of its bytes and then whole: the truth. Cuts that tell the same are of one kind, and each kind is synced."""
    chain = named(name)
    files = lay(tmp_path / "h", chain)
    for path, data in files.items():
        write(path, data)
    want = whole(tmp_path, tmp_path / "h")
    path = max(files, key=lambda p: len(files[p]))
    kinds: dict[str, int] = {}
    for cut in range(len(files[path])):
        path.write_bytes(files[path][:cut])
        kinds.setdefault(repr([o for o in read_source(path, chain.cli).observations if getattr(o, "reason", "") != "cut short"]), cut)
    assert len(kinds) >= 2
    for n, cut in enumerate(kinds.values()):
        ledger = Ledger(Settings(f"sqlite:///{shutil.copy(empty, tmp_path / f'{n}.db')}", settle_s=3600))
        with contextlib.closing(ledger):
            path.write_bytes(files[path][:cut])
            sync(ledger, home=tmp_path / "h")
            path.write_bytes(files[path])
            sync(ledger, home=tmp_path / "h")
            assert dump(ledger) == want, cut
            assert verify(ledger) == []


@pytest.mark.parametrize("name", SMALL)
def test_a_file_read_on_byte_by_byte_tells_at_each_line_what_it_tells_whole(name: str, tmp_path: Path) -> None:
    """And between lines what it told at the line before."""
    chain = named(name)
    path, data = max(lay(tmp_path, chain).items(), key=lambda item: len(item[1]))
    write(path, b"")
    file, before = Growing(path, chain.cli, str(path)), "[]"
    with path.open("ab", buffering=0) as pen:
        for i in range(len(data)):
            pen.write(data[i : i + 1])
            with file.opened() as (handle, stat):
                assert file.take(handle, 1 << 20)
            told = repr(file.so_far(stat).observations)
            torn = data[i : i + 1] != b"\n"
            assert file.is_torn == torn
            assert told == before if torn else told == repr(read_source(path, chain.cli).observations)
            before = told
    assert file.at == len(data)


def test_what_a_half_written_object_holds_is_no_row() -> None:
    """It may be the part of a row that says something else; whole rows of an array, and after a torn row, are rows all the same."""

    def rows(text: str) -> list[dict[str, object]]:
        scanner = Scanner((b"k",))
        return [row for _, row in [*scanner.feed(text.encode()), *scanner.finish()]]

    assert rows('{"k":"outer","data":{"k":"inner"}') == []
    assert rows('{"k":"outer","data": [ {"k":"a"}, {"k":"b"}, {"k') == []
    assert rows('[{"k":"a"},{"k":"b"},{"k') == [{"k": "a"}, {"k": "b"}]
    assert rows('{"k":"to{"k":"whole"}') == [{"k": "whole"}]


# -- reading on --------------------------------------------------------------------------------------------------------


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["append", "truncate", "replace", "rewrite", "fail", "look", "copy"]), st.floats(0, 1)),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, chain=st.sampled_from([*WITH_SUBAGENTS, *chains("codex")[:3], *chains("gemini")[:3], *chains("qwen")[:3]]))
def test_whatever_happens_to_files_the_ledger_is_that_of_reading_them_whole(
    steps: list[tuple[int, str, float]], chain: Chain, empty: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Appended to, truncated, replaced, rewritten in place, copied, with commits that fail: in the end nothing is lost or doubled."""
    folder = tmp_path_factory.mktemp("w")
    files = lay(folder / "h", chain)
    paths, tails = list(files), Tails()
    ledger = Ledger(Settings(f"sqlite:///{shutil.copy(empty, folder / 'l.db')}", settle_s=3600))
    for which, step, share in steps:
        path = paths[which % len(paths)]
        data, size = files[path], path.stat().st_size if path.exists() else 0
        if step == "append":
            write(path, data[: max(size, int(len(data) * share))])
        elif step == "truncate":
            write(path, data[: int(size * share)])
        elif step == "replace":
            write(other := path.with_suffix(".new"), data[: int(len(data) * share)])
            other.rename(path)
        elif step == "rewrite":
            write(path, b'{"type":"else"}\n' + data[: int(len(data) * share)])
        elif step == "copy" and path.exists():
            write(Path(str(path).replace("-home-dev-repo", "-home-dev-other")), path.read_bytes())
        elif step == "fail":
            read = list(tails.read(tails.due(Found(ledger.sources(), folder / "h").jobs)))
            assert all(not isinstance(source, OSError) for _, source in read)
            tails.forget()  # what a round does whose commit has failed
        else:
            look(ledger, tails, folder / "h")
    for path, data in files.items():
        write(path, data)
    look(ledger, tails, folder / "h")
    with contextlib.closing(ledger):
        assert dump(ledger) == whole(folder, folder / "h")
        assert verify(ledger) == []


def test_what_was_read_is_not_read_again(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows a hundred times is read once in all; without memory of it, each time from its start."""
    path, data = max(lay(tmp_path, WITH_SUBAGENTS[0]).items(), key=lambda item: len(item[1]))
    fed, feed = [0], Stream.feed

    def counted(self: Stream, piece: bytes) -> None:
        fed[0] += len(piece)
        feed(self, piece)

    monkeypatch.setattr(Stream, "feed", counted)
    for kept, least, most in ((64, len(data), len(data)), (0, len(data) * 10, len(data) * 100)):
        monkeypatch.setattr(growing, "KEPT", kept)
        tails, fed[0] = Tails(), 0
        write(path, b"")
        with path.open("ab", buffering=0) as pen:
            for i in range(0, len(data), len(data) // 100 + 1):
                pen.write(data[i : i + len(data) // 100 + 1])
                look(ledger, tails, tmp_path)
        assert least <= fed[0] <= most


def test_of_many_files_those_read_last_are_kept_in_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the number of transcripts."""
    monkeypatch.setattr(growing, "KEPT", 2)
    for n in range(4):
        write(tmp_path / ".claude" / "projects" / "p" / f"{n}.jsonl", b'{"type":"x"}\n')
    tails = Tails()
    assert len(list(tails.read(Found({}, tmp_path, ["claude"]).jobs))) == 4
    assert [path.name for _, path in tails._files] == ["2.jsonl", "3.jsonl"]


def test_a_half_written_line_that_nobody_ends_is_told_in_the_end(tmp_path: Path, ledger: Ledger) -> None:
    """As long as the file is young it is waited for; later it is read as it is: a whole row counts, half of one is a skip."""
    path, data = max(lay(tmp_path, named("claude/json-single")).items(), key=lambda item: len(item[1]))
    tails = Tails()
    for cut in (data.rstrip(b"\n"), data[:-40]):
        write(path, cut)
        assert look(ledger, tails, tmp_path).skips == {}
        assert look(ledger, tails, tmp_path).sources == 0  # it is as it was left
        os.utime(path, (time.time() - 2 * GROWING_S,) * 2)
        tails.forget()
        assert look(ledger, tails, tmp_path).skips == ({} if cut.endswith(b"}") else {"cut short": 1})
    with ledger.read() as conn:
        assert sums(ledger)["tokens_in"] > 0
        assert conn.exec_driver_sql("select count(*) from sources where identity = ''").scalar_one() == 0


# -- a round that goes wrong -------------------------------------------------------------------------------------------


class Rounds:
    """A round that ends as it is told."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends, self.failed = list(ends), 0

    def look(self) -> None:
        if end := self.ends.pop(0):
            raise end

    def fail(self) -> None:
        self.failed += 1


def test_what_goes_wrong_is_said_once_and_the_watch_goes_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has been well for long; after any error but a file's, nothing counts as committed."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rounds = Rounds(LedgerError("locked"), LedgerError("locked"), None, ParseError("a: cannot be read"), LedgerError("locked"))
    watching = Watching(None, (), rounds.look, rounds.fail)
    while rounds.ends:
        watching.round()
    assert capsys.readouterr().err == "spendmeter: locked; goes on\nspendmeter: a: cannot be read; goes on\n"
    assert rounds.failed == 3
    rounds.ends, now[0] = [OSError(28, "No space left on device"), LedgerError("locked")], 2000.0
    watching.round()
    watching.round()
    assert capsys.readouterr().err == "spendmeter: [Errno 28] No space left on device; goes on\nspendmeter: locked; goes on\n"


def test_links_that_lead_nowhere_cost_no_other_file(tmp_path: Path, ledger: Ledger) -> None:
    """One that leads to itself is named; one whose target is gone is passed over."""
    files = lay(tmp_path, named("claude/json-single"))
    for path, data in files.items():
        write(path, data)
    folder = next(iter(files)).parent
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "lost.jsonl").symlink_to("nowhere")
    with pytest.raises(ParseError, match=r"loop\.jsonl: cannot be read \(Too many levels"):
        look(ledger, Tails(), tmp_path)
    assert sums(ledger)["tokens_in"] == 1007


# -- the real process --------------------------------------------------------------------------------------------------


class Process:
    """A ``spendmeter sync --watch`` over a home and a ledger of its own."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.home, self.url, self._said = folder / "h", f"sqlite:///{folder}/l.db", folder / "said"
        self.home.mkdir(exist_ok=True)
        self._args = ["--ledger", self.url, "sync", "--watch", *args]
        self.start()

    def start(self) -> None:
        with self._said.open("ab") as said:
            start = said.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "spendmeter", *self._args], stdout=said, stderr=said, env=os.environ | {"HOME": str(self.home)}
            )
        until(lambda: "watching" in self.said(start))

    def said(self, since: int = 0) -> str:
        return self._said.read_bytes()[since:].decode()

    def tokens(self) -> dict[str, int]:
        ledger = Ledger(Settings(self.url))
        with contextlib.closing(ledger):
            return sums(ledger)

    def end(self) -> None:
        """Ctrl-C: the code of a program that was interrupted, and no traceback."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 130
        assert "Traceback" not in self.said()

    def verify(self) -> None:
        ledger = Ledger(Settings(self.url))
        with contextlib.closing(ledger):
            assert verify(ledger) == []


def until(holds: Callable[[], bool], seconds: float = SLOW_S) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.1)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    pytest.importorskip("watchfiles")
    made: list[Process] = []

    def start(*args: str) -> Process:
        made.append(Process(tmp_path, *args))
        return made[-1]

    yield start
    for it in made:
        it.process.kill()
        it.process.wait()


class Writer:
    """Writes transcripts as nobody should: in pieces of any size, starting over, moving and copying them midway."""

    def __init__(self, seed: int, files: dict[Path, bytes]) -> None:
        self._random, self._files = random.Random(seed), files
        self._at = dict.fromkeys(files, 0)

    def write(self) -> None:
        paths = list(self._files)
        while left := [p for p in paths if self._at[p] < len(self._files[p])]:
            path = self._random.choice(left)
            size = self._random.choice([1, 3, 50, 700, 5000])
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as pen:
                pen.write(self._files[path][self._at[path] : self._at[path] + size])
            self._at[path] += size
            if self._random.random() < 0.1:
                self._disturb(path)
            time.sleep(self._random.choice([0, 0, 0.001, 0.01, 0.06]))

    def _disturb(self, path: Path) -> None:
        what = self._random.choice(["start over", "cut", "rotate", "copy"])
        other = Path(str(path).replace("-home-dev-repo", f"-home-dev-{what.replace(' ', '-')}"))
        other.parent.mkdir(parents=True, exist_ok=True)
        if what == "copy":
            shutil.copy(path, other)
        elif what == "rotate":
            path.rename(other)
            self._at[path] = 0
        elif self._at[path] > 100:
            self._at[path] = 0 if what == "start over" else self._random.randrange(self._at[path])
            os.truncate(path, self._at[path])


@pytest.mark.parametrize("seed", range(4))
def test_a_watched_transcript_loses_and_doubles_nothing(seed: int, watch: Callable[..., Process]) -> None:
    """Main and subagents' files written in torn pieces, truncated, moved and copied; the watch killed midway: the truth all the same."""
    chain = WITH_SUBAGENTS[seed % len(WITH_SUBAGENTS)]
    watching = watch()
    files = lay(watching.home, chain)
    assert any("subagents" in p.parts for p in files)
    parts = list(files.items())
    Writer(seed, dict(parts[::2])).write()
    watching.process.kill()
    watching.process.wait()
    watching.start()
    Writer(seed + 100, dict(parts[1::2])).write()
    low, high = chain.truth(least=True), chain.truth(least=False)

    def is_true() -> bool:
        got = watching.tokens()
        assert all(got[k] <= high[k] for k in got), (got, high)
        return all(low[k] <= got[k] for k in got)

    until(is_true)
    time.sleep(0.5)
    assert is_true()
    watching.end()
    watching.verify()


def test_folders_that_appear_and_come_again_are_watched(watch: Callable[..., Process]) -> None:
    """A home in which no CLI has run yet is waited for, also when it is taken away and made anew."""
    watching = watch()
    assert "for the session folder of any CLI to appear" in watching.said()
    first, second = named("claude/json-single"), named("claude/json-tool")
    for path, data in lay(watching.home, first).items():
        write(path, data)
    until(lambda: watching.tokens()["tokens_in"] == first.truth(least=True)["tokens_in"])
    until(lambda: f"watching {watching.home}" in watching.said())
    shutil.rmtree(watching.home / ".claude")
    for path, data in lay(watching.home, second).items():
        write(path, data)
    both = first.truth(least=True)["tokens_in"] + second.truth(least=True)["tokens_in"]
    until(lambda: watching.tokens()["tokens_in"] == both)
    watching.end()


def test_a_file_that_cannot_be_read_and_a_broken_ledger_are_said_and_the_watch_goes_on(
    watch: Callable[..., Process], tmp_path: Path
) -> None:
    """Each once; the rest is in the ledger meanwhile, or as soon as the ledger can be used again."""
    (tmp_path / "h" / ".claude" / "projects" / "p" / "folder.jsonl").mkdir(parents=True)
    watching, chain = watch(), named("claude/json-single")
    files = lay(watching.home, chain)
    gone = watching.home / ".claude" / "projects" / "p" / "gone.jsonl"
    ledger, away = tmp_path / "l.db", tmp_path / "away.db"
    ledger.rename(away)
    ledger.write_text("no database " * 100)
    for path, data in files.items():
        write(gone, data[:100])
        gone.unlink()
        write(path, data)
    until(lambda: "not a database" in watching.said())
    time.sleep(6)  # another round
    away.replace(ledger)
    until(lambda: watching.tokens()["tokens_in"] == chain.truth(least=True)["tokens_in"])
    assert watching.said().count("folder.jsonl: cannot be read") == 1
    assert watching.said().count("not a database") == 1
    watching.end()
    watching.verify()


def test_a_large_transcript_that_grows_is_not_read_from_its_start_again(watch: Callable[..., Process]) -> None:
    """The process itself, by its kernel's count of the bytes that it has read."""
    if not Path("/proc/self/io").exists():
        pytest.skip("the system does not tell what a process has read")
    chain = named("claude/json-single")
    source = next(p for p in sorted(ROOT.glob("claude/json-single/home/.claude/projects/*/*.jsonl")))
    watching = watch()
    path = watching.home / ".claude" / "projects" / "p" / source.name
    write(path, (b'{"type":"progress","data":"' + b"x" * 10_000 + b'"}\n') * 2500)
    size, lines = path.stat().st_size, source.read_bytes().splitlines(keepends=True)
    reads = []
    for part in (lines[:-1], lines[-1:], [b'{"type":"progress"}\n'], [b'{"type":"progress"}\n']):
        before = _read_by(watching.process.pid)
        with path.open("ab") as pen:
            pen.write(b"".join(part))
        until(lambda: _is_known(watching.url, path))
        reads.append(_read_by(watching.process.pid) - before)
    assert reads[0] > size
    assert all(n < size / 5 for n in reads[1:]), reads
    assert watching.tokens()["tokens_in"] == chain.truth(least=True)["tokens_in"]
    watching.end()


def _read_by(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def _is_known(url: str, path: Path) -> bool:
    """Whether the ledger has all that the file holds now."""
    ledger = Ledger(Settings(url))
    with contextlib.closing(ledger):
        known = ledger.source_digest(str(path))
    return known is not None and f":{path.stat().st_size}:" in known[0]
