"""The rule against the truth of every captured run of every CLI."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise, permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spendmeter import ingest
from spendmeter.config import Settings
from spendmeter.ledger import Ledger
from spendmeter.ledger.verify import verify
from spendmeter.parsers import Stream, places, read_file
from spendmeter.reconcile.book import Book
from spendmeter.reconcile.rule import FOREVER, Rule
from spendmeter.reconcile.split import split
from spendmeter.records import Base, Call, Claim, Finish, Level, Moment, Observation, Tags, Usage, total
from tests.runs import (
    FILES_TELL_LESS,
    PARTS_TELL_MORE,
    STDOUT_TELLS_LESS,
    STDOUT_TELLS_MORE,
    Chain,
    all_chains,
    amounts,
    kin,
    observe,
    world_total,
)
from tests.test_ledger import sums

CHAINS = all_chains()
IDS = [c.name for c in CHAINS]


def book_of(observations: list[Observation]) -> Book:
    book = Book()
    book.add_all(observations)
    return book


@pytest.mark.parametrize("chain", CHAINS, ids=IDS)
def test_files_alone_are_exact(chain: Chain) -> None:
    """Every figure of what the CLI wrote equals what the server billed."""
    chain.check(amounts(world_total(book_of(observe(chain.files())))), exact=chain.name not in FILES_TELL_LESS)


@pytest.mark.parametrize("chain", CHAINS, ids=IDS)
def test_both_sources_are_exact_in_any_order_and_twice(chain: Chain) -> None:
    """Stdout and transcripts together add nothing twice, whatever comes first."""
    seen = observe([*chain.stdouts(), *chain.files()])
    results = []
    for seed in range(4):
        shuffled = seen * 2 if seed % 2 else list(seen)
        random.Random(seed).shuffle(shuffled)
        results.append(world_total(book_of(shuffled)))
    chain.check(amounts(results[0]))
    assert results == results[:1] * 4


PRINTED = [c for c in CHAINS if c.name not in STDOUT_TELLS_MORE]


@pytest.mark.parametrize("chain", PRINTED, ids=[c.name for c in PRINTED])
def test_stdout_alone_is_exact_where_it_tells_and_never_says_too_much(chain: Chain) -> None:
    """What is printed is enough, for resumed and forked sessions too, but for what a CLI does not print."""
    got = amounts(world_total(book_of(observe(chain.stdouts()))))
    chain.check(got, exact=not re.search(STDOUT_TELLS_LESS[chain.cli], chain.name.partition("/")[2]))


def shares(chain: Chain, *, printed: str, files: bool) -> dict[str, dict[str, int]]:
    """What the runs of *chain* used, by run; each was tagged as what it printed (*printed*: a pattern in its folder) was read."""
    book = Book()
    for folder in chain.folders:
        seen = observe(sorted(folder.glob(printed)))
        book.add_all(seen)
        for o in seen:
            if isinstance(o, Finish):
                book.add_all([Claim(o.cli, o.session, f"run:{o.run_key}", Tags("dev", folder.name), o.run_key)])
    if files:
        book.add_all(observe([p for p in chain.files() if p.suffix != ".json"]))
    slices = [r for f in book.sessions.values() for r in split(f, kin(book, f))]
    return {r.tags.task: amounts(total(p.usage for p in r.pieces)) for r in slices}


RESUMED = {c.cli: c for c in CHAINS if "resume" in c.name}
SHARED = [
    ("claude", "stdout", True),
    ("claude", "stdout", False),
    ("codex", "stdout", True),
    ("gemini", "stdout", True),
    ("gemini", "stdout", False),
    ("copilot", "stdout", True),
    ("copilot", "work/usage.json", True),
    ("copilot", "work/usage.json", False),
]


@pytest.mark.parametrize(("cli", "printed", "files"), SHARED)
def test_each_run_of_a_resumed_session_gets_its_own_share(cli: str, printed: str, files: bool) -> None:
    """Tags of each run of a chain cover exactly the calls that this run made, compaction and fork included."""
    chain = RESUMED[cli]
    got = shares(chain, printed=printed, files=files)
    assert set(got) == {f.name for f in chain.folders}
    for folder in chain.folders:
        Chain(cli, (folder,)).check(got[folder.name])


def test_a_codex_chain_on_stdout_is_exact_but_for_the_fork() -> None:
    """Each total less the one before it; of the fork nothing printed tells what it inherited, and the run says so."""
    chain = RESUMED["codex"]
    resumed, fork = chain.folders[:-1], chain.folders[-1]
    got = shares(Chain("codex", resumed), printed="stdout", files=False)
    for folder in resumed:
        Chain("codex", (folder,)).check(got[folder.name])
    book = book_of(observe([fork / "stdout"]))
    assert [r.unknown[-1].partition(":")[0] for f in book.sessions.values() for r in split(f)] == ["share"]


@pytest.mark.parametrize("chain", CHAINS, ids=IDS)
def test_runs_add_up_to_the_session(chain: Chain) -> None:
    """However a session is cut into runs, the pieces are its total."""
    book = book_of(observe([*chain.stdouts(), *chain.files()]))
    for facts in book.sessions.values():
        whole = total(Rule(facts, kin(book, facts)).cells().values())
        cut = total(p.usage for r in split(facts, kin(book, facts)) for p in r.pieces)
        assert amounts(cut) == amounts(whole)


def pieces(path: Path, at: list[float]) -> list[Observation]:
    """The observations of *path* read in pieces with the reader's context kept, cut at any byte; a database is read whole."""
    if path.suffix == ".db":
        return read_file(path)[0]
    data = path.read_bytes()
    stream = Stream(None, path.name, places.session_of(path))
    edges = sorted({0, len(data), *(int(x * len(data)) for x in at)})
    for a, b in pairwise(edges):
        stream.feed(data[a:b])
    return stream.finish()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_order_any_repeats_any_cut_find_one_ledger(data: st.DataObject) -> None:
    """Sources permuted, repeated and read in pieces give the very same facts and totals."""
    chain = data.draw(st.sampled_from(CHAINS))
    paths = [*chain.stdouts(), *chain.files()]
    order = data.draw(st.permutations(paths + data.draw(st.lists(st.sampled_from(paths), max_size=3)))) if paths else []
    cuts = data.draw(st.lists(st.floats(0, 1), max_size=4))
    got, want = Book(), book_of(observe(paths))
    for path in order:
        got.add_all(pieces(path, cuts))
    assert got.sessions == want.sessions
    assert world_total(got) == world_total(want)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_part_of_the_sources_never_says_too_much(data: st.DataObject) -> None:
    """With any prefix of any subset of the transcripts, totals are at most what was billed."""
    known = [c for c in CHAINS if (c.cli, "resume" in c.name) != ("claude", True) and c.name not in PARTS_TELL_MORE]
    chain = data.draw(st.sampled_from(known))
    book = Book()
    for path in data.draw(st.lists(st.sampled_from(chain.transcripts() or chain.files()), unique=True)):
        if path.suffix != ".jsonl":
            book.add_all(observe([path]))
            continue
        lines = path.read_bytes().splitlines(keepends=True)
        stream = Stream(None, path.name, places.session_of(path))
        stream.feed(b"".join(lines[: data.draw(st.integers(0, len(lines)))]))
        book.add_all(stream.finish())
    chain.check(amounts(world_total(book)), exact=False)


