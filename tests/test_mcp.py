"""The MCP tools: what they take, what they answer, and that they say what the commands and the API say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spendmeter import guard, token_events
from spendmeter.budgets import Subject
from spendmeter.config import Settings
from spendmeter.demo import load
from spendmeter.ledger import Ledger, now_ms, reservations
from spendmeter.ledger.query import runs
from spendmeter.ledger.reservations import Reservation
from spendmeter.prices import PriceTable
from spendmeter.records import Usage, usd_text
from spendmeter.server.book import Book
from spendmeter.server.mcp_server.caller import NOBODY, Caller
from spendmeter.server.mcp_server.protocol import server
from spendmeter.server.mcp_server.shapes import SummaryQuestion
from spendmeter.server.mcp_server.source import Source
from spendmeter.server.mcp_server.tools import TOOLS
from spendmeter.token_events.model import AMOUNTS
from tests import attributed
from tests.agents import Question, ask, refused, text, told, tools
from tests.commands import call, document
from tests.served import serve

BUDGETS = """
budgets:
  - {name: purse, period: total, limit_usd: 100, match: {agent: "dev*"}, action: block}
  - {name: tokens, period: total, limit_tokens: 10, match: {agent: reviewer}, action: kill}
  - {name: starts, period: total, limit_runs: 1, action: alert}
  - {name: task-cap, period: total, per: task, limit_usd: 5, action: warn}
  - {name: blue, period: total, limit_usd: 7, match: {team: blue}, action: block}
"""
OVER = "over budget tokens: "
Asks = Callable[..., Any]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As commands in this process find them too."""
    (tmp_path / "budgets.yaml").write_text(BUDGETS)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("SPENDMETER_LEDGER", url)
    monkeypatch.setenv("SPENDMETER_BUDGETS", str(tmp_path / "budgets.yaml"))
    return Settings(url, zero_first_s=0, settle_s=0, budgets_file=tmp_path / "budgets.yaml")


@pytest.fixture
def book(settings: Settings) -> Iterator[Book]:
    made = Book(settings)
    load(made.ledger())
    yield made
    made.close()


@pytest.fixture
def one(book: Book) -> Asks:
    """Asks one question about the captured runs."""

    def asked(name: str, caller: Caller = NOBODY, **arguments: Any) -> Any:
        return ask(server(Source(book.settings, lambda: book, caller)), (name, arguments))[0]

    return asked


# -- the list ----------------------------------------------------------------------------------------------------------


def test_each_tool_says_what_it_takes_and_gives(book: Book) -> None:
    """Five tools, each with a schema for arguments and answer and words for every argument; only one writes."""
    found = tools(server(Source(book.settings, lambda: book)))
    assert list(found) == ["record_token_event", "get_token_summary", "get_budget_status", "get_run", "estimate_cost"]
    for tool in found.values():
        assert len(tool.description or "") > 100
        assert tool.input_schema["additionalProperties"] is False
        assert all(p.get("description") or p["anyOf"][0]["description"] for p in tool.input_schema["properties"].values())
        assert (tool.output_schema or {})["type"] == "object"
        assert tool.annotations is not None
    assert [t.name for t in found.values() if not (t.annotations and t.annotations.read_only_hint)] == ["record_token_event"]


def test_no_schema_is_one_that_models_are_not_given() -> None:
    """The Messages API refuses a tool whose input schema has one of these at its top; then the agent's whole request fails."""
    for tool in TOOLS:
        assert tool.takes["type"] == "object"
        assert not {"anyOf", "oneOf", "allOf"} & set(tool.takes)


def test_the_scopes_are_those_of_summaries() -> None:
    """None more, none less."""
    assert tuple(SummaryQuestion.model_json_schema()["properties"]["scope"]["enum"]) == token_events.SCOPES


