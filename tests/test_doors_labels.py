"""E-mail addresses and paths in names: what labels and posted events show of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from spendmeter import token_events
from spendmeter.config import Settings, load
from spendmeter.errors import ConfigError
from spendmeter.ingest import ingest_paths
from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from spendmeter.ledger.exposition import exposition
from spendmeter.ledger.privacy import cleaned
from spendmeter.ledger.query import report
from spendmeter.ledger.verify import verify
from spendmeter.projections.prometheus import render
from spendmeter.records import Tags
from spendmeter.server.book import Book
from spendmeter.server.mcp_server.protocol import call
from spendmeter.server.mcp_server.source import Source
from tests.doors import EVENT, EVENTS
from tests.runs import ROOT
from tests.served import serve


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("feat/ABC-1", "feat/ABC-1"), ("/review", "/review"), ("/api/v1", "/api/v1"), ("a/b/c.py", "a/b/c.py"),
        ("owner/repo#12", "owner/repo#12"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4@20250514"), ("@team", "@team"), ("pkg@1.2.3", "pkg@1.2.3"), ("C:", "C:"),
        ("https://example.com/home/x", "https://example.com/home/x"), ("12:30", "12:30"), ("Ошибка/42", "Ошибка/42"),
        ("/home/bob/work/shop", "shop"), ("/Users/bob/shop/", "shop"), (r"C:\Users\bob\shop", "shop"), ("c:/work/shop", "shop"),
        (r"\\server\share\shop", "shop"), ("~/src/shop", "shop"), ("/tmp/x", "x"), ("fix /home/bob/a.py now", "fix a.py now"),
        ("/home/bob", "path"), (r"C:\Users\bob", "path"), ("/Users/bob/", "path"),
        ("bob@example.com", "email-5ff860bf1190"), ("Bob@Example.com", "email-5ff860bf1190"),
        ("ask bob@example.com!", "ask email-5ff860bf1190!"),
        ("/home/bob/bob@example.com", "email-5ff860bf1190"),
    ],
)  # fmt: skip
def test_addresses_and_paths_are_no_labels(text: str, shown: str) -> None:
    """By default a path leaves its last part and an address a pseudonym; what only looks a little like one stays."""
    assert cleaned(text, "hash", "basename") == shown
    assert cleaned(text, "keep", "keep") == text
    assert not re.search(r"bob|Users|home/", cleaned(text, "drop", "drop").replace("example.com/home", ""))


def test_labels_are_cleaned_and_totals_are_not_split(tmp_path: Path, settings: Settings) -> None:
    """On /metrics only, summed where two names become one label; report and budgets go by the names as they were given."""
    for emails, shown in (("hash", "email-5ff860bf1190"), ("drop", "email"), ("keep", "bob@example.com")):
        told = replace(settings, ledger=f"sqlite:///{tmp_path / emails}.db", privacy_emails=emails)
        with closing(Ledger(told)) as ledger:
            for n, agent in enumerate(("bob@example.com", "Bob@Example.com")):
                ingest_paths(ledger, [str(ROOT / "claude" / ("json-tool", "json-opus")[n])], tags=Tags(agent, "/home/bob/shop"))
            body = render(exposition(ledger, "scrape"), "")[1].decode()
            rows = {r.keys[0]: r.amounts for r in report(ledger, ["agent"]).rows}
            assert set(rows) == {"bob@example.com", "Bob@Example.com"}
            assert {r.keys[0] for r in report(ledger, ["task"]).rows} == {"/home/bob/shop"}
            values = [int(float(v)) for v in re.findall(rf'task_tokens_out_total{{agent="{re.escape(shown)}",task="shop"}} (\S+)', body)]
            want = [rows["bob@example.com"].tokens_out] if emails == "keep" else [sum(a.tokens_out or 0 for a in rows.values())]
            assert values == want
            assert f'spendmeter_last_run_timestamp_seconds{{agent="{shown}"}}' in body
            assert "/home/" not in body
            assert ("@" in body) is (emails == "keep")
            assert verify(ledger) == []


def test_what_is_done_with_them_is_a_setting(tmp_path: Path) -> None:
    """Of spendmeter.toml and the environment; another word is refused."""
    file = tmp_path / "spendmeter.toml"
    file.write_text('[privacy]\nemails = "drop"\npaths = "keep"\n')
    told = load(str(file), env={"HOME": str(tmp_path)})
    assert (told.privacy_emails, told.privacy_paths) == ("drop", "keep")
    assert load(env={"HOME": str(tmp_path), "SPENDMETER_PRIVACY_PATHS": "drop"}).privacy_paths == "drop"
    with pytest.raises(ConfigError, match="is not one of hash, keep, drop"):
        load(env={"HOME": str(tmp_path), "SPENDMETER_PRIVACY_EMAILS": "no"})


# -- posted events -----------------------------------------------------------------------------------------------------

BOB, SHOP = "bob@example.com", "/home/bob/shop"
KEPT = {"hash": "email-5ff860bf1190", "drop": "email", "keep": BOB}


@pytest.mark.parametrize("emails", KEPT)
def test_an_event_is_cleaned_before_it_is_stored(new_url: Callable[[], str], emails: str) -> None:
    """Its agent, task, workstream, repository and note, as is set; it is still found and summed up by the names that were posted."""
    settings = Settings(new_url(), settle_s=0, privacy_emails=emails)
    posted = {"agent": BOB, "task": SHOP, "workstream": f"of {BOB}", "repo": SHOP, "note": f"{BOB} in\n{SHOP}", "tokens_in": 5}
    with closing(Book(settings)) as book, serve(book) as client:
        row = client.post(EVENTS, json=posted).json()
        want = {
            "agent": KEPT[emails],
            "task": "shop",
            "workstream": f"of {KEPT[emails]}",
            "repo": "shop",
            "note": f"{KEPT[emails]} in\nshop",
        }
        assert {name: row[name] for name in want} == want
        for name in ("agent", "task", "workstream", "repo"):
            for asked in (posted[name], row[name]):
                assert client.get(EVENTS, params={name: asked}).json()["token_events"] == [row], asked
        for scope in ("task", "workstream", "repo"):
            found = [client.get(f"{EVENTS}/summary", params={"scope": scope, "id": x}).json() for x in (posted[scope], row[scope])]
            assert [(f["event_count"], f["tokens_in"]) for f in found] == [(1, 5)] * 2
        with book.ledger().read() as conn:
            rows = str([conn.execute(select(x)).all() for x in t.META.sorted_tables])
        assert (BOB in rows, SHOP in rows) == (emails == "keep", False)


def test_an_event_that_is_sent_again_is_known_whatever_became_of_its_names(tmp_path: Path) -> None:
    """It is what was posted that its key stands for, also where the setting has changed since."""
    for emails, status in (("hash", 201), ("hash", 200), ("drop", 200)):
        told = Settings(f"sqlite:///{tmp_path}/ledger.db", privacy_emails=emails)
        with closing(Book(told)) as book, serve(book) as client:
            answer = client.post(EVENTS, json=EVENT | {"agent": BOB, "idempotency_key": "k"})
            assert (answer.status_code, answer.json()["agent"]) == (status, KEPT["hash"])


def test_an_agents_own_events_are_cleaned_too(settings: Settings) -> None:
    """Posted over MCP: what the agent reads, and what is stored, names nobody."""
    source = Source(settings, lambda: book)
    with closing(Book(settings)) as book:
        answer = call(source, "record_token_event", {"agent": BOB, "task": SHOP, "note": f"by {BOB}", "tokens_in": 5})
        assert (BOB in str(answer), "/home" in str(answer), "email-5ff860bf1190" in str(answer)) == (False, False, True)
        told = call(source, "get_token_summary", {"scope": "task", "id": SHOP})
        assert told.structured_content["event_count"] == 1


def test_a_summary_holds_events_and_metered_runs_of_one_name(ledger: Ledger) -> None:
    """Runs stand under the name as it was given, events under what was made of it: who asks by the first gets both."""
    ingest_paths(ledger, [str(ROOT / "claude" / "json-tool")], tags=Tags("dev", SHOP, {"workstream": "front"}))
    token_events.record(ledger, [token_events.read({"task": SHOP, "tokens_in": 5})])
    assert token_events.summary(ledger, "task", SHOP).events == 2
    assert token_events.summary(ledger, "task", "shop").events == 1
    assert token_events.summary(ledger, "workstream", "front").events == 2  # the event's was filled in from its task


@pytest.mark.parametrize(
    "repo", ["git@github.com:org/shop.git", "ssh://git@host.example/org/shop", "org/shop", "https://host.example/org/shop"]
)
def test_a_repository_is_no_address_and_no_path(ledger: Ledger, repo: str) -> None:
    """However it is written."""
    assert token_events.record(ledger, [token_events.read({"repo": repo, "tokens_in": 1})]).rows[0]["repo"] == repo


def test_what_names_nobody_is_left_alone(ledger: Ledger) -> None:
    """A reference, a model, a key: they are compared with what others know."""
    told = {"ref_type": "release", "ref_id": BOB, "model": "m@example.com", "idempotency_key": SHOP, "tokens_in": 1}
    (row,) = token_events.record(ledger, [token_events.read(told)]).rows
    assert {name: row[name] for name in told} == told
