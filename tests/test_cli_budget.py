"""``spendmeter budget list``: the ledger's sums for eyes, for pipes and as JSON; what /metrics shows is the same."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rich.console import Console

from spendmeter.budgets import Budget, Period, Subject, Threshold
from spendmeter.budgets.model import ACTIONS, SEVERITIES, UNITS
from spendmeter.config import Settings
from spendmeter.ledger import Ledger, reservations
from spendmeter.ledger.budgeting import State
from spendmeter.ledger.exposition import exposition
from spendmeter.ledger.reservations import Reservation
from spendmeter.projections import budget_tables, prometheus
from tests.commands import call, done
from tests.made import NOON, Made
from tests.standings import MONTH, TODAY, TOTAL, budget, ms

FILE = """
budgets:
  - {name: headless, period: month, timezone: Europe/Berlin, limit_usd: 100, match: {agent: "heart*"}, owner: ops}
  - {name: task-cap, period: total, per: task, limit_usd: 5, action: block}
  - {name: tokens, period: 5h, limit_tokens: 2000000, action: kill}
  - {name: starts, period: day, limit_runs: 30, match: {team: blue}, action: warn}
"""


@pytest.fixture(autouse=True)
def _noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spendmeter.ledger.now_ms", lambda: NOON)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "budgets.yaml"
    path.write_text(FILE)
    monkeypatch.setenv("SPENDMETER_BUDGETS", str(path))
    return path


@pytest.fixture
def filled(both: Ledger, file: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Runs of two agents on seven tasks, one of them under way, in the ledger that the settings name."""
    monkeypatch.setenv("SPENDMETER_LEDGER", both.settings.ledger)
    made = Made(both)
    for i in range(7):
        usage = {"reported_nusd": (i + 1) * 1_000_000_001, "tokens_in": 300_000, "minute_ms": NOON - i * 60_000}
        made.run(usage, agent=("heartbeat", "dev")[i % 2], task=f"T-{i}", attrs='{"team":"blue"}' if i else "{}")
    made.run({"tokens_in": 7, "unpriced_tokens": 7, "minute_ms": NOON - 9 * 3_600_000}, agent="heartbeat", task="T-1")
    with both.write() as conn:
        reservations.put(conn, Reservation("a" * 32, Subject("heartbeat", "T-9"), NOON, 250_000_000, 5_000), NOON)
    return both


def listed(*args: str) -> list[dict[str, Any]]:
    return json.loads(done("budget", "list", "--json", *args))["budgets"]  # type: ignore[no-any-return]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_the_list_says(filled: Ledger, file: Path) -> None:
    """Each gauge on /metrics is the figure of the list's JSON; of a budget per task, of its first line."""
    ledger = Ledger(Settings(filled.settings.ledger, budgets_file=file))
    _, body = prometheus.render(exposition(ledger, "scrape", NOON))
    ledger.close()
    page = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if line.startswith("spendmeter_budget_"))
    told: dict[str, float] = {}
    for b in reversed(listed()):
        of = f'{{budget="{b["name"]}"}}'
        for name in ("limit", "spent", "remaining", "reserved", "forecast"):
            if (value := b[f"{name}_{b['unit']}"]) is not None:
                told[f"spendmeter_budget_{name}_{b['unit']}{of}"] = float(value)
        if b["period"]["start"] is not None:
            told[f"spendmeter_budget_period_start_timestamp_seconds{of}"] = ms(b["period"]["start"][:19]) / 1000
            told[f"spendmeter_budget_period_seconds{of}"] = b["period"]["seconds"]
    for name in {b["name"] for b in listed()}:
        same = [b for b in listed() if b["name"] == name]
        told[f'spendmeter_budget_over{{budget="{name}"}}'] = sum(b["over"] for b in same)
        if same[0]["unit"] == "usd":
            told[f'spendmeter_budget_unpriced_tokens{{budget="{name}"}}'] = sum(b["unpriced_tokens"] for b in same)
    assert {k: float(v) for k, v in page.items() if "window_spent" not in k} == told
    assert told['spendmeter_budget_spent_usd{budget="headless"}'] == 16.000000016
    assert told['spendmeter_budget_over{budget="task-cap"}'] == 3