def test_each_tool_answers_on_each_database(new_url: Callable[[], str]) -> None:
    """As the functions behind it do."""
    settings = Settings(new_url(), zero_first_s=0, settle_s=0)
    with closing(Book(settings)) as book:
        load(book.ledger())
        event: Question = ("record_token_event", {"task": "T-1", "tokens_in": 5, "model": "claude-sonnet-4-5", "cost_usd": "0.5"})
        about: list[Question] = [("get_token_summary", {"id": "T-1"}), ("get_budget_status", {}), ("get_run", {"calls": True})]
        recorded, summed, status, run = (told(x) for x in ask(server(Source(settings, lambda: book)), event, *about))
        assert recorded == token_events.find(book.ledger(), recorded["id"])
        assert summed == token_events.summary(book.ledger(), "task", "T-1").as_dict()
        assert (status["allowed"], run["run_key"], run["cost_usd"]) == (True, recorded["id"], "0.500000")


# -- token events ------------------------------------------------------------------------------------------------------


def test_an_event_is_recorded_once(one: Asks, book: Book) -> None:
    """Exact, as the row that the API would give; the same key again adds nothing, another event under it is refused."""
    event = {"agent": "tester", "task": "T-9", "model": "claude-sonnet-4-5", "tokens_in": 1000, "tokens_out": 20, "idempotency_key": "k"}
    first = one("record_token_event", **event)
    row = told(first)
    assert row == token_events.find(book.ledger(), row["id"])
    assert {name: row[name] for name in event} == event
    assert (row["tokens_total"], text(first)) == (1020, f"recorded: 1,020 tokens of agent tester for task T-9, event {row['id']}")
    again = one("record_token_event", **event)
    assert (told(again), text(again).startswith("was recorded before, nothing was added: ")) == (row, True)
    assert document("report", "--by", "task", "--task", "T-9")["total"]["tokens_in"] == 1000
    assert "idempotency key was used for another event" in refused(one("record_token_event", **event | {"tokens_in": 1}))


def test_an_event_is_its_callers(one: Asks) -> None:
    """Agent and task of the run that asks, unless the arguments name others; null is as left out."""
    caller = Caller(Subject("developer", "T-1"))
    row = told(one("record_token_event", caller, tokens_in=1, agent=None))
    assert (row["agent"], row["task"]) == ("developer", "T-1")
    assert told(one("record_token_event", caller, tokens_in=1, task="T-5"))["task"] == "T-5"
    assert told(one("record_token_event", tokens_in=1))["agent"] == "unknown"


def test_a_summary_is_a_table_and_a_document(one: Asks, book: Book) -> None:
    """The document is the API's; the table has a line per model and agent."""
    found = one("get_token_summary", id="T-1")
    expected = token_events.summary(book.ledger(), "task", "T-1").as_dict()
    total = document("report", "--by", "task", "--task", "T-1")["total"]
    assert told(found) == expected
    assert {n: expected[n] for n in ("tokens_in", "tokens_out", "cost_usd")} == {
        n: total[n] for n in ("tokens_in", "tokens_out", "cost_usd")
    }
    head, _, *lines = text(found).splitlines()
    assert head == (
        f"task T-1: tokens_in {total['tokens_in']}, tokens_out {total['tokens_out']}, cost_usd {total['cost_usd']}, event_count 2"
    )
    assert lines[0].split() == ["by", "name", "tokens"]
    by = {"model": expected["by_model"], "agent": expected["by_agent"]}
    assert [tuple(line.split()) for line in lines[1:]] == [(kind, name, str(n)) for kind in by for name, n in by[kind].items()]


def test_a_summary_needs_a_name(one: Asks) -> None:
    """The caller's task or repository, if none is given; there is none of other scopes, and nothing to say of an unknown one."""
    caller = Caller(Subject(None, "T-2", repo="shop"))
    assert told(one("get_token_summary", caller))["scope_id"] == "T-2"
    assert told(one("get_token_summary", caller, scope="repo"))["scope_id"] == "shop"
    assert refused(one("get_token_summary", caller, scope="release")) == "id: is required; give the name of the release"
    nothing = one("get_token_summary", id="T-404")
    assert (told(nothing)["event_count"], told(nothing)["tokens_in"], text(nothing)) == (0, None, "Nothing is recorded for task T-404.")


