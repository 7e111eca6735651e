"""Gemini's chats name the model that was asked for, its stats and exports the one that answered: one model, counted once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from spendmeter.reconcile.book import Book
from spendmeter.reconcile.renamed import renamed
from spendmeter.reconcile.rule import Rule
from spendmeter.reconcile.split import split
from spendmeter.records import NOTHING, Call, Finish, Level, Moment, Observation, Part, Usage, total

USED = {n: Usage(10 * n, n, None, None, 3 * n, 2 * n) for n in range(1, 40)}  # of n calls' worth; thoughts are in the output


def chat(start: int, *calls: tuple[str, int]) -> list[Observation]:
    """What a process wrote: its begin, and a call of each asked-for model."""
    out: list[Observation] = [Moment("gemini", "s", "prompt", start)]
    out.append(Level("gemini", "s", "", NOTHING, "processes", str(start), start, start))
    return out + [Call("gemini", f"{start}.{i}", "s", USED[n], model, model, start + i) for i, (model, n) in enumerate(calls, start=1)]


def stats(key: str, hidden: tuple[str, int] | None = None, **models: int) -> list[Observation]:
    """What a process printed in the json form."""
    out: list[Observation] = [Part("gemini", "s", "run", key, m.replace("_", "-"), USED[n]) for m, n in models.items()]
    out += [Part("gemini", "s", "utility", key, hidden[0], USED[hidden[1]], "hidden")] if hidden else []
    used = total(p.usage for p in out if isinstance(p, Part))
    return [*out, Finish("gemini", "s", key, key, "ok", used, used)]


def stream(key: str, ended: int, **models: int) -> list[Observation]:
    """What a process printed in the stream form: no thoughts, and helpers with the rest."""
    parts = [(m.replace("_", "-"), USED[n]._replace(tokens_out=n, reasoning=None)) for m, n in models.items()]
    out: list[Observation] = [Part("gemini", "s", "run", key, m, u, "any") for m, u in parts]
    used = total(u for _, u in parts)
    return [*out, Finish("gemini", "s", key, key, "ok", used, used, ended_ms=ended)]


def export(at: int, model: str, n: int, role: str = "main") -> list[Observation]:
    return [Call("gemini", f"~{at}", "s", USED[n], model, model, at, "otlp", role)]


def cells(*told: list[Observation]) -> dict[str, int]:
    """Calls' worth by cell, the same in any order."""
    found = []
    for some in itertools.islice(itertools.permutations(told), 24):
        book = Book()
        for observations in some:
            book.add_all(observations)
        found.append({cell: (u.cache_read or 0) for cell, u in Rule(book.sessions["gemini", "s"]).cells().items()})
    assert all(f == found[0] for f in found)
    return found[0]


def test_an_alias_is_counted_under_the_name_that_was_asked_for() -> None:
    """What was asked of ``latest`` and answered by ``pro-09`` is in the chat under one name and in the stats under the other."""
    assert cells(chat(0, ("latest", 2)), stats("r", pro_09=2)) == {"latest": 2}


def test_a_name_once_found_holds_for_the_whole_session() -> None:
    """Runs that used the name itself, an alias of it, and were killed: all of them are one model."""
    told = [chat(0, ("latest", 2)), stats("r", pro_09=2), chat(10, ("latest", 4)), chat(20, ("pro-09", 8)), stats("q", pro_09=8)]
    assert cells(*told) == {"latest": 14}


def test_two_models_of_one_run_are_paired_by_what_they_used() -> None:
    """An alias of each of two models."""
    assert cells(chat(0, ("a", 2), ("b", 4)), stats("r", a1=2, b1=4)) == {"a": 2, "b": 4}


def test_names_that_one_answer_stands_for_are_one_model() -> None:
    """Two aliases of one model cannot be told apart in its stats: their sum is right."""
    assert sum(cells(chat(0, ("a", 2), ("b", 4)), stats("r", x=6)).values()) == 6


def test_a_helpers_model_is_no_alias() -> None:
    """The router's model is in the stats alone and stays beside what the chat shows."""
    assert cells(chat(0, ("flash", 2)), stats("r", hidden=("lite", 3), flash=2)) == {"flash": 2, "lite": 3}
    assert cells(chat(0, ("latest", 2)), stats("r", hidden=("lite", 3), flash=2)) == {"latest": 2, "lite": 3}


