"""Many hosts write to one real PostgreSQL, which goes away and comes back in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import func, select
from tests.e2e.pg_writer import THREADS
from tests.pg import Server
from tests.runs import FIELDS, chains
from tests.test_ledger import counters, sums

from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.ledger import Batch, Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.verify import verify
from spendmeter.runner.recover import recover

SECONDS = float(os.environ.get("WRITERS_SECONDS", "18"))  # a minute by hand
HOSTS = 10
AWAY_S = {"fast": 1.0, "immediate": 6.0}  # a commit waits through the first; the second is too long for it, so its run is kept
CHAIN = next(c for c in chains() if c.name.endswith("json-subagent"))


@pytest.fixture(scope="module")
def durable() -> Iterator[Server]:
    """A server that keeps what it has said is committed, whatever happens to it."""
    made = Server(durable=True)
    yield made
    made.remove()


def host(url: str, folder: Path, number: int) -> subprocess.Popen[str]:
    args = [url, str(CHAIN.folders[0]), str(folder), str(number), str(SECONDS)]
    return subprocess.Popen([sys.executable, "-m", "tests.e2e.pg_writer", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def begin(running: list[subprocess.Popen[str]]) -> None:
    """Lets all write, once all have the ledger open."""
    for p in running:
        assert p.stdout is not None
        assert p.stdout.readline() == "up\n"
    for p in running:
        assert p.stdin is not None
        p.stdin.write("go\n")
        p.stdin.flush()


def test_fifty_writers_lose_and_double_nothing_when_the_server_restarts(
    durable: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that drops every connection, then a crash, under 50 writers who also write the same: the truth, once what was kept is in."""
    url = durable.url
    ledger = Ledger(Settings(url, settle_s=0))
    running = [host(url, tmp_path, n) for n in range(HOSTS)]
    begin(running)
    for mode in ("fast", "immediate"):
        time.sleep(SECONDS / 3 - AWAY_S[mode] / 2)
        durable.stop(mode)
        time.sleep(AWAY_S[mode])
        durable.start()
    told = [json.loads(p.communicate(timeout=SECONDS + 300)[0]) for p in running]
    assert [p.returncode for p in running] == [0] * HOSTS
    kept = 0
    for folder in sorted(tmp_path.glob("*/data")):
        monkeypatch.setenv("XDG_DATA_HOME", str(folder))
        kept += len(recover(url))
    assert kept == sum(x["kept"] for x in told) > 0
    seeds = {s for x in told for s in x["seeds"]}
    commits = sum(len(x["seeds"]) for x in told)
    print(
        f"{HOSTS * THREADS} writers, {commits} commits, {len(seeds)} runs, {kept} kept, slowest {max(x['slowest_s'] for x in told):.1f} s"
    )
    assert len(seeds) > HOSTS * THREADS
    truth = {f: n * len(seeds) for f, n in CHAIN.truth(least=True).items()}
    assert sums(ledger) == {f: truth[f] for f in FIELDS}
    with ledger.read() as conn:
        assert conn.execute(select(func.count()).select_from(t.runs)).scalar_one() == len(seeds)
    shown = {f: sum(n for (family, _), n in counters(ledger).items() if family == f"spendmeter.{f}") for f in ("tokens_in", "tokens_out")}
    assert shown == {f: truth[f] for f in shown}
    assert verify(ledger) == []
    ledger.close()


def test_a_ledger_that_is_open_goes_on_when_the_server_is_back(durable: Server) -> None:
    """While the server is away reads and writes say what to do; once it is back the first try succeeds, on every connection there was."""
    ledger = Ledger(Settings(durable.database(), settle_s=0))
    with ledger.read(), ledger.read(), ledger.read():
        pass  # three connections that will be dead
    durable.stop("fast")
    for use in (ledger.facts_about, lambda: ledger.commit(Batch([], sources=[("p", "i", "d")]))):
        with pytest.raises(LedgerError, match="start the database server"):
            use()
    durable.start()
    for _ in range(3):
        assert ledger.facts_about()["sessions"] == 0
    ledger.commit(Batch([], sources=[("p", "i", "d")]))
    assert ledger.source_digest("p") == ("i", "d")
    ledger.close()


@pytest.fixture
def narrow() -> Iterator[Server]:
    """A server with room for four connections."""
    made = Server(room=4)
    yield made
    made.remove()


def test_a_full_server_is_waited_for_as_a_writer_is(narrow: Server) -> None:
    """A dozen at once where four have room: each gets in; whoever may not wait so long hears what to do."""
    url = narrow.database()
    Ledger(Settings(url, settle_s=0)).close()

    def write(number: int) -> None:
        with closing(Ledger(Settings(url, settle_s=0))) as ledger:
            ledger.commit(Batch([], sources=[(str(number), "i", "d")]))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(write, range(12)))
    with closing(Ledger(Settings(url, settle_s=0))) as ledger, ExitStack() as held:
        assert [ledger.source_digest(str(n)) for n in range(12)] == [("i", "d")] * 12
        for _ in range(4):
            held.enter_context(ledger.read())
        with pytest.raises(LedgerError, match="too many clients already; close some connections, or raise max_connections"):
            Ledger(Settings(url), busy_ms=300)
