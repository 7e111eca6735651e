"""What is known about usage: plain values, no I/O.

``Usage`` is a vector with its own algebra; an *observation* is what one source said about a call, a session or a run.
Times are integer milliseconds since the epoch, UTC. Money is integer nano-USD. Unknown is ``None``, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

NANO = 1_000_000_000
MAX_USD = 1_000_000_000
NAMELESS = "~"  # begins a call id or a session that no CLI gave: made of what was said, and found in no other source


class Usage(NamedTuple):
    """Tokens, web searches and the CLI's own cost of one call or of many; a field nobody told of is None.

    ``tokens_in`` is uncached input, ``tokens_out`` all output, ``reasoning`` the part of tokens_out that is reasoning,
    ``cost_nusd`` what the CLI itself says it cost, in nano-USD.
    """

    tokens_in: int | None = None
    cache_read: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    tokens_out: int | None = None
    reasoning: int | None = None
    web_searches: int | None = None
    cost_nusd: int | None = None

    def join(self, other: Usage) -> Usage:
        """Per-field maximum; an unknown gives way to a number."""
        return _usage(Usage, [b if a is None else a if b is None or a >= b else b for a, b in zip(self, other, strict=True)])

    def meet(self, other: Usage) -> Usage:
        """Per-field minimum; an unknown gives way to a number."""
        return Usage(*[b if a is None else a if b is None or a <= b else b for a, b in zip(self, other, strict=True)])

    def plus(self, other: Usage) -> Usage:
        """Per-field sum; unknown plus unknown stays unknown."""
        return _usage(Usage, [b if a is None else a if b is None else a + b for a, b in zip(self, other, strict=True)])

    def minus(self, other: Usage) -> Usage:
        """Per-field difference, floored at 0; what is unknown here stays unknown."""
        return _usage(Usage, [a if a is None or b is None else a - b if a > b else 0 for a, b in zip(self, other, strict=True)])

    def within(self, top: Usage) -> Usage:
        """No field above *top*; unknown where *top* is."""
        return Usage(*[None if x is None or t is None else min(x, t) for x, t in zip(self, top, strict=True)])

    @property
    def tokens(self) -> int:
        """All tokens that are billed, cached ones too; unknown fields add nothing."""
        return sum(x or 0 for x in self[:5])

    @property
    def cache_write(self) -> int | None:
        """Cache writes of both lifetimes, or None when neither is known."""
        a, b = self.cache_write_5m, self.cache_write_1h
        return None if a is None and b is None else (a or 0) + (b or 0)

    @property
    def known(self) -> bool:
        """Whether any field is known and not 0."""
        return any(self)


_usage = tuple.__new__  # as Usage(*...), in half the time
NOTHING = Usage()


def total(items: Iterable[Usage]) -> Usage:
    """Sum of *items*; all-unknown when there are none."""
    rows = list(items)
    if len(rows) == 1:
        return rows[0]
    columns = zip(*rows, strict=True)  # adding up columns is some five times as quick as adding up rows
    return Usage(*[sum(known) if (known := [x for x in column if x is not None]) else None for column in columns])


def tokens_only(used: Usage) -> Usage:
    """The five token kinds alone, unknown as 0: for comparing totals."""
    return Usage(*[x or 0 for x in used[:5]])


def to_nusd(usd: object) -> int | None:
    """USD as told by a CLI (number or string) in nano-USD, rounded half-even; None for anything else, or less than 0, or absurd."""
    if usd is None or isinstance(usd, bool) or not isinstance(usd, int | float | str | Decimal):
        return None
    try:
        value = Decimal(str(usd))
    except ArithmeticError:
        return None
    return int((value * NANO).to_integral_value()) if value.is_finite() and 0 <= value < MAX_USD else None


def iso(at_ms: int) -> str:
    """``2026-11-02T12:00:00.000+00:00``"""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def usd(nusd: int) -> Decimal:
    """Nano-USD as exact USD."""
    return Decimal(nusd) / NANO


def usd_text(nusd: int | None) -> str | None:
    """Nano-USD as the decimal string of our JSON: at least 6 places, no exponent; None stays None."""
    if nusd is None:
        return None
    text = f"{usd(nusd):.9f}"
    head, tail = text[:-3], text[-3:].rstrip("0")
    return head + tail


@dataclass(frozen=True, slots=True)
class Call:
    """One answered model request, as one source saw it."""

    cli: str
    call_id: str
    session: str
    usage: Usage
    asked: str | None = None
    answered: str | None = None
    at_ms: int | None = None
    view: str = "file"  # file | stdout | otlp: the id space of call_id where a CLI has several
    role: str = "main"  # main | hidden: no total of the session covers hidden calls | any: the source tells the two not apart
    subagent: str | None = None
    copied_to: str | None = None  # the session whose file holds this row as a copy of session's
    traits: tuple[tuple[str, str], ...] = ()  # what changes the rate: speed, geo
    subagent_type: str | None = None  # the name of its role, where told: subagent is an id


@dataclass(frozen=True, slots=True)
class Level:
    """A cumulative reading of a session. ``epoch`` is "" where the source does not date it; ``reading`` names it."""

    cli: str
    session: str
    model: str  # "" = all models together
    usage: Usage
    epoch: str = ""
    reading: str = ""
    epoch_ms: int | None = None  # start of the epoch
    start_ms: int | None = None  # start of the segment that this reading closes; None = start of the epoch
    read_ms: int | None = None  # last moment known to lie before the reading
    guess: bool = False  # the CLI itself marks its cost as a guess


@dataclass(frozen=True, slots=True)
class Part:
    """A disjoint increment: parts of one kind add up.

    Parts of the kinds "run" and "utility" are what one run alone used; their ``part_id`` is its run's key. Those of the kinds
    "otlp.delta" and "otlp.cumulative" are points of metrics, which tell both lifetimes of cache writes as one, in ``cache_write_5m``.
    """

    cli: str
    session: str
    kind: str
    part_id: str
    model: str  # "" = all models together
    usage: Usage
    role: str = "main"  # main | hidden | any: as of calls, or both together
    guess: bool = False


@dataclass(frozen=True, slots=True)
class Base:
    """What a session's readings held before its own first usage, as one source states it.

    ``kind`` "stated": true for the session (Codex). "restored": what one process had restored, by ``source``;
    ``by_model`` is None where that process did not say. "parent": ``source`` is the session that started this one, where
    files count what it used. "mark": ``source`` names a row that forks repeat, and nothing else is said: of those that hold it, the
    oldest session is an ancestor of the others.
    """

    cli: str
    session: str
    kind: str
    source: str
    by_model: tuple[tuple[str, Usage], ...] | None


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a session."""

    cli: str
    alias: str
    session: str


