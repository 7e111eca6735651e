"""What the CLIs' exporters really sent, as captured: bodies to send again in either encoding, and the same with another temporality."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from google.protobuf.json_format import ParseDict
from sqlalchemy import func, select

from spendmeter.ledger import Ledger
from spendmeter.ledger import schema as t
from tests.otlp_receiver import KINDS
from tests.runs import FIELDS, Chain, all_chains

JSON, PROTOBUF = "application/json", "application/x-protobuf"
DELTA, CUMULATIVE = 1, 2
POINTS = ("claude_code.token.usage", "claude_code.cost.usage")


@dataclass(frozen=True)
class Dump:
    """One request. ``signal``: metrics, logs or traces; ``kind``: the encoding in which it was captured."""

    signal: str
    document: dict[str, Any]
    kind: str = JSON

    def body(self, kind: str) -> bytes:
        """As *kind* of encoding has it."""
        if kind == JSON:
            return json.dumps(self.document).encode()
        return bytes(ParseDict(self.document, KINDS[self.signal][0](), ignore_unknown_fields=True).SerializeToString())

    def send(self, client: httpx.Client, kind: str = PROTOBUF, *, packed: bool = False) -> httpx.Response:
        """Posts it."""
        body = self.body(kind)
        headers = {"content-type": kind} | ({"content-encoding": "gzip"} if packed else {})
        return client.post(f"/v1/{self.signal}", content=gzip.compress(body) if packed else body, headers=headers)

    def records(self) -> Iterator[dict[str, Any]]:
        """Its log records, spans or points, to be changed in place."""
        groups, scopes, items = {
            "metrics": ("resourceMetrics", "scopeMetrics", "metrics"),
            "logs": ("resourceLogs", "scopeLogs", "logRecords"),
            "traces": ("resourceSpans", "scopeSpans", "spans"),
        }[self.signal]
        for group in self.document.get(groups, []):
            for scope in group[scopes]:
                for item in scope[items]:
                    yield from item["sum"]["dataPoints"] if "sum" in item else [item]

    def calls(self) -> list[dict[str, Any]]:
        """Those of its records that tell of a call, by what each CLI's have and no other record."""
        marks = {"input_tokens", "response_id", "gen_ai.response.id", "cached_token_count", "cached_content_token_count"}
        return [r for r in self.records() if marks & {a["key"] for a in r.get("attributes", [])}]


def dumped() -> list[Chain]:
    """Every captured run whose telemetry was captured too."""
    found = [c for c in all_chains() if (c.folders[-1] / "otlp").is_dir()]
    assert len(found) == 20
    return found


def dumps_of(chain: Chain) -> list[Dump]:
    """Its requests in order of arrival."""
    told = [json.loads(p.read_text()) for folder in chain.folders for p in sorted((folder / "otlp").iterdir())]
    return [Dump(d["path"].rpartition("/")[2], d["request"], JSON if d["wire"] == "json" else PROTOBUF) for d in told]


def send_all(client: httpx.Client, dumps: Iterable[Dump], kind: str = PROTOBUF, *, packed: bool = False) -> None:
    """Posts all; each must be taken whole."""
    for dump in dumps:
        answer = dump.send(client, kind, packed=packed)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == kind
        assert KINDS[dump.signal][1]().FromString(answer.content).ByteSize() == 0 if kind == PROTOBUF else answer.json() == {}


def used(ledger: Ledger) -> dict[str, int]:
    """All usage in the ledger."""
    with ledger.read() as conn:
        row = conn.execute(select(*[func.coalesce(func.sum(t.entries.c[name]), 0).label(name) for name in FIELDS])).one()
        return {name: int(getattr(row, name)) for name in FIELDS}


def cost(ledger: Ledger) -> int:
    """What the CLIs themselves say that it cost, nano-USD."""
    with ledger.read() as conn:
        return int(conn.execute(select(func.coalesce(func.sum(t.entries.c.reported_nusd), 0))).scalar_one())


def attr(record: dict[str, Any], key: str) -> dict[str, Any]:
    """The value of an attribute, to be changed in place."""
    return next(a["value"] for a in record["attributes"] if a["key"] == key)


def as_delta(dumps: Iterable[Dump]) -> list[Dump]:
    """*dumps* of cumulative metrics as an exporter with delta temporality sends them."""
    out: list[Dump] = []
    last: dict[str, tuple[float, str]] = {}
    for dump in copy.deepcopy(list(dumps)):
        for metric in sums(dump):
            metric["sum"]["aggregationTemporality"] = DELTA
            for point in metric["sum"]["dataPoints"]:
                key = metric["name"] + json.dumps(sorted(map(json.dumps, point["attributes"])))
                value, since = last.get(key, (0.0, point["startTimeUnixNano"]))
                last[key] = point["asDouble"], point["timeUnixNano"]
                point["asDouble"], point["startTimeUnixNano"] = point["asDouble"] - value, since
        out.append(dump)
    return out


def sums(dump: Dump) -> list[dict[str, Any]]:
    """Claude Code's usage metrics of *dump*."""
    groups = dump.document.get("resourceMetrics", [])
    return [m for g in groups for s in g["scopeMetrics"] for m in s["metrics"] if m["name"] in POINTS]


def only(chain: Chain, signal: str) -> list[Dump]:
    """Its requests of one signal."""
    return [d for d in dumps_of(chain) if d.signal == signal]


def skipped(client: httpx.Client) -> dict[str, int]:
    """Reason -> count, of what OTLP brought."""
    lines = [x for x in client.get("/metrics").text.splitlines() if x.startswith('spendmeter_skipped_total{source="otlp"')]
    return {x.split('reason="')[1].split('"')[0]: int(x.rpartition(" ")[2]) for x in lines}
