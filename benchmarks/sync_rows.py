"""Rows of Claude Code's transcripts, in the shapes that versions 2.0 and 2.1.330 write (captured in tests/fixtures/runs/claude)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from spendmeter.records import Usage, usd

Row = dict[str, Any]
NEW, OLD = "2.1.330", "2.0.14"
TOOLS = ("Bash", "Read", "Edit", "Grep", "Write", "WebFetch")
_CODE = (
    "def return self import from class value total ledger {} [] () == != -> // TODO error: warning FAILED passed ok None true 0x7f <div>"
)
_WORDS = (
    *_CODE.split(),
    "\t",
    "\n",
    "\n\n",
    '"name"',
    "'x'",
    "\\path",
    "│",
    "\x1b[31m",
    "https://example.org/a?b=c",
    "größer",
    "поток",
    "数据",
    "—",
)
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Source:
    """Seeded names and text; text is cut from one pool, so that it costs little."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        names = [f"{w}_{i}" for w in ("item", "path", "test") for i in range(len(_WORDS))]
        lines = (" ".join(self.luck.choices([*_WORDS, *names], k=self.luck.randrange(2, 14))) for _ in range(25_000))
        self._pool = "\n    ".join(lines)

    def text(self, length: int) -> str:
        """Some *length* characters of code, logs and prose."""
        at = self.luck.randrange(len(self._pool) - length)
        return self._pool[at : at + length]

    def uuid(self) -> str:
        """A random UUID of version 4's form."""
        h = f"{self.luck.getrandbits(128):032x}"
        return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]}"

    def name(self, prefix: str, length: int) -> str:
        """An id as the API gives them: *prefix* and base 58."""
        return prefix + "".join(self.luck.choices(_BASE58, k=length))


def stamp(at_ms: int) -> str:
    """``2026-11-21T23:40:19.170Z``"""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Place:
    """Where a transcript is written from: what its rows say of themselves."""

    session: str
    cwd: str
    branch: str
    version: str
    agent: str | None = None  # a subagent's id

    def tail(self) -> Row:
        """The fields that end a row of the conversation."""
        return {
            "userType": "external", "entrypoint": "sdk-cli", "cwd": self.cwd, "sessionId": self.session, "version": self.version,
            "gitBranch": self.branch,
        }  # fmt: skip

    def head(self, parent: str | None) -> Row:
        """The fields that begin one."""
        side = {"agentId": self.agent} if self.agent else {}
        return {"parentUuid": parent, "isSidechain": bool(self.agent), **side}


@dataclass(frozen=True)
class Answer:
    """One answered call: its ids as far as it has any, what it used and what it said."""

    model: str
    asked: str
    used: Usage
    at_ms: int
    request: str | None
    message: str | None
    ref: str
    blocks: tuple[Row, ...]


def usage(used: Usage, out: int) -> Row:
    """The API's usage object, *out* being the output so far."""
    five, hour = used.cache_write_5m or 0, used.cache_write_1h or 0
    return {
        "input_tokens": used.tokens_in, "cache_creation_input_tokens": five + hour, "cache_read_input_tokens": used.cache_read,
        "output_tokens": out, "output_tokens_details": {"thinking_tokens": 0},
        "server_tool_use": {"web_search_requests": used.web_searches or 0, "web_fetch_requests": 0}, "service_tier": "standard",
        "cache_creation": {"ephemeral_1h_input_tokens": hour, "ephemeral_5m_input_tokens": five}, "inference_geo": "global",
        "iterations": [], "speed": "standard", "fallback_credit": None,
    }  # fmt: skip


def assistant(place: Place, a: Answer, i: int, out: int, at_ms: int, uuid: str, parent: str | None) -> Row:
    """The row of block *i* of an answer; *out* is the output that this row repeats."""
    message: Row = {"type": "message", "role": "assistant", "model": a.model, "content": [a.blocks[i]]}
    if a.message:
        message = {"id": a.message, **message}
    message |= {"stop_reason": "tool_use", "stop_sequence": None, "usage": usage(a.used, out)}
    row = place.head(parent) | {"message": message}
    if a.request:
        row["requestId"] = a.request
    if place.version == NEW:
        row |= {"apiBlockIndex": i, "requestRef": a.ref, "requestedModel": a.asked, "promptCacheRequested": "5m", "madeBy": "model"}
    return row | {"type": "assistant", "uuid": uuid, "timestamp": stamp(at_ms), **place.tail()}


def user(place: Place, content: object, at_ms: int, uuid: str, parent: str | None, result: object = None) -> Row:
    """A prompt, or a tool's result that the CLI repeats under ``toolUseResult``."""
    row = place.head(parent) | {"type": "user", "message": {"role": "user", "content": content}, "uuid": uuid}
    return row | {"timestamp": stamp(at_ms), **({} if result is None else {"toolUseResult": result}), **place.tail()}


def attachment(place: Place, kind: str, text: str, at_ms: int, uuid: str, parent: str | None) -> Row:
    """What the CLI told the model besides the conversation."""
    row = place.head(parent) | {"attachment": {"type": kind, "text": text}, "type": "attachment", "uuid": uuid}
    return row | {"timestamp": stamp(at_ms), "rendered": [{"content": text}], "renderedRole": "system", **place.tail()}


def synthetic(place: Place, at_ms: int, uuid: str, parent: str | None, request: str) -> Row:
    """An error note in an answer's clothes, by no model and without usage."""
    block = {"type": "text", "text": "API Error: 529 Overloaded"}
    message = {"id": uuid[::-1], "model": "<synthetic>", "role": "assistant", "type": "message", "usage": usage(Usage(0, 0), 0)}
    row = place.head(parent) | {"type": "assistant", "uuid": uuid, "timestamp": stamp(at_ms), "message": message | {"content": [block]}}
    return row | {"requestId": request, "error": "overloaded", "isApiErrorMessage": True, "apiErrorStatus": 529, **place.tail()}


