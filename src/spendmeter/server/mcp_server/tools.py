"""The tools: each is a function from its arguments to a text for the agent and a document for programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel

from spendmeter import guard, token_events
from spendmeter.budgets import Budgets, Subject
from spendmeter.budgets.model import GUARDING, TAGS
from spendmeter.errors import ConfigError
from spendmeter.guard import verdict
from spendmeter.ledger import Ledger, budgeting, now_ms, reservations
from spendmeter.ledger.query import Report
from spendmeter.ledger.reservations import Reservation
from spendmeter.projections import reports, summary
from spendmeter.projections.messages import messages
from spendmeter.records import Tags, Usage, usd_text
from spendmeter.server.answers import TokenEventRow, TokenSummary
from spendmeter.server.details import RunDetails, details
from spendmeter.server.mcp_server import shapes
from spendmeter.server.mcp_server.source import Source
from spendmeter.token_events.model import schema
from spendmeter.token_events.reading import as_json


class Answer(NamedTuple):
    """``text`` for reading, ``document`` for programs: JSON values of the tool's answer shape."""

    text: str
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool; ``description`` is written for the agent that is to choose it.

    ``call`` raises SpendmeterError or NoRunError, in one line that says what to do.
    """

    name: str
    title: str
    description: str
    takes: dict[str, Any]  # JSON schema of the arguments
    read: Callable[[dict[str, Any]], Any]  # raises ValidationError or SpendmeterError
    gives: type[BaseModel]
    call: Callable[[Source, Any], Answer]
    writes: bool = False

    @property
    def scope(self) -> str:
        """The token scope that a request over HTTP needs."""
        return "write" if self.writes else "read"


def _tool(name: str, title: str, takes: type[BaseModel], gives: type[BaseModel], call: Callable[[Source, Any], Answer], about: str) -> Tool:
    return Tool(name, title, about, takes.model_json_schema(), takes.model_validate, gives, call)


# -- token events ------------------------------------------------------------------------------------------------------


def record_event(source: Source, told: dict[str, Any]) -> Answer:
    """Records usage as an event; agent and task are the caller's where *told* names none."""
    who = {"agent": source.caller.subject.agent, "task": source.caller.subject.task}
    event = token_events.read(who | {name: value for name, value in told.items() if value is not None})
    done = source.book().events.record([event])
    row = as_json(done.rows[0])
    first = "recorded" if done.new else "was recorded before, nothing was added"
    tokens = "no tokens in or out" if row["tokens_total"] is None else verdict.counted(row["tokens_total"], "token")
    return Answer(f"{first}: {tokens} of agent {row['agent']} for task {row['task']}, event {row['id']}", row)


def token_summary(source: Source, asked: shapes.SummaryQuestion) -> Answer:
    """What was used within a scope, by model and by agent."""
    name = asked.id or (source.caller.subject.get(asked.scope) if asked.scope in TAGS else None)
    if not name:
        raise ConfigError(f"id: is required; give the name of the {asked.scope}")
    document = token_events.summary(source.book().ledger(), asked.scope, name).as_dict()
    return Answer(_summary_text(document), document)


def _summary_text(document: dict[str, Any]) -> str:
    about = f"{document['scope']} {reports.printable(document['scope_id'])}"
    if not document["event_count"] and not document["by_model"]:  # a rule may give a task a part of runs that are another's
        return f"Nothing is recorded for {about}."
    known = ", ".join(f"{name} {_known(document[name])}" for name in ("tokens_in", "tokens_out", "cost_usd", "event_count"))
    lines = [("by", "name", "tokens")]
    lines += [(by, reports.printable(name), _known(n)) for by in ("model", "agent") for name, n in document[f"by_{by}"].items()]
    return f"{about}: {known}\n\n{reports.aligned(lines, (0, 1))}".rstrip()


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)


# -- budgets -----------------------------------------------------------------------------------------------------------


def budget_status(source: Source, asked: shapes.BudgetQuestion) -> Answer:
    """Budgets that cover such a run, and whether it would be let start."""
    budgets, ledger, at = source.budgets(), source.book().ledger(), now_ms()
    mine = _under_way(ledger, source.caller.run_id, at)
    subject = _subject(asked, mine.subject if mine else source.caller.subject)
    states = budgeting.states(ledger, budgets, at, subject)
    guarding = Budgets(tuple(b for b in budgets.budgets if b.action in GUARDING))
    refusals = guard.check(ledger, guarding, subject, at_ms=at).refusals
    over = [s for s in states if s.over]
    document = {
        "agent": subject.agent, "task": subject.task, "allowed": not refusals, "refusals": refusals,
        "warnings": [verdict.over(s) for s in over if s.budget.action not in GUARDING],
        "left": [verdict.left(s) for s in states if not s.over], "budgets": [s.as_dict() for s in states],
        "this_run": mine and {"run_id": mine.run_id, "used_usd": usd_text(mine.used_nusd), "used_tokens": mine.used_tokens},
    }  # fmt: skip
    return Answer("\n".join(_told(document, budgets)), document)


def _under_way(ledger: Ledger, run_id: str | None, at_ms: int) -> Reservation | None:
    if run_id is None:
        return None
    with ledger.read() as conn:
        return next((r for r in reservations.held(conn, at_ms) if r.run_id == run_id), None)


def _subject(asked: shapes.BudgetQuestion, caller: Subject) -> Subject:
    """The run that is asked about: what the arguments leave out is the caller's, without that a run's that names none."""
    unnamed = Subject(Tags().agent, Tags().task)
    told = {tag: getattr(asked, tag) or getattr(caller, tag) or getattr(unnamed, tag) for tag in TAGS}
    return Subject(**told, attrs={**caller.attrs, **asked.attrs})