def test_totals_never_fall_as_time_goes_on() -> None:
    """``along`` rises from point to point: runs, being differences of it, are never negative."""
    chain = RESUMED["claude"]
    book = book_of(observe(chain.files()))
    for facts in book.sessions.values():
        rule, low = Rule(facts, kin(book, facts)), Usage()
        points = [*sorted(c.at_ms or 0 for c in facts.calls.values()), FOREVER]
        for now in map(total, (c.values() for c in rule.along(points))):
            assert now == now.join(low)
            low = now


def test_a_fork_of_a_compacted_fork_starts_from_it() -> None:
    """Of a session whose only own calls were a compaction's, a fork repeats no call; the row of the compaction tells whose it is."""
    p, f, g = ("claude", "p"), ("claude", "f"), ("claude", "g")

    def level(who: tuple[str, str], n: int, read: int) -> Level:
        return Level(*who, "m", Usage(tokens_in=n), "e", f"r{read}", 0, None, read)

    call = [Call("claude", "c1", "p", Usage(tokens_in=100), "m", "m", 10, "file", copied_to=to) for to in (None, "f", "g")]
    told = [
        Moment(*p, "own", 1), *call, level(p, 100, 20),
        Moment(*f, "own", 30), Base(*f, "mark", "compact-1", None), level(f, 140, 40),  # 40 of its own, in no row
        Moment(*g, "own", 50), Base(*g, "mark", "compact-1", None), Base(*g, "mark", "compact-2", None), level(g, 170, 60),
    ]  # fmt: skip
    for order in permutations(range(3)):
        book = Book()
        for i in order:
            book.add_all([o for o in told if getattr(o, "session", "") == "pfg"[i] or getattr(o, "copied_to", None) == "pfg"[i]])
        own = {s: total(u for u in Rule(*book.gather(book.at("claude", s))).cells().values()).tokens_in for s in "pfg"}
        assert own == {"p": 100, "f": 40, "g": 30}


