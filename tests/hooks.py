"""Real receivers of notices: a web server that keeps what it is sent, and answers as the test says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass(frozen=True)
class Post:
    """One request; header names in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        """The document."""
        return json.loads(self.body)  # type: ignore[no-any-return]


class Receiver:
    """Listens on a port of its own. ``status``, ``headers``, ``delay_s`` and ``before`` (called with each id) say how it answers."""

    def __init__(self, port: int = 0) -> None:
        self.status, self.delay_s = 204, 0.0
        self.headers: dict[str, str] = {}
        self.before: Callable[[str], None] = lambda _: None
        self.posts: list[Post] = []
        self.busy: Counter[str] = Counter()  # answers under way by id
        self.together = 0  # the most of them for one id
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self)

            def do_GET(self) -> None:
                receiver._take(self)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A sender that has hung up is no news."""

        self._server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {k.lower(): v for k, v in handler.headers.items()}
        notice_id = headers.get("webhook-id", "")
        with self._lock:
            self.posts.append(Post(handler.path, headers, body))
            self.busy[notice_id] += 1
            self.together = max(self.together, self.busy[notice_id])
        try:
            self.before(notice_id)
            time.sleep(self.delay_s)
            handler.send_response(self.status)
            for name, value in self.headers.items():
                handler.send_header(name, value)
            handler.send_header("content-length", "0")
            handler.end_headers()
        finally:
            with self._lock:
                self.busy[notice_id] -= 1

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def ids(self) -> Counter[str]:
        """How often each notice came."""
        return Counter(p.headers["webhook-id"] for p in list(self.posts))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()
