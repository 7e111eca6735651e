"""Facts about prices.yaml: what it changes, and what it says of a mistake."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spendmeter.errors import PriceError
from spendmeter.prices import PriceTable
from spendmeter.prices.override_file import ENTRY_KEYS
from spendmeter.prices.rules import PREMIUMS
from spendmeter.records import NANO, Usage

M = 1_000_000
FILE = Path(__file__).parent / "fixtures" / "prices" / "prices.yaml"
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "prices.md"


def ms(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)


NOW = ms("2026-11-21")


@pytest.fixture(scope="module")
def table() -> PriceTable:
    return PriceTable.load(FILE, now_ms=lambda: NOW)


@pytest.mark.parametrize(
    ("model", "day", "usage", "traits", "usd"),
    [
        ("house-coder", "2026-09-30T23:59:59.999", Usage(tokens_in=M), {}, None),  # before the first entry
        ("house-coder", "2026-10-01", Usage(tokens_in=M), {}, "0"),  # a model may legitimately cost nothing
        ("house-coder", "2026-10-31T23:59:59.999", Usage(tokens_out=M), {}, "0"),
        ("house-coder", "2026-11-01", Usage(tokens_in=100_000), {}, "0.15"),  # written per thousand tokens
        ("house-coder", "2026-11-01", Usage(tokens_in=100_001), {}, "0.300003"),
        ("house-coder", "2026-11-01", Usage(tokens_in=100_001, tokens_out=M), {}, "6.300003"),  # output has no long rate of its own
        ("HOUSE-coder[1m]", "2026-11-01", Usage(tokens_out=M), {}, "6"),
        ("house-coder", "2026-11-01", Usage(cache_read=1), {}, None),  # neither here nor in the library
        ("house-coder", "2026-11-01", Usage(tokens_out=M), {"speed": "fast"}, "15"),
        ("house-coder", "2026-11-01", Usage(tokens_out=M), {"geo": "eu"}, "7.2"),
        ("house-coder", "2026-11-01", Usage(tokens_out=M), {"geo": "us"}, None),
        ("house-coder", "2026-11-01", Usage(tokens_out=M), {"tier": "flex", "geo": "eu"}, "3.6"),
        ("claude-opus-5-5", "2026-11-21", Usage(tokens_in=M), {}, "3"),
        ("claude-opus-5-5", "2026-11-21", Usage(tokens_out=M), {}, "20"),  # falls back to the library
        ("claude-opus-5-5", "2026-11-21", Usage(web_searches=1000), {}, "8"),
        ("claude-opus-5-5", "2026-11-21", Usage(tokens_in=M), {"geo": "us"}, "3.3"),
        ("claude-opus-5-5", "2026-11-21", Usage(tokens_in=M), {"speed": "fast"}, "6"),  # the premium of the list price, 2 x
        ("claude-opus-5-5", "2026-11-21", Usage(tokens_out=M), {"speed": "fast"}, "40"),
        ("claude-opus-5-5", "2026-11-21", Usage(web_searches=1000), {"speed": "fast"}, "8"),
        ("anthropic/claude-opus-5-5", "2026-11-21", Usage(tokens_in=M), {}, "4"),  # the glob is over the name as it was written
        ("claude-sonnet-5-5", "2026-11-21", Usage(tokens_in=M), {}, "2"),
    ],
)
def test_the_file_wins_over_the_library(
    table: PriceTable, model: str, day: str, usage: Usage, traits: dict[str, str], usd: str | None
) -> None:
    """Entry by entry: glob, half-open days, unit, long context, premiums, and what is left to the library."""
    expected = None if usd is None else int(Decimal(usd) * NANO)
    assert table.price(model, usage, ms(day), traits) == expected


def test_the_first_entry_that_covers_a_call_wins(tmp_path: Path) -> None:
    """Order in the file decides; entries are not merged."""
    path = tmp_path / "prices.yaml"
    path.write_text('- {match: "new-*", input: 1}\n- {match: new-model, input: 2, output: 3}\n')
    table = PriceTable.load(path)
    assert table.price("new-model", Usage(tokens_in=M), NOW) == 1 * NANO
    assert table.price("new-model", Usage(tokens_out=M), NOW) is None


def test_a_premium_of_zero_is_a_premium(tmp_path: Path) -> None:
    """A factor of 0 makes it free; it is not a missing factor."""
    path = tmp_path / "prices.yaml"
    path.write_text('- {match: "claude-*", fast: 0}\n')
    assert PriceTable.load(path).price("claude-opus-5-5", Usage(tokens_in=M), NOW, {"speed": "fast"}) == 0


def test_rates_are_exact_decimals(tmp_path: Path) -> None:
    """0.1 + 0.2 is 0.3: a rate is never a float."""
    path = tmp_path / "prices.yaml"
    path.write_text("- {match: m, input: 0.1, output: 0.2}\n")
    assert PriceTable.load(path).price("m", Usage(tokens_in=10**15, tokens_out=10**15), NOW) == 300_000_000 * NANO


def test_an_override_shows_in_version_and_listing(table: PriceTable) -> None:
    """The version changes with the file's bytes, the listing begins with its patterns."""
    assert re.search(r", prices\.yaml [0-9a-f]{8}$", table.version)
    assert list(table.models())[:2] == ["house-coder", "claude-opus-5-5*"]
    rates = table.rates("house-coder", NOW)
    assert rates is not None
    assert (rates.source, rates.model, str(rates.valid_from)) == ("override", "house-coder", "2026-11-01")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "[]\n"])
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    """It is a valid file with no entries."""
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    assert PriceTable.load(path).price("claude-opus-5-5", Usage(tokens_in=M), NOW) == 4 * NANO


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("match: m\ninput: 1\n", '1: a mapping where a list was expected; begin each entry with "- match: ..."'),
        ("- m\n", '1: "m" where a mapping was expected, with keys ' + ", ".join(ENTRY_KEYS)),
        ("- match: m\n  inptu: 1\n", f'2: key "inptu" is not one of {", ".join(ENTRY_KEYS)}; did you mean "input"?'),
        ("- match: m\n  cache-read: 1\n", f'2: key "cache-read" is not one of {", ".join(ENTRY_KEYS)}; did you mean "cache_read"?'),
        ("- input: 1\n", '1: an entry without "match"; name the models it is for, as match: "claude-*"'),
        ("- match: m\n  per: million\n", "1: an entry that sets no rate; give at least one of " + ", ".join(ENTRY_KEYS[4:])),
        ("- match: m\n  input: 1\n  input: 2\n", '3: key "input" is given twice in one mapping; keep one of them'),
        ("- match: m\n  input: cheap\n", '2: input "cheap" is not a number; write it as 3 or 0.25'),
        ("- match: m\n  input: $3\n", '2: input "$3" is not a number; write it as 3 or 0.25'),
        ("- match: m\n  input: -1\n", '2: input "-1" is not a finite number of 0 or more'),
        ("- match: m\n  output: .inf\n", '2: output ".inf" is not a number; write it as 3 or 0.25'),
        ("- match: m\n  output: NaN\n", '2: output "NaN" is not a finite number of 0 or more'),
        ("- match: m\n  input: [1]\n", "2: a list where a text was expected"),
        ("- match: m\n  input:\n", '2: "" where a text was expected'),
        ("- match: m\n  per: milion\n  input: 1\n", '2: per "milion" is not one of million, thousand; did you mean "million"?'),
        ("- match: m\n  from: soon\n  input: 1\n", '2: "soon" is not a day; write it as 2026-01-31 (UTC)'),
        (
            "- match: m\n  from: 2026-06-01\n  to: 2026-06-01\n  input: 1\n",
            '3: to "2026-06-01" is not after from "2026-06-01"; to is the first day that is no longer covered',
        ),
        ("- match: m\n  long_context: {above: 0, input: 1}\n", '2: above "0" is not a whole number of tokens above 0'),
        (
            "- match: m\n  long_context: {input: 1}\n",
            '2: long_context without "above" or without a rate; write {above: 200000, input: 6, output: 22.5}',
        ),
        (
            "- match: m\n  long_context: {over: 1, input: 1}\n",
            '2: key "over" is not one of above, input, output, cache_read, cache_write_5m, cache_write_1h; did you mean "above"?',
        ),
        ("- match: m\n  geo: us\n", '2: "us" where a mapping was expected, as {us: 1.1}'),
        ("- match: m\n  geo: {us: much}\n", '2: geo us "much" is not a number; write it as 3 or 0.25'),
        ("- match: m\n  input: 1\n bad\n", "3: not YAML (expected <block end>, but found '<scalar>'); expected a list of entries"),
        ("- match: 'm\n", "2: not YAML (found unexpected end of stream); expected a list of entries"),
    ],
)
def test_a_mistake_is_named_by_line_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    """No traceback: where, what was seen, what was expected."""
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(PriceError) as caught:
        PriceTable.load(path)
    assert str(caught.value).removeprefix(f"{path}:") == message


