"""Reports for eyes, pipes and spreadsheets: nothing is cut that is a number, unknown is no 0, names do no harm."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rich.console import Console

from spendmeter.ledger.query import Amounts, Report, Row
from spendmeter.projections import reports

BIG = Amounts(
    tokens_in=1_234_567, cache_read=98_765_432, cache_write_5m=300, cache_write_1h=45, tokens_out=45_213, reasoning=17, web_searches=0,
    reported_nusd=12_340_000_000, estimated_nusd=None, listed_nusd=12_340_000_000, unpriced_tokens=0, calls=88, runs=12,
)  # fmt: skip
SMALL = Amounts(tokens_in=5_063, cache_read=100_117, tokens_out=478, estimated_nusd=1_230_000_000, unpriced_tokens=0, runs=3)
FAILED = Amounts(runs=1)


def made(*rows: tuple[tuple[str | None, ...], Amounts], by: tuple[str, ...] = ("agent", "task")) -> Report:
    total = Amounts()
    for _, amounts in rows:
        total = total.plus(amounts)
    return Report(by, tuple(Row(k, a) for k, a in rows), total)


REPORT = made((("developer", "SHOP-1"), BIG), (("reviewer", "SHOP-1"), SMALL), (("reviewer", None), FAILED))


def drawn(report: Report, width: int, **options: Any) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None, **options)
    console.print(reports.as_table(report, console))
    return console.export_text()


def test_the_table_as_a_terminal_shows_it() -> None:
    """100 columns: short numbers on the right, a total, dashes for unknown, a mark and a note for what is estimated."""
    assert [line.rstrip() for line in drawn(REPORT, 100).splitlines()] == [
        "Agent      Task    Runs  Calls  Input  Cache read  Cache write  Output  Reasoning     Cost",
        "─" * 90,
        "developer  SHOP-1    12     88   1.2M       98.8M          345   45.2k         17   $12.34",
        "reviewer   SHOP-1     3      –   5.1k      100.1k            –     478          –   ~$1.23",
        "reviewer   –          1      –      –           –            –       –          –        –",
        "",
        "Total                16     88   1.2M       98.9M          345   45.7k         17  ~$13.57",
        " ~ $1.23 of the cost is estimated at list prices",
    ]


def test_a_wide_terminal_shows_every_digit_and_bars() -> None:
    """Thousands separators, and each row's share of the cost."""
    lines = drawn(REPORT, 140).splitlines()
    assert "1,234,567  98,765,432          345  45,213         17   $12.34  ██████████▉   91%" in lines[2]
    assert "~$1.23  █▏             9%" in lines[3]
    assert "█" not in lines[4]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 160])
def test_no_number_is_ever_cut(width: int) -> None:
    """On a narrow terminal columns go and names are shortened, figures stay whole and lines stay within."""
    text = drawn(REPORT, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert not re.search(r"[0-9.,$]…|…[0-9]", text)
    assert "~$13.57" in text


def test_small_costs_keep_their_places() -> None:
    """Below a dollar in total four places; what is smaller still is not shown as nothing."""
    cents, nothing = Amounts(reported_nusd=12_345_678, runs=1), Amounts(reported_nusd=1, runs=1)
    tiny = made((("a", "t"), cents), (("b", "t"), nothing), (("c", "t"), FAILED))
    text = drawn(tiny, 100)
    assert "$0.0123" in text
    assert "<$0.0001" in text
    great = made((("a", "t"), BIG), (("b", "t"), nothing))
    assert "<$0.01" in drawn(great, 100)


def test_unpriced_tokens_are_noted() -> None:
    """A cost that lacks something says so."""
    assert "! 7 tokens of unpriced models are not in the cost" in drawn(made((("a", "t"), Amounts(unpriced_tokens=7, runs=1))), 100)


def test_a_report_by_nothing_is_one_row() -> None:
    """No total below it."""
    text = drawn(made(((), BIG), by=()), 140)
    assert "Total" not in text
    assert "$12.34" in text


def test_a_pipe_gets_plain_columns() -> None:
    """No box, no colour, whole numbers, a dash for unknown, the total last."""
    assert reports.as_text(REPORT) == (
        "agent      task    runs  calls  tokens_in  cache_read  cache_write  tokens_out  reasoning   cost_usd\n"
        "developer  SHOP-1    12     88    1234567    98765432          345       45213         17  12.340000\n"
        "reviewer   SHOP-1     3      -       5063      100117            -         478          -   1.230000\n"
        "reviewer   -          1      -          -           -            -           -          -          -\n"
        "total      -         16     88    1239630    98865549          345       45691         17  13.570000\n"
    )
    assert reports.as_text(made()) == ""


def test_csv_holds_every_field_in_full() -> None:
    """Unknown is empty; the fields are those of the JSON rows."""
    rows = list(csv.DictReader(io.StringIO(reports.as_csv(REPORT))))
    assert [r["cost_usd"] for r in rows] == ["12.340000", "1.230000", ""]
    for row, told in zip(rows, REPORT.as_dict()["rows"], strict=True):
        assert row == {k: "" if v is None else str(v) for k, v in told.items()}


@pytest.mark.parametrize("name", ["[red]x[/red]", "a\nb", "\x1b[31mred", 'a,b"c', "=1+1", "非常に長い名前", "x" * 300])
def test_names_do_no_harm(name: str) -> None:
    """Markup, line breaks, terminal codes and long names are shown as text, and CSV gives them back."""
    report = made(((name, "t"), BIG))
    text = reports.as_text(report)
    assert len(text.splitlines()) == 3
    assert "\x1b" not in text + drawn(report, 100, force_terminal=True, highlight=False)
    assert max(len(line) for line in drawn(report, 100).splitlines()) <= 100
    assert list(csv.reader(io.StringIO(reports.as_csv(report))))[1][0] == name


COUNTS = st.none() | st.integers(0, 10**15)
ROWS = st.tuples(st.none() | st.text(max_size=50), st.lists(COUNTS, min_size=12, max_size=12))


@hypothesis_settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=5), st.integers(30, 200))
def test_any_report_can_be_drawn(rows: list[tuple[str | None, list[int | None]]], width: int) -> None:
    """Whatever the names, numbers and the width."""
    report = made(*[((name,), Amounts(*numbers, runs=1)) for name, numbers in rows], by=("attr:key",))  # type: ignore[arg-type]
    assert "Total" in drawn(report, width)
    assert len(reports.as_text(report).splitlines()) == len(rows) + 2


def test_an_empty_report_says_what_to_do() -> None:
    """An empty ledger is filled; a filter that takes all away is widened."""
    assert "spendmeter sync" in reports.empty_hint(filtered=False, runs=0)
    assert "spendmeter run" in reports.empty_hint(filtered=True, runs=0)
    assert reports.empty_hint(filtered=True, runs=1).startswith("No usage matches; the ledger holds 1 run. Widen")