def _told(document: dict[str, Any], budgets: Budgets) -> list[str]:
    who = f"A run of agent {reports.printable(document['agent'])} for task {reports.printable(document['task'])}"
    lines = [f"{who} would be let start now." if document["allowed"] else f"{who} would be refused."]
    lines += [f"- {line}" for name in ("refusals", "warnings", "left") for line in document[name]]
    if not document["budgets"]:
        lines.append("No budget covers it." if budgets.budgets else "No budgets are set up: nothing limits it.")
    if mine := document["this_run"]:
        lines.append(f"This run has used {_used(mine)} so far: that is set aside, but not spent yet.")
    elif document["agent"] == Tags().agent:
        lines.append("No agent was named: budgets for an agent of its own are not among these; give agent and task to see them.")
    return lines


def _used(mine: dict[str, Any]) -> str:
    m, tokens = messages(), mine["used_tokens"]
    cost = "an unknown cost" if mine["used_usd"] is None else f"${mine['used_usd']}"
    return f"{cost} and {'an unknown number of' if tokens is None else m.whole(tokens)} tokens"


# -- runs --------------------------------------------------------------------------------------------------------------


def run(source: Source, asked: shapes.RunQuestion) -> Answer:
    """One run with what it used, by model."""
    found = details(source.book(), asked.key)
    document = found.as_dict()
    if not asked.calls:
        del document["call_list"]
    return Answer(_run_text(found), document)


def _run_text(found: RunDetails) -> str:
    head = summary.finish_line(found.run, messages())
    about = f"{found.run.cli} run {found.run.run_key} of task {reports.printable(found.run.task)}"
    table = reports.as_text(Report(("model",), found.by_model, found.run.amounts))
    return "\n".join([head, about, *[f"not known: {note}" for note in found.run.notes], "", table.rstrip("\n")]).rstrip()


# -- prices ------------------------------------------------------------------------------------------------------------


def estimate(source: Source, asked: shapes.PriceQuestion) -> Answer:
    """What the tokens cost at today's list price."""
    table = source.prices
    written = (asked.cache_write, 0) if asked.cache_ttl == "5m" else (0, asked.cache_write)
    usage = Usage(asked.tokens_in, asked.cache_read, *written, asked.tokens_out)
    each = (usage.tokens - asked.tokens_out) // asked.calls
    rates, cost = table.rates(asked.model, None), table.price(asked.model, usage, None, context_tokens=each)
    near = table.near(asked.model) if rates is None else []
    document = {
        "model": asked.model, "cost_usd": usd_text(cost), "priced_as": rates and rates.model, "near": near, "prices": table.version,
    }  # fmt: skip
    return Answer(_price_text(document), document)


def _price_text(document: dict[str, Any]) -> str:
    if document["cost_usd"] is not None:
        return f"${document['cost_usd']} at today's list price of {document['priced_as']} ({document['prices']})"
    if document["priced_as"]:
        return f"unknown: the price list has no rate of {document['priced_as']} for some of these tokens ({document['prices']})"
    hint = f"; did you mean {' or '.join(document['near'])}?" if document["near"] else ""
    return f"unknown: the price list does not know this model{hint} ({document['prices']})"


# The Messages API refuses a request with any tool that has a combinator at the top of its schema; reading the event checks the same.
# Source: https://github.com/anthropics/claude-code/issues/40075
_EVENT = {name: value for name, value in schema().items() if name not in ("allOf", "anyOf", "oneOf")}

TOOLS = (
    Tool(
        "record_token_event", "Record usage",
        "Records tokens that a model used for a task, so that reports, budgets and metrics count them. Only for usage that "
        "nothing else meters, such as calls you made to a model's API yourself: runs under `spendmeter run` and CLIs whose "
        "session files spendmeter reads are counted already, and would count twice. Leave out what you do not know; 0 means none. "
        "Give an idempotency_key, so that a repeated call adds nothing.",
        _EVENT, dict, TokenEventRow, record_event, writes=True,
    ),
    _tool(
        "get_token_summary", "What a task has used", shapes.SummaryQuestion, TokenSummary, token_summary,
        "Tokens and cost of everything recorded for one task, workstream, repository, commit, release or session: metered runs and "
        "recorded events together, by model and by agent, as a table. Without arguments it is about the task that you work on, if "
        "spendmeter knows it.",
    ),
    _tool(
        "get_budget_status", "What is left of budgets", shapes.BudgetQuestion, shapes.BudgetStatus, budget_status,
        "How much money, tokens or runs the budgets leave, and whether another run would be let start now. Ask this before "
        "starting expensive work or further agents, and when you want to know what you have left. Without arguments it is "
        "about the run that you are part of, if spendmeter started it; otherwise give agent and task.",
    ),
    _tool(
        "get_run", "What a run used", shapes.RunQuestion, shapes.RunAnswer, run,
        "Tokens, cost, models, duration and outcome of one finished run of a coding-agent CLI, exactly as the ledger has them. "
        "A run under way is not in the ledger before it ends. Holds no prompts and no answers.",
    ),
    _tool(
        "estimate_cost", "What tokens cost", shapes.PriceQuestion, shapes.Estimate, estimate,
        "Exact cost in USD of a number of tokens at today's list price of a model: to compare models, or to size work before it "
        "starts. Unknown, with near names, for a model that the price list does not have; never a guess.",
    ),
)  # fmt: skip