def test_a_missing_file_is_a_price_error(tmp_path: Path) -> None:
    """So are a folder and bytes that are not text."""
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.yaml", tmp_path, binary):
        with pytest.raises(PriceError, match=re.escape(str(path))):
            PriceTable.load(path)


@given(st.binary(max_size=200) | st.text(alphabet="- match:input[]{}&*!%@\n\"'#|>1.,<", max_size=80).map(str.encode))
def test_any_bytes_raise_nothing_but_price_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """A broken file stops at its message."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with suppress(PriceError):
        PriceTable.load(path)


def test_the_example_of_the_page_works(tmp_path: Path) -> None:
    """docs/reference/prices.md shows a file that loads, and says what it comes to."""
    page = PAGE.read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert example is not None
    path = tmp_path / "prices.yaml"
    path.write_text(example[1])
    table = PriceTable.load(path, now_ms=lambda: NOW)
    rows = re.findall(r"^\| `(\S+)` \| (\d+) in, (\d+) out \| (\S*) ?\| (\S+) \|$", page, re.MULTILINE)
    assert len(rows) >= 4
    for model, tokens_in, tokens_out, trait, usd in rows:
        traits = dict([trait.strip("`").split("=")]) if trait else {}
        expected = int(Decimal(usd) * NANO)
        assert table.price(model, Usage(tokens_in=int(tokens_in), tokens_out=int(tokens_out)), NOW, traits) == expected


def test_the_page_names_every_key() -> None:
    """No key of the format is undocumented."""
    page = PAGE.read_text(encoding="utf-8")
    assert [key for key in ENTRY_KEYS if f"`{key}`" not in page] == []


def test_the_page_names_every_rule() -> None:
    """Factor and days of each premium of rules.py stand on the page."""
    page = PAGE.read_text(encoding="utf-8")
    for rule in PREMIUMS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{rule.trait}: {rule.value}`"))
        assert f"{rule.factor} x" in row
        assert all(str(day) in row for day in (rule.since, rule.until) if day is not None)
