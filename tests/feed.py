"""Usage put into a ledger by hand, at a time of the test's choosing."""

from __future__ import annotations

from collections.abc import Mapping

from spendmeter.config import Settings
from spendmeter.ledger import Batch, Ledger, Process
from spendmeter.records import Call, Claim, Finish, Observation, Tags, Usage

SETTLE_S = 1.0  # so that ``settle(at)`` and not the commit's own clock decides when usage is posted


class FlatPrice:
    """3 nano-USD for each token."""

    version = "flat"

    def price(
        self, model: str, usage: Usage, at_ms: int | None, traits: Mapping[str, str] = {}, *, context_tokens: int | None = None
    ) -> int | None:
        return None if model == "unpriced" else 3 * usage.tokens


def make_ledger(url: str, **changes: float) -> Ledger:
    """A ledger whose counters move when the test says so."""
    return Ledger(Settings(url, **{"zero_first_s": 60.0, "settle_s": SETTLE_S, **changes}), FlatPrice())  # type: ignore[arg-type]


def use(
    ledger: Ledger,
    session: str,
    tokens: int,
    at_ms: int,
    *,
    agent: str = "dev",
    task: str = "T-1",
    model: str = "m",
    calls: int = 1,
    cost_nusd: int | None = None,
    outcome: str = "ok",
    process: Process | None = None,
    duration_ms: int | None = None,
    subagent: str | None = None,
    view: str = "stdout",
) -> None:
    """One run of *session* that used *tokens* in all, posted to the counters at *at_ms*."""
    made: list[Observation] = []
    for i in range(calls):
        part = tokens // calls + (tokens % calls if i == 0 else 0)
        used = Usage(part, 0, 0, 0, 1, 0, 0, cost_nusd if i == 0 else None)
        at = at_ms - 1000 * (calls - i)
        made.append(Call("claude", f"{session}:{i}", session, used, model, model, at, view, subagent=subagent if i else None))
    made.append(Finish("claude", session, "r", "r", outcome, duration_ms=duration_ms, ended_ms=at_ms))
    claim = Claim("claude", session, "run:r", Tags(agent, task, {"stage": "draft"}), "r")
    ledger.commit(Batch(made, [claim], [process] if process else [], seen_ms=at_ms))
    ledger.settle(at_ms)
