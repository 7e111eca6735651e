"""The page in a real browser: exact numbers, changes as runs land, nothing from outside, no error, nothing hidden from keyboards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import procs
import pytest
from tests.replay import clone
from tests.runs import ROOT

from spendmeter.config import Settings
from spendmeter.demo import load
from spendmeter.ledger import Ledger
from spendmeter.ledger.query import report

pytestmark = pytest.mark.e2e
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
SIZES = {"desk": (1440, 900), "phone": (390, 844)}
EVIL = "<img src=x onerror=document.title='owned'>"

VIOLATIONS = "axe.run().then((r) => r.violations.map((v) => v.id + ' ' + v.nodes.map((n) => n.html).slice(0, 3)))"
OUTLINE = "(({outlineStyle, outlineWidth}) => outlineStyle + outlineWidth)(getComputedStyle(document.activeElement))"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; where it or its driver is missing, an error in CI and a named skip elsewhere."""
    path = procs.part("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        if os.environ.get("CI"):
            pytest.fail("playwright is missing: CI runs the real browser")
        pytest.skip("playwright is missing: pip install playwright")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[procs.Daemon]:
    budgets = tmp_path / "budgets.yaml"
    budgets.write_text(
        "budgets:\n- {name: task-cap, per: task, period: total, limit_usd: 0.05}\n- {name: week, period: week, limit_tokens: 9000000}\n"
    )
    env = os.environ | {
        "SPENDMETER_LEDGER": f"sqlite:///{tmp_path / 'ledger.db'}", "SPENDMETER_METRICS_SETTLE": "0", "SPENDMETER_BUDGETS": str(budgets),
    }  # fmt: skip
    made = procs.Daemon(env, tmp_path / "serve.log")
    with procs.stopping(made):
        made.start()
        yield made


@pytest.fixture
def ledger(daemon: procs.Daemon) -> Iterator[Ledger]:
    made = Ledger(Settings(daemon.env["SPENDMETER_LEDGER"], settle_s=0))
    yield made
    made.close()


class Seen:
    """A page with all that it asked for and complained of."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int] = SIZES["desk"], scheme: str = "light", **context: Any) -> None:
        self.page = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **context).new_page()
        self.url, self.errors, self.requests = url, list[str](), list[str]()
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))

    def open(self, path: str = "/") -> Any:
        """Goes there."""
        self.page.goto(self.url + path)
        return self.page

    def check(self) -> None:
        """No complaint, nothing from outside."""
        assert self.errors == []
        assert [r for r in self.requests if not r.startswith(self.url + "/")] == []
        self.page.context.close()


def ingest(daemon: procs.Daemon, case: Path, agent: str, task: str) -> None:
    command = [sys.executable, "-m", "spendmeter", "ingest", "--agent", agent, "--task", task, str(case)]
    subprocess.run(command, env=daemon.env, check=True, capture_output=True)


def test_the_page_shows_exact_numbers_and_runs_as_they_land(chromium: Any, daemon: procs.Daemon, ledger: Ledger, tmp_path: Path) -> None:
    """From the empty page on, without a reload; focus and an open table stay where they are."""
    seen = Seen(chromium, daemon.url)
    page = seen.open("/?period=all")
    assert page.get_by_text("spendmeter sync").is_visible()
    load(ledger)
    total = report(ledger, []).total
    page.locator("dd.big", has_text=f"{total.tokens_in:,}").wait_for(timeout=60_000)
    for n in (total.tokens_in, total.tokens_out, total.cache_read, total.cache_write):
        assert page.locator("dd.big", has_text=f"{n:,}").count() == 1
    cost = total.as_dict()["cost_usd"]
    assert page.locator(f'a[aria-current=true] data[value="{cost}"]').inner_text() == "$0.1677"
    assert page.locator("#h-budgets ~ ul li").count() == 4
    assert page.locator("#h-budgets ~ ul li", has_text="task-cap").first.get_by_text("over").is_visible()
    for row in report(ledger, ["agent"]).rows:
        line = page.locator("#t-agent ~ tbody tr", has_text=row.keys[0] or "")
        assert line.locator("data").get_attribute("value") == row.amounts.as_dict()["cost_usd"]

    page.get_by_text("Show as a table").click()
    page.get_by_role("link", name="heartbeat").focus()
    page.evaluate("window.kept = document.activeElement")
    page.evaluate("window.scrollTo(0, 300)")
    ingest(daemon, clone(ROOT / "claude" / "json-tool", tmp_path / "case", "1"), "aaa-late", "T-9")
    page.locator("#t-runs ~ tbody").get_by_text("aaa-late").wait_for(timeout=60_000)
    assert page.evaluate("document.activeElement === window.kept && document.activeElement.textContent === 'heartbeat'")
    assert page.evaluate("document.querySelector('details').open && window.scrollY === 300")
    assert page.locator("dd.big", has_text=f"{report(ledger, []).total.tokens_in:,}").count() == 1
    seen.check()


def test_refreshing_can_be_paused_and_survives_the_daemon(chromium: Any, daemon: procs.Daemon, ledger: Ledger) -> None:
    """Paused, it asks for nothing; with the daemon gone it says so, and goes on when it is back."""
    seen = Seen(chromium, daemon.url)
    load(ledger)
    page = seen.open("/?period=all")
    page.get_by_role("button", name="Pause").click()
    asked = len(seen.requests)
    page.wait_for_timeout(4000)
    assert len(seen.requests) == asked
    daemon.kill()
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("does not answer").wait_for(timeout=60_000)
    assert page.get_by_text("Latest runs").first.is_visible()
    seen.errors.clear()  # the browser's own word on the connection
    daemon.start()
    page.get_by_text("does not answer").wait_for(state="hidden", timeout=60_000)
    seen.errors.clear()
    page.wait_for_timeout(3500)
    seen.check()


def test_a_ledger_that_has_gone_is_told_on_the_page(chromium: Any, daemon: procs.Daemon, ledger: Ledger, tmp_path: Path) -> None:
    """What was shown stays, with the reason above it; it recovers without a reload."""
    load(ledger)
    ledger.close()
    seen = Seen(chromium, daemon.url)
    page = seen.open("/?period=all")
    moved = [(p, tmp_path / f"away-{p.name}") for p in tmp_path.glob("ledger.db*") if p.is_file()]
    for here, there in moved:
        shutil.move(here, there)
    page.get_by_text("put it back").wait_for(timeout=60_000)
    assert page.get_by_text("Latest runs").first.is_visible()
    for here, there in moved:
        shutil.move(there, here)
    page.get_by_text("put it back").wait_for(state="hidden", timeout=60_000)
    assert all("503" in e for e in seen.errors)
    seen.errors.clear()
    seen.check()


def test_a_run_leads_to_its_calls(chromium: Any, daemon: procs.Daemon, ledger: Ledger) -> None:
    """By keyboard alone: from the newest run to a table of its calls, which add up to it."""
    load(ledger)
    seen = Seen(chromium, daemon.url)
    page = seen.open("/?period=all&agent=developer&task=T-1")
    link = page.locator("#t-runs ~ tbody").get_by_role("link").first
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/**")
    rows = page.locator("#t-calls ~ tbody tr")
    truth = json.loads((ROOT / "claude" / "json-subagent" / "truth.json").read_text())["calls"]
    assert rows.count() == len(truth)
    inputs = sorted(int(rows.nth(i).locator("td").nth(3).inner_text().replace(",", "")) for i in range(rows.count()))
    assert inputs == sorted(c["usage"]["tokens_in"] for c in truth)
    seen.check()


def test_names_cannot_do_anything(chromium: Any, daemon: procs.Daemon, tmp_path: Path) -> None:
    """Neither when the page is loaded nor when a run with such a name lands later."""
    seen = Seen(chromium, daemon.url)
    page = seen.open()
    ingest(daemon, clone(ROOT / "claude" / "json-opus", tmp_path / "case", "2"), EVIL, EVIL)
    name = page.locator("#t-agent ~ tbody th", has_text=EVIL)
    name.wait_for(timeout=60_000)
    page.reload()
    assert name.is_visible()
    assert (page.title(), page.locator("main img").count()) == ("Spendmeter", 0)
    seen.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_can_be_read(chromium: Any, daemon: procs.Daemon, ledger: Ledger, size: str, scheme: str, tmp_path: Path, axe: str) -> None:
    """axe finds nothing, contrast included, and nothing is wider than the screen; pictures lie in the test's folder."""
    load(ledger)
    seen = Seen(chromium, daemon.url, SIZES[size], scheme)
    for path in ("/?period=all", "/runs", "/runs/last", "/runs/none"):
        page = seen.open(path)
        page.evaluate(axe)
        assert page.evaluate(VIOLATIONS) == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        page.screenshot(path=tmp_path / f"{size}-{scheme}-{path.strip('/').partition('?')[0].replace('/', '-')}.png", full_page=True)
    seen.errors.clear()  # the 404
    seen.open("/?period=all")
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
        )
        assert outline == "solid3px", page.evaluate("document.activeElement.outerHTML")
    seen.check()


