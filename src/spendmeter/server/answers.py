"""Answers as typed documents: what the API and the MCP tools say of theirs. Unknown is null, money a decimal string."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from spendmeter.token_events.model import REF_TYPES


class Amounts(BaseModel):
    """Sums; null is unknown. Money is a decimal string in USD."""

    tokens_in: int | None = Field(description="uncached input")
    tokens_out: int | None = Field(description="all output, reasoning included")
    cache_read: int | None
    cache_write: int | None
    reasoning: int | None
    cost_usd: str | None = Field(examples=["0.012345"])
    runs: int
    calls: int | None
    cache_write_5m: int | None
    cache_write_1h: int | None
    cost_reported_usd: str | None = Field(description="the CLI's own figure")
    cost_estimated_usd: str | None = Field(description="list price of what the CLI did not price")
    cost_listed_usd: str | None = Field(description="everything at list price, for comparison")
    unpriced_tokens: int | None
    web_searches: int | None


class ReportRow(Amounts):
    """Sums with the dimensions that they are cut by, each a field of its own."""

    model_config = ConfigDict(extra="allow")


class Report(BaseModel):
    """As ``spendmeter report --json``."""

    rows: list[ReportRow]
    total: Amounts


class Run(Amounts):
    """One run with all that it used. Times are milliseconds since the epoch, UTC."""

    run_key: str
    cli: str
    session: str
    agent: str
    task: str
    outcome: str = Field(examples=["ok", "error", "max_turns", "max_budget", "interrupted", "killed", "unknown"])
    implied: bool = Field(description="files alone tell of it, no result and no wrapper")
    attrs: dict[str, str]
    models: list[str]
    started_ms: int | None
    ended_ms: int | None
    duration_ms: int | None
    exit_code: int | None
    repo: str | None
    branch: str | None
    notes: list[str] = Field(description="what is not known of it, and why")


class Runs(BaseModel):
    """A page of runs, the latest first."""

    runs: list[Run]
    next_cursor: str | None = Field(description="for the next page; null at the end")


class ModelRow(Amounts):
    """A run's usage of one model."""

    model: str


class Call(BaseModel):
    """One answered model request."""

    call_id: str
    at_ms: int | None
    asked: str | None
    answered: str | None
    role: str
    subagent: str | None
    tokens_in: int | None
    tokens_out: int | None
    cache_read: int | None
    cache_write: int | None
    reasoning: int | None
    cache_write_5m: int | None
    cache_write_1h: int | None
    cost_usd: str | None


class RunDetails(Run):
    """A run with its models and, where a source tells them, its calls."""

    by_model: list[ModelRow]
    call_list: list[Call]


class Facts(BaseModel):
    """What the ledger is and how much it holds."""

    ledger_id: str
    created_ms: int
    sessions: int
    calls: int
    unsettled: int = Field(description="sessions whose usage is not in the counters yet")
    bytes: int | None


class BudgetPeriod(BaseModel):
    """The window that a budget is in; start and end are ISO 8601, UTC."""

    kind: str = Field(examples=["day", "week", "month", "rolling", "total"])
    timezone: str
    start: str | None
    end: str | None
    seconds: int | None


class BudgetThreshold(BaseModel):
    """A share of the limit, and whether it is reached."""

    at: str = Field(examples=["0.8"])
    severity: str
    crossed: bool


class Budget(BaseModel):
    """Where a budget stands, or one value of its ``per``. Besides, in its unit (usd, tokens, runs): ``limit_usd``, ``spent_usd``,
    ``remaining_usd``, ``reserved_usd``, ``forecast_usd``; money is a decimal string."""

    model_config = ConfigDict(extra="allow")

    name: str
    value: str | None
    per: str | None
    action: str
    owner: str
    description: str
    unit: str
    period: BudgetPeriod
    unpriced_tokens: int = Field(description="what is missing from an amount of money, as nobody knows its price")
    share: str | None = Field(examples=["0.8123"])
    thresholds: list[BudgetThreshold]
    over: bool


class Budgets(BaseModel):
    """As ``spendmeter budget list --json``."""

    budgets: list[Budget]


class PlanVariance(BaseModel):
    """A plan beside its runs, as ``spendmeter plan variance --json``. Besides: ``calls``, ``prompt_tokens``, ``total_tokens`` and
    ``cost_usd``, each with what was estimated, what was used and by how much they differ."""

    model_config = ConfigDict(extra="allow")

    plan: str
    snapshot_id: str | None
    snapshot_resolved: bool = Field(description="whether its estimates are recorded; else they are null")
    recorded_at: str | None
    per_workflow: list[dict[str, Any]]
    duration_seconds: float | None


class Plans(BaseModel):
    """Plans by name."""

    plans: list[PlanVariance]


class TokenEventRow(BaseModel):
    """An event as it was posted, and what the ledger adds; null is unknown."""

    id: str = Field(description="also the key of its run")
    agent: str
    task: str
    workstream: str | None
    repo: str | None
    ref_type: str | None = Field(json_schema_extra={"enum": [*REF_TYPES, None]})
    ref_id: str | None
    model: str | None
    tokens_in: int | None
    tokens_out: int | None
    cache_read: int | None
    cache_write: int | None
    cost_usd: str | None = Field(description="as posted; the summary has the list price where it was not", examples=["0.012345"])
    note: str | None
    occurred_at: str = Field(json_schema_extra={"format": "date-time"})
    idempotency_key: str | None
    tokens_total: int | None = Field(description="tokens_in + tokens_out")
    created_at: str = Field(json_schema_extra={"format": "date-time"})


class TokenSummary(BaseModel):
    """What was used within a scope, by posted events and metered runs together."""

    scope: str
    scope_id: str
    tokens_in: int | None
    tokens_out: int | None
    tokens_total: int | None = Field(description="tokens_in + tokens_out")
    cost_usd: str | None = Field(description="reported, and the list price of the rest", examples=["0.012345"])
    event_count: int = Field(description="posted events and metered runs; an event is counted once")
    by_model: dict[str, int | None] = Field(description="model: tokens_total, most first")
    by_agent: dict[str, int | None] = Field(description="agent: tokens_total, most first")