@pytest.mark.parametrize("lite", [1, 3])
def test_a_stream_of_an_alias(lite: int) -> None:
    """The stream tells not who a helper is; the alias is the name that used what the chat shows."""
    assert cells(chat(0, ("latest", 2)), stream("r", 9, flash=2, lite=lite)) == {"latest": 2, "lite": lite}


def test_a_stream_with_a_helper_on_the_alias() -> None:
    """The compression is done by the model itself: more than the chat shows is one model's all the same."""
    assert cells(chat(0, ("latest", 2)), chat(10, ("x", 1)), stream("r", 9, flash=5)) == {"latest": 5, "x": 1}


def test_exports_name_the_one_that_answered() -> None:
    """A call's export used just what the chat shows; the router's is nothing else's."""
    told = chat(0, ("latest", 2)), export(1, "flash", 2), export(2, "lite", 3, "hidden")
    assert cells(*told) == {"latest": 2, "lite": 3}


def test_a_run_whose_chat_was_not_read_is_no_alias_of_another() -> None:
    """Results of one model and the chat of an earlier run on another are two models."""
    assert cells(chat(0, ("pro", 2)), stats("r", flash=3), chat(10)) == {"pro": 2, "flash": 3}
    assert cells(chat(0, ("pro", 2)), chat(10, ("pro", 5)), stats("r", flash=3)) == {"pro": 7, "flash": 3}


def test_each_run_gets_its_own_of_a_renamed_model() -> None:
    """Shares are found as ever: the killed run between two others keeps its calls."""
    book = Book()
    for some in (chat(0, ("latest", 2)), stats("r", x=2), chat(10, ("latest", 4)), chat(20, ("latest", 8)), stats("q", x=8)):
        book.add_all(some)
    shares = [(r.outcome, [(p.model, p.usage.cache_read) for p in r.pieces]) for r in split(book.sessions["gemini", "s"])]
    assert shares == [("ok", [("latest", 2)]), ("unknown", [("latest", 4)]), ("ok", [("latest", 8)])]


def test_other_clis_tell_both_names_themselves() -> None:
    """Nothing is guessed where a row tells which model was asked for and which answered."""
    book = Book()
    book.add_all([Call("qwen", "a", "s", USED[1], "x", "x", 1), Part("qwen", "s", "run", "r", "y", USED[1])])
    assert renamed(book.sessions["qwen", "s"]) == {}


def later(*told: list[Observation]) -> list[dict[str, Any]]:
    book = Book()
    for some in told:
        book.add_all(some)
    return [
        {
            "outcome": r.outcome,
            "ended": r.ended_ms,
            "used": sum(p.usage.cache_read or 0 for p in r.pieces),
            "n": sum(len(p.calls) for p in r.pieces),
        }
        for r in split(book.sessions["gemini", "s"])
    ]


def test_a_run_whose_exports_were_lost_keeps_its_date() -> None:
    """SIGKILL loses the exports of one of two runs: its calls and its end are the chat's."""
    told = later(chat(0, ("m", 2)), export(1, "m", 2), export(2, "lite", 9, "hidden"), chat(10, ("m", 4)))
    assert told == [
        {"outcome": "unknown", "ended": 2, "used": 11, "n": 2},
        {"outcome": "unknown", "ended": 11, "used": 4, "n": 1},
    ]


def test_exported_helpers_do_not_keep_a_result_from_its_run() -> None:
    """A printed result is dated by the segment that used as much: with the router, which exports show, or without it."""
    first = chat(0, ("m", 2)), stats("r", hidden=("lite", 1), m=2), export(1, "m", 2), export(2, "lite", 1, "hidden")
    killed = chat(10, ("m", 1)), export(11, "m", 1)
    third = chat(20, ("m", 4)), stats("q", hidden=("lite", 2), m=4)
    assert [(r["outcome"], r["used"]) for r in later(*first, *killed, *third)] == [("ok", 3), ("unknown", 1), ("ok", 6)]
