"""How much one client may ask of the daemon, and how long it may take."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import uvicorn
from starlette.testclient import TestClient

from spendmeter.server import app, limits
from spendmeter.server.auth import Keeper
from spendmeter.server.book import Book
from spendmeter.server.limits import Buckets
from spendmeter.server.workers import Workers
from tests.doors import EVENT, EVENTS, bearer, log_in, problem, serving


def test_a_body_that_is_too_large_is_not_read(client: TestClient, known: dict[str, str]) -> None:
    """413 by its length alone, and as it comes where no length is told; what is refused at the door is not read at all."""
    told = problem(client.post(EVENTS, content=b" " * (limits.BODY_MAX + 1), headers=bearer(known["write"])), 413)
    assert "larger than 4194304 bytes" in told["detail"]
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        for _ in range(64):
            read += 1
            yield b" " * 256 * 1024

    headers = bearer(known["write"]) | {"content-type": "application/json"}
    assert "larger" in problem(client.post(EVENTS, content=chunks(), headers=headers), 413)["detail"]
    assert client.post("/mcp", content=chunks(), headers=headers).status_code == 413
    assert client.post("/mcp", content=b" " * (limits.BODY_MAX + 1), headers=headers).status_code == 413
    assert client.post(EVENTS, content=b" " * (limits.BODY_MAX + 1)).status_code == 401


def test_wrong_tokens_are_few_and_shut_no_one_else_out(book: Book, known: dict[str, str]) -> None:
    """After ten 429 with the time to wait, also for a good token that is new here; one that has been good passes."""
    clock = [0.0]
    for client in serving(book, Keeper(book, Buckets(0.1, 10, lambda: clock[0]))):
        assert client.get("/metrics", headers=bearer(known["metrics"])).status_code == 200
        for _ in range(10):
            assert client.get("/metrics", headers=bearer(known["unknown"])).status_code == 401
        for secret in (known["unknown"], known["malformed"], known["read"]):
            answer = client.get("/api/v1/report", headers=bearer(secret))
            assert (problem(answer, 429)["title"], answer.headers["retry-after"]) == ("Too Many Requests", "10")
        assert log_in(client, known["read"]).status_code == 429
        assert client.get("/metrics", headers=bearer(known["metrics"])).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/livez").status_code == 200
        clock[0] += 10
        assert client.get("/api/v1/report", headers=bearer(known["read"])).status_code == 200


def test_writes_are_limited_and_reads_are_not(book: Book, known: dict[str, str]) -> None:
    """429 with the time to wait."""
    clock = [0.0]
    for client in serving(book, writes=Buckets(0.5, 3, lambda: clock[0])):
        codes = [client.post(EVENTS, json=EVENT, headers=bearer(known["write"])).status_code for _ in range(4)]
        assert codes == [201, 201, 201, 429]
        answer = client.post(EVENTS, json=EVENT, headers=bearer(known["write"]))
        assert (problem(answer, 429)["detail"], answer.headers["retry-after"]) == ("too many requests from this address; wait 2 s", "2")
        assert client.get("/api/v1/report", headers=bearer(known["read"])).status_code == 200
        clock[0] += 2
        assert client.post(EVENTS, json=EVENT, headers=bearer(known["write"])).status_code == 201


def test_a_bucket_fills_by_time_for_each_client() -> None:
    """At its rate, up to its size; the clients that came last are remembered."""
    clock = [100.0]
    made = Buckets(2, 3, lambda: clock[0])
    assert [made.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert made.take("b") == 0
    clock[0] += 0.5
    assert (made.wait_s("a"), made.take("a"), made.take("a")) == (0, 0, 0.5)
    clock[0] += 1000
    assert [made.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    for n in range(limits._ADDRESSES):
        made.take(f"n{n}")
    assert len(made._kept) == limits._ADDRESSES
    assert made.take("a") == 0


@pytest.mark.parametrize(
    ("told", "counts_as"),
    [(("192.0.2.7", 1), "192.0.2.7"), (("2001:db8::1:2:3", 1), "2001:db8::/64"), (("2001:db8:0:0:9::", 1), "2001:db8::/64"),
     (("2001:db8:0:1::", 1), "2001:db8:0:1::/64"), (None, ""), (("testclient", 1), "testclient")],
)  # fmt: skip
def test_a_client_is_an_address_or_what_one_host_has_of_ipv6(told: tuple[str, int] | None, counts_as: str) -> None:
    """A host has a /64 of its own to take addresses from."""
    assert limits.address({"client": told}) == counts_as


POST = b"POST /api/v1/token-events HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def daemon(book: Book, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The daemon's own server in a thread, impatient; its port."""
    from spendmeter.server import daemon as d

    monkeypatch.setattr(limits, "HEAD_S", 0.6)
    monkeypatch.setattr(limits, "BODY_S", 0.6)
    sockets = d._listen("127.0.0.1", 0)
    server = uvicorn.Server(d._uvicorn(app.create_app(book, Workers(book))))
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
    thread.start()
    yield int(sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("sent", "drip", "answer"),
    [
        (b"", b"", b""),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ", b"x", b""),
        (POST + b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{", b" ", b"HTTP/1.1 408"),
        (POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", b"HTTP/1.1 408"),
        (POST + b"Content-Length: 99\r\n\r\n{", b" ", b"HTTP/1.1 415"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", b"G", b"HTTP/1.1 200"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", b"", b"HTTP/1.1 4"),
        (b"GET /livez?" + b"x" * 2_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", b"HTTP/1.1 4"),
    ],
    ids=["silent", "slow headers", "slow body", "slow chunks", "body after the answer", "slow second", "large headers", "endless address"],
)
@pytest.mark.alone
def test_who_dawdles_is_hung_up_on(daemon: int, sent: bytes, drip: bytes, answer: bytes) -> None:
    """Headers and bodies that come by the byte, or do not come, hold a connection no longer than they may."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", daemon), timeout=60) as sock:
        got = b""
        try:
            sock.sendall(sent)
            sock.settimeout(0.1)
            while time.monotonic() - began < 8:
                try:
                    part = sock.recv(4096)
                except TimeoutError:
                    sock.sendall(drip)
                    continue
                got += part
                if not part:
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert time.monotonic() - began < 6
    assert got.startswith(answer)
    assert bool(got) == bool(answer)


@pytest.mark.alone
def test_a_patient_connection_is_kept(daemon: int) -> None:
    """What is idle between complete requests is not in a hurry."""
    with closing(http.client.HTTPConnection("127.0.0.1", daemon, timeout=60)) as connection:
        connection.connect()
        kept = connection.sock
        for _ in range(2):
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b"ok\n"
            time.sleep(1)
        assert connection.sock is kept


@pytest.mark.alone
def test_an_answer_does_not_wait_for_an_acknowledgement(daemon: int) -> None:
    """Its head and its body go out at once: on a connection that is kept, Nagle's algorithm would hold the body back for 40 ms."""
    took = []
    with closing(http.client.HTTPConnection("127.0.0.1", daemon, timeout=60)) as connection:
        for _ in range(30):
            began = time.monotonic()
            connection.request("GET", "/livez")
            connection.getresponse().read()
            took.append(time.monotonic() - began)
    assert min(took[5:]) < 0.03
