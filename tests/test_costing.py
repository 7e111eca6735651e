"""What a piece of a run cost: the CLI's figure, list price beyond it, and nothing made up."""

from __future__ import annotations

from spendmeter.ledger.costing import Money, cost, entries
from spendmeter.prices import PriceTable
from spendmeter.reconcile.facts import CallFact
from spendmeter.reconcile.split import Piece
from spendmeter.records import NANO, NOTHING, Usage, total

PRICES = PriceTable.load()
AT = 1_795_000_000_000
SONNET, OPUS = "claude-sonnet-4-5", "claude-opus-4-5"
ONE = Usage(tokens_in=1_000_000, tokens_out=100_000)  # 3 + 1.5 USD at Sonnet's base rate


def call(n: int, model: str, used: Usage = ONE, asked: str | None = None) -> CallFact:
    return CallFact(f"r:{n}", used, asked or model, model, AT + n * 60_000)


def piece(model: str, calls: list[CallFact], paid: Usage = NOTHING, usage: Usage | None = None, *, guess: bool = False) -> Piece:
    return Piece(model, model, usage or total(c.usage for c in calls), paid, tuple(calls), guess)


def price(model: str, used: Usage = ONE) -> int:
    found = PRICES.price(model, used, AT)
    assert found is not None
    return found


def test_the_clis_own_figure_stands() -> None:
    """Where the CLI reports a cost for all of the usage, that is the cost; the list price stands beside it."""
    calls = [call(1, SONNET)]
    got = cost(piece(SONNET, calls, ONE._replace(cost_nusd=7 * NANO)), PRICES, AT)
    assert got == Money(7 * NANO, None, price(SONNET), 0)


def test_usage_beyond_the_figure_is_priced_at_list() -> None:
    """A call after the last figure (a killed run) is estimated, and only that call."""
    calls = [call(1, SONNET), call(2, SONNET)]
    got = cost(piece(SONNET, calls, ONE._replace(cost_nusd=7 * NANO)), PRICES, AT)
    assert (got.reported, got.estimated, got.unpriced) == (7 * NANO, price(SONNET), 0)


def test_without_a_figure_each_call_has_its_own_price() -> None:
    """Two calls of 150k tokens stay in the lower tier; one of 300k does not."""
    short = Usage(tokens_in=150_000, tokens_out=1000)
    got = cost(piece(SONNET, [call(1, SONNET, short), call(2, SONNET, short)]), PRICES, AT)
    assert got.estimated == 2 * price(SONNET, short)
    assert got.estimated < price(SONNET, short.plus(short))


def test_an_unknown_model_is_unpriced_not_free() -> None:
    """No rate means no cost and its tokens counted; a guess of the CLI is an estimate."""
    calls = [call(1, "stub-model-x")]
    assert cost(piece("stub-model-x", calls), PRICES, AT) == Money(None, None, None, ONE.tokens)
    got = cost(piece("stub-model-x", calls, ONE._replace(cost_nusd=5), guess=True), PRICES, AT)
    assert got == Money(None, 5, None, 0)


def test_a_guess_gives_way_to_a_list_price() -> None:
    """A figure marked as a guess does not stand against a known rate."""
    got = cost(piece(SONNET, [call(1, SONNET)], ONE._replace(cost_nusd=5), guess=True), PRICES, AT)
    assert (got.reported, got.estimated) == (None, price(SONNET))


def test_the_model_that_answered_sets_the_list_price() -> None:
    """Asked for Opus, answered by Sonnet: the CLI's figure is Opus's, the list price Sonnet's, and both are kept."""
    calls = [call(1, SONNET, asked=OPUS)]
    got = cost(Piece(SONNET, OPUS, ONE, ONE._replace(cost_nusd=price(OPUS)), tuple(calls), guess=False), PRICES, AT)
    assert (got.reported, got.listed) == (price(OPUS), price(SONNET))
    assert got.reported != got.listed


def test_entries_add_up_to_the_piece() -> None:
    """Usage is dated by its calls, what no call explains by the run's end, and no nano-dollar is lost on the way."""
    calls = [call(n, SONNET, Usage(tokens_in=10 + n, tokens_out=3)) for n in range(7)]
    whole = total(c.usage for c in calls).plus(Usage(tokens_in=5, tokens_out=11))
    made = piece(SONNET, calls, whole._replace(cost_nusd=1_000_003), whole)
    money = cost(made, PRICES, AT)
    rows = entries(made, money, AT + 3_600_000, PRICES)
    assert len(rows) == 8
    assert total(r.usage for r in rows) == whole
    assert sum(r.money.reported or 0 for r in rows) == 1_000_003
    assert sum(r.calls or 0 for r in rows) == 7
