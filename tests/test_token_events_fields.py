"""What a token event may say: what is taken, what is refused, and in which words."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spendmeter.token_events import TokenEventError, read, read_all
from spendmeter.token_events.fields import COUNT_MAX
from spendmeter.token_events.model import BATCH_MAX, FIELDS, schema

SCHEMA = jsonschema.Draft202012Validator(schema())

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"tokens_in": -1}, "tokens_in", "from 0 to"),
    ({"tokens_in": COUNT_MAX + 1}, "tokens_in", "from 0 to"),
    ({"tokens_in": 1.5}, "tokens_in", "an integer"),
    ({"tokens_in": True}, "tokens_in", "an integer"),
    ({"tokens_in": "5"}, "tokens_in", "an integer"),
    ({"tokens_out": [1]}, "tokens_out", "an integer"),
    ({"cost_usd": -0.1}, "cost_usd", "US dollars"),
    ({"cost_usd": "1e3"}, "cost_usd", "US dollars"),
    ({"cost_usd": "0.0123456789"}, "cost_usd", "US dollars"),
    ({"cost_usd": 1_000_001}, "cost_usd", "US dollars"),
    ({"cost_usd": True}, "cost_usd", "US dollars"),
    ({"tokens_in": 1, "agent": ""}, "agent", "is empty"),
    ({"tokens_in": 1, "agent": 7}, "agent", "must be a string"),
    ({"tokens_in": 1, "task": "x" * 129}, "task", "has 129 characters; the longest is 128"),
    ({"tokens_in": 1, "task": "a\x00b"}, "task", "control character"),
    ({"tokens_in": 1, "model": "a\nb"}, "model", "control character"),
    ({"tokens_in": 1, "note": "a\x1b[31m"}, "note", "control character"),
    ({"tokens_in": 1, "note": "x" * 2001}, "note", "the longest is 2000"),
    ({"tokens_in": 1, "repo": "\ud800"}, "repo", "half a character"),
    ({"tokens_in": 1, "ref_type": "branch", "ref_id": "main"}, "ref_type", "one of commit, release, session"),
    ({"tokens_in": 1, "ref_id": "abc"}, "ref_type", "ref_id needs it"),
    ({"tokens_in": 1, "ref_type": "commit"}, "ref_id", "ref_type needs it"),
    ({"tokens_in": 1, "ref_type": "commit", "ref_id": None}, "ref_id", "ref_type needs it"),
    ({"task": "T-1"}, "tokens_in", "one at least of tokens_in, tokens_out, cache_read"),
    ({"tokens_in": None}, "tokens_in", "one at least"),
    ({"token_in": 1}, "token_in", "did you mean tokens_in?"),
    ({"tokens_in": 1, "zzz": 1}, "zzz", "there are agent, task"),
]
TIMES = ["2026-11-01", "2026-11-01T12:00:00", "soon", "1969-12-31T23:59:59Z", "9999-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", 5, ""]


@pytest.mark.parametrize(("told", "field", "says"), WRONG, ids=[f"{f}-{i}" for i, (_, f, _s) in enumerate(WRONG)])
def test_what_is_wrong_is_named_by_its_field(told: dict[str, Any], field: str, says: str) -> None:
    """In words that say what was expected, never with the value; the schema of the API refuses it too."""
    with pytest.raises(TokenEventError) as e:
        read(told)
    assert [x.field for x in e.value.errors] == [field]
    assert says in e.value.errors[0].message
    assert not SCHEMA.is_valid(told)


@pytest.mark.parametrize("told", TIMES)
def test_times_have_a_zone_and_lie_in_the_past(told: object) -> None:
    """Or a day ahead at most, as clocks differ."""
    with pytest.raises(TokenEventError, match="occurred_at: "):
        read({"tokens_in": 1, "occurred_at": told})


@pytest.mark.parametrize("told", [None, 5, "x", [], [{}]])
def test_an_event_is_an_object(told: object) -> None:
    """Anything else is refused."""
    with pytest.raises(TokenEventError, match="must be a JSON object"):
        read(told)


def test_money_is_exact() -> None:
    """A string to the nano-USD; a number is rounded to that."""
    told = {"0.012345678": 12_345_678, "1000000": 10**15, 0.1: 10**8, Decimal("0.1"): 10**8, 0.30000000000000004: 3 * 10**8, 5: 5 * 10**9}
    assert {x: read({"cost_usd": x}).cost_nusd for x in told} == told


def test_a_batch_names_the_event_and_the_field() -> None:
    """By the index; no more than 50 faults are named, however many there are."""
    with pytest.raises(TokenEventError) as e:
        read_all([{"tokens_in": 1}, {"tokens_in": -1, "task": ""}, 5])
    assert [x.field for x in e.value.errors] == ["1.task", "1.tokens_in", "2"]
    for many in ([{"x": 1}] * BATCH_MAX, [{f"x{i}": 1 for i in range(10_000)}]):
        with pytest.raises(TokenEventError) as e:
            read_all(many)
        assert len(e.value.errors) == 50
    for count in (0, BATCH_MAX + 1):
        with pytest.raises(TokenEventError, match=f"a batch of {count} events; send from 1 to {BATCH_MAX}"):
            read_all([{"tokens_in": 1}] * count)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, COUNT_MAX + 2), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5),
    st.sampled_from(["commit", "0.5", "x" * 128, "x" * 129, "a\tb", "\x7f", "\n"]), st.just([]),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([f for f in FIELDS if f != "occurred_at"] + ["other"]), VALUES, max_size=6))
def test_the_schema_takes_what_is_taken(told: dict[str, Any]) -> None:
    """No more and no less, for every field but the time, which no schema can compare with the clock."""
    try:
        read(told)
        taken = True
    except TokenEventError:
        taken = False
    assert taken == SCHEMA.is_valid(told)