def test_the_zone_of_the_reader_is_offered(chromium: Any, daemon: procs.Daemon, ledger: Ledger) -> None:
    """One click away, kept in the address."""
    load(ledger)
    seen = Seen(chromium, daemon.url, timezone_id="Asia/Tokyo")
    page = seen.open("/?period=all")
    page.get_by_role("link", name="Use Asia/Tokyo").click()
    page.wait_for_url("**tz=Asia%2FTokyo**")
    assert page.get_by_text("00:00 Asia/Tokyo").is_visible()
    assert page.locator("time", has_text="22 Nov, 08:").count() > 0
    seen.check()


def test_it_works_without_scripts(chromium: Any, daemon: procs.Daemon, ledger: Ledger) -> None:
    """All numbers and links are there."""
    load(ledger)
    seen = Seen(chromium, daemon.url, java_script_enabled=False)
    page = seen.open("/?period=all")
    assert page.locator("dd.big").count() == 4
    assert not page.get_by_role("button", name="Pause").is_visible()
    page.get_by_role("link", name="This month").click()
    with urllib.request.urlopen(page.url, timeout=60) as answer:
        assert answer.status == 200
    seen.check()


def test_tables_may_go_by_tokens_and_a_filter_stays_in_the_address(chromium: Any, daemon: procs.Daemon, ledger: Ledger) -> None:
    """The tasks that used most tokens first; a click on a name narrows all that is shown, back undoes it."""
    load(ledger)
    seen = Seen(chromium, daemon.url)
    page = seen.open("/?period=all")
    page.get_by_role("link", name="tokens", exact=True).click()
    page.wait_for_url("**sort=tokens**")
    wanted = [r.keys[0] for r in sorted(report(ledger, ["task"]).rows, key=lambda r: -r.amounts.tokens)]
    assert page.locator("#t-task ~ tbody th").all_inner_texts() == wanted
    page.locator("#t-task ~ tbody a").first.click()
    page.wait_for_url(f"**task={wanted[0]}**")
    assert page.locator("#t-task ~ tbody tr").count() == 1
    row = next(r for r in report(ledger, ["task"]).rows if r.keys[0] == wanted[0])
    assert page.locator("dd.big", has_text=f"{row.amounts.tokens_out:,}").count() == 1
    page.go_back()
    assert page.locator("#t-task ~ tbody tr").count() == len(wanted)
    seen.check()
