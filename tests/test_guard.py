"""The guard: who may start, what is set aside for it, what ends it, and what is said."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest

from spendmeter.budgets import Budget, Budgets, Period, Subject
from spendmeter.config import Settings
from spendmeter.errors import LedgerError
from spendmeter.guard import Admission, Ticket, admit, expected
from spendmeter.ledger import Batch, Ledger, reservations
from spendmeter.ledger.reservations import Reservation
from spendmeter.ledger.store import dump
from spendmeter.records import NANO
from tests.feed import use
from tests.made import NOON, Made

MINUTE, PATIENCE_S = 60_000, 300
DEV = Subject("developer", "T-1", "claude", None, "shop", {"team": "blue"})
MONTH = Period("month", "Europe/Berlin")
CENT = NANO // 100


def budget(name: str = "all", action: str = "block", limit: int = NANO, unit: str = "usd", period: Period = MONTH, **more: Any) -> Budget:
    return Budget(name, period, unit, limit, action=action, **more)  # type: ignore[arg-type]


def let(ledger: Ledger, *budgets: Budget, run: str = "a", subject: Subject = DEV, at_ms: int = NOON, **more: Any) -> Admission:
    return admit(ledger, Budgets(budgets), subject, run * 32, at_ms=at_ms, **more)


def line(ledger: Ledger, *budgets: Budget, **more: Any) -> str:
    """What is said of a run that may not start."""
    found = let(ledger, *budgets, **more)
    assert (found.allowed, found.ticket, len(found.lines)) == (False, None, 1)
    return found.lines[0]


def ticket(ledger: Ledger, *budgets: Budget, **more: Any) -> Ticket:
    found = let(ledger, *budgets, **more)
    assert (found.lines, found.ticket is None) == ([], False)
    assert found.ticket is not None
    return found.ticket


def held(ledger: Ledger, at_ms: int = NOON) -> list[Reservation]:
    with ledger.read() as conn:
        return reservations.held(conn, at_ms)


def cost(cents: int, **more: Any) -> dict[str, Any]:
    """An entry that cost so much."""
    return {"reported_nusd": cents * CENT} | more


# -- what a run is expected to use -------------------------------------------------------------------------------------


def means(ledger: Ledger, subject: Subject = DEV) -> tuple[int | None, int | None]:
    with ledger.read() as conn:
        return expected(conn, subject)


def test_a_run_is_expected_to_use_what_the_last_ones_did(made: Made) -> None:
    """The mean over its agent's last 50 runs with its CLI, rounded up, reported and estimated cost together."""
    made.run(cost(999_999, tokens_in=999_999), ended_ms=NOON)  # the 51st
    for i in range(48):
        made.run({"reported_nusd": 1, "estimated_nusd": 1, "tokens_in": 3}, {"model": "n", "cache_read": 1}, ended_ms=NOON + 1 + i)
    made.run({"reported_nusd": 3, "tokens_out": 5}, ended_ms=NOON + 100)
    made.run({"estimated_nusd": 2, "tokens_out": 4}, ended_ms=NOON + 101)
    made.run(cost(5), agent="reviewer", ended_ms=NOON + 200)
    made.run(cost(5), cli="codex", ended_ms=NOON + 200)
    assert means(made.ledger) == (3, 5)  # 101 / 50, 201 / 50


def test_what_is_not_known_of_a_run_says_nothing_of_the_next(made: Made) -> None:
    """A run without a price leaves the mean of the cost alone, one without usage both."""
    made.run({"tokens_in": 10, "reported_nusd": 6})
    made.run({"tokens_in": 20, "unpriced_tokens": 20})
    made.run()
    assert means(made.ledger) == (6, 15)


def test_where_the_agents_cli_tells_nothing_the_agent_does(made: Made) -> None:
    """For cost and for tokens apart; nothing at all is None."""
    made.run({"tokens_in": 10, "unpriced_tokens": 10})
    made.run(cost(2, tokens_in=20), cli="codex")
    assert means(made.ledger) == (2 * CENT, 10)
    assert means(made.ledger, replace(DEV, cli=None)) == (2 * CENT, 15)
    assert means(made.ledger, replace(DEV, agent="new")) == (None, None)


# -- may it start ------------------------------------------------------------------------------------------------------