def test_a_task_that_has_but_parts_of_runs_has_a_summary(one: Asks, book: Book) -> None:
    """What a rule gives to a task of a subagent's own is told, though no run is that task's."""
    rules = [{"match": {"subagent": "reviewer"}, "set": {"task": "REVIEW"}}]
    with closing(Ledger(replace(book.settings, attribution=rules))) as ledger:
        facts = attributed.call("s1", 1, 7), attributed.call("s1", 2, 5, subagent="reviewer")
        attributed.put(ledger, *facts)
    found = one("get_token_summary", id="REVIEW")
    assert (told(found)["event_count"], told(found)["tokens_in"]) == (0, 5)
    assert text(found).startswith("task REVIEW: tokens_in 5, ")


# -- budgets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"agent": "developer", "task": "T-1"},
        {"agent": "reviewer"},
        {"task": "T-2", "attrs": {"team": "blue"}},
        {"agent": "developer", "cli": "claude", "model": "claude-sonnet-4-5", "repo": "shop"},
    ],
)
def test_budgets_are_those_of_the_command(one: Asks, arguments: dict[str, Any]) -> None:
    """What ``budget list --json`` says of such a run, figure by figure."""
    flags = [x for name, value in arguments.items() if name != "attrs" for x in (f"--{name}", value)]
    flags += [x for name, value in arguments.get("attrs", {}).items() for x in ("--attr", f"{name}={value}")]
    found = told(one("get_budget_status", **arguments))
    assert found["budgets"] == document("budget", "list", *flags)["budgets"]
    assert found["budgets"]
    unnamed = {"agent": "unknown", "task": "unknown"}
    assert {name: found[name] for name in unnamed} == unnamed | {name: v for name, v in arguments.items() if name in unnamed}


def test_a_run_over_budget_would_be_refused(one: Asks) -> None:
    """By a budget that keeps runs from starting, as the guard says it; one that only alerts is a warning."""
    found = one("get_budget_status", agent="reviewer", task="T-1")
    status = told(found)
    (line,) = status["refusals"]
    assert (status["allowed"], line.startswith(OVER)) == (False, True)
    assert [w.partition(":")[0] for w in status["warnings"]] == ["over budget starts"]
    assert [x.partition(",")[0] for x in status["left"]] == ["task-cap for task T-1"]
    assert text(found).splitlines() == [
        "A run of agent reviewer for task T-1 would be refused.", *[f"- {x}" for x in (line, *status["warnings"], *status["left"])],
    ]  # fmt: skip
    assert call("budget", "check", "--agent", "reviewer", "--task", "T-1").exit_code == 3


def test_a_run_within_budget_would_be_let_start(one: Asks, book: Book) -> None:
    """And a run that is admitted indeed is; what it sets aside is then no longer left."""
    before = told(one("get_budget_status", agent="developer", task="T-1"))
    assert (before["allowed"], before["refusals"], before["this_run"]) == (True, [], None)
    budgets = Source(book.settings, lambda: book).budgets()
    admission = guard.admit(book.ledger(), budgets, Subject("developer", "T-1"), "a" * 32, max_cost_nusd=3_000_000_000)
    assert admission.allowed
    after = told(one("get_budget_status", agent="developer", task="T-1"))
    assert float(after["budgets"][0]["reserved_usd"]) > 0 == float(before["budgets"][0]["reserved_usd"])
    assert after["left"][0] != before["left"][0]


def test_a_run_under_way_is_told_of_itself(one: Asks, book: Book) -> None:
    """Its tags, also those that no variable holds, and what it has used so far."""
    mine = Reservation(
        "b" * 32, Subject("developer", "T-1", "claude", None, "shop", {"team": "blue"}), now_ms(), 10, 10, 1_230_000_000, 4567
    )
    with book.ledger().write() as conn:
        reservations.put(conn, mine, now_ms())
    found = one("get_budget_status", Caller(Subject("developer", "T-1"), mine.run_id))
    assert told(found)["this_run"] == {"run_id": mine.run_id, "used_usd": "1.230000", "used_tokens": 4567}
    assert "blue" in [b["name"] for b in told(found)["budgets"]]
    assert text(found).endswith("This run has used $1.230000 and 4,567 tokens so far: that is set aside, but not spent yet.")
    with book.ledger().write() as conn:
        reservations.put(conn, replace(mine, used_nusd=None, used_tokens=None), now_ms())
    found = one("get_budget_status", Caller(Subject("developer", "T-1"), mine.run_id))
    assert "This run has used an unknown cost and an unknown number of tokens so far" in text(found)


