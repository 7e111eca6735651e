"""Plans as arithmetic: planned against actual, and the line that tells it."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spendmeter.plans.model import Estimate, Figures, Plan, Snapshot, summed
from spendmeter.plans.variance import Actual, Variance, compare, ratio, total
from spendmeter.projections.messages import messages
from spendmeter.projections.plan_texts import change, line

# -- planned against actual --------------------------------------------------------------------------------------------

PLAN_A = Plan(
    "book",
    (
        Estimate(("summarise", None, None), Figures(20, 150_000, 180_000, 900_000_000)),
        Estimate(("review", "draft", None), Figures(4, None, 9_000, 100_000_000)),
        Estimate(("review", None, None), Figures(2, None, 1_000, 50_000_000)),
    ),
)
SNAPSHOT = Snapshot("cafe" * 4, PLAN_A, 1_793_620_800_000, 1_793_620_800_000)


def used(workflow: str | None, calls: int | None, *, stage: str | None = None, agent: str = "dev", **more: Any) -> Any:
    """One slot with *calls*, ten prompt tokens and one output token each, a nano-dollar per token."""
    n = calls or 0
    base = {
        "calls": calls,
        "prompt_tokens": 10 * n,
        "total_tokens": 11 * n,
        "reported_nusd": 11 * n,
        "unpriced_tokens": 0,
        "duration_ms": 500,
    }
    return (workflow, stage, agent), Actual(**(base | {"runs": 1} | more))


def test_the_whole_of_a_variance() -> None:
    """Every figure of the contract, in its shape."""
    found = compare(
        "book", None, SNAPSHOT, [used("summarise", 23, reported_nusd=1_120_000_000, estimated_nusd=5, runs=2, duration_ms=1250)]
    )
    assert found.as_dict() | {"per_workflow": None} == {
        "plan": "book", "snapshot_id": "cafe" * 4, "snapshot_resolved": True, "recorded_at": "2026-11-02T12:00:00.000+00:00",
        "calls": {"estimated": 26, "actual": 23, "delta": -3, "ratio": 0.8846},
        "prompt_tokens": {"estimated": None, "actual": 230, "delta": None, "ratio": None},
        "total_tokens": {"estimated": 190_000, "actual": 253, "delta": -189_747, "ratio": 0.0013},
        "cost_usd": {
            "estimated": "1.050000", "actual_known": "1.120000", "actual_estimated_from_rates": "0.000000005",
            "actual_total": "1.120000005", "delta": "0.070000005", "ratio": 1.0667,
        },
        "runs": 2, "runs_without_usage": 0, "unpriced_tokens": 0, "per_workflow": None, "duration_seconds": 1.25,
    }  # fmt: skip
    summarise = found.as_dict()["per_workflow"][0]
    assert list(summarise)[:5] == ["workflow_id", "calls", "prompt_tokens", "total_tokens", "cost_usd"]
    assert summarise["calls"] == {"estimated": 20, "actual": 23, "delta": 3, "ratio": 1.15}


def test_workflows_come_in_the_plans_order_then_by_name_and_the_unnamed_last() -> None:
    """What was not planned has no estimate, and counts in the plan's total all the same."""
    found = compare("book", None, SNAPSHOT, [used(w, 1) for w in (None, "zeta", "alpha", "review", "zeta")])
    assert [w.workflow for w in found.workflows] == ["summarise", "review", "alpha", "zeta", None]
    assert [w.whole.planned.calls for w in found.workflows] == [20, 6, None, None, None]
    assert [w.whole.actual.calls for w in found.workflows] == [0, 1, 1, 2, 1]
    assert found.whole.actual.calls == found.whole.actual.runs == 5


