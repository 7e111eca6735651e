"""Plans as files and as arithmetic: what is read, what a snapshot's name hangs on, planned against actual, percentiles."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spendmeter.errors import ConfigError
from spendmeter.plans import file
from spendmeter.plans.history import History, drawn, nearest_rank
from spendmeter.plans.model import Estimate, Figures, Plan, Snapshot, of_dict, summed
from spendmeter.plans.schema import ESTIMATE, PLAN, json_schema
from spendmeter.plans.variance import Actual, Variance, compare, ratio, total
from spendmeter.projections.messages import messages
from spendmeter.projections.plan_texts import change, line

EXAMPLE = Path(__file__).parents[1] / "examples" / "plan.yaml"


def read(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "plan.yaml"
    path.write_text(text, "utf-8", "surrogatepass")
    return file.read(path)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_plan_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Estimates in order, money exact in nano-USD; what is missing or null is unknown."""
    plan = read(
        tmp_path,
        "name: book\n"
        "description: |\n  two\n  lines\n"
        "estimates:\n"
        "  - {workflow: summarise, calls: 20, prompt_tokens: 150000, total_tokens: 180000, cost_usd: 0.90}\n"
        "  - {workflow: 7, stage: draft, agent: dev, calls: null, prompt_tokens: ~, cost_usd: 0.000000001}\n"
        "  - total_tokens: 1e3\n",
    )
    assert plan == Plan(
        "book",
        (
            Estimate(("summarise", None, None), Figures(20, 150_000, 180_000, 900_000_000)),
            Estimate(("7", "draft", "dev"), Figures(None, None, None, 1)),
            Estimate((None, None, None), Figures(total_tokens=1000)),
        ),
        "two\nlines",
    )


def test_the_example_is_a_plan() -> None:
    """It is read as it stands and uses every key."""
    plan = file.read(EXAMPLE)
    assert [e.slot[0] for e in plan.estimates] == ["summarise", "review", "review"]
    assert plan.figures == Figures(None, None, None, 3_050_000_000)
    text = EXAMPLE.read_text()
    assert all(f"{key}:" in text for key in (*PLAN, *ESTIMATE))