def test_who_is_not_named_is_told_so(one: Asks) -> None:
    """Budgets of an agent of its own are not among those that cover a run without one."""
    found = one("get_budget_status")
    assert "purse" not in [b["name"] for b in told(found)["budgets"]]
    assert text(found).splitlines()[-1].startswith("No agent was named: ")


def test_no_budgets_limit_nothing(book: Book) -> None:
    """Said in words, whether there is no file or none in it covers the run."""

    def status(settings: Settings) -> Any:
        return ask(server(Source(settings, lambda: book)), ("get_budget_status", {"agent": "a"}))[0]

    none = status(replace(book.settings, budgets_file=None))
    assert (told(none)["allowed"], told(none)["budgets"]) == (True, [])
    assert text(none).endswith("No budgets are set up: nothing limits it.")
    assert book.settings.budgets_file is not None
    book.settings.budgets_file.write_text("budgets:\n  - {name: purse, period: total, limit_usd: 1, match: {agent: x}}\n")
    assert text(status(book.settings)).endswith("No budget covers it.")
    book.settings.budgets_file.write_text("budgets:\n  - {name: purse, period: weakly, limit_usd: 1}\n")
    assert 'did you mean "week"' in refused(status(book.settings))


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_is_the_apis(one: Asks, book: Book) -> None:
    """The same document, without its calls unless they are asked for."""
    with serve(book) as client:
        for run in runs(book.ledger()):
            theirs = client.get(f"/api/v1/runs/{run.run_key}").json()
            assert told(one("get_run", key=run.run_key, calls=True)) == theirs
            del theirs["call_list"]
            assert told(one("get_run", key=run.run_key)) == theirs
        assert told(one("get_run"))["run_key"] == client.get("/api/v1/runs/last").json()["run_key"]


def test_a_run_is_read_at_a_glance(one: Asks) -> None:
    """The finish comment, whose it was, and a table by model."""
    lines = text(one("get_run")).splitlines()
    assert lines[0] == document("summary", "--run", "last")["text"]
    assert (
        lines[1] == f"claude run {document('summary', '--run', 'last')['run_key']} of task {document('summary', '--run', 'last')['task']}"
    )
    assert next(line for line in lines if line.startswith("model ")).split()[1:3] == ["runs", "calls"]


def test_a_run_that_is_not_there_is_an_error(one: Asks, book: Book) -> None:
    """That says how runs are named; what several begin with is one too."""
    assert refused(one("get_run", key="nope")) == 'run "nope" is not in the ledger; write "last", a run key, a run id or a session'
    session, count = Counter(r.session for r in runs(book.ledger())).most_common(1)[0]
    assert count > 1
    assert refused(one("get_run", key=session[:-1])).startswith(f'run "{session[:-1]}" is the name of {count} runs (')


# -- prices ------------------------------------------------------------------------------------------------------------


def test_an_estimate_is_the_list_price(one: Asks) -> None:
    """To the nano-USD, cache writes by how long they live, long requests at their own rates."""
    table, model = PriceTable.load(), "claude-sonnet-4-5"

    def priced(usage: Usage, each: int | None = None) -> str | None:
        return usd_text(table.price(model, usage, None, context_tokens=each))

    kinds = {"model": model, "tokens_in": 1, "tokens_out": 2, "cache_read": 3, "cache_write": 4}
    found = one("estimate_cost", **kinds)
    assert told(found) == {
        "model": model, "cost_usd": priced(Usage(1, 3, 4, 0, 2)), "priced_as": "anthropic/claude-sonnet-4-5", "near": [],
        "prices": table.version,
    }  # fmt: skip
    assert text(found).startswith(f"${priced(Usage(1, 3, 4, 0, 2))} at today's list price of anthropic/claude-sonnet-4-5 ")
    assert told(one("estimate_cost", **kinds, cache_ttl="1h"))["cost_usd"] == priced(Usage(1, 3, 0, 4, 2))
    long = Usage(300_000, 0, 0, 0, 1)
    assert told(one("estimate_cost", model=model, tokens_in=300_000, tokens_out=1))["cost_usd"] == priced(long)
    assert (
        told(one("estimate_cost", model=model, tokens_in=300_000, tokens_out=1, calls=3))["cost_usd"]
        == priced(long, 100_000)
        != priced(long)
    )