def queue(session: str, operation: str, at_ms: int, content: str | None = None) -> Row:
    """A prompt's way into the CLI and out of its queue."""
    row = {"type": "queue-operation", "operation": operation, "timestamp": stamp(at_ms), "sessionId": session}
    return row | ({} if content is None else {"content": content})


def api_request(place: Place, a: Answer, digest: str) -> Row:
    """What the CLI notes of a request that it is about to make."""
    side = {"agentId": place.agent} if place.agent else {}
    params = {"model": a.asked, "max_tokens": 32000, "thinking": {"budget_tokens": 31999, "type": "enabled", "display": "omitted"}}
    return {
        "type": "api-request", "sessionId": place.session, **side, "id": a.ref, "timestamp": stamp(a.at_ms), "version": place.version,
        "querySource": "agent:builtin:general-purpose" if place.agent else "sdk", "shapeHash": digest, "params": params, "keep": 1,
        "tail": [digest], "cacheControl": [{"path": ["system", 0], "value": {"type": "ephemeral"}}], "requestDigest": digest,
    }  # fmt: skip


def request_shape(source: Source, session: str, at_ms: int, digest: str) -> Row:
    """The tools and the system prompt that requests were made with, noted once a run."""
    tools = [
        {
            "name": t,
            "description": source.text(700),
            "input_schema": {"type": "object", "properties": _schema(source), "required": ["command"]},
        }
        for t in TOOLS
    ]
    shape = {"system": [{"type": "text", "text": source.text(2500)}], "tools": tools}
    return {
        "type": "api-request-shape",
        "sessionId": session,
        "shapeHash": digest,
        "timestamp": stamp(at_ms),
        "version": NEW,
        "shape": shape,
    }


def _schema(source: Source) -> Row:
    return {f"field_{i}": {"description": source.text(70), "type": "string", "enum": ["low", "high"]} for i in range(6)}


def request_blob(place: Place, content: object, digest: str) -> Row:
    """A message that requests send, noted once and named by its digest."""
    return {"type": "api-request-blob", "sessionId": place.session, "hash": digest, "message": {"role": "user", "content": content}}


def tool_result(source: Source, tool: str, text: str) -> Row:
    """What the CLI keeps of a tool's result besides what the model gets: for an edit, the file and the patch line by line."""
    if tool != "Edit":
        return {"stdout": text, "stderr": "", "interrupted": False, "isImage": False, "noOutputExpected": False}
    lines = [f"{sign}{x}" for sign, x in zip(" +-" * len(text), text.split("\n"), strict=False)]
    patch = [{"oldStart": 1, "oldLines": len(lines), "newStart": 1, "newLines": len(lines), "lines": lines}]
    old, new = source.text(200), source.text(200)
    return {
        "filePath": "src/shop.py",
        "oldString": old,
        "newString": new,
        "originalFile": text,
        "structuredPatch": patch,
        "replaceAll": False,
    }


def cost_state(session: str, spent: dict[str, Usage], epoch_ms: int, now_ms: int) -> Row:
    """The session's cumulative reading, by the model asked for; its costs are in ``Usage.cost_nusd``."""
    return {
        "type": "cost-state", "sessionId": session, "totalCostUSD": float(usd(sum(u.cost_nusd or 0 for u in spent.values()))),
        "totalAPIDuration": 215, "totalToolDuration": 80, "totalLinesAdded": 0, "totalLinesRemoved": 0,
        "totalDuration": now_ms - epoch_ms, "startTime": epoch_ms, "modelUsage": {m: _reading(u) for m, u in spent.items()},
        "hasUnknownModelCost": False,
    }  # fmt: skip


def _reading(u: Usage) -> Row:
    return {
        "inputTokens": u.tokens_in, "outputTokens": u.tokens_out, "thinkingTokens": 0, "cacheReadInputTokens": u.cache_read,
        "cacheCreationInputTokens": u.cache_write, "cacheCreationEphemeral5mInputTokens": u.cache_write_5m,
        "cacheCreationEphemeral1hInputTokens": u.cache_write_1h, "webSearchRequests": u.web_searches,
        "costUSD": float(usd(u.cost_nusd or 0)),
    }  # fmt: skip


def snapshot(source: Source, at_ms: int) -> Row:
    """The backups that a prompt made of the files it is about to change."""
    name, note = source.uuid(), stamp(at_ms)
    kept = {
        f"src/{source.text(6).strip()}_{i}.py": {"backupFileName": source.name("", 16), "version": i, "backupTime": note} for i in range(9)
    }
    whole = {"messageId": name, "trackedFileBackups": kept, "timestamp": note}
    return {"type": "file-history-snapshot", "messageId": name, "snapshot": whole, "isSnapshotUpdate": False}


def summary(source: Source) -> Row:
    """A title of an earlier conversation; names no session."""
    return {"type": "summary", "summary": source.text(60), "leafUuid": source.uuid()}


def compacted(place: Place, at_ms: int, uuid: str) -> Row:
    """The mark that the conversation was summed up; the call that did so stands in no row."""
    row = place.head(None) | {"type": "system", "subtype": "compact_boundary", "content": "Conversation compacted", "isMeta": False}
    return row | {"timestamp": stamp(at_ms), "uuid": uuid, "level": "info", "compactMetadata": {"trigger": "manual"}, **place.tail()}