ONE = "name: a\nestimates:\n  - {workflow: w, %s}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "plan.yaml: an empty file where a plan was expected; give it a name and estimates"),
        ("- name: a\n", "plan.yaml:1: a list where a mapping was expected, with keys name, description, estimates"),
        ("estimates: []\n", 'plan.yaml:1: a plan without "name"; write name: book'),
        ("name: a\n", 'plan.yaml:1: a plan without "estimates"; write estimates: [{workflow: summarise, calls: 20}]'),
        ("name:\nestimates: [{calls: 1}]\n", 'plan.yaml:1: "" where a text was expected'),
        ("name: a\nestimates: []\n", 'plan.yaml:2: a plan without an estimate; begin each estimate with "- workflow: ..."'),
        ("name: a\nestimates: {w: 1}\n", "plan.yaml:2: a mapping where a list was expected"),
        ("name: a\nestimate: []\n", 'plan.yaml:2: key "estimate" is not one of name, description, estimates; did you mean "estimates"?'),
        (ONE % "call: 1", 'did you mean "calls"?'),
        (ONE % "calls: many", 'plan.yaml:3: calls "many" is not a number; write it as 3 or 0.25'),
        (ONE % "calls: 1.5", 'plan.yaml:3: calls "1.5" is not a whole number of calls'),
        (ONE % "calls: -1", 'plan.yaml:3: calls "-1" is not a finite number of 0 or more'),
        (ONE % "total_tokens: 1e99", 'plan.yaml:3: total_tokens "1e99" is more than'),
        (
            ONE % "cost_usd: 0.0000000001",
            'cost_usd "0.0000000001" is not an amount below 1000000000 with at most 9 decimals; write it as 0.90',
        ),
        (ONE % f"cost_usd: 0.9{'0' * 40}1", "with at most 9 decimals"),
        (ONE % "cost_usd: 1000000000", "is not an amount below 1000000000"),
        (ONE % "cost_usd: [1]", "plan.yaml:3: a list where a text was expected"),
        (ONE % "prompt_tokens: 9, total_tokens: 8", "plan.yaml:3: prompt_tokens 9 is more than total_tokens 8; total_tokens counts"),
        (
            ONE % "stage: d}\n  - {workflow: w, stage: d",
            "plan.yaml:4: a second estimate for workflow w, stage d, which line 3 has; make them",
        ),
        ("name: a\nestimates: [{calls: 1}, {calls: 2}]\n", "a second estimate for no workflow, which line 2 has"),
        ("name: a\nname: b\n", 'plan.yaml:2: key "name" is given twice in one mapping; keep one of them'),
        ('name: "a\\0"\nestimates: [{calls: 1}]\n', "plan.yaml:1: "),
        ("name: [\n", "plan.yaml:2: not YAML"),
    ],
)
def test_a_mistake_is_named_with_line_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    """In one line: where, what was seen, what was expected."""
    with pytest.raises(ConfigError) as e:
        read(tmp_path, text)
    assert str(e.value).startswith(str(tmp_path / "plan.yaml"))
    assert expected in str(e.value).replace(f"{tmp_path}/", "")
    assert "\n" not in str(e.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    """With what it should hold."""
    with pytest.raises(ConfigError, match=r"nope\.yaml: cannot be read .*; give the path of a file that holds a plan"):
        file.read(tmp_path / "nope.yaml")


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(str.strip).filter(bool)
COUNTS = st.none() | st.integers(0, 10**15)


@st.composite
def _figures(draw: st.DrawFn) -> Figures:
    prompt = draw(COUNTS)
    tokens = draw(st.none() | st.integers(prompt or 0, 10**15))
    return Figures(draw(COUNTS), prompt, tokens, draw(st.none() | st.integers(0, 10**18 - 1)))


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    slots = draw(st.lists(st.tuples(*[st.none() | NAMES] * 3), min_size=1, max_size=4, unique=True))
    return Plan(draw(NAMES), tuple(Estimate(slot, draw(_figures())) for slot in slots), draw(st.just("") | NAMES))


@given(plan=_plans())
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    """Any plan, whatever its names hold, is the same after ``write`` and ``read``, and after the ledger has kept it."""
    text = file.write(plan, ["a note"] * len(plan.estimates), ["a line"])
    assert read(tmp_path_factory.getbasetemp(), text) == plan == of_dict(plan.as_dict())


# -- the schema --------------------------------------------------------------------------------------------------------


def test_the_schema_takes_what_the_reader_takes() -> None:
    """The example passes; an unknown key, a negative or broken count and an empty plan do not."""
    check = jsonschema.Draft202012Validator(json_schema())
    check.check_schema(json_schema())
    plan = yaml.safe_load(EXAMPLE.read_text())
    assert list(check.iter_errors(plan)) == []
    first: dict[str, Any] = plan["estimates"][0]
    bad = [{"calls": -1}, {"calls": 1.5}, {"cost_usd": 10**9}, {"total_tokens": 10**16}, {"call": 1}, {"workflow": " "}]
    for change_ in bad:
        assert not check.is_valid(plan | {"estimates": [first | change_]}), change_
    assert not check.is_valid({"name": "a"})
    assert not check.is_valid({"name": "a", "estimates": []})


# -- the fingerprint ---------------------------------------------------------------------------------------------------


@given(plan=_plans(), data=st.data())
def test_order_and_description_do_not_change_a_fingerprint(plan: Plan, data: st.DataObject) -> None:
    """Estimates in any order, with any description, are one snapshot."""
    other = Plan(plan.name, tuple(data.draw(st.permutations(plan.estimates))), data.draw(NAMES))
    assert other.fingerprint == plan.fingerprint
    assert len(plan.fingerprint) == 16
    int(plan.fingerprint, 16)


@given(nusd=st.integers(0, 10**18 - 1), calls=st.integers(0, 10**6), zeros=st.integers(0, 5))
def test_how_a_number_is_written_does_not_change_a_fingerprint(
    tmp_path_factory: pytest.TempPathFactory, nusd: int, calls: int, zeros: int
) -> None:
    """0.9, 0.90, .9e0 and "0.900" are one amount; a count may have a point and zeros."""
    usd = Decimal(nusd).scaleb(-9)
    plain = f"{usd:f}"
    written = [plain, plain + "0" * zeros, f"{usd:e}", f'"{plain}"', f"+{plain}"]
    found = {read(tmp_path_factory.getbasetemp(), ONE % f"calls: {calls}{'.' * bool(zeros)}{'0' * zeros}, cost_usd: {x}") for x in written}
    assert {p.fingerprint for p in found} == {Plan("a", (Estimate(("w", None, None), Figures(calls, cost_nusd=nusd)),)).fingerprint}


@given(plan=_plans(), other=_plans())
def test_what_matters_changes_a_fingerprint(plan: Plan, other: Plan) -> None:
    """Two plans share it only if name and estimates are the same; unknown is not 0."""
    same = plan.name == other.name and set(plan.estimates) == set(other.estimates)
    assert (plan.fingerprint == other.fingerprint) == same
    first = plan.estimates[0]
    for i, value in enumerate(first.figures):
        figures = list(first.figures)
        figures[i] = 0 if value is None else value + 1
        assert Plan(plan.name, (Estimate(first.slot, Figures(*figures)), *plan.estimates[1:])).fingerprint != plan.fingerprint


def test_a_fingerprint_stays_what_it_is() -> None:
    """Ledgers hold it: another version must give the same plan the same name."""
    assert file.read(EXAMPLE).fingerprint == "15456255179f72c7"


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


# -- percentiles -------------------------------------------------------------------------------------------------------


@given(values=st.lists(st.integers(0, 10**18), min_size=1), percent=st.integers(1, 100))
def test_a_percentile_is_by_the_nearest_rank(values: list[int], percent: int) -> None:
    """The least value that at least so many per cent of the values do not exceed."""
    found = nearest_rank(values, percent)
    assert found in values
    assert 100 * sum(v <= found for v in values) >= percent * len(values)
    assert all(100 * sum(v <= w for v in values) < percent * len(values) for w in values if w < found)


def test_percentiles_of_known_samples() -> None:
    """The textbook's five values; one value is every percentile; none has none."""
    assert [nearest_rank([50, 15, 40, 20, 35], p) for p in (5, 30, 40, 50, 90, 100)] == [15, 20, 20, 35, 50, 50]
    assert nearest_rank([1, 2], 50) == 1
    assert (nearest_rank([7], 50), nearest_rank([7], 90), nearest_rank([], 50)) == (7, 7, None)


def test_history_leaves_unknown_figures_out_of_the_sample() -> None:
    """Each percentile is over the runs that tell the figure; how many did is told beside."""
    found = History("dev", None, (Figures(1, 10, 11, None), Figures(None, 30, 33, 700), Figures(5, 20, 22, None)))
    assert found.at(50) == Figures(1, 20, 22, 700)
    assert found.as_dict() == {
        "agent": "dev", "workflow": None, "runs": 3,
        "calls": {"known": 2, "median": 1, "p90": 5}, "prompt_tokens": {"known": 3, "median": 20, "p90": 30},
        "total_tokens": {"known": 3, "median": 22, "p90": 33}, "cost_usd": {"known": 1, "median": "0.0000007", "p90": "0.0000007"},
    }  # fmt: skip


def test_a_drawn_plan_tells_its_runs_and_is_a_plan(tmp_path: Path) -> None:
    """A comment above each estimate; what nobody told is left out."""
    found = [
        History("dev", "summarise", (Figures(2, 10, 12, 900_000_000), Figures(4, 20, 24, None))),
        History("a, b: {c}", None, (Figures(),)),
    ]
    text = drawn("new: plan", found, 90)
    assert text == (
        "# Drawn from 3 runs: each figure is the 90th percentile (nearest rank) of ONE run.\n"
        "# Multiply it by the runs that you plan, then: spendmeter plan record FILE\n"
        "name: 'new: plan'\n"
        "estimates:\n"
        "  # 2 runs, median / p90: calls 2 / 4, prompt_tokens 10 / 20, total_tokens 12 / 24, cost_usd 0.900000 / 0.900000 (of 1 run)\n"
        "  - {workflow: summarise, agent: dev, calls: 4, prompt_tokens: 20, total_tokens: 24, cost_usd: 0.900000}\n"
        "  # 1 run, median / p90: calls unknown, prompt_tokens unknown, total_tokens unknown, cost_usd unknown\n"
        "  - {agent: 'a, b: {c}'}\n"
    )
    assert read(tmp_path, text) == Plan("new: plan", tuple(h.estimate(90) for h in found))
    assert "the median" in drawn("p", found, 50)
