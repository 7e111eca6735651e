"""A batch of observations as it goes from a host to a central daemon: one JSON document, gzipped.

It holds what a ledger on the host would have kept and no more: no text of a prompt, an answer or an argument, and of files no folder.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import PurePath
from typing import Any, TypeVar

import msgspec

from spendmeter.ledger import Batch, Process
from spendmeter.records import Base, Call, Claim, Observation, Skip, Tags, Usage
from spendmeter.runner.spool import KINDS

PATH = "/api/v1/observations"
VERSION = 1
MOST_BYTES = 64 << 20  # of the document; a day of one busy session is a few megabytes
MOST_TEXT = 2000  # bytes of one text: more than that no database can index
MOST_TOKENS, MOST_NUSD = 10**12, 10**15  # of one figure: sums of such still fit a ledger's 64 bits
_MOST = 1 << 53
_LATEST_MS = 4_102_444_800_000  # 2100: a clock may be wrong, but a date must be one
_MOST_CODE = 1 << 31
_T = TypeVar("_T")
_ID = re.compile(r"[0-9a-f]+")
_IDS = {"run_id": 32, "trace_id": 32, "span_id": 16, "parent_span_id": 16}  # hex digits
_CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("Call", "view"): ("file", "stdout", "otlp"),
    ("Call", "role"): ("main", "hidden"),
    ("Part", "role"): ("main", "hidden", "any"),
    ("Base", "kind"): ("stated", "restored", "parent", "mark"),
    ("Moment", "kind"): ("own", "prompt"),
    ("Finish", "outcome"): ("ok", "error", "max_turns", "max_budget", "interrupted", "killed", "unknown"),
}


class WireError(ValueError):
    """A document is not what ``pack`` makes. ``field`` is where, ``message`` what was expected."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


class TooLargeError(WireError):
    """A document is larger than is read."""


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    observations: list[tuple[str, dict[str, Any]]]
    claims: list[dict[str, Any]] = []
    processes: list[dict[str, Any]] = []
    settled: bool = False
    seen_ms: int | None = None


def pack(batch: Batch) -> bytes:
    """*batch* as gzipped JSON; ``sources`` and ``releases`` are of its own host's ledger and stay."""
    document = _Document(
        VERSION,
        [(type(o).__name__, msgspec.to_builtins(_bare(o))) for o in batch.observations],
        [msgspec.to_builtins(c) for c in batch.claims],
        [msgspec.to_builtins(p) for p in batch.processes],
        batch.settled,
        batch.seen_ms,
    )
    packer = zlib.compressobj(wbits=31)
    return packer.compress(msgspec.json.encode(document)) + packer.flush()


def unzipped(body: bytes, most: int = MOST_BYTES) -> bytes:
    """What the gzipped *body* holds.

    Raises:
        WireError: it is not gzip, is cut short or goes on behind its end; as TooLargeError, it holds more than *most* bytes.
    """
    reader = zlib.decompressobj(31)
    try:
        out = reader.decompress(body, most)
    except zlib.error:
        raise WireError("body", "is not gzip, as its Content-Encoding says") from None
    if reader.unconsumed_tail:
        raise TooLargeError("body", f"is more than {most >> 20} MiB when unpacked")
    if not reader.eof:
        raise WireError("body", "is cut short; send it again")
    if reader.unused_data:
        raise WireError("body", "has more behind the end of its gzip; send one gzip member")
    return out


def unpack(body: bytes) -> Batch:
    """The batch in the JSON document *body*.

    Raises:
        WireError: it is no such document, or of a newer version: nothing in it is passed over.
    """
    try:
        found = msgspec.json.decode(body, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise WireError("body", _said(e)) from None
    if found.version != VERSION:
        raise WireError("version", f"{found.version} is not known, only {VERSION}; update spendmeter where it is older")
    observations = [_observation(f"observations[{i}]", kind, value) for i, (kind, value) in enumerate(found.observations)]
    claims = [_value(f"claims[{i}]", Claim, value) for i, value in enumerate(found.claims)]
    processes = [_process(f"processes[{i}]", value) for i, value in enumerate(found.processes)]
    _check("seen_ms", found.seen_ms)
    return Batch(observations, claims, processes, settled=found.settled, seen_ms=found.seen_ms)


def _bare(o: Observation) -> Observation:
    return replace(o, source=PurePath(o.source).name) if isinstance(o, Skip) else o


def _observation(where: str, kind: str, value: dict[str, Any]) -> Observation:
    if kind not in KINDS:
        raise WireError(where, f"no such kind; known are {', '.join(KINDS)}; update spendmeter where it is older")
    made = _value(where, KINDS[kind], value)
    for (of, name), known in _CHOICES.items():
        if of == kind and getattr(made, name) not in known:
            raise WireError(f"{where}.{name}", f"is not one of {', '.join(known)}")
    if isinstance(made, Call) and not made.call_id:
        raise WireError(f"{where}.call_id", "is empty")
    for used in _usages(made):
        if any((n or 0) > (MOST_NUSD if name == "cost_nusd" else MOST_TOKENS) for name, n in used._asdict().items()):
            raise WireError(where, f"uses more than {MOST_TOKENS} tokens, or {MOST_NUSD} nano-USD")
    return made


def _usages(o: Observation) -> list[Usage]:
    if isinstance(o, Base):
        return [used for _, used in o.by_model or ()]
    return [used for f in fields(o) if isinstance(used := getattr(o, f.name), Usage)]


def _process(where: str, value: dict[str, Any]) -> Process:
    made = _value(where, Process, value)
    for name, digits in _IDS.items():
        told = getattr(made, name)
        if told is not None and not (len(told) == digits and _ID.fullmatch(told)):
            raise WireError(f"{where}.{name}", f"is not {digits} hex digits")
    if max(made.exit_code or 0, made.signal or 0) >= _MOST_CODE:
        raise WireError(where, "has an exit code or a signal that no process has")
    return made


def _value(where: str, kind: type[_T], value: dict[str, Any]) -> _T:
    """*value* as *kind*, each of its fields known and within bounds."""
    _known(where, kind, value)
    if isinstance(tags := value.get("tags"), dict):
        _known(f"{where}.tags", Tags, tags)
    _check(where, value)
    try:
        return msgspec.convert(value, type=kind)
    except msgspec.ValidationError as e:
        raise WireError(where, _said(e)) from None


def _known(where: str, kind: type[Any], value: Mapping[str, Any]) -> None:
    names = {f.name for f in fields(kind)}
    if not names.issuperset(value):
        raise WireError(where, f"has a field that is not known; known are {', '.join(sorted(names))}; update spendmeter where it is older")


def _check(where: str, value: object) -> None:
    """Refuses what no database takes, and numbers that no source can have told."""
    if isinstance(value, str):
        if "\0" in value or len(value.encode()) > MOST_TEXT:
            raise WireError(where, f"is a text of more than {MOST_TEXT} bytes, or with a NUL")
    elif isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < (_LATEST_MS if where.endswith("_ms") else _MOST):
            raise WireError(where, "is a number below 0, or absurdly large")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(where, key)
            _check(f"{where}.{key}", item)
    elif isinstance(value, list):
        for item in value:
            _check(where, item)


def _said(e: Exception) -> str:
    """What msgspec found, which names types and places and no value."""
    return str(e) if isinstance(e, msgspec.DecodeError) else "is nested too deeply, or is no UTF-8"