def test_json_has_every_value(filled: Ledger) -> None:
    """Exact decimals; a budget per task once for each, the greatest first, also one that has only reserved."""
    found = listed()
    assert [(b["name"], b["value"]) for b in found] == [
        ("headless", None), *[("task-cap", f"T-{i}") for i in (6, 5, 4, 3, 2, 1, 0, 9)], ("tokens", None), ("starts", None),
    ]  # fmt: skip
    assert (found[0]["spent_usd"], found[0]["reserved_usd"], found[0]["unpriced_tokens"]) == ("16.000000016", "0.250000", 7)
    assert (found[8]["spent_usd"], found[8]["reserved_usd"], found[8]["over"]) == ("0.000000", "0.250000", False)
    assert (found[9]["spent_tokens"], found[10]["spent_runs"]) == (2_100_000, 6)


def test_a_pipe_gets_every_line_in_full(filled: Ledger) -> None:
    """Aligned columns, decimals, "-" for what does not apply."""
    lines = done("budget", "list").splitlines()
    assert [re.split(r" {2,}", line) for line in (lines[0], lines[1], lines[2], lines[10], lines[11])] == [
        ["budget", "value", "period", "spent", "limit", "unit", "share", "reserved", "forecast", "ends", "action"],
        ["headless", "-", "month from 1, Europe/Berlin", "16.000000016", "100.000000", "usd", "0.1600", "0.250000",
         listed()[0]["forecast_usd"], "2026-11-30T23:00:00.000+00:00", "alert"],
        ["task-cap", "T-6", "total", "7.000000007", "5.000000", "usd", "1.4000", "0.000000", "-", "-", "block"],
        ["tokens", "-", "rolling 5h", "2100000", "2000000", "tokens", "1.0500", "5000", "-", "2026-11-02T12:01:00.000+00:00", "kill"],
        ["starts", "-", "day, UTC", "6", "30", "runs", "0.2000", "0", str(6 + 6 * 719 // 360), "2026-11-03T00:00:00.000+00:00", "warn"],
    ]  # fmt: skip
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ((), ["headless", *["task-cap"] * 8, "tokens", "starts"]),
        (("--agent", "heartbeat"), ["headless", "task-cap", "tokens"]),
        (("--task", "T-6"), ["task-cap", "tokens"]),
        (("--attr", "team=blue", "--cli", "claude", "--model", "m", "--repo", "shop"), ["task-cap", "tokens", "starts"]),
    ],
)
def test_only_what_covers_a_run(filled: Ledger, flags: tuple[str, ...], names: list[str]) -> None:
    """By the tags that are given; of a budget per task the run's own, which is "unknown" where none is given."""
    found = listed(*flags)
    assert [b["name"] for b in found] == names
    if flags:
        (cap,) = [b for b in found if b["name"] == "task-cap"]
        assert (cap["value"], cap["spent_usd"]) == (("T-6", "7.000000007") if "--task" in flags else ("unknown", "0.000000"))


def test_flags_stand_on_either_side(both: Ledger, file: Path) -> None:
    """The ledger and the settings may be named before and after the command."""
    toml = file.with_name("s.toml")
    toml.write_text(f'ledger = "{both.settings.ledger}"\n[budgets]\nfile = "{file}"\n')
    for args in (("--config", str(toml), "budget", "list"), ("budget", "list", "--config", str(toml))):
        assert json.loads(done(*args, "--json"))["budgets"][0]["name"] == "headless"
    assert not Path(os.environ["HOME"], ".local").exists()  # no other ledger was made


