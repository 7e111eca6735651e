"""``spendmeter plan``, and the plan's line in ``spendmeter summary``, as a shell calls them; how the tables look."""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from spendmeter.plans.file import read
from spendmeter.plans.model import Estimate, Figures, Plan, Snapshot
from spendmeter.plans.variance import Actual, compare
from spendmeter.projections import plan_tables
from tests.commands import RUNS, call, document, done

PLAN = """\
name: book
estimates:
  - {workflow: summarise, calls: 3, prompt_tokens: 60000, total_tokens: 64000, cost_usd: 0.04}
  - {workflow: review, cost_usd: 0.01}
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    """A plan.yaml."""
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return str(path)


@pytest.fixture
def filled(plan: str) -> str:
    """A recorded plan with three real runs, and one of a plan that is not recorded; the snapshot's id."""
    taken = {"json-single": "book", "json-opus": "book", "json-tool": "book", "json-subagent": "shop"}
    for i, (name, planned) in enumerate(taken.items()):
        tags = ("--agent", "dev", "--task", "T-1", "--attr", f"plan={planned}", "--attr", f"workflow={('summarise', 'review')[i % 2]}")
        done("ingest", *tags, str(RUNS / name / "stdout"))
        done("sync", "--home", str(RUNS / name / "home"))
    return str(document("plan", "record", plan)["snapshot_id"])


# -- record and list ---------------------------------------------------------------------------------------------------


def test_record_prints_the_snapshot_and_whether_it_is_new(plan: str) -> None:
    """The same plan again is refreshed, under the same id."""
    first = done("plan", "record", plan)
    assert first == f"{read(Path(plan)).fingerprint} recorded\n"
    assert done("plan", "record", plan) == first.replace("recorded", "refreshed")
    told = document("plan", "record", plan)
    assert (told["plan"], told["snapshot_id"], told["new"], told["pruned"]) == ("book", first.split()[0], False, 0)
    assert datetime.fromisoformat(told["recorded_at"]).utcoffset() is not None