def test_a_budget_that_is_used_up_lets_nobody_in(made: Made) -> None:
    """Exactly used up is used up; alert and warn let in all the same, and warn says so."""
    made.run(cost(60), cost(40, model="n"))
    said = "over budget all: $1.00 of $1.00 spent since 2026-11-01 00:00 Europe/Berlin"
    assert [line(made.ledger, budget(action=a)) for a in ("block", "kill")] == [said, said]
    assert let(made.ledger, budget(action="warn")) == Admission(True, [said], None)
    assert let(made.ledger, budget(action="alert")) == Admission(True, [], None)
    assert held(made.ledger) == []


def test_only_budgets_that_match_count(made: Made) -> None:
    """By any tag, attribute and repository of the run; what is not known of it matches nothing but ``*``."""
    made.run(cost(200), repo="shop", attrs=dump({"team": "blue"}))
    for match in ({"agent": ("rev*",)}, {"repo": ("s?p",)}, {"model": ("*opus*",)}, {"team": ("red", "green")}):
        assert let(made.ledger, budget(match=match)) == Admission(True, [], None)
    for match in ({"agent": ("dev*",)}, {"repo": ("sh?p",)}, {"cli": ("claude",)}, {"team": ("red", "blue")}):
        assert "$2.00 of $1.00" in line(made.ledger, budget(match=match))


def test_a_budget_on_models_applies_where_the_arguments_name_one(made: Made) -> None:
    """Its spend is that of the model alone."""
    made.run(cost(100, model="claude-opus-4-5"), cost(500, model="m"))
    opus = budget(match={"model": ("*opus*",)})
    assert let(made.ledger, opus).ticket is None
    assert line(made.ledger, opus, subject=replace(DEV, model="claude-opus-4-5")).startswith("over budget all: $1.00 of $1.00")


def test_a_run_sets_aside_what_it_is_expected_to_use(made: Made) -> None:
    """Only where a budget that blocks or kills covers it."""
    made.run(cost(25, tokens_in=1000))
    assert [let(made.ledger, budget(action=a)).ticket for a in ("alert", "warn")] == [None, None]
    assert ticket(made.ledger, budget(), budget("soft", "warn")).kills is False
    assert held(made.ledger) == [Reservation("a" * 32, DEV, NOON, 25 * CENT, 1000)]


def test_the_last_one_that_fits_is_let_in(made: Made) -> None:
    """Spent and set aside together may reach the limit and not exceed it."""
    made.run(cost(25))
    assert [let(made.ledger, budget(), run=run).allowed for run in "abcd"] == [True, True, True, False]
    said = "budget all has no room: $0.25 of $1.00 spent, $0.75 reserved by 3 runs, a run of developer takes about $0.25"
    assert line(made.ledger, budget()) == said


def test_a_run_counts_once_however_it_stands_in_the_ledger(made: Made) -> None:
    """What was set aside goes with the commit of what was spent."""
    made.run(cost(25))
    assert ticket(made.ledger, budget(limit=75 * CENT)).run_id == "a" * 32
    made.ledger.commit(Batch([], releases="a" * 32))
    made.run(cost(25))
    assert let(made.ledger, budget(limit=75 * CENT), run="b").allowed
    assert not let(made.ledger, budget(limit=75 * CENT), run="c").allowed


def test_a_runs_own_limit_is_what_it_takes_at_most(made: Made) -> None:
    """Less than usual, more than usual, or where nothing is known; in US dollars and in tokens."""
    made.run(cost(25, tokens_in=1000))
    for run, cents, tokens in (("a", 10, 10), ("b", 90, 2000)):
        assert let(
            made.ledger, budget(), budget("t", limit=3000, unit="tokens"), run=run, max_cost_nusd=cents * CENT, max_tokens=tokens
        ).allowed
    new = replace(DEV, agent="new")
    said = line(made.ledger, budget(), subject=new, max_cost_nusd=41 * CENT)
    assert said.endswith("$0.35 reserved by 2 runs, a run of new takes about $0.41")
    assert [(r.expected_nusd, r.expected_tokens) for r in held(made.ledger)] == [(10 * CENT, 10), (25 * CENT, 1000)]


def test_a_run_without_history_takes_the_budgets_reserve_or_a_twentieth(made: Made) -> None:
    """Each budget says so for itself."""
    made.run(cost(96), {"model": "n", "tokens_in": 60}, agent="other")
    assert line(made.ledger, budget()).endswith("$0.96 of $1.00 spent, a run reserves $0.05")
    assert line(made.ledger, budget("t", limit=100, unit="tokens", reserve=41)).endswith("60 of 100 tokens used, a run reserves 41 tokens")


