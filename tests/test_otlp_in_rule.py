"""Exports beside everything else, by the rule alone: whatever they repeat, no run of any captured session gets another share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spendmeter.reconcile.book import Book
from spendmeter.reconcile.rule import Rule
from spendmeter.reconcile.split import split
from spendmeter.records import NAMELESS, Call, Observation, Part, Usage, total
from tests.runs import Chain, all_chains, observe

CHAINS = [c for c in all_chains() if c.cli != "opencode"]
NAMES = [c.name for c in CHAINS]
SAME_IDS = {"claude", "qwen", "copilot"}
LATER_MS = 5


def exported(o: Call, *, thread: bool = False) -> Call:
    """The call of a file as its CLI exports it; *thread*: Codex names a subagent's own thread, not the one that began it."""
    call = replace(o, view="otlp", at_ms=None if o.at_ms is None else o.at_ms + LATER_MS, traits=())
    if o.cli == "claude":
        named = o.call_id.startswith("r:")
        return replace(call, call_id=o.call_id if named else NAMELESS + o.call_id, asked=None, usage=o.usage._replace(reasoning=None))
    if o.cli == "codex":
        session = o.subagent if thread and o.subagent else o.session
        return replace(call, call_id=NAMELESS + o.call_id, role="any", subagent=None, session=session)
    return replace(call, call_id=o.call_id if o.cli in SAME_IDS else NAMELESS + o.call_id)


def shares(observations: list[Observation]) -> dict[str, list[object]]:
    """Session -> its runs: key, usage by model; sessions without usage are left out."""
    book = Book()
    book.add_all(observations)
    out = {}
    for key, facts in book.sessions.items():
        runs = [(s.run_key, s.implied, sorted((p.model, p.usage) for p in s.pieces)) for s in split(*book.gather(facts))]
        if any(pieces for _, _, pieces in runs):
            out["/".join(key)] = runs
    return out


@pytest.mark.parametrize("thread", [False, True], ids=["", "subagents by their thread"])
@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
def test_exports_of_every_call_change_no_share(chain: Chain, thread: bool) -> None:
    """Files, and files with printed results: the same runs with the same usage whether all calls were exported too or not."""
    files, printed = observe(chain.files()), observe(chain.stdouts())
    calls = [exported(o, thread=thread) for o in files if isinstance(o, Call) and not o.copied_to]
    for told in (files, [*files, *printed]):
        want = shares(told)
        assert shares([*told, *calls]) == want
        assert shares([*calls, *reversed(told)]) == want


@pytest.mark.parametrize("chain", CHAINS, ids=NAMES)
def test_exports_of_some_calls_add_nothing(chain: Chain) -> None:
    """Half of the calls exported, half of the files' calls lost: never more than all of them, and all where the two make them up."""
    files = observe(chain.files())
    calls = [o for o in files if isinstance(o, Call) and not o.copied_to]
    book, whole = Book(), Book()
    whole.add_all(files)
    book.add_all([*(o for o in files if o not in calls[1::2]), *(exported(o) for o in calls[::2])])
    assert spent(book).tokens <= spent(whole).tokens


def spent(book: Book) -> Usage:
    return total(u for facts in book.sessions.values() for u in Rule(*book.gather(facts)).cells().values())


def call(n: int, asked: str | None, answered: str | None, view: str = "file") -> Call:
    return Call("claude", f"r:{n}", "s", Usage(tokens_in=10, tokens_out=n), asked, answered, 1000 + n, view)


def cells(*observations: Observation) -> dict[str, int]:
    book = Book()
    book.add_all(observations)
    (facts,) = book.sessions.values()
    return {name: used.tokens for name, used in Rule(facts).cells().items()}


def part(model: str, *, kind: str = "otlp.delta", name: str = "p", **used: int) -> Part:
    return Part("claude", "s", kind, name, model, Usage(**used))


def test_an_answered_name_finds_what_was_asked_for() -> None:
    """A call that tells the answering model alone is in the cell of those that say what its name was asked for as."""
    assert cells(call(1, "a", "b"), call(2, None, "b", "otlp")) == {"a": 23}
    assert cells(call(1, "a", "b"), call(2, None, "b", "otlp"), part("a", tokens_in=20, tokens_out=3)) == {"a": 23}


def test_an_answered_name_that_may_be_several_is_pooled() -> None:
    """Where it cannot be told which was asked for they are one cell: apart, the metric's 46 and the calls' would add up."""
    told = (call(1, "a", "b"), call(2, "c", "b"), call(3, None, "b", "otlp"))
    metrics = (part("a", tokens_in=20, tokens_out=4), part("c", name="q", tokens_in=10, tokens_out=2))
    assert cells(*told, *metrics) == {"~pool": 36}


def test_writes_of_both_lifetimes_bound_their_sum() -> None:
    """A metric's cache writes fill up what calls tell by lifetime, and are no third kind beside them."""
    book = Book()
    book.add_all([Call("claude", "r:1", "s", Usage(5, 0, 20, 30, 7), "a", "a"), part("a", tokens_in=5, cache_write_5m=60, tokens_out=7)])
    (used,) = Rule(next(iter(book.sessions.values()))).cells().values()
    assert (used.cache_write_5m, used.cache_write_1h, used.tokens_in, used.tokens_out) == (30, 30, 5, 7)


def test_deltas_and_growing_sums_of_one_session_never_add_up() -> None:
    """One exporter sends one of them; behind a Collector that makes the other of it both may come."""
    growing = part("a", kind="otlp.cumulative", tokens_in=9)
    assert cells(part("a", tokens_in=4), part("a", name="q", tokens_in=5), growing) == {"a": 9}
