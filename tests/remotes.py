"""Hosts without a ledger of their own, and a daemon for them that answers as a test says."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from spendmeter.ledger import Batch
from spendmeter.runner import wire
from spendmeter.runner.spool import spool_dirs
from tests.fakecli.harness import CASES, CLAUDE, Wrapper

SECRET = "SECRET-PROMPT"
ADMITTED = {"allowed": True, "lines": [], "held": False, "kills": False, "expected_usd": None, "expected_tokens": None, "left": []}


class Central(ThreadingHTTPServer):
    """Answers a batch with ``status`` and ``body`` after ``delay_s``, and a run that asks to start with ``admission``.

    ``took``: each batch's path, headers and body. ``asked``: method, path and document of each request about a run's budgets.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.status, self.body, self.delay_s = 200, b'{"run_key": "k", "sessions": 1, "changed": 1}', 0.0
        self.admission: tuple[int, Any, float] = 200, ADMITTED, 0.0  # status, document, seconds
        self.renewal: tuple[int, Any, float] = 200, {"exceeded": None, "line": None, "left": []}, 0.0
        self.release: tuple[int, Any, float] = 204, None, 0.0
        self.more: dict[str, str] = {}
        self.took: list[tuple[str, dict[str, str], bytes]] = []
        self.asked: list[tuple[str, str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Says nothing: who gave up on an answer has closed the connection."""

    def batches(self) -> list[Batch]:
        return [wire.unpack(wire.unzipped(body)) for _, _, body in self.took]


class _Handler(BaseHTTPRequestHandler):
    server: Central

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def do_DELETE(self) -> None:
        self._take()

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != wire.PATH:
            self.server.asked.append((self.command, self.path, json.loads(body or b"null")))
            status, told, delay_s = {"POST": self.server.admission, "PUT": self.server.renewal, "DELETE": self.server.release}[self.command]
            self._answer(status, told if isinstance(told, bytes) else json.dumps(told).encode(), delay_s)
            return
        self.server.took.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self._answer(self.server.status, self.server.body, self.server.delay_s, self.server.more)

    def _answer(self, status: int, body: bytes, delay_s: float, more: dict[str, str] | None = None) -> None:
        time.sleep(delay_s)
        self.send_response(status)
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def answering() -> Iterator[Central]:
    """A daemon of that kind that listens."""
    made = Central()
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()


class Host(Wrapper):
    """``spendmeter run`` of a fake claude whose runs go to the daemon at ``url``; no ledger is named."""

    def __init__(self, folder: Path, url: str) -> None:
        folder.mkdir()
        super().__init__(folder, real=True)
        self.url = url

    def argv(self, *command: str, flags: tuple[str, ...] = ()) -> list[str]:
        tags = ("--agent", "dev", "--task", "T-1")
        return [sys.executable, "-m", "spendmeter", "run", *tags, "--remote", self.url, *flags, "--", *command]

    def replay(self, case: str = "json-single", *flags: str, **env: str) -> Any:
        """A run that replays *case*."""
        return self.run(CLAUDE, "-p", SECRET, flags=flags, env={"FAKE_CASE": str(CASES / case)} | env)

    def kept(self, pattern: str = "*") -> list[Path]:
        """Files that wait for the host's daemon."""
        return [p for folder in spool_dirs(self.url, self.env) for p in folder.glob(pattern)]
