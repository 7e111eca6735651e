"""Facts about list prices: which rate is chosen, and what it comes to. Rates are those of genai-prices 0.2.3."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spendmeter.prices import PriceTable
from spendmeter.prices.rates import KINDS
from spendmeter.records import NANO, Usage

M = 1_000_000
USD = NANO
BEFORE, AFTER = 1_773_359_999_999, 1_773_360_000_000  # around 2026-03-13T00:00Z


def ms(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)


NOW = ms("2026-11-21")


@pytest.fixture(scope="module")
def table() -> PriceTable:
    return PriceTable.load(now_ms=lambda: NOW)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (Usage(tokens_in=M), "4"),
        (Usage(tokens_out=M), "20"),
        (Usage(cache_read=M), "0.2"),
        (Usage(cache_write_5m=M), "5"),
        (Usage(cache_write_1h=M), "8"),
        (Usage(web_searches=1000), "10"),
        (Usage(tokens_out=M, reasoning=M), "20"),
        (Usage(tokens_in=1007, cache_read=20013, cache_write_5m=217, cache_write_1h=93, tokens_out=111), "0.0120796"),
    ],
)
def test_every_kind_has_its_own_rate(table: PriceTable, usage: Usage, usd: str) -> None:
    """5m and 1h cache writes are priced apart, reasoning is part of the output, a search is a thousandth of its rate."""
    assert table.price("claude-opus-5-5", usage, NOW) == int(Decimal(usd) * USD)


def test_an_unknown_model_has_no_price(table: PriceTable) -> None:
    """It is None even when nothing was used, never $0."""
    assert table.price("stub-model-x", Usage(tokens_in=1), NOW) is None
    assert table.price("stub-model-x", Usage(), NOW) is None
    assert table.rates("stub-model-x", NOW) is None


def test_nothing_used_costs_nothing(table: PriceTable) -> None:
    """A known model with no usage costs 0, under any trait."""
    assert table.price("claude-opus-5-5", Usage(), NOW) == 0
    assert table.price("claude-opus-5-5", Usage(0, 0, 0, 0, 0, 0, 0), None) == 0
    assert table.price("claude-opus-5-5", Usage(), NOW, {"tier": "priority"}) == 0


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("gpt-5.5-pro", Usage(cache_read=1)),  # "-" in OpenAI's table
        ("gemini-2.5-pro", Usage(cache_write_5m=1)),
        ("gpt-5.4", Usage(cache_write_1h=1)),
        ("github-copilot/claude-opus-5.5", Usage(cache_write_1h=1)),  # 2 x input is Anthropic's rule, not a reseller's
        ("perplexity/sonar", Usage(tokens_in=1)),  # has a fee per request besides
        ("openrouter/qwen/qwen3-coder:free", Usage(tokens_in=1)),
    ],
)
def test_a_kind_without_a_rate_has_no_price(table: PriceTable, model: str, usage: Usage) -> None:
    """The model is known, yet a wrong number is worse than none."""
    assert table.price(model, Usage(), NOW) == 0
    assert table.price(model, usage, NOW) is None


@pytest.mark.parametrize(
    ("model", "day", "usage", "usd"),
    [
        ("claude-sonnet-4-6", "2026-03-12T23:59:59.999", Usage(tokens_in=300_000), "1.8"),  # long context cost double ...
        ("claude-sonnet-4-6", "2026-03-13", Usage(tokens_in=300_000), "0.9"),  # ... until this day
        ("gemini-3.8-flash", "2026-12-31T23:59:59.999", Usage(tokens_in=M), "0.75"),
        ("gemini-3.8-flash", "2027-01-01", Usage(tokens_in=M), "1.5"),
    ],
)
def test_a_call_is_priced_by_its_own_day(table: PriceTable, model: str, day: str, usage: Usage, usd: str) -> None:
    """Rates change at midnight UTC."""
    assert table.price(model, usage, ms(day)) == int(Decimal(usd) * USD)


def test_an_undated_call_is_priced_as_of_now() -> None:
    """Unknown time takes the rates in force, not a future one that the library knows already."""
    for now, usd in (("2026-11-21", "0.75"), ("2027-01-02", "1.5")):
        table = PriceTable.load(now_ms=lambda now=now: ms(now))  # type: ignore[misc]
        assert table.price("gemini-3.8-flash", Usage(tokens_in=M), None) == int(Decimal(usd) * USD)


@pytest.mark.parametrize("at_ms", [-1, 0, 10**18])
def test_an_absurd_time_is_no_error(table: PriceTable, at_ms: int) -> None:
    """A corrupt timestamp prices at the nearest rates there are."""
    assert table.price("claude-opus-5-5", Usage(tokens_in=M), at_ms) == 4 * USD


def test_off_peak_prices_follow_the_hour(table: PriceTable) -> None:
    """DeepSeek's rates change within the day; the cache per day does not hide it."""
    prices = {table.price("deepseek-chat", Usage(tokens_in=M), ms(f"2025-07-01T{hour:02}:00")) for hour in (3, 18)}
    assert len(prices) == 2


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (Usage(tokens_in=50_000, cache_read=50_000), "0.0055"),
        (Usage(tokens_in=50_000, cache_read=50_001), "0.02750005"),
        (Usage(tokens_in=1, cache_read=40_000, cache_write_5m=40_000, cache_write_1h=20_000, tokens_out=M), "2.5470005"),
        (Usage(tokens_in=1, tokens_out=M), "0.5000001"),
    ],
)
def test_the_whole_input_of_the_call_chooses_the_tier(table: PriceTable, usage: Usage, usd: str) -> None:
    """Above the threshold every token costs more; cached input counts, output does not. Haiku 5.5: 5 x above 100k."""
    assert table.price("claude-haiku-5-5", usage, NOW) == int(Decimal(usd) * USD)


