"""Browsers at the daemon's doors: the page's cookie, and what another site's page can make one do."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from spendmeter.server import app
from spendmeter.server.auth import Keeper
from spendmeter.server.book import Book
from spendmeter.server.guard import COOKIE, HEADERS, HSTS
from spendmeter.server.workers import Workers
from tests.doors import EVENT, EVENTS, HOME, bearer, log_in, problem


def test_a_page_asks_for_a_token_and_takes_it_once(client: TestClient, known: dict[str, str]) -> None:
    """The form, a cookie out of the reach of scripts and other sites, the page, and out again."""
    asked = client.get("/")
    assert (asked.status_code, "<form" in asked.text) == (401, True)
    answer = log_in(client, known["read"])
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Domain" not in cookie
    page = client.get("/")
    assert page.status_code == 200
    assert "spendmeter sync" in page.text
    assert known["read"] not in page.text
    assert client.get("/metrics").status_code == 403
    out = client.post("/logout", headers={"origin": HOME})
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert client.get("/").status_code == 401


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [("unknown", 401, "not good here"), ("expired", 401, "not good here"), ("revoked", 401, "not good here"),
     ("malformed", 401, "not good here"), ("metrics", 403, "scope read")],
)  # fmt: skip
def test_the_form_says_what_is_wrong(client: TestClient, known: dict[str, str], name: str, status: int, why: str) -> None:
    """And sets no cookie; the token is not on the page."""
    answer = log_in(client, known[name])
    assert answer.status_code == status
    assert why in answer.text
    assert "set-cookie" not in answer.headers
    assert known[name] not in answer.text


def test_a_cookie_that_is_of_no_use_goes(client: TestClient, known: dict[str, str]) -> None:
    """So that a page left open after a revocation does not use up the failures of its address."""
    answer = client.get("/", headers={"cookie": f"{COOKIE}={known['revoked']}"})
    assert answer.status_code == 401
    assert re.search(rf'{COOKIE}=""; .*Max-Age=0', answer.headers["set-cookie"])


def test_behind_https_the_cookie_is_secure(book: Book, known: dict[str, str]) -> None:
    """And browsers are told to come by https alone; by http they are not."""
    made = app.create_app(book, Workers(book), None, Keeper(book))
    with TestClient(made, base_url="https://meter.example", follow_redirects=False) as client:
        answer = client.post("/login", data={"token": known["read"]})
        assert "Secure" in answer.headers["set-cookie"]
        assert answer.headers["strict-transport-security"] == HSTS
    with TestClient(made, base_url=HOME, follow_redirects=False) as client:
        answer = client.post("/login", data={"token": known["read"]})
        assert "Secure" not in answer.headers["set-cookie"]
        assert "strict-transport-security" not in answer.headers


OURS = [{"origin": HOME}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": HOME, "sec-fetch-site": "same-origin"}]
FOREIGN = [
    {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://meter.example:9465"}, {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"}, {"origin": HOME, "sec-fetch-site": "cross-site"}, {"origin": "http://meter.example:9464.evil.example"},
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_sites_page_sends_nothing(client: TestClient, known: dict[str, str], book: Book, headers: dict[str, str]) -> None:
    """With the cookie or without doors at all, a browser that a foreign page sends is turned away; a bearer token passes."""
    cookie = {"cookie": f"{COOKIE}={known['admin']}"}
    assert "another origin" in problem(client.post(EVENTS, json=EVENT, headers=headers | cookie), 403)["detail"]
    assert client.post("/login", data={"token": known["read"]}, headers=headers).status_code == 403
    assert client.post(EVENTS, json=EVENT, headers=headers | bearer(known["write"])).status_code == 201
    with TestClient(app.create_app(book, Workers(book), ["meter.example"]), base_url=HOME) as open_:
        problem(open_.post(EVENTS, json=EVENT, headers=headers), 403)
        assert open_.get("/api/v1/ledger", headers=headers).status_code == 200
        assert open_.post(EVENTS, json=EVENT).status_code == 201


@pytest.mark.parametrize("headers", OURS)
def test_our_own_page_may(client: TestClient, known: dict[str, str], headers: dict[str, str]) -> None:
    """With its cookie; a cookie without a word on where it comes from is not enough."""
    cookie = {"cookie": f"{COOKIE}={known['write']}"}
    assert client.post(EVENTS, json=EVENT, headers=headers | cookie).status_code == 201
    problem(client.post(EVENTS, json=EVENT, headers=cookie), 403)


def test_every_answer_is_armoured_and_none_allows_another_origin(client: TestClient, known: dict[str, str]) -> None:
    """Also refusals, also for a preflight."""
    ask = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for answer in (client.get("/metrics"), client.get("/"), client.get("/login"), client.options(EVENTS, headers=ask),
                   client.post(EVENTS, headers=ask), client.get("/metrics", headers=ask | bearer(known["metrics"]))):  # fmt: skip
        assert {k: answer.headers.get(k) for k in HEADERS} == HEADERS
        assert not any(h.startswith("access-control-") for h in answer.headers)


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//127.0.0.1:9464", "127.0.0.1:9464", "http://127.0.0.1:9464@evil"])
def test_an_origin_that_is_none_is_foreign(served: TestClient, origin: str) -> None:
    """403 whatever stands in the header: what cannot be read is not our page, and no defect."""
    problem(served.post(EVENTS, json=EVENT, headers={"origin": origin}), 403)