def test_pruning_is_told(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By record, as it happens, and by list, in all."""
    monkeypatch.setenv("SPENDMETER_PLANS_KEEP", "1")
    done("plan", "record", plan)
    Path(plan).write_text(PLAN.replace("0.04", "0.05"))
    changed = call("plan", "record", plan)
    assert changed.stderr == "spendmeter: 1 old snapshot pruned; [plans] keep is 1\n"
    Path(plan).write_text(PLAN)
    assert document("plan", "record", plan)["pruned"] == 1
    listed = document("plan", "list")
    assert (listed["pruned"], len(listed["plans"])) == (2, 1)
    assert call("plan", "list").stderr == "spendmeter: 2 older snapshots were pruned\n"


def test_list_shows_every_snapshot_and_which_are_in_force(plan: str) -> None:
    """The last seen first; a sum with an unknown part is null, and "-"."""
    done("plan", "record", plan)
    Path(plan).write_text(PLAN.replace("review, cost", "review, calls: 4, cost"))
    done("plan", "record", plan)
    new, old = document("plan", "list")["plans"]
    assert ([new["in_force"], old["in_force"]], new["plan"], new["estimates"]) == ([True, False], "book", 2)
    assert [(s["calls"], s["prompt_tokens"], s["total_tokens"], s["cost_usd"]) for s in (new, old)] == [
        (7, None, None, "0.050000"),
        (None, None, None, "0.050000"),
    ]
    lines = [x.split() for x in done("plan", "list").splitlines()]
    assert [x[:3] for x in lines[1:]] == [["book", new["snapshot_id"], "yes"], ["book", old["snapshot_id"], "no"]]
    assert [x[-4:] for x in lines] == [["estimates", "cost", "calls", "tokens"], ["2", "0.050000", "7", "-"], ["2", "0.050000", "-", "-"]]


def test_without_a_plan_it_is_said_how_to_get_one() -> None:
    """On standard error; JSON is empty all the same."""
    for name in ("list", "variance"):
        result = call("plan", name)
        assert (result.exit_code, result.stdout) == (0, "")
        assert "no plan is recorded and no run names one; write a plan.yaml (spendmeter plan estimate" in result.stderr
    assert (document("plan", "list"), document("plan", "variance")) == ({"plans": [], "pruned": 0}, [])


def test_a_bad_file_is_one_line(tmp_path: Path) -> None:
    """With its place, and exit code 1."""
    path = tmp_path / "bad.yaml"
    path.write_text("name: book\nestimates:\n  - {workflow: a, calls: lots}\n")
    result = call("plan", "record", str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f'spendmeter: {path}:3: calls "lots" is not a number; write it as 3 or 0.25\n'


# -- variance ----------------------------------------------------------------------------------------------------------


def test_a_name_gives_an_object_and_no_name_a_list(filled: str) -> None:
    """The snapshot's id is a name too; YAML holds the same as JSON."""
    one = document("plan", "variance", "book")
    assert (one["plan"], one["snapshot_id"], one["snapshot_resolved"]) == ("book", filled, True)
    assert one["calls"] == {"estimated": None, "actual": 5, "delta": None, "ratio": None}
    assert one["per_workflow"][0]["calls"] == {"estimated": 3, "actual": 4, "delta": 1, "ratio": 1.3333}
    assert one["cost_usd"]["estimated"] == "0.050000"
    everything = document("plan", "variance")
    assert [x["plan"] for x in everything] == ["book", "shop"]
    assert everything[0] == one == document("plan", "variance", filled)
    assert (everything[1]["snapshot_id"], everything[1]["snapshot_resolved"], everything[1]["recorded_at"]) == (None, False, None)
    assert yaml.safe_load(done("plan", "variance", "book", "--yaml")) == one
    assert yaml.safe_load(done("plan", "variance", "--yaml")) == everything
    assert document("plan", "variance", "book", "--since", "2999-01-01")["runs"] == 0
    assert document("plan", "variance", "book", "--until", "2999-01-01") == one


def test_the_ledger_may_be_named_after_the_command(plan: str, tmp_path: Path) -> None:
    """As with every other command."""
    url = f"sqlite:///{tmp_path / 'other.db'}"
    done("plan", "record", plan, "--ledger", url)
    assert len(document("plan", "list", "--ledger", url)["plans"]) == 1
    assert document("plan", "list")["plans"] == []


def test_the_line_is_in_the_tasks_summary_too(filled: str) -> None:
    """One wording, in both languages; the summary's JSON has the whole of it."""
    lines = done("plan", "variance", "--line").splitlines()
    assert lines == [
        "Plan variance: book · cost $0.06 of $0.05 (+22%) · calls 5 · tokens 107.4k",
        "Plan variance: shop · cost $0.05 · calls 4 · tokens 86.1k · no snapshot of the plan is kept",
    ]
    assert done("plan", "variance", "book", "--line") == lines[0] + "\n"
    assert done("summary", "--task", "T-1").splitlines()[-2:] == [f"- {x}" for x in lines]
    assert document("summary", "--task", "T-1")["plans"] == document("plan", "variance")
    russian = done("plan", "variance", "--line", "--lang", "ru").splitlines()
    assert done("summary", "--task", "T-1", "--lang", "ru").splitlines()[-2:] == [f"- {x}" for x in russian]
    assert russian[0].startswith("План и факт: book · стоимость 0,06")


def test_a_pipe_gets_aligned_text_with_full_numbers(filled: str) -> None:
    """Actual beside planned; unknown is "-"; one block for each plan."""
    book, shop = done("plan", "variance").split("\n\n")
    title, head, *rows = book.splitlines()
    assert title.startswith(f"book · snapshot {filled} of ")
    assert head.split()[:5] == ["workflow", "cost_usd", "planned_cost_usd", "calls", "planned_calls"]
    assert {len(x) for x in [head, *rows]} == {len(head)}
    assert [x.split()[:1] + x.split()[2:5] + x.split()[-1:] for x in rows] == [
        ["summarise", "0.040000", "4", "3", "2"], ["review", "0.010000", "1", "-", "1"], ["total", "0.050000", "5", "-", "3"],
    ]  # fmt: skip
    assert shop.startswith("shop · no snapshot is kept · 1 run")


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (("variance", "bok"), 1, 'plan "bok" is not recorded and no run names it; did you mean book?'),
        (("variance", "--json", "--line"), 2, "--json, --yaml and --line exclude each other"),
        (("variance", "--since", "soon"), 2, "Invalid value for --since"),
        (("variance", "--line", "--lang", "xx"), 2, "Invalid value for --lang"),
        (("estimate", "--agent", "nobody"), 1, "no run to draw estimates from; widen --since or leave out a filter"),
        (("estimate", "--quantile", "0.7"), 2, "Invalid value for '--quantile'"),
        (("estimate", "--name", " "), 2, "a plan needs a name"),
        (("record", "nowhere.yaml"), 1, "nowhere.yaml: cannot be read"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(filled: str, args: tuple[str, ...], code: int, expected: str) -> None:
    """Usage is exit code 2, the rest 1; nothing on standard output."""
    result = call("plan", *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert expected in result.stderr


# -- estimate ----------------------------------------------------------------------------------------------------------


def test_what_is_estimated_can_be_recorded(filled: str, tmp_path: Path) -> None:
    """The drawn file is a plan of what one run took; filters, quantile and name are obeyed; JSON has both percentiles."""
    path = tmp_path / "drawn.yaml"
    path.write_text(done("plan", "estimate", "--name", "next", "--workflow", "summarise", "--quantile", "0.9"))
    assert read(path) == Plan("next", (Estimate(("summarise", None, "dev"), Figures(3, 64_110, 64_476, 36_999_900)),))
    assert document("plan", "record", str(path))["new"] is True
    told = document("plan", "estimate", "--task", "T-1", "--since", "2000-01-01")
    assert (told["name"], told["quantile"], [(x["agent"], x["workflow"], x["runs"]) for x in told["estimates"]]) == (
        "plan", 0.5, [("dev", "review", 2), ("dev", "summarise", 2)],
    )  # fmt: skip
    assert told["estimates"][1]["calls"] == {"known": 2, "median": 1, "p90": 3}
    assert "--name" in call("plan", "estimate", "--help").stdout


# -- tables ------------------------------------------------------------------------------------------------------------


def rendered(width: int, what: Any) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False, record=True)
    console.print(what(console))
    return console.export_text().splitlines()


PLANNED = Plan(
    "book",
    (
        Estimate(("summarise", None, None), Figures(20, 150_000, 180_000, 900_000_000)),
        Estimate(("review", None, None), Figures(None, 1, 2, 3)),
    ),
)
USED = [
    (("summarise", "draft", "dev"), Actual(23, 160_000, 201_000, 1_120_000_000, 5_000_000, 12, 61_000, 2)),
    ((None, None, "dev"), Actual(None, 5, 6, None, None, 0, None, 1, 1)),
]
FOUND = compare("book", None, Snapshot("cafe" * 4, PLANNED, 1_793_620_800_000, 0), USED)


def test_a_wide_table_has_every_figure() -> None:
    """What was used, planned and off; stages indented; unknown a dash; the total last, and what it leaves out."""
    lines = rendered(130, lambda c: plan_tables.variance_table(FOUND, c))
    assert lines[0] == "book · snapshot cafecafecafecafe of 2026-11-02 12:00 UTC · 3 runs, 1 min 1 s"
    assert lines[2].split() == [
        "Workflow", "Cost", "planned", "±", "Calls", "planned", "±", "Prompt", "planned", "±", "Tokens", "planned", "±",
    ]  # fmt: skip
    rows = [" ".join(x.split()) for x in lines[4:]]
    assert rows[0] == "summarise ~$1.13 $0.90 +25% 23 20 +15% 160.0k 150.0k +7% 201.0k 180.0k +12%"
    assert rows[1] == "stage draft ~$1.13 – 23 – 160.0k – 201.0k –"
    assert rows[2] == "review $0.00 <$0.0001 −100% 0 – 0 1 −100% 0 2 −100%"
    assert rows[3] == "(none) – – – – 5 – 6 –"
    assert rows[5] == "Total ~$1.13 $0.90 +25% 23 – 160.0k 150.0k +7% 201.0k 180.0k +12%"
    assert [x.strip() for x in lines[10:13]] == [
        "~ $0.0050 of the cost is estimated at list prices",
        "! 12 tokens of unpriced models are not in the cost; see: spendmeter doctor",
        "! 1 of 3 runs told no usage; they add nothing here",
    ]


@pytest.mark.parametrize(("width", "columns"), [(130, 13), (90, 10), (80, 9), (72, 8), (48, 4)])
def test_a_narrow_table_keeps_what_matters_most(width: int, columns: int) -> None:
    """Columns go, the prompt first; no line is wider than the terminal, and the cost's change is always there."""
    lines = rendered(width, lambda c: plan_tables.variance_table(FOUND, c))
    assert all(len(x) <= width for x in lines)
    head = next(x.split() for x in lines if "planned" in x)
    assert len(head) == columns
    assert head[1:4] == ["Cost", "planned", "±"]


@pytest.mark.parametrize(("calls", "expected"), [(21, "\x1b[1;31m+5%"), (20, "\x1b[1;32m0%"), (19, "\x1b[1;32m−5%")])
def test_what_is_over_is_red(calls: int, expected: str) -> None:
    """What is not over is green."""
    exact = Plan("book", (Estimate((None, None, None), Figures(20)),))
    found = compare("book", None, Snapshot("", exact, 0, 0), [((None, None, "dev"), Actual(calls, unpriced_tokens=0, runs=1))])
    console = Console(width=120, file=io.StringIO(), highlight=False, force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(plan_tables.variance_table(found, console))
    assert expected in captured.get()


def test_a_plan_that_is_gone_says_what_to_do() -> None:
    """Its table has only what was used."""
    lines = rendered(100, lambda c: plan_tables.variance_table(compare("gone\x1b[31m", None, None, USED), c))
    assert lines[0].startswith("gone\ufffd[31m · no snapshot is kept · 3 runs")
    assert any("record the plan with spendmeter plan record FILE" in x for x in lines)
    assert not any("%" in x for x in lines)


@pytest.mark.parametrize(("width", "times"), [(110, 2), (80, 1)])
def test_the_list_of_snapshots_fits(width: int, times: int) -> None:
    """When it was last seen goes first; the id stays whole."""
    snapshots = [Snapshot("cafe" * 4, PLANNED, 1_793_620_800_000, 1_793_620_860_000)]
    lines = rendered(width, lambda c: plan_tables.list_table(snapshots, snapshots, c))
    assert lines[2].split()[:2] == ["book", "cafecafecafecafe"]
    assert lines[2].count("2026-11-02") == times
    assert lines[2].split()[-4:] == ["2", "$0.90", "–", "180.0k"]


def test_a_terminal_gets_the_tables(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both commands print them to the console that standard output is."""
    out = io.StringIO()
    for name in ("variance", "list"):
        monkeypatch.setattr(
            f"spendmeter.cli.plan_{name}.console", lambda: Console(file=out, width=120, force_terminal=True, highlight=False)
        )
        done("plan", name)
    assert f"snapshot {filled}" in out.getvalue()
    assert "In force" not in out.getvalue()
    assert "\x1b[31m+" in out.getvalue()