def test_a_sum_of_calls_stays_in_the_lowest_tier(table: PriceTable) -> None:
    """``context_tokens`` says how large the call was when *usage* does not."""
    many = Usage(tokens_in=M)
    assert table.price("claude-haiku-5-5", many, NOW) == 500_000_000
    assert table.price("claude-haiku-5-5", many, NOW, context_tokens=0) == 100_000_000
    assert table.price("claude-haiku-5-5", Usage(tokens_out=M), NOW, context_tokens=100_001) == 2_500_000_000


@pytest.mark.parametrize("value", ["", "standard", "default", "global", "Global", "not_available"])
@pytest.mark.parametrize("trait", ["speed", "geo", "tier"])
def test_neutral_traits_are_list_price(table: PriceTable, trait: str, value: str) -> None:
    """What providers write when nothing special was asked for."""
    assert table.price("claude-opus-5-5", Usage(tokens_in=M), NOW, {trait: value}) == 4 * USD


@pytest.mark.parametrize(
    ("model", "day", "traits", "usd"),
    [
        ("claude-opus-5-5", "2026-11-21", {"speed": "fast"}, "8"),  # the library's
        ("claude-opus-4-8", "2026-11-21", {"speed": "fast"}, "10"),
        ("claude-opus-4-6", "2026-04-30", {"speed": "fast"}, "30"),  # ours, 6 x
        ("claude-opus-4-6", "2026-05-01", {"speed": "fast"}, None),
        ("claude-opus-4-7", "2026-05-11", {"speed": "fast"}, None),
        ("claude-opus-4-7", "2026-05-12", {"speed": "fast"}, "30"),
        ("claude-opus-4-7", "2026-07-24", {"speed": "fast"}, None),
        ("claude-sonnet-5-5", "2026-11-21", {"speed": "fast"}, None),
        ("vertex_ai/claude-opus-5-5", "2026-11-21", {"speed": "fast"}, None),  # sold elsewhere, priced elsewhere
        ("azure/claude-opus-5-5", "2026-11-21", {"speed": "fast"}, None),
        ("azure/claude-opus-5-5", "2026-11-21", {}, "4"),
        ("claude-opus-5-5", "2026-11-21", {"geo": "us"}, "4.4"),
        ("claude-sonnet-4-6", "2026-11-21", {"geo": "us"}, "3.3"),
        ("claude-haiku-4-5", "2026-11-21", {"geo": "us"}, "1"),  # earlier models always use standard pricing
        ("claude-3-5-haiku-latest", "2026-11-21", {"geo": "us"}, "0.8"),
        ("claude-opus-5-5", "2026-11-21", {"geo": "eu"}, None),
        ("gpt-5.4", "2026-11-21", {"geo": "us"}, None),
        ("claude-opus-5-5", "2026-11-21", {"geo": "us", "speed": "fast"}, "8.8"),
        ("claude-opus-5-5", "2026-11-21", {"tier": "batch"}, "2"),
        ("claude-opus-5-5", "2026-10-13", {"tier": "batch"}, "2"),  # before the library's own rates: 0.5 x
        ("claude-opus-4-1", "2026-11-21", {"tier": "batch"}, "7.5"),
        ("claude-opus-5-5", "2026-11-21", {"tier": "batch", "geo": "us"}, "2.2"),
        ("claude-opus-5-5", "2026-11-21", {"tier": "batch", "speed": "fast"}, None),  # not sold together
        ("claude-opus-5-5", "2026-11-21", {"tier": "priority"}, None),  # a contract, no list price
        ("gpt-5.4", "2026-11-21", {"tier": "flex"}, "1.25"),
        ("gpt-5.4", "2026-10-11", {"tier": "flex"}, None),  # the library does not know that day's
        ("gpt-5.4", "2026-11-21", {"tier": "auto"}, None),
        ("claude-opus-5-5", "2026-11-21", {"colour": "blue"}, None),
    ],
)
def test_traits(table: PriceTable, model: str, day: str, traits: dict[str, str], usd: str | None) -> None:
    """A trait raises the input rate as published, or has no price."""
    expected = None if usd is None else int(Decimal(usd) * USD)
    assert table.price(model, Usage(tokens_in=M), ms(day), traits, context_tokens=0) == expected


