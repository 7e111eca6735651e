"""The pages over a real ledger: what they show, of whom, and where budgets and workers stand."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from spendmeter.config import Settings
from spendmeter.demo import SAMPLE, load
from spendmeter.ingest import ingest_paths
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import report, runs
from spendmeter.projections import chart
from spendmeter.records import Tags
from spendmeter.server import api, app, pages, web
from spendmeter.server.asked import Asked
from spendmeter.server.book import Book
from spendmeter.server.workers import Workers
from tests.runs import ROOT
from tests.served import HOME, serve

EVIL = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>{{7*7}}"""

# -- pages -------------------------------------------------------------------------------------------------------------


def test_names_that_users_give_are_only_text(served: TestClient, book: Book) -> None:
    """In every page and place, also in errors."""
    ingest_paths(book.ledger(), [str(SAMPLE / "json-opus")], tags=Tags(EVIL, EVIL, {EVIL: EVIL}))
    key = runs(book.ledger())[0].run_key
    for path, params in (
        ("/", {}),
        ("/", {"agent": EVIL}),
        ("/runs", {"task": EVIL}),
        (f"/runs/{key}", {}),
        ("/runs/<script>x", {}),
        ("/", {"period": EVIL}),
    ):
        text = served.get(path, params=params).text
        assert "<script>" not in text
        assert "<img" not in text
        assert "onerror=alert(2)&gt;" in text or path.startswith("/runs/<") or "period" in params
        assert set(re.findall(r"<script[^>]*>", text)) <= {'<script src="/static/app.js" defer>'}
        assert not re.search(r"\s(style|on\w+)=\"", text)


def test_the_page_shows_the_ledgers_numbers(full: TestClient, book: Book) -> None:
    """Exactly: tokens in full, money as its decimal string too."""
    text = full.get("/?period=all").text
    total = report(book.ledger(), ["agent"]).total
    for n in (total.tokens_in, total.tokens_out, total.cache_read, total.cache_write):
        assert f'<dd class="big">{n:,}</dd>' in text
    assert f'<data value="{total.as_dict()["cost_usd"]}">' in text
    for row in report(book.ledger(), ["task"]).rows:
        assert f'<data value="{row.amounts.as_dict()["cost_usd"]}">' in text
    for line in runs(book.ledger()):
        assert f'href="/runs/{line.run_key}"' in text


def test_unknown_is_a_dash(served: TestClient, book: Book) -> None:
    """A run of which nothing is known costs "–", not 0."""
    ingest_paths(book.ledger(), [str(ROOT / "claude" / "err-529" / "stdout")], tags=Tags("a", "b"))
    text = served.get("/").text
    assert "$0.00" not in text
    assert "$0.0000" not in text
    assert text.count('<abbr class="na" title="unknown">–</abbr>') > 8
    assert "No cost is known" in text


def test_an_empty_ledger_says_what_to_type(served: TestClient) -> None:
    """The first command stands on the page."""
    text = served.get("/").text
    assert "spendmeter sync" in text
    assert "spendmeter run --agent" in text
    assert served.get("/runs").status_code == 200
    assert served.get("/runs/last").status_code == 404


def test_filters_and_periods_narrow_the_page(full: TestClient, book: Book) -> None:
    """By the address alone; one that makes no sense is refused in words."""
    text = full.get("/?agent=reviewer&period=all").text
    total = report(book.ledger(), [], agent="reviewer").total
    assert f'<dd class="big">{total.tokens_in:,}</dd>' in text
    assert "heartbeat" not in text
    assert "Nothing in this time" in full.get("/?agent=nobody").text
    assert full.get("/?period=year").status_code == 422
    assert full.get("/?tz=Mars/Base").status_code == 422
    assert full.get("/?tz=Europe/Berlin").status_code == 200


def test_links_keep_what_was_asked() -> None:
    """But for what they change."""
    asked = Asked(period="month", agent="a&b")
    assert asked.link(task="x y") == "/?period=month&agent=a%26b&task=x+y"
    assert asked.link("/runs", period=None, agent=None) == "/runs"


def test_pages_are_accessible_by_structure(full: TestClient) -> None:
    """One h1, a caption on every table, a scope on every heading cell, ids once, regions named and reachable by keyboard."""
    for path in ("/", "/runs", "/runs/last"):
        text = full.get(path).text
        assert len(re.findall(r"<h1", text)) == 1
        assert text.count("<table") == text.count("<caption")
        assert all("scope=" in th for th in re.findall(r"<th\b[^>]*>", text))
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids)), path
        assert set(re.findall(r'aria-labelledby="([^"]+)"', text)) <= set(ids)
        assert '<html lang="en">' in text
        assert all('tabindex="0"' in x for x in re.findall(r'<div class="scroll"[^>]*>', text))


