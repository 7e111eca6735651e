"""``spendmeter sync --watch`` as a process, over transcripts that are written as nobody should."""

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

from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger.verify import verify
from tests.runs import ROOT
from tests.test_ledger import sums
from tests.transcripts import WITH_SUBAGENTS, lay, named, write

SLOW_S = 90.0


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
        with contextlib.closing(Ledger(Settings(self.url))) as ledger:
            return sums(ledger)

    def end(self) -> None:
        """Ctrl-C: the code of a program that was interrupted, and no traceback."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 130
        assert "Traceback" not in self.said()

    def verify(self) -> None:
        with contextlib.closing(Ledger(Settings(self.url))) as ledger:
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
    with contextlib.closing(Ledger(Settings(url))) as ledger:
        known = ledger.source_digest(str(path))
    return known is not None and f":{path.stat().st_size}:" in known[0]
