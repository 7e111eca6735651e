"""A model server on loopback that speaks enough of the Anthropic Messages API for a real Claude Code: what it answers is the truth."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Truth:
    """Counts what was answered. ``plan`` maps a word of the newest user text to the steps of that conversation.

    A step is a tool call ``("Bash", {...})``, a text, or ``"stall"``: the answer begins and never ends.
    """

    def __init__(self, plan: dict[str, list[Any]]) -> None:
        self.plan = plan
        self.calls: list[dict[str, int]] = []
        self.cut: list[dict[str, int]] = []  # those that began and never ended
        self.stalled = threading.Event()
        self._lock = threading.Lock()

    def next(self) -> tuple[int, dict[str, Any]]:
        """Number and usage of the next call; every call differs in every field."""
        with self._lock:
            n = len(self.calls) + 1
            five, hour = 211 + 13 * n, 83 + 5 * n
            used = {
                "tokens_in": 907 + 11 * n,
                "cache_read": 15013 + 17 * n,
                "cache_write_5m": five,
                "cache_write_1h": hour,
                "tokens_out": 77 + 19 * n,
            }
            self.calls.append(used)
        return n, {
            "input_tokens": used["tokens_in"], "cache_read_input_tokens": used["cache_read"], "cache_creation_input_tokens": five + hour,
            "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}, "output_tokens": used["tokens_out"],
            "service_tier": "standard", "inference_geo": "global",
        }  # fmt: skip

    def totals(self, *, finished: bool = True) -> dict[str, int]:
        """Sums over the answered calls, without those that were cut where *finished*."""
        calls = [c for c in self.calls if not finished or c not in self.cut]
        return {name: sum(c[name] for c in calls) for name in ("tokens_in", "cache_read", "cache_write_5m", "cache_write_1h", "tokens_out")}


def _texts(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else " ".join(b.get("text", "") for b in content or [] if b.get("type") == "text")


def _step(truth: Truth, messages: list[dict[str, Any]]) -> Any:
    """The step that a conversation has come to: how many answers stand after the last text that names a plan."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at]["role"] == "user":
            for word, steps in truth.plan.items():
                if word in _texts(messages[at]):
                    done = sum(m["role"] == "assistant" for m in messages[at + 1 :])
                    return steps[min(done, len(steps) - 1)]
    return "ok"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    truth: Truth

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.split("?")[0] != "/v1/messages":
            return self._json({"input_tokens": 1} if "count_tokens" in self.path else {}, 200 if "count_tokens" in self.path else 404)
        asked = json.loads(raw)
        step = _step(self.truth, asked["messages"])
        n, usage = self.truth.next()
        message = {
            "id": f"msg_{id(self.truth)}_{n}",
            "type": "message",
            "role": "assistant",
            "model": asked["model"],
            "stop_sequence": None,
        }
        block = (
            {"type": "text", "text": step}
            if isinstance(step, str)
            else {"type": "tool_use", "id": f"toolu_{n}", "name": step[0], "input": step[1]}
        )
        stop = "end_turn" if isinstance(step, str) else "tool_use"
        if not asked.get("stream"):
            return self._json(message | {"content": [block], "stop_reason": stop, "usage": usage}, 200, f"req_{id(self.truth)}_{n}")
        return self._stream(message, block, stop, usage, n)

    def _stream(self, message: dict[str, Any], block: dict[str, Any], stop: str, usage: dict[str, Any], n: int) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("request-id", f"req_{id(self.truth)}_{n}")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        self._event("message_start", message=message | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}})
        if block.get("text") == "stall":
            self.truth.cut.append(self.truth.calls[n - 1])
            self.truth.stalled.set()
            time.sleep(60)
            return
        empty = block | ({"text": ""} if block["type"] == "text" else {"input": {}})
        self._event("content_block_start", index=0, content_block=empty)
        delta = (
            {"type": "text_delta", "text": block["text"]}
            if block["type"] == "text"
            else {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        )
        self._event("content_block_delta", index=0, delta=delta)
        self._event("content_block_stop", index=0)
        last = {k: usage[k] for k in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")}
        self._event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage=last)
        self._event("message_stop")

    def _event(self, kind: str, **body: Any) -> None:
        with contextlib.suppress(ConnectionError):
            self.wfile.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **body})}\n\n".encode())
            self.wfile.flush()

    def _json(self, body: dict[str, Any], status: int, request_id: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if request_id:
            self.send_header("request-id", request_id)
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


@contextlib.contextmanager
def serving(plan: dict[str, list[Any]]) -> Iterator[tuple[str, Truth]]:
    """A running stub: its base URL and what it has answered."""
    truth = Truth(plan)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"truth": truth}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", truth
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