@dataclass(frozen=True, slots=True)
class Moment:
    """A dated point of a session: ``own`` = a row of its own, ``prompt`` = a prompt was taken."""

    cli: str
    session: str
    kind: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a run as its CLI told it; totals are model-less sums used to order and to date it."""

    cli: str
    session: str
    run_key: str
    leader: str | None  # run_key of the first result of the same process, where known
    outcome: str  # ok | error | max_turns | max_budget | interrupted | killed | unknown
    total: Usage = NOTHING
    own: Usage = NOTHING
    duration_ms: int | None = None
    ended_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """Where a session ran: any field may be unknown."""

    cli: str
    session: str
    cwd: str | None = None
    branch: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """A line or file that could not be used; ``length`` in bytes, never its text."""

    source: str
    reason: str
    line: int = 0
    length: int = 0


Observation = Call | Level | Part | Base | Alias | Moment | Finish | Context | Skip


@dataclass(frozen=True, slots=True)
class Tags:
    """What the user says a run is for. ``attrs`` keeps any other key."""

    agent: str = "unknown"
    task: str = "unknown"
    attrs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """A user's word that a stretch of a session belongs to *tags*.

    A claim with a ``run_key`` is a run; one without only tags. ``start_ms``/``end_ms`` are times *of the session's own
    rows*; None means as far as the neighbouring claim, or the segment.
    """

    cli: str
    session: str
    claim_id: str
    tags: Tags
    run_key: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
