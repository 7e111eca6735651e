"""The price check of docs: what real CLIs computed at list price, this table computes too, to the nano-USD."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spendmeter.prices import PriceTable
from spendmeter.records import Usage, to_nusd

RUNS = Path(__file__).parent / "fixtures" / "runs"
CLAUDE = sorted(RUNS.glob("claude/*/stdout"))
TRUTHS = sorted(RUNS.glob("*/*/truth.json"))
MEASURED_MS = 1_795_304_486_066  # 2026-11-21, when the runs were captured

UNKNOWN = {"qwen3-coder-flash", "qwen3-coder-plus", "stub-chat", "stub-model-x", "stub-small", "qwen3-max"}
"""Models of the captured runs that genai-prices does not know: the stub's own, and Alibaba's price list."""


@pytest.fixture(scope="module")
def table() -> PriceTable:
    return PriceTable.load()


def objects(text: str) -> Iterator[Any]:
    """Every JSON value on stdout: one document, or one a line."""
    try:
        yield json.loads(text)
    except ValueError:
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def results(value: Any) -> Iterator[dict[str, Any]]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and item.get("type") == "result":
            yield item


def usage_of(row: dict[str, Any]) -> Usage:
    return Usage(
        tokens_in=row["inputTokens"],
        cache_read=row["cacheReadInputTokens"],
        cache_write_5m=row["cacheCreationEphemeral5mInputTokens"],
        cache_write_1h=row["cacheCreationEphemeral1hInputTokens"],
        tokens_out=row["outputTokens"],
        web_searches=row["webSearchRequests"],
    )


def test_there_are_captured_runs() -> None:
    """An empty glob would pass every check below."""
    assert len(CLAUDE) > 40
    assert len(TRUTHS) > 100


def test_claude_model_usage_at_list_price_is_its_cost(table: PriceTable) -> None:
    """Every ``modelUsage`` whose ``costBasis`` is "list" equals ``costUSD``; it sums calls, all below any threshold."""
    seen, wrong = 0, []
    for path in CLAUDE:
        for result in (r for value in objects(path.read_text(encoding="utf-8")) for r in results(value)):
            for model, row in result["modelUsage"].items():
                price = table.price(model, usage_of(row), MEASURED_MS, context_tokens=0)
                if row.get("costBasis", "list") != "list":
                    assert price is None, "what the CLI guesses, the table does not know"
                    continue
                seen += 1
                if price != to_nusd(round(row["costUSD"], 9)):
                    wrong.append((path.parent.name, model, price, row["costUSD"]))
    assert wrong == []
    assert seen >= 30


def test_claude_totals_at_list_price(table: PriceTable) -> None:
    """``total_cost_usd`` is the sum of its models, so a whole result agrees as well."""
    for path in CLAUDE:
        for result in (r for value in objects(path.read_text(encoding="utf-8")) for r in results(value)):
            prices = [table.price(m, usage_of(row), MEASURED_MS, context_tokens=0) for m, row in result["modelUsage"].items()]
            if None not in prices:
                assert sum(p for p in prices if p is not None) == to_nusd(round(result["total_cost_usd"], 9)), path.parent.name


def test_only_known_gaps_are_unpriced(table: PriceTable) -> None:
    """Every call of every captured run has a list price but for the models named in ``UNKNOWN``."""
    calls = [call for path in TRUTHS for call in json.loads(path.read_text(encoding="utf-8"))["calls"] if call.get("usage")]
    unpriced = set()
    for call in calls:
        usage = Usage(**{k: call["usage"].get(k) for k in ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out")})
        if table.price(call["model"], usage, int(call["ts"] * 1000) if "ts" in call else MEASURED_MS) is None:
            unpriced.add(call["model"])
    assert unpriced <= UNKNOWN