def test_stages_and_agents_are_told_apart_where_anything_tells_them_apart() -> None:
    """An estimate without a stage is the rest of those with one; alone it is the whole workflow and belongs to no stage."""
    found = compare("book", None, SNAPSHOT, [used("review", 5, stage="draft"), used("review", 1), used("summarise", 3, stage="x")])
    summarise, review = found.workflows
    assert [(s, c.planned.calls, c.actual.calls) for s, c in review.stages] == [("draft", 4, 5), (None, 2, 1)]
    assert [(s, c.planned.calls, c.actual.calls) for s, c in summarise.stages] == [("x", None, 3)]
    assert "agents" not in summarise.as_dict()
    by_agent = Plan("p", (Estimate(("w", None, "a"), Figures(1)), Estimate(("w", None, "b"), Figures(2))))
    whole = compare("p", None, Snapshot("", by_agent, 0, 0), [used("w", 7, agent="b"), used("w", 9, agent="c")])
    agents = whole.as_dict()["per_workflow"][0]["agents"]
    assert [(a["agent"], a["calls"]["estimated"], a["calls"]["actual"]) for a in agents] == [("a", 1, 0), ("b", 2, 7), ("c", None, 9)]
    assert "stages" not in whole.as_dict()["per_workflow"][0]


def test_a_plan_that_is_gone_keeps_its_actual_figures() -> None:
    """Estimates, deltas, ratios and the record are null."""
    found = compare("gone", "dead" * 4, None, [used("w", 2)]).as_dict()
    assert (found["plan"], found["snapshot_id"], found["snapshot_resolved"], found["recorded_at"]) == ("gone", "dead" * 4, False, None)
    assert found["calls"] == {"estimated": None, "actual": 2, "delta": None, "ratio": None}
    cost = found["cost_usd"]
    assert (cost["estimated"], cost["actual_total"], cost["delta"], cost["ratio"]) == (None, "0.000000022", None, None)
    assert found["per_workflow"][0]["calls"] == found["calls"]


def test_nothing_ran_is_0_and_unknown_is_null() -> None:
    """A run that tells no usage is unknown; no run at all is known to have used nothing."""
    idle = compare("book", None, SNAPSHOT, []).as_dict()
    assert idle["calls"] == {"estimated": 26, "actual": 0, "delta": -26, "ratio": 0.0}
    assert (idle["cost_usd"]["actual_total"], idle["cost_usd"]["delta"], idle["duration_seconds"]) == ("0.000000", "-1.050000", 0.0)
    silent = (("review", None, "dev"), Actual(runs=1, runs_without_usage=1, duration_ms=None))
    found = compare("book", None, SNAPSHOT, [silent]).as_dict()
    assert found["calls"] == {"estimated": 26, "actual": None, "delta": None, "ratio": None}
    assert (found["cost_usd"]["actual_total"], found["unpriced_tokens"], found["duration_seconds"]) == (None, None, None)
    partly = compare("book", None, SNAPSHOT, [silent, used("review", 1)]).as_dict()
    assert (partly["calls"]["actual"], partly["runs"], partly["runs_without_usage"]) == (1, 2, 1)


def test_a_run_whose_usage_lies_outside_the_window_used_nothing_in_it() -> None:
    """It ended there and told its usage: 0, not unknown."""
    ended = [((None, None, "dev"), Actual(duration_ms=7, runs=1))]
    assert total(a for _, a in ended) == Actual(0, 0, 0, 0, 0, 0, 7, 1)


@given(actual=st.integers(0, 10**18), estimated=st.integers(1, 10**15))
def test_a_ratio_is_rounded_half_up_to_four_places(actual: int, estimated: int) -> None:
    """Exactly, whatever the size."""
    exact = Fraction(actual, estimated) * 10_000
    assert ratio(actual, estimated) == Decimal(math.floor(exact + Fraction(1, 2))).scaleb(-4)


@pytest.mark.parametrize(("actual", "estimated"), [(None, 5), (5, None), (5, 0), (0, 0)])
def test_there_is_no_ratio_to_nothing(actual: int | None, estimated: int | None) -> None:
    """Unknown, or nothing was estimated."""
    assert ratio(actual, estimated) is None


