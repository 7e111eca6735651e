"""The real ledger under any order, repetition and tearing of real sources."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spendmeter import ingest
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger.verify import verify
from spendmeter.parsers import read
from spendmeter.reconcile.book import Book
from spendmeter.records import Tags
from tests import made
from tests.pg import Server
from tests.runs import Chain, chains, world_total
from tests.test_ledger import dump

CHAINS = [c for cli in ("claude", "codex", "gemini", "qwen", "copilot") for c in chains(cli)]
TAGS = Tags("dev", "T-1")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new ledger's file, to be copied: making the schema takes longer than what is tested."""
    path = tmp_path_factory.mktemp("empty") / "l.db"
    Ledger(Settings(f"sqlite:///{path}")).close()
    return path


@pytest.fixture(scope="module")
def pair(server: Server) -> tuple[str, str]:
    """URLs of two ledgers on PostgreSQL, to be emptied for each use."""
    return server.database(), server.database()


def texts(chain: Chain) -> list[Path]:
    """Its sources that are read row by row."""
    return [p for p in [*chain.stdouts(), *chain.transcripts()] if p.suffix != ".db"]


@pytest.mark.parametrize("chain", CHAINS, ids=[c.name for c in CHAINS])
def test_a_source_that_ends_at_any_line_adds_nothing_to_the_whole(chain: Chain) -> None:
    """Read up to each of its lines and then whole, a source tells what it tells when it is read once."""
    for path in texts(chain):
        data = path.read_bytes()
        lines = data.splitlines(keepends=True)
        whole = read(io.BytesIO(data), chain.cli, path.name)[0]
        once = Book()
        once.add_all(whole)
        for upto in range(1, len(lines)):
            book = Book()
            book.add_all(read(io.BytesIO(b"".join(lines[:upto])), chain.cli, path.name)[0])
            book.add_all(whole)
            assert world_total(book) == world_total(once), (path.name, upto)


class World:
    """An empty ledger, and the sources copied so that they can be torn."""

    def __init__(self, folder: Path, url: str, sources: list[Path]) -> None:
        self.ledger = Ledger(Settings(url, settle_s=3600))
        self.files = {}
        for i, path in enumerate(sources):
            below = path.parts[path.parts.index("home") :] if "home" in path.parts else (path.name,)
            self.files[path] = folder / str(i) / Path(*below)
            self.files[path].parent.mkdir(parents=True)

    def take(self, source: Path, upto: float) -> None:
        """Ingests *source* as far as it was written."""
        data = source.read_bytes()
        self.files[source].write_bytes(data[: int(len(data) * upto)])
        ingest.ingest_paths(self.ledger, [str(self.files[source])], tags=TAGS)

    def close(self) -> dict[str, list[tuple[object, ...]]]:
        """What it holds at last."""
        assert verify(self.ledger) == []
        try:
            return dump(self.ledger)
        finally:
            self.ledger.close()


def ends_in_one_ledger(data: st.DataObject, urls: Iterable[str], folders: pytest.TempPathFactory) -> None:
    """Takes the sources of one chain into two ledgers, each once and then anyhow, and compares."""
    chain = data.draw(st.sampled_from(CHAINS))
    sources = texts(chain)
    steps = [(p, data.draw(st.floats(0, 1))) for p in data.draw(st.lists(st.sampled_from(sources), max_size=4))] if sources else []
    order = data.draw(st.permutations([*steps, *((p, 1.0) for p in sources)]))
    worlds = [World(folders.mktemp("w"), url, sources) for url in urls]
    for source in sources:
        worlds[0].take(source, 1.0)
    for source, upto in order:
        worlds[1].take(source, upto)
    for source in sources:  # whatever was torn last is whole in the end
        worlds[1].take(source, 1.0)
    assert worlds[1].close() == worlds[0].close()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_order_repetition_and_tearing_end_in_one_ledger(
    data: st.DataObject, empty: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Files taken in while they grow, torn at any byte, in any order, some of them again: the ledger of reading each once, whole."""
    copies = [shutil.copy(empty, tmp_path_factory.mktemp("l") / "l.db") for _ in range(2)]
    ends_in_one_ledger(data, [f"sqlite:///{path}" for path in copies], tmp_path_factory)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_order_ends_in_one_ledger_on_postgresql_too(
    data: st.DataObject, pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As on SQLite."""
    for url in pair:
        ledger = Ledger(Settings(url))
        made.empty(ledger)
        ledger.close()
    ends_in_one_ledger(data, pair, tmp_path_factory)
