"""The rule against the truth of every captured Claude run."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spendmeter.parsers import Stream
from spendmeter.reconcile.facts import Book
from spendmeter.reconcile.rule import FOREVER, Rule
from spendmeter.reconcile.split import split
from spendmeter.records import Claim, Finish, Observation, Tags, Usage, total
from tests.runs import Chain, amounts, chains, kin, observe, world_total

CHAINS = chains()
IDS = [c.name for c in CHAINS]


def book_of(observations: list[Observation]) -> Book:
    book = Book()
    book.add_all(observations)
    return book


def within(chain: Chain, got: dict[str, int]) -> None:
    low, high = chain.truth(least=True), chain.truth(least=False)
    assert all(low[k] <= got[k] <= high[k] for k in got), (got, low, high)


@pytest.mark.parametrize("chain", CHAINS, ids=IDS)
def test_transcripts_alone_are_exact(chain: Chain) -> None:
    """Every figure of the transcripts equals what the server billed."""
    within(chain, amounts(world_total(book_of(observe(chain.transcripts())))))


@pytest.mark.parametrize("chain", CHAINS, ids=IDS)
def test_both_sources_are_exact_in_any_order_and_twice(chain: Chain) -> None:
    """Stdout and transcripts together add nothing twice, whatever comes first."""
    seen = observe([*chain.stdouts(), *chain.transcripts()])
    results = []
    for seed in range(4):
        shuffled = seen * 2 if seed % 2 else list(seen)
        random.Random(seed).shuffle(shuffled)
        results.append(world_total(book_of(shuffled)))
    within(chain, amounts(results[0]))
    assert results == results[:1] * 4


@pytest.mark.parametrize("chain", CHAINS, ids=IDS)
def test_stdout_alone_never_says_too_much(chain: Chain) -> None:
    """What stdout tells is at most what was billed."""
    got, high = amounts(world_total(book_of(observe(chain.stdouts())))), chain.truth(least=False)
    assert all(got[k] <= high[k] for k in got)


TELLS_ALL = [c for c in CHAINS if "kill" not in c.name and "text" not in c.name]


@pytest.mark.parametrize("chain", TELLS_ALL, ids=[c.name for c in TELLS_ALL])
def test_stdout_alone_is_exact_where_it_tells(chain: Chain) -> None:
    """A result on stdout is enough, for resumed and forked sessions too, as long as all of the chain is seen."""
    within(chain, amounts(world_total(book_of(observe(chain.stdouts())))))


@pytest.mark.parametrize("sources", ["both", "stdout"])
def test_each_run_of_a_resumed_session_gets_its_own_share(sources: str) -> None:
    """Tags of each run of resume-1..6 cover exactly the calls that this run made, compaction and fork included."""
    chain = next(c for c in CHAINS if "resume" in c.name)
    book = Book()
    for folder in chain.folders:
        seen = observe([folder / "stdout"])
        book.add_all(seen)
        for o in seen:
            if isinstance(o, Finish):
                book.add_all([Claim(o.cli, o.session, f"run:{o.run_key}", Tags("dev", folder.name), o.run_key)])
    if sources == "both":
        book.add_all(observe(chain.transcripts()))
    got = {r.tags.task: amounts(total(p.usage for p in r.pieces)) for f in book.sessions.values() for r in split(f, kin(book, f))}
    assert got == {folder.name: Chain("claude", (folder,)).truth(least=True) for folder in chain.folders}


@pytest.mark.parametrize("chain", CHAINS, ids=IDS)
def test_runs_add_up_to_the_session(chain: Chain) -> None:
    """However a session is cut into runs, the pieces are its total."""
    book = book_of(observe([*chain.stdouts(), *chain.transcripts()]))
    for facts in book.sessions.values():
        whole = total(Rule(facts, kin(book, facts)).cells().values())
        cut = total(p.usage for r in split(facts, kin(book, facts)) for p in r.pieces)
        assert amounts(cut) == amounts(whole)


def pieces(path: Path, at: list[float]) -> list[Observation]:
    """The observations of *path* read in pieces with the reader's context kept, cut at any byte."""
    data = path.read_bytes()
    stream = Stream(None, path.name)
    edges = sorted({0, len(data), *(int(x * len(data)) for x in at)})
    for a, b in pairwise(edges):
        stream.feed(data[a:b])
    return stream.finish()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_order_any_repeats_any_cut_find_one_ledger(data: st.DataObject) -> None:
    """Sources permuted, repeated and read in pieces give the very same facts and totals."""
    chain = data.draw(st.sampled_from(CHAINS))
    paths = [*chain.stdouts(), *chain.transcripts()]
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
    chain = data.draw(st.sampled_from([c for c in CHAINS if "resume" not in c.name]))
    book = Book()
    for path in data.draw(st.lists(st.sampled_from(chain.transcripts()), unique=True)):
        lines = path.read_bytes().splitlines(keepends=True)
        stream = Stream(None, path.name)
        stream.feed(b"".join(lines[: data.draw(st.integers(0, len(lines)))]))
        book.add_all(stream.finish())
    got, high = amounts(world_total(book)), chain.truth(least=False)
    assert all(got[k] <= high[k] for k in got)


def test_totals_never_fall_as_time_goes_on() -> None:
    """``along`` rises from point to point: runs, being differences of it, are never negative."""
    chain = next(c for c in CHAINS if "resume" in c.name)
    book = book_of(observe(chain.transcripts()))
    for facts in book.sessions.values():
        rule, low = Rule(facts, kin(book, facts)), Usage()
        points = [*sorted(c.at_ms or 0 for c in facts.calls.values()), FOREVER]
        for now in map(total, (c.values() for c in rule.along(points))):
            assert now == now.join(low)
            low = now