def test_the_worst_budget_is_the_one_that_is_named(made: Made) -> None:
    """Over comes before no room, and of two the one that is further over."""
    made.run(cost(150))
    one, two, tight = budget("one"), budget("two", limit=NANO // 2), budget("tight", limit=151 * CENT)
    assert line(made.ledger, one, two, tight).startswith("over budget two: $1.50 of $0.50 spent")
    assert line(made.ledger, tight, one).startswith("over budget one: ")
    assert line(made.ledger, tight).startswith("budget tight has no room: ")


def test_tokens_and_runs_are_limited_as_well(made: Made) -> None:
    """All billed tokens; runs by their end, and those under way."""
    made.run({"tokens_in": 1200, "cache_read": 300, "reasoning": 9}, agent="other")
    hour = Period("rolling", length_ms=3_600_000)
    said = line(made.ledger, budget(limit=1500, unit="tokens", period=hour))
    assert said == "over budget all: 1,500 of 1,500 tokens used in the last 1h"
    three = budget(limit=3, unit="runs", period=Period("total"))
    assert [let(made.ledger, three, run=run).allowed for run in "ab"] == [True, True]
    assert line(made.ledger, three) == "budget all has no room: 1 of 3 runs made, 2 under way"
    made.run()
    made.run()
    assert line(made.ledger, three) == "over budget all: 3 of 3 runs made in all"


def test_usage_without_a_price_is_told(made: Made) -> None:
    """It is not 0; the line says what is missing."""
    made.run(cost(100), {"model": "x", "tokens_in": 12_000, "unpriced_tokens": 12_000})
    assert "$1.00 of $1.00 spent and 12,000 tokens without a price since" in line(made.ledger, budget())


def test_a_limit_of_nothing_lets_nobody_in(made: Made) -> None:
    """Whatever was spent."""
    assert line(made.ledger, budget(limit=0)).startswith("over budget all: $0.00 of $0.00 spent")


def test_a_retry_storm_stops_at_the_21st_run_of_its_task(made: Made) -> None:
    """Runs one after the other within the hour, and then all at once: 20 of each task and no more; after the hour they may again."""
    storm = budget("storm", limit=20, unit="runs", per="task", period=Period("rolling", length_ms=3_600_000))
    for i in range(20):
        run = f"{i:032x}"
        assert admit(made.ledger, Budgets((storm,)), DEV, run, at_ms=NOON + i * MINUTE).allowed
        made.ledger.commit(Batch([], releases=run))
        made.run(ended_ms=NOON + i * MINUTE)
    assert line(made.ledger, storm, at_ms=NOON + 20 * MINUTE) == "over budget storm for task T-1: 20 of 20 runs made in the last 1h"
    other = replace(DEV, task="T-2")
    got = [admit(made.ledger, Budgets((storm,)), other, f"{i:032x}", at_ms=NOON + 20 * MINUTE).allowed for i in range(21)]
    assert got == [True] * 20 + [False]
    assert let(made.ledger, storm, at_ms=NOON + 60 * MINUTE).allowed


def test_each_value_of_per_has_a_room_of_its_own(made: Made) -> None:
    """By attribute too; runs without one share the value that is not known."""
    made.run(cost(100), attrs=dump({"team": "blue"}))
    team = budget("team", per="team")
    assert line(made.ledger, team).startswith("over budget team for team blue: $1.00")
    assert let(made.ledger, team, subject=replace(DEV, attrs={"team": "red"})).allowed
    made.run(cost(100))
    assert line(made.ledger, team, subject=replace(DEV, attrs={})).startswith("over budget team for team unknown: $1.00")


def test_a_line_is_one_line_whatever_a_tag_holds(made: Made) -> None:
    """Control characters are shown as such, and a tag is cut."""
    nasty = replace(DEV, task="T\n\x1b[31m" + "x" * 500)
    made.run(cost(100), task=nasty.task)
    said = line(made.ledger, budget(per="task"), subject=nasty)
    assert said.isprintable()
    assert len(said) < 300


def test_the_dead_make_room_at_once(made: Made) -> None:
    """Their reservations are deleted by the next that is let in."""
    put = Reservation("d" * 32, DEV, NOON, NANO)
    with made.ledger.write() as conn:
        reservations.put(conn, put, NOON)
    assert not let(made.ledger, budget()).allowed
    with made.ledger.write() as conn:
        conn.exec_driver_sql("update reservations set born = '1'")
    assert let(made.ledger, budget()).allowed
    assert [r.run_id for r in held(made.ledger)] == ["a" * 32]


def test_what_is_still_to_be_recorded_of_the_dead_stays_set_aside(made: Made) -> None:
    """It is spent and stands nowhere else; whoever is refused for that alone may wait for it."""
    put = Reservation("d" * 32, DEV, NOON, NANO)
    with made.ledger.write() as conn:
        reservations.put(conn, put, NOON)
        conn.exec_driver_sql("update reservations set born = '1'")
    said = "budget all has no room: $0.00 of $1.00 spent, $1.00 reserved by 1 run, a run reserves $0.05"
    assert let(made.ledger, budget(), is_pending=put.run_id.__eq__) == Admission(False, [said], None, waits=True)
    assert let(made.ledger, budget(), budget("none", limit=0), is_pending=put.run_id.__eq__).waits is False
    assert let(made.ledger, budget(limit=2 * NANO), is_pending=put.run_id.__eq__).allowed
    assert let(made.ledger, budget(), run="b", is_pending="x".__eq__).allowed
    assert [r.run_id for r in held(made.ledger)] == ["a" * 32, "b" * 32]


# -- a hundred at once -------------------------------------------------------------------------------------------------


def _race(url: str, names: Iterable[int]) -> list[int]:
    """Those of *names* that get in, each asking from a thread and a connection of its own."""

    def ask(name: int) -> bool:
        with closing(Ledger(Settings(url))) as ledger:
            return admit(ledger, Budgets((budget(limit=110 * CENT),)), DEV, f"{name:032x}", at_ms=NOON).allowed

    with ThreadPoolExecutor(25) as pool:
        return [name for name, allowed in zip(names, pool.map(ask, names), strict=True) if allowed]


def _race_and_stay(url: str, names: list[int], barrier: Any, results: Any) -> None:
    results.put(_race(url, names))
    barrier.wait(PATIENCE_S)  # a process that has ended holds nothing


def test_of_a_hundred_at_once_ten_get_in_where_ten_have_room(made: Made) -> None:
    """Four processes of 25 threads each; what they set aside is exactly the room that there was."""
    made.run(cost(10))
    context = get_context("spawn")
    barrier, results = context.Barrier(5), context.Queue()
    url = made.ledger.settings.ledger
    racers = [context.Process(target=_race_and_stay, args=(url, list(range(i, 100, 4)), barrier, results)) for i in range(4)]
    for racer in racers:
        racer.start()
    entered = [name for _ in racers for name in results.get(timeout=PATIENCE_S)]
    alive = held(made.ledger)
    barrier.wait(PATIENCE_S)
    for racer in racers:
        racer.join(PATIENCE_S)
    assert len(entered) == 10
    assert sorted(int(r.run_id, 16) for r in alive) == sorted(entered)
    assert sum(r.expected_nusd or 0 for r in alive) == 100 * CENT


# -- while it is under way ---------------------------------------------------------------------------------------------


def test_a_beat_renews_what_is_set_aside(made: Made) -> None:
    """Every 15 s where nothing has changed, so that other hosts see it alive."""
    mine = ticket(made.ledger, budget())
    for ms in (0, 14_000, 15_000, 29_000):
        assert mine.beat(made.ledger, None, None, set(), at_ms=NOON + ms) is None
    assert _beats(made.ledger) == [NOON + 15_000]


def test_a_beat_tells_others_what_was_used(made: Made) -> None:
    """At once, and twice a second at most; the model too, where the arguments had not told."""
    mine = ticket(made.ledger, budget(limit=20 * NANO))
    mine.beat(made.ledger, 2 * NANO, 7, {"opus"}, at_ms=NOON)
    mine.beat(made.ledger, 3 * NANO, 8, {"opus", "haiku"}, at_ms=NOON + 499)
    assert held(made.ledger) == [Reservation("a" * 32, replace(DEV, model="opus"), NOON, None, None, 2 * NANO, 7)]
    mine.beat(made.ledger, 3 * NANO, 8, {"opus", "haiku"}, at_ms=NOON + 500)
    assert held(made.ledger) == [Reservation("a" * 32, replace(DEV, model="opus"), NOON, None, None, 3 * NANO, 8)]
    assert (
        line(made.ledger, budget(limit=3 * NANO))
        == "budget all has no room: $0.00 of $3.00 spent, $3.00 reserved by 1 run, a run reserves $0.15"
    )


def test_a_reservation_that_others_took_for_dead_comes_back(made: Made) -> None:
    """A host that slept: the run is under way all the same."""
    mine = ticket(made.ledger, budget())
    with made.ledger.write() as conn:
        reservations.drop(conn, mine.run_id)
    mine.beat(made.ledger, None, None, set(), at_ms=NOON + 15_000)
    assert [r.run_id for r in held(made.ledger)] == [mine.run_id]


def test_a_run_is_ended_when_its_budget_is_used_up(made: Made) -> None:
    """By what the ledger holds and what it has used itself; only by a budget that kills."""
    made.run(cost(70))
    said = "over budget all: $1.00 of $1.00 spent since 2026-11-01 00:00 Europe/Berlin, $0.30 of it by runs under way"
    for action, told in (("block", None), ("kill", said)):
        mine = ticket(made.ledger, budget(action=action), max_cost_nusd=CENT)
        assert mine.kills is (action == "kill")
        assert mine.beat(made.ledger, 29 * CENT, None, set(), at_ms=NOON) is None
        assert mine.beat(made.ledger, 30 * CENT, None, set(), at_ms=NOON + 500) == told
        assert mine.exceeded == ("all" if told else None)
        mine.drop(made.ledger)


def test_a_run_is_ended_by_what_others_use_meanwhile(made: Made) -> None:
    """What they have used, not what they are expected to; and what has come into the ledger since."""
    use(made.ledger, "one", 10, NOON, agent="developer", cost_nusd=40 * CENT)
    mine, other = (ticket(made.ledger, budget(action="kill", limit=2 * NANO), run=run) for run in "ab")
    assert mine.beat(made.ledger, 40 * CENT, None, set(), at_ms=NOON) is None
    assert other.beat(made.ledger, 119 * CENT, None, set(), at_ms=NOON) is None
    use(made.ledger, "two", 10, NOON, agent="developer", cost_nusd=CENT)
    said = "over budget all: $2.00 of $2.00 spent since 2026-11-01 00:00 Europe/Berlin, $1.59 of it by runs under way"
    assert mine.beat(made.ledger, 40 * CENT, None, set(), at_ms=NOON + 500) == said


def test_a_budget_on_models_ends_a_run_once_it_calls_one(made: Made) -> None:
    """It sets something aside from its start, as it may come to that."""
    mine = ticket(made.ledger, budget(action="kill", match={"model": ("*opus*",)}))
    assert mine.kills
    assert mine.beat(made.ledger, NANO, None, {"haiku"}, at_ms=NOON) is None
    assert mine.beat(made.ledger, NANO, None, {"haiku", "claude-opus-4-5"}, at_ms=NOON + 500) is not None
    assert mine.exceeded == "all"


def test_a_limit_in_tokens_ends_a_run(made: Made) -> None:
    """A limit in runs does not: it is one of them already."""
    mine = ticket(made.ledger, budget("t", "kill", 100, "tokens"), budget("r", "kill", 1, "runs"))
    assert mine.beat(made.ledger, None, 99, set(), at_ms=NOON) is None
    assert mine.beat(made.ledger, None, 100, set(), at_ms=NOON + 500) == (
        "over budget t: 100 of 100 tokens used since 2026-11-01 00:00 Europe/Berlin, 100 tokens of it by runs under way"
    )


def test_a_ledger_that_is_locked_holds_a_beat_up_for_a_second(made: Made) -> None:
    """And the next beat tries again; giving back what was set aside fails in silence."""
    mine = ticket(made.ledger, budget())
    with closing(Ledger(made.ledger.settings)) as other, other.write():
        with pytest.raises(LedgerError):
            mine.beat(made.ledger, 1, None, set(), at_ms=NOON)
        mine.drop(made.ledger)
    mine.beat(made.ledger, 1, None, set(), at_ms=NOON + 500)
    assert [r.used_nusd for r in held(made.ledger)] == [1]
    mine.drop(made.ledger)
    assert held(made.ledger) == []


def _beats(ledger: Ledger) -> list[int]:
    with ledger.read() as conn:
        return [int(row.beat_ms) for row in conn.exec_driver_sql("select beat_ms from reservations")]
