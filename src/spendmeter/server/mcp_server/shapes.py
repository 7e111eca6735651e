"""What each tool takes and gives, as typed documents: their JSON schemas are what an agent sees."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from spendmeter.server.answers import Budget, Call, ModelRow, Run
from spendmeter.token_events.fields import LABEL_MAX, Text

MOST = 10**15  # tokens
Name = Annotated[str, AfterValidator(Text("").read), Field(max_length=LABEL_MAX)]
Count = Annotated[int, Field(ge=0, le=MOST)]


class Arguments(BaseModel):
    """An argument that is not known is refused, by name."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class BudgetQuestion(Arguments):
    """A run, which may be one that is yet to start."""

    agent: Name | None = Field(None, description="role of the run, as in `spendmeter run --agent`; by default yours, where that is known")
    task: Name | None = Field(None, description="unit of work of the run, such as an issue key; by default yours, where that is known")
    cli: Name | None = Field(None, description="claude, codex, gemini, qwen, opencode or copilot")
    model: Name | None = Field(None, description="model that the run would call")
    repo: Name | None = Field(None, description="repository that the run would work in")
    attrs: dict[Name, Name] = Field({}, description="other tags of the run, such as team or plan")


class SummaryQuestion(Arguments):
    """What to sum up."""

    scope: Literal["task", "workstream", "repo", "commit", "release", "session"] = Field("task", description="what id is the name of")
    id: Name | None = Field(None, description="such as an issue key or a commit hash; by default the task or repository that you work on")


class RunQuestion(Arguments):
    """Which run."""

    key: Name = Field("last", description='"last", a run key, a run id, a session id, or the start of one that is not ambiguous')
    calls: bool = Field(False, description="whether to list every model request of the run; there may be hundreds")


class PriceQuestion(Arguments):
    """Tokens of one model."""

    model: Name = Field(description="as the CLI names it, such as claude-sonnet-4-5 or openai/gpt-5")
    tokens_in: Count = Field(0, description="input tokens that are neither read from the cache nor written to it")
    tokens_out: Count = Field(0, description="all output tokens, reasoning included")
    cache_read: Count = Field(0, description="input tokens read from the cache")
    cache_write: Count = Field(0, description="input tokens written to the cache")
    cache_ttl: Literal["5m", "1h"] = Field("5m", description="how long cache writes live")
    calls: int = Field(1, ge=1, le=MOST, description="how many requests the tokens are of; a long request may cost more per token")


class RunAnswer(Run):
    """A run, its usage by model, dearest first, and its calls, oldest first, where these were asked for."""

    by_model: list[ModelRow]
    call_list: list[Call] | None = None


class UnderWay(BaseModel):
    """What the run that asks is known to have used so far, which no budget's spent holds yet; null is unknown."""

    run_id: str
    used_usd: str | None
    used_tokens: int | None


class BudgetStatus(BaseModel):
    """What limits a run; ``budgets`` as of ``spendmeter budget list --json`` for it, in file order."""

    agent: str
    task: str
    allowed: bool = Field(description="whether such a run would be let start now")
    refusals: list[str] = Field(description="a line for each budget that would keep it from starting, the worst first")
    warnings: list[str] = Field(description="a line for each budget that is used up, but lets runs start")
    left: list[str] = Field(description="a line for each other budget: what it has left")
    budgets: list[Budget]
    this_run: UnderWay | None = Field(description="null where the server belongs to no run that has set anything aside")


class Estimate(BaseModel):
    """Cost at today's list price."""

    model: str
    cost_usd: str | None = Field(description="exact, in USD; null where it cannot be known", examples=["0.012345"])
    priced_as: str | None = Field(description="the price list's name of the model; null where it has none")
    near: list[str] = Field(description="names that may have been meant, where the model is unknown")
    prices: str = Field(description="version of the price list")
