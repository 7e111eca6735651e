"""Plans as files: what is read, what is refused, the fingerprint, and what history draws."""

from __future__ import annotations

from decimal import Decimal
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
from spendmeter.plans.model import Estimate, Figures, Plan, of_dict
from spendmeter.plans.schema import ESTIMATE, PLAN, json_schema

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