def test_an_unknown_price_is_unknown(one: Asks, tmp_path: Path, book: Book) -> None:
    """Never 0; near names where the model is misspelt, and what is missing where the model is known."""
    found = one("estimate_cost", model="claude-sonet-4-5", tokens_in=1)
    assert (told(found)["cost_usd"], told(found)["priced_as"]) == (None, None)
    assert "claude-sonnet-4-5" in told(found)["near"]
    assert text(found).startswith("unknown: the price list does not know this model; did you mean ")
    assert told(one("estimate_cost", model="qqqqqqqqqqqqqqqq"))["near"] == []
    (tmp_path / "prices.yaml").write_text("- {match: own, input: 1}\n")
    own = Source(replace(book.settings, prices_file=tmp_path / "prices.yaml"), lambda: book)
    known, unknown = ask(
        server(own), ("estimate_cost", {"model": "own", "tokens_in": 1}), ("estimate_cost", {"model": "own", "tokens_out": 1})
    )
    assert told(known)["cost_usd"] == "0.000001"
    assert (told(unknown)["cost_usd"], told(unknown)["priced_as"]) == (None, "own")
    assert text(unknown).startswith("unknown: the price list has no rate of own for some of these tokens")


# -- errors ------------------------------------------------------------------------------------------------------------

SECRET = "sesame-street"
NO_NUMBER = "tokens_in: input should be a valid integer, unable to parse string as an integer"


@pytest.mark.parametrize(
    ("tool", "arguments", "line"),
    [
        ("estimate_cost", {}, "model: is required"),
        ("estimate_cost", {"model": "m", "tokens_in": -1}, "tokens_in: input should be greater than or equal to 0"),
        ("estimate_cost", {"model": "m", "tokens_in": SECRET}, NO_NUMBER),
        ("estimate_cost", {"model": "m", "cache_ttl": SECRET}, "cache_ttl: input should be '5m' or '1h'"),
        ("get_run", {"key": SECRET * 99}, "key: has 1287 characters; the longest is 128"),
        ("get_run", {"run\n": SECRET}, "run : no such argument; there are key, calls"),
        ("get_token_summary", {"scope": SECRET}, "scope: input should be 'task', 'workstream', 'repo', 'commit', 'release' or 'session'"),
        ("get_budget_status", {"attrs": SECRET}, "attrs: input should be a valid dictionary"),
        ("get_budget_status", {"agent": ["x"], "task": {}}, "agent: input should be a valid string; task: input should be a valid string"),
        ("record_token_event", {"tokens_in": -1}, "tokens_in: must be an integer from 0 to 1000000000000"),
        ("record_token_event", {"tokens": 1}, "tokens: unknown field; did you mean tokens_in?"),
        ("record_token_event", {}, f"tokens_in: an event must tell one at least of {', '.join(AMOUNTS)}"),
        ("no_such_tool", {SECRET: SECRET}, f"there is no such tool; there are {', '.join(t.name for t in TOOLS)}"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(one: Asks, tool: str, arguments: dict[str, Any], line: str) -> None:
    """As an error of the tool, in one line, with what was expected and without what was given."""
    assert refused(one(tool, **arguments)) == line


def test_a_name_is_clean(one: Asks) -> None:
    """No control character comes near a database, or back."""
    line = refused(one("get_token_summary", id=f"{SECRET}\0"))
    assert line.startswith("id: holds a control character")
    assert SECRET not in line


def test_numbers_may_be_names_and_text_numbers(one: Asks) -> None:
    """Agents mix them up."""
    assert told(one("get_token_summary", id=12))["scope_id"] == "12"
    assert told(one("estimate_cost", model="claude-sonnet-4-5", tokens_in="1000"))["cost_usd"] == "0.003000"