def test_run_pages_explain_what_no_call_shows(full: TestClient, book: Book) -> None:
    """A run's page names its calls; a run without usage says so."""
    ingest_paths(book.ledger(), [str(ROOT / "claude" / "err-529" / "stdout")])
    by_outcome = {r.outcome: r for r in runs(book.ledger())}
    assert "Calls, oldest first" in full.get(f"/runs/{by_outcome['ok'].run_key}").text
    assert "No source tells what this run used" in full.get(f"/runs/{by_outcome['error'].run_key}").text


def test_numbers_are_written_as_people_do() -> None:
    """Unknown is a dash, small money is not hidden."""
    assert [pages.number(n) for n in (None, 0, 1234567)] == ["–", "0", "1,234,567"]
    assert [pages.money(n, 2) for n in (None, 0, 1, 4_999_999, 5_000_000, 1_234_565_000_000)] == [
        "–",
        "$0.00",
        "<$0.01",
        "<$0.01",
        "$0.01",
        "$1,234.57",
    ]
    assert pages.money(155_623_750, 4) == "$0.1556"
    assert [pages.duration(n) for n in (None, 579, 9_949, 9_951, 61_000, 3_600_000)] == [
        "–",
        "0.6 s",
        "9.9 s",
        "10 s",
        "1 min 1 s",
        "1 h 0 min",
    ]


def test_columns_add_up(full: TestClient, book: Book) -> None:
    """The chart's segments are the day's cost, its columns the period's."""
    found = report(book.ledger(), ["day", "agent"])
    days = sorted({r.keys[0] for r in found.rows if r.keys[0]})
    first, last = (chart.date.fromisoformat(d) for d in (days[0], days[-1]))
    made = chart.chart(found, "day", first, last)
    assert len(made.columns) >= chart.DAYS_MIN
    assert sum(s.cost_nusd for c in made.columns for s in c.segments) == found.total.cost_nusd
    for c in made.columns:
        assert sum(s.cost_nusd for s in c.segments) == (c.amounts.cost_nusd or 0)
        assert not c.segments or abs(sum(s.height for s in c.segments) - 100) < 1e-9
        assert 0 <= c.height <= 100
    months = chart.chart(report(book.ledger(), ["month", "agent"]), "month", first.replace(year=first.year - 1), last)
    assert (len(months.columns), sum(s.cost_nusd for c in months.columns for s in c.segments)) == (13, found.total.cost_nusd)


def test_many_open_pages_cost_one(book: Book) -> None:
    """However many ask at once, an overview is made once, and again when it is old."""
    made = []

    def slow(ledger: Ledger, asked: Asked) -> Any:
        made.append(1)
        time.sleep(0.05)
        return object()

    memory = web.Memory(slow)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(memory.get, book.ledger(), Asked()) for _ in range(8)]
    assert len({id(answer.result()) for answer in asked}) == 1
    assert len(made) == 1


# -- trouble -----------------------------------------------------------------------------------------------------------


def test_trouble_of_the_workers_stands_on_the_page(book: Book) -> None:
    """With its reason, escaped."""
    workers = Workers(book)
    workers.trouble["settle"] = "ledger <x>: disk is full"
    made: FastAPI = app.create_app(book, workers)
    with TestClient(made, base_url=HOME) as client:
        assert "ledger &lt;x&gt;: disk is full" in client.get("/").text


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_page_and_api_tell_where_budgets_stand(settings: Settings, tmp_path: Path) -> None:
    """The API as ``budget list --json``, the page the fullest first; a file that turns bad later leaves the last good ones."""
    file = tmp_path / "budgets.yaml"
    file.write_text("budgets:\n- {name: small, period: total, limit_usd: 0.1}\n- {name: big, period: total, limit_usd: 1000}\n")
    told = replace(settings, budgets_file=file)
    with closing(Book(told)) as book, serve(book) as client:
        load(book.ledger())
        spent = report(book.ledger(), []).total.as_dict()["cost_usd"]
        body = client.get("/api/v1/budgets").json()
        api.Budgets.model_validate(body)
        assert [(b["name"], b["spent_usd"], b["over"]) for b in body["budgets"]] == [("small", spent, True), ("big", spent, False)]
        page = client.get("/?period=all").text
        assert page.index("<b>small</b>") < page.index("<b>big</b>")
        assert '$0.17 <span class="of">of $0.10' in page
        file.write_text("budgets: [")
        assert client.get("/api/v1/budgets").json() == body


def test_without_budgets_the_page_does_not_speak_of_them(full: TestClient) -> None:
    """No heading over nothing."""
    assert "h-budgets" not in full.get("/").text
    assert full.get("/api/v1/budgets").json() == {"budgets": []}