def test_a_ratios_half_goes_up() -> None:
    """1/20000 is 0.00005."""
    assert ratio(1, 20_000) == Decimal("0.0001")
    assert Decimal("0.00005").quantize(Decimal("0.0001"), ROUND_HALF_UP) == ratio(1, 20_000)


def test_a_sum_of_estimates_with_an_unknown_part_is_unknown() -> None:
    """Field by field; of none at all everything is."""
    assert summed([Figures(1, None, 3, 4), Figures(1, 2, None, 4)]) == Figures(2, None, None, 8)
    assert summed([]) == Figures()


# -- one line ----------------------------------------------------------------------------------------------------------


def variance(planned: Figures | None, actual: Actual, name: str = "book") -> Variance:
    plan = Plan(name, (Estimate((None, None, None), planned or Figures()),))
    return compare(name, None, Snapshot("", plan, 0, 0) if planned else None, [((None, None, "dev"), actual)])


@pytest.mark.parametrize(
    ("planned", "actual", "expected"),
    [
        (Figures(20, 1, 180_000, 900_000_000), Actual(23, 1, 201_000, 1_120_000_000, None, 0, 0, 1),
         "cost $1.12 of $0.90 (+24%) · calls 23 of 20 · tokens 201.0k of 180.0k"),
        (Figures(20, 1, None, 900_000_000), Actual(None, 1, 5, None, None, 0, 0, 1), "cost ? of $0.90 · calls ? of 20 · tokens 5"),
        (Figures(cost_nusd=2_000_000_000), Actual(1, 1, 1, 1_000_000_000, 840_000_000, 0, 0, 1),
         "cost $1.84 of $2.00 (−8%) · calls 1 · tokens 1"),
        (Figures(cost_nusd=0), Actual(reported_nusd=1_000_000_000, unpriced_tokens=0, runs=1), "cost $1.00 of $0.00"),
        (None, Actual(3, 1, 9, 1_000_000_000, None, 0, 0, 1), "cost $1.00 · calls 3 · tokens 9 · no snapshot of the plan is kept"),
        (None, Actual(runs=1, runs_without_usage=1), "usage unknown · no snapshot of the plan is kept"),
    ],
)  # fmt: skip
def test_the_line_tells_what_is_known(planned: Figures | None, actual: Actual, expected: str) -> None:
    """Actual of planned; "?" for what is planned and not known, nothing for what is neither."""
    assert line(variance(planned, actual), messages("en")) == f"Plan variance: book · {expected}"


def test_the_line_of_a_snapshot_that_was_pruned_says_so() -> None:
    """Its id is known, its estimates are not."""
    found = compare("dead" * 4, "dead" * 4, None, [used("w", 2)])
    assert line(found, messages("en")).endswith(" · calls 2 · tokens 22 · no snapshot of the plan is kept")


def test_the_line_in_russian() -> None:
    """With Russian numbers."""
    found = variance(Figures(20, 1, 180_000, 900_000_000), Actual(23, 1, 201_000, 1_120_000_000, None, 0, 0, 1))
    expected = "План и факт: book · стоимость 1,12 $ из 0,90 $ (+24 %) · вызовы 23 из 20 · токены 201,0 тыс. из 180,0 тыс."
    assert line(found, messages("ru")).replace("\u00a0", " ") == expected


def test_a_name_does_nothing_in_the_line() -> None:
    """Markdown, line breaks and terminal codes are text."""
    assert line(variance(None, Actual(), "a|b\n\x1b[31m"), messages("en")).startswith("Plan variance: a\\|b  \\[31m · ")


@pytest.mark.parametrize(
    ("planned", "actual", "expected"),
    [(8, 9, "+13%"), (8, 7, "−13%"), (1000, 1001, "0%"), (1000, 1000, "0%"),
     (1, 10**9, "+99999999900%"), (0, 1, ""), (None, 1, ""), (1, None, "")],
)  # fmt: skip
def test_a_change_is_a_signed_percentage(planned: int | None, actual: int | None, expected: str) -> None:
    """Rounded half away from zero; nothing where there is nothing to compare with."""
    assert change(planned, actual, messages("en")) == expected