def test_a_trait_touches_tokens_only(table: PriceTable) -> None:
    """Per-request fees such as web search are not multiplied."""
    for traits in ({"speed": "fast"}, {"geo": "us"}, {"tier": "batch"}, {"geo": "us", "speed": "fast"}):
        assert table.price("claude-opus-5-5", Usage(web_searches=1), NOW, traits) == 10_000_000


def test_fast_raises_cached_input_too(table: PriceTable) -> None:
    """Prompt caching multipliers apply on top of fast mode pricing."""
    rates = table.rates("claude-opus-5-5", NOW, {"speed": "fast"})
    assert rates is not None
    assert [str(rates.usd[k].normalize()) for k in KINDS] == ["8", "4E+1", "0.4", "1E+1", "16", "1E+1"]


def test_openai_cache_writes_cost_what_input_costs_before_gpt_5_6(table: PriceTable) -> None:
    """ "Cache writes have no additional fee on models before the GPT-5.6 family"."""
    assert table.price("gpt-5.1-codex", Usage(cache_write_5m=M), NOW) == 1_250_000_000
    assert table.price("gpt-5.6-sol", Usage(cache_write_5m=M), NOW) != table.price("gpt-5.6-sol", Usage(tokens_in=M), NOW)


def test_our_rules_agree_with_the_library_where_it_knows_better(table: PriceTable) -> None:
    """Batch is half of list price and a 1h write twice the input on every Claude model; so the rules hold where it is silent."""
    claude = [name for name in table.models() if name.startswith("anthropic/")]
    assert len(claude) > 20
    for name in claude:
        for context in (0, M):
            standard, batch = table.rates(name, NOW), table.rates(name, NOW, {"tier": "batch"})
            assert standard is not None
            assert batch is not None
            assert standard.at(context)["cache_write_1h"] == 2 * standard.at(context)["input"]
            assert all(2 * batch.at(context)[kind] == usd for kind, usd in standard.at(context).items() if kind != "web_search"), name


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("claude-sonnet-4-5-20250929", "anthropic/claude-sonnet-4-5"),
        ("claude-sonnet-4-5-20250929[1m]", "anthropic/claude-sonnet-4-5"),
        ("claude-opus-5-5[1m]", "anthropic/claude-opus-5-5"),
        ("Claude-Opus-5-5[1M]", "anthropic/claude-opus-5-5"),
        ("claude-sonnet-4.5", "anthropic/claude-sonnet-4-5"),
        ("claude-sonnet-4-5@20250929", "anthropic/claude-sonnet-4-5"),
        ("claude-opus-5-5@20260922", "anthropic/claude-opus-5-5"),
        ("anthropic/claude-sonnet-4.5", "anthropic/claude-sonnet-4-5"),
        ("vertex_ai/claude-opus-5-5@20260922", "google/claude-opus-5-5"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("bedrock us.anthropic.claude-sonnet-4-5-20250929-v1:0", "aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("global.anthropic.claude-opus-5-5-v1:0", "aws/global.anthropic.claude-opus-5-5"),
        ("gpt-5.1-codex", "openai/gpt-5.1"),
        ("openai/gpt-5.4", "openai/gpt-5.4"),
        ("models/gemini-2.5-pro", "google/gemini-2.5-pro"),
        ("openrouter/qwen/qwen3-coder-plus", "openrouter/qwen/qwen3-coder-plus"),
        ("github-copilot/claude-opus-4.8-fast", "github-copilot/claude-opus-4.8-fast"),
        ("claude-opus-4.8-fast", None),  # the library's prefix match says $5; it is $10
        ("my-gateway/claude-opus-5-5", None),
        ("ollama/gpt-oss:20b", None),
        ("qwen3-coder-plus", None),
        ("claude-wombat-9", None),
        ("<synthetic>", None),
        ("", None),
        ("/", None),
    ],
)
def test_names(table: PriceTable, name: str, model: str | None) -> None:
    """A name finds the price list it was billed by, or none."""
    rates = table.rates(name, NOW)
    assert (rates and rates.model) == model


