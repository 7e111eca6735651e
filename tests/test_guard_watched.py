"""Runs under way whose sessions the ledger reads meanwhile (``sync --watch``, a hook): what they use counts once towards their budgets."""

from __future__ import annotations

import pytest

from spendmeter.ledger import budgeting
from tests.feed import use
from tests.made import NOON, Made
from tests.test_guard import CENT, DEV, budget, let, ticket

MINUTE = 60_000
MINE = {("claude", "s")}


def read(made: Made, cents: int, at_ms: int, session: str = "s", agent: str = "unknown") -> None:
    """The ledger learns of a call by its file."""
    use(made.ledger, session, 10, at_ms, agent=agent, task="unknown", cost_nusd=cents * CENT)


def test_what_the_ledger_has_read_already_counts_once(made: Made) -> None:
    """Of the run itself, as soon as it is known where it goes on."""
    mine = ticket(made.ledger, budget(action="kill", match={}), max_cost_nusd=CENT)
    read(made, 60, NOON + 1000)
    assert mine.beat(made.ledger, 60 * CENT, None, set(), MINE, at_ms=NOON + 2000) is None
    assert mine.beat(made.ledger, 99 * CENT, None, set(), MINE, at_ms=NOON + 3000) is None
    assert mine.beat(made.ledger, 100 * CENT, None, set(), MINE, at_ms=NOON + 4000) == (
        "over budget all: $1.00 of $1.00 spent since 2026-11-01 00:00 Europe/Berlin, $1.00 of it by runs under way"
    )


def test_what_others_have_used_counts_once_too(made: Made) -> None:
    """For those under way, and for who wants to start."""
    one = budget(action="kill", match={})
    mine, other = (ticket(made.ledger, one, run=run, max_cost_nusd=CENT) for run in "ab")
    read(made, 60, NOON + 1000)
    other.beat(made.ledger, 60 * CENT, None, set(), MINE, at_ms=NOON + 2000)
    assert mine.beat(made.ledger, 39 * CENT, None, set(), at_ms=NOON + 2000) is None
    assert let(made.ledger, one, run="c", at_ms=NOON + 3000, max_cost_nusd=CENT).allowed
    assert mine.beat(made.ledger, 40 * CENT, None, set(), at_ms=NOON + 3000) is not None


@pytest.mark.parametrize("before_ms", [1000, 10 * MINUTE])
def test_what_the_session_had_used_before_is_spent(made: Made, before_ms: int) -> None:
    """A run of it that ended before this one began, in the same minute or long ago."""
    started = NOON + 30_000
    read(made, 50, started - before_ms, agent="developer")
    mine = ticket(made.ledger, budget(action="kill", match={}), at_ms=started, max_cost_nusd=CENT)
    assert mine.beat(made.ledger, 49 * CENT, None, set(), MINE, at_ms=started + 1000) is None
    assert mine.beat(made.ledger, 50 * CENT, None, set(), MINE, at_ms=started + 2000) is not None


def test_a_budget_that_the_ledger_does_not_count_it_for_loses_nothing(made: Made) -> None:
    """What was read has no agent yet, so a budget on the agent has not counted it."""
    mine = ticket(made.ledger, budget(action="kill", match={"agent": ("developer",)}), max_cost_nusd=CENT)
    read(made, 60, NOON + 1000)
    assert mine.beat(made.ledger, 60 * CENT, None, set(), MINE, at_ms=NOON + 2000) is None
    assert mine.beat(made.ledger, 100 * CENT, None, set(), MINE, at_ms=NOON + 3000) is not None


def test_a_dead_run_hides_nothing(made: Made) -> None:
    """Once nothing is set aside for it, what the ledger has read is spent."""
    mine = ticket(made.ledger, one := budget(action="kill", match={}), max_cost_nusd=CENT)
    read(made, 60, NOON + 1000)
    mine.beat(made.ledger, 60 * CENT, None, set(), MINE, at_ms=NOON + 2000)
    with made.ledger.read() as conn:
        assert budgeting.state(conn, one, DEV, NOON + 2000).spent == 0
    mine.drop(made.ledger)
    with made.ledger.read() as conn:
        assert budgeting.state(conn, one, DEV, NOON + 2000).spent == 60 * CENT