def test_a_fork_of_a_fork_does_not_start_from_what_the_first_used_later() -> None:
    """A is forked to B and goes on; C is forked from B: its base is B's, not A's later reading, and its hidden call stays its own."""

    def call(cid: str, owner: str, n: int, at: int, *forks: str) -> list[Observation]:
        return [Call("claude", cid, owner, Usage(n), "m", "m", at, copied_to=x) for x in (None, *forks)]

    def level(session: str, n: int, start: int, read: int) -> Level:
        return Level("claude", session, "m", Usage(n), "0", str(read), 0, start, read)

    book = Book()
    book.add_all([
        *(Moment("claude", s, "own", at) for s, at in (("A", 1), ("B", 30), ("C", 50))),
        *call("a1", "A", 10, 10, "B", "C"), level("A", 10, 0, 20),
        *call("b1", "B", 5, 35, "C"), level("B", 15, 0, 40),
        Moment("claude", "A", "prompt", 41), *call("a2", "A", 100, 42), level("A", 110, 41, 45),
        *call("c1", "C", 7, 55), level("C", 25, 0, 60),
    ])  # fmt: skip
    used = {s: total(Rule(*book.gather(book.at("claude", s))).cells().values()).tokens_in for s in "ABC"}
    assert {"A": 110, "B": 5, "C": 10} == used


def test_a_fork_starts_from_both_context_lengths_of_a_model() -> None:
    """A model that was asked for with and without ``[1m]`` is one cell; what a fork had restored of it is the sum of both."""
    m, long = "m", "m[1m]"

    def level(session: str, model: str, n: int, start: int, read: int) -> Level:
        return Level("claude", session, model, Usage(n), "0", str(read), 0, start, read)

    book = Book()
    book.add_all([
        *(Moment("claude", s, "own", at) for s, at in (("A", 1), ("B", 30))),
        *(Call("claude", "a1", "A", Usage(10), long, m, 10, copied_to=x) for x in (None, "B")), level("A", long, 13, 0, 20),
        Moment("claude", "A", "prompt", 21),
        *(Call("claude", "a2", "A", Usage(20), m, m, 22, copied_to=x) for x in (None, "B")),
        level("A", long, 13, 21, 25), level("A", m, 24, 21, 25),
        Call("claude", "b1", "B", Usage(7), m, m, 35), level("B", long, 13, 30, 40), level("B", m, 31, 30, 40),
    ])  # fmt: skip
    used = {s: total(Rule(*book.gather(book.at("claude", s))).cells().values()).tokens_in for s in "AB"}
    assert {"A": 37, "B": 7} == used


def printed(session: str, used: dict[str, int], own: int, order: int) -> bytes:
    """A result in the json form."""
    models = {m: {"inputTokens": n, "outputTokens": 0, "cacheReadInputTokens": 0, "cacheCreationInputTokens": 0} for m, n in used.items()}
    row = {"type": "result", "subtype": "success", "session_id": session, "uuid": f"u{order}", "modelUsage": models, "usage": {
        "input_tokens": own, "output_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}}  # fmt: skip
    return json.dumps(row).encode()


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_printed_fork_with_another_model_starts_from_its_parent(order: tuple[int, ...], tmp_path: Path) -> None:
    """The result of a fork shows its parent's models too; less its own usage it is the parent's total, which is no usage of the fork."""
    told = [printed("p", {"opus": 10, "haiku": 5}, 10, 0), printed("f", {"opus": 10, "haiku": 5, "sonnet": 7}, 7, 1)]
    told.append(printed("g", {"opus": 14, "haiku": 5, "sonnet": 7}, 4, 2))
    for i in range(3):
        (tmp_path / str(i)).write_bytes(told[i])
    book, ledger = book_of(observe([tmp_path / str(i) for i in order])), Ledger(Settings(f"sqlite:///{tmp_path}/l.db", settle_s=0))
    assert world_total(book).tokens_in == 26
    for i in order:
        ingest.ingest_paths(ledger, [str(tmp_path / str(i))], tags=Tags("a", str(i)))
    assert sums(ledger)["tokens_in"] == 26
    assert verify(ledger) == []
    ledger.close()