def test_without_budgets_it_says_how_to_set_them_up() -> None:
    """Exit code 1, one line, nothing on standard output."""
    result = call("budget", "list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "spendmeter: no budgets are set up; write budgets.yaml (docs/reference/budgets.md) and name it in SPENDMETER_BUDGETS, "
        'or in spendmeter.toml under [budgets] as file = "budgets.yaml"\n'
    )


def test_nothing_to_show_is_said(file: Path) -> None:
    """Where the file holds none, and where none covers the run; in JSON it is an empty list."""
    file.write_text("budgets: [{name: b, period: day, limit_usd: 1, match: {agent: ops}}]")
    result = call("budget", "list", "--agent", "dev")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "spendmeter: no budget covers such a run\n")
    file.write_text("budgets: []")
    assert call("budget", "list").stderr == f"spendmeter: {file} holds no budget\n"
    assert listed() == []


@pytest.mark.parametrize(
    ("text", "args", "code", "said"),
    [
        ("budgets: 3", (), 1, "budgets.yaml:1: "),
        (FILE, ("--cli", "cursor"), 2, '"cursor" is not one of claude'),
        (FILE, ("--attr", "team"), 2, '"team" is not KEY=VALUE'),
        (FILE, ("--ledger", "postgresql://127.0.0.1:1/none"), 1, "ledger postgresql://127.0.0.1:1/none"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(file: Path, text: str, args: tuple[str, ...], code: int, said: str) -> None:
    """A file, a flag or a ledger that is not right; no traceback."""
    file.write_text(text)
    result = call("budget", "list", *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_terminal_gets_the_table(filled: Ledger) -> None:
    """Of the real command on a pseudo-terminal, as wide as that."""
    master, slave = pty.openpty()
    env = os.environ | {"COLUMNS": "140", "TERM": "xterm-256color"}
    with subprocess.Popen([sys.executable, "-m", "spendmeter", "budget", "list"], stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        shown = b""
        try:
            while chunk := os.read(master, 65536):
                shown += chunk
        except OSError:  # the terminal's other end is closed
            pass
    os.close(master)
    assert process.returncode == 0
    assert "━━━━━━━━━━━━" in shown.decode()
    assert b"\x1b[1;38;5;160m140%" in shown
    assert b"and 3 more" in shown


# -- the table ---------------------------------------------------------------------------------------------------------


def stood(one: Budget, spent: int, value: str | None = None, **more: Any) -> State:
    return State(one, value, one.period.window(NOON), spent, **more)


STATES = [
    stood(budget("headless", MONTH, "usd", 100_000_000_000), 41_200_000_000, unpriced_tokens=1234, forecast=120_000_000_000),
    *[stood(budget("cap", TOTAL, "usd", 5_000_000_000, per="task", action="block"), (9 - i) * 900_000_000, f"T-{i}") for i in range(7)],
    stood(budget("tokens", Period("rolling", length_ms=18_000_000), limit=2_000_000), 1_990_000, reserved=4_000),
    stood(budget("starts", TODAY, "runs", 30, action="warn"), 17, forecast=30),
    stood(budget("none", MONTH, "usd", 0), 0),
    stood(budget("idle", MONTH, "usd", 5_000_000_000, per="team"), 0),
]


def drawn(states: list[State], width: int, **options: Any) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), **({"color_system": None} | options))
    console.print(budget_tables.as_table(states, console, NOON))
    return console.export_text(styles=bool(options))


def test_the_table_as_a_terminal_shows_it() -> None:
    """Bars that are heavy where it is spent, never 100% before it is, the worst values and how many more, dashes for what is not."""
    assert [line.rstrip() for line in drawn(STATES, 140).splitlines()] == [
        "Budget    For         Period       Spent    Limit                Used  Reserved  Forecast   Resets in  Action",
        "─" * 109,
        "headless              month       $41.20  $100.00  ━━━━╾───────   41%         –   $120.00   28 d 12 h  alert",
        "cap       task T-0    total        $8.10    $5.00  ━━━━━━━━━━━━  162%         –         –           –  block",
        "          task T-1                 $7.20    $5.00  ━━━━━━━━━━━━  144%         –         –",
        "          task T-2                 $6.30    $5.00  ━━━━━━━━━━━━  126%         –         –",
        "          task T-3                 $5.40    $5.00  ━━━━━━━━━━━━  108%         –         –",
        "          task T-4                 $4.50    $5.00  ━━━━━━━━━━╾─   90%         –         –",
        "          and 2 more",
        "tokens                rolling 5h    2.0M     2.0M  ━━━━━━━━━━━╾   99%      4.0k         –           –  alert",
        "starts                day             17       30  ━━━━━━╾─────   56%         –        30  12 h 0 min  warn",
        "none                  month        $0.00    $0.00  ────────────     –         –         –   28 d 12 h  alert",
        "idle      –           month        $0.00    $5.00  ────────────    0%         –         –   28 d 12 h  alert",
        " ! 1,234 tokens of unpriced models are not in budget headless; see: spendmeter doctor",
    ]


def test_colours_tell_how_bad_it_is() -> None:
    """By the severity that is reached, and for a forecast above the limit; in colours that show on black and on white."""
    text = drawn(STATES, 140, color_system="256", force_terminal=True)
    codes = {shown: re.search(rf"\x1b\[([0-9;]*)m *{re.escape(shown)}\x1b", text)[1] for shown in ("$120.00", "162%", "90%", "56%", "41%")}  # type: ignore[index]
    assert codes == {"$120.00": "38;5;166", "162%": "1;38;5;160", "90%": "38;5;166", "56%": "36", "41%": "32"}


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
def test_no_number_is_ever_cut(width: int) -> None:
    """On a narrow terminal columns go and names are shortened, figures stay whole and lines stay within."""
    long = replace_name(STATES[0], "a-name-of-sixty-four-letters-which-is-the-most-that-a-budget-has")
    text = drawn([long, *STATES], width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert not re.search(r"[0-9.,$%]…|…[0-9]", text)
    assert text.count("$41.20") == 2
    assert "162%" in text


def replace_name(state: State, name: str) -> State:
    return stood(budget(name, state.budget.period, "usd", state.budget.limit), state.spent)


def test_a_list_without_values_has_no_column_for_them() -> None:
    """Nor one for reservations and forecasts where there are none."""
    head = drawn([stood(budget("b", TOTAL), 1)], 140).splitlines()[0].split()
    assert head == ["Budget", "Period", "Spent", "Limit", "Used", "Resets", "in", "Action"]


BUDGETS = st.builds(
    budget, st.text("ab-", min_size=1, max_size=64), st.sampled_from([TOTAL, MONTH, TODAY, Period("rolling", length_ms=60_000)]),
    st.sampled_from(UNITS), st.integers(0, 10**18), per=st.none() | st.text(max_size=9), action=st.sampled_from(ACTIONS),
    thresholds=st.lists(st.builds(Threshold, st.decimals("0.01", 10, places=2), st.sampled_from(SEVERITIES)), max_size=3).map(tuple),
)  # fmt: skip
AMOUNT = st.integers(0, 10**18)
ANY = st.builds(
    stood, BUDGETS, AMOUNT, st.none() | st.text(max_size=90), reserved=AMOUNT, forecast=st.none() | AMOUNT, unpriced_tokens=AMOUNT
)


@hypothesis_settings(deadline=None)
@given(st.lists(ANY, min_size=1, max_size=8), st.integers(30, 200))
def test_any_budgets_can_be_shown(states: list[State], width: int) -> None:
    """Whatever names, values, amounts and the width: a line each, no terminal codes, JSON that can be read."""
    assert "\x1b" not in drawn(states, width)
    assert len(budget_tables.as_text(states).splitlines()) == len(states) + 1
    assert [json.loads(json.dumps(s.as_dict()))["value"] for s in states] == [s.value for s in states]