def test_a_bedrock_region_costs_a_tenth_more(table: PriceTable) -> None:
    """The region is in the name, so it needs no trait."""
    assert table.price("us.anthropic.claude-opus-5-5-v1:0", Usage(tokens_in=M), NOW) == 4_400_000_000


def test_rates_say_where_they_come_from(table: PriceTable) -> None:
    """Source and first day stand beside the figures."""
    rates = table.rates("claude-sonnet-4-6", AFTER)
    assert rates is not None
    assert (rates.source, str(rates.valid_from)) == ("genai-prices", "2026-03-13")
    before = table.rates("claude-sonnet-4-6", BEFORE)
    assert before is not None
    assert (before.valid_from, [band.above for band in before.bands]) == (None, [0, 200_000])


def test_every_listed_model_has_rates(table: PriceTable) -> None:
    """What ``models`` names, ``rates`` finds under that very name."""
    names = list(table.models())
    assert len(names) > 2000
    assert [name for name in names if getattr(table.rates(name, NOW), "model", None) != name] == []


def test_the_version_names_what_prices_depend_on(table: PriceTable) -> None:
    """The library's version and the day of our rules."""
    assert table.version.startswith("genai-prices 0.2.")
    assert ", rules 2026-" in table.version


def test_loading_does_not_import_the_library() -> None:
    """genai-prices takes 0.16 s to import, which a run that prices nothing does not pay."""
    code = "import sys; from spendmeter.prices import PriceTable; PriceTable.load(); sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rates_are_resolved_once_a_day(table: PriceTable) -> None:
    """Two calls of one day share one object; the next day has its own."""
    assert table.rates("claude-opus-5-5", NOW) is table.rates("claude-opus-5-5", NOW + 86_399_999)
    assert table.rates("claude-opus-5-5", NOW) is not table.rates("claude-opus-5-5", NOW + 86_400_000)


def test_a_hundred_thousand_calls_are_quick(table: PriceTable) -> None:
    """Rates are resolved once per model and day; measured 0.4 s, allowed 5."""
    usage, traits = Usage(1007, 20013, 217, 93, 111), {"speed": "standard", "geo": "global"}
    start = time.process_time()
    for i in range(100_000):
        table.price("claude-opus-5-5" if i % 2 else "gpt-5.4", usage, NOW - i * 10_000, traits)
    assert time.process_time() - start < 5


COUNTS = st.none() | st.integers(0, 40_000)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.none(), COUNTS)
MODELS = st.sampled_from(["claude-sonnet-4-5", "claude-opus-5-5", "gpt-5.4", "gemini-2.5-pro", "openai/gpt-5.5-pro", "perplexity/sonar"])
TRAITS = st.dictionaries(st.sampled_from(["speed", "geo", "tier"]), st.sampled_from(["", "fast", "us", "batch", "flex", "x"]))
TIMES = st.none() | st.integers(ms("2026-01-01"), ms("2027-06-01"))


@given(MODELS, USAGES, USAGES, TIMES, TRAITS)
def test_price_is_additive_below_the_threshold(
    table: PriceTable, model: str, a: Usage, b: Usage, at: int | None, traits: dict[str, str]
) -> None:
    """Two calls cost what their sum costs, but for the rounding of each to a nano-USD; None if and only if one of them is."""
    prices = [table.price(model, usage, at, traits, context_tokens=0) for usage in (a, b, a.plus(b))]
    if prices[0] is None or prices[1] is None:
        assert prices[2] is None
    else:
        assert prices[2] is not None
        assert abs(prices[0] + prices[1] - prices[2]) <= 1


@given(MODELS, USAGES, TIMES, TRAITS)
def test_price_is_none_only_for_a_used_kind_without_a_rate(
    table: PriceTable, model: str, u: Usage, at: int | None, traits: dict[str, str]
) -> None:
    """And it is never negative, and 0 only when nothing was used."""
    rates = table.rates(model, at, traits)
    assert rates is not None
    used = dict(zip(KINDS, (u.tokens_in, u.tokens_out, u.cache_read, u.cache_write_5m, u.cache_write_1h, u.web_searches), strict=True))
    lacking = [kind for kind, count in used.items() if count and kind not in rates.usd]
    price = table.price(model, u, at, traits)
    assert (price is None) == bool(lacking)
    assert price is None or price >= 0


@given(st.text(max_size=40), TIMES, st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3))
def test_any_name_and_trait_is_priced_or_not_and_never_an_error(
    table: PriceTable, model: str, at: int | None, traits: dict[str, str]
) -> None:
    """Model names come from files that anyone may have written."""
    price = table.price(model, Usage(tokens_in=1), at, traits)
    assert price is None or price >= 0
