"""What OTLP carries, whatever its encoding: a log record, a point of a sum or a span as one flat value, and what a CLI makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from spendmeter.parsers.fields import count, digest, text, when_ms
from spendmeter.records import NAMELESS, Call, Part, Usage

SIGNALS = ("metrics", "logs", "traces")
Attrs = dict[str, str | int | float | bool]
NAME = "otlp"  # of the view of calls, of what skips name
MOST_TOKENS, MOST_NUSD = 10**12, 10**15  # of one record: sums of such still fit a ledger's 64 bits
_LATEST_MS = 4_102_444_800_000  # 2100: a clock may be wrong, but a date must be one


class MalformedError(ValueError):
    """The request is no OTLP; the message says where, and no value."""


@dataclass(frozen=True, slots=True)
class Record:
    """One log record, point or span. ``name`` is that of the event, the metric or the operation; times are ns, 0 where unknown."""

    signal: str
    scope: str
    name: str
    attrs: Attrs = field(default_factory=dict)
    resource: Attrs = field(default_factory=dict)
    start_ns: int = 0
    time_ns: int = 0
    value: int | float | None = None  # of a point; None where the metric is no sum
    is_delta: bool = False

    @property
    def ended_ms(self) -> int | None:
        """When it was, by its own word."""
        return _dated(when_ms(self.attrs.get("event.timestamp"))) or _dated(self.time_ns // 1_000_000)

    @property
    def begun_ms(self) -> int | None:
        """When the request was made: a span began then, a log record tells its end and how long it took."""
        ended, took = self.ended_ms, whole(self.attrs.get("duration_ms"))
        return _dated(self.start_ns // 1_000_000) or (ended if ended is None or took is None else max(0, ended - took))

    def word(self, *names: str) -> str | None:
        """The first of the attributes *names* that is a text and not empty, else of the resource's."""
        found = (text(attrs.get(name)) for attrs in (self.attrs, self.resource) for name in names)
        return next((x for x in found if x), None)

    def counts(self, **names: str) -> dict[str, object]:
        """The attributes *names* as the CLI's own parser knows them; what is no count stays as it is, for the parser to refuse."""
        told = {key: self.attrs.get(name) for key, name in names.items()}
        return {key: value if (n := whole(value)) is None else n for key, value in told.items()}

    def own_id(self, session: str, used: Usage) -> str:
        """The id of a call that has none: the same for the same record, however often it comes."""
        return NAMELESS + digest([session, self.ended_ms, self.attrs.get("model"), list(used)])


@dataclass(frozen=True, slots=True)
class Passed:
    """A record of which nothing is counted. ``rejected``: it should hold usage and does not."""

    reason: str
    rejected: bool = False


NO_USAGE = Passed("no usage")
TOLD_ELSEWHERE = Passed("told by another stream")  # the same usage comes in records that can be joined
NO_SESSION = Passed("no session")
BAD_USAGE = Passed("bad usage", rejected=True)
NO_ID = Passed("no id", rejected=True)
FOREIGN = Passed("unknown source")
Read = Call | Part | Passed


def _dated(at_ms: int | None) -> int | None:
    return at_ms if at_ms is not None and 0 < at_ms < _LATEST_MS else None


def whole(value: object) -> int | None:
    """A count, also one told as text (CLIs do so, and JSON does so with all int64), else None."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    found = count(value)
    return found if found is not None and found <= MOST_TOKENS else None
