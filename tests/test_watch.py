"""Transcripts that grow while they are read: torn anywhere, replaced, cut; read on where they were left."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
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
from tests.runs import Chain, chains
from tests.test_ledger import dump, sums
from tests.transcripts import WITH_SUBAGENTS, lay, named, write

SMALL = ["claude/json-single", "codex/json-single", "gemini/json-subagent", "qwen/json-single", "copilot/json-single-anthropic"]


def look(ledger: Ledger, tails: Tails, home: Path) -> Result:
    """A round of ``sync --watch``."""
    found = Found(ledger.sources(), home)
    found.jobs = tails.due(found.jobs)
    return take_in(ledger, found, tails.read(found.jobs))


def whole(folder: Path, home: Path) -> dict[str, list[tuple[object, ...]]]:
    """The ledger of reading all of *home* once."""
    with contextlib.closing(Ledger(Settings(f"sqlite:///{folder}/whole.db", settle_s=3600))) as ledger:
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
        with contextlib.closing(Ledger(Settings(f"sqlite:///{shutil.copy(empty, tmp_path / f'{n}.db')}", settle_s=3600))) as ledger:
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
