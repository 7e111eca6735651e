"""OTLP from the CLIs' own telemetry: records in, observations out.

One module for each CLI says which of its records are its own (``MARKS``) and what one of them tells (``read``). Whatever tells no
usage is passed over under a reason that names it once, however many records there are of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from spendmeter.parsers.fields import digest
from spendmeter.parsers.otlp import claude, codex, copilot, gemini, jsonform, qwen
from spendmeter.parsers.otlp import model as m
from spendmeter.parsers.otlp.tags import of_resource
from spendmeter.records import Call, Claim, Observation, Part, Skip, Tags

CLIS: tuple[Any, ...] = (claude, codex, gemini, qwen, copilot)
MARKS = jsonform.MARKS


class Reader:
    """Reads records of one CLI (``""``: of none that is known). ``last_ms``: each session's last record.

    ``rejected`` counts, by what they are, the records that should hold usage and do not.
    """

    def __init__(self) -> None:
        self.last_ms: dict[str, int | None] = {}
        self.rejected: Counter[str] = Counter()
        self._out: dict[Observation, None] = {}  # in order, each once
        self._claims: dict[tuple[str, str], Claim] = {}

    def take(self, cli: Any, r: m.Record) -> None:
        """Takes one record of the CLI whose module *cli* is; None for one that no CLI sent."""
        found = m.FOREIGN if cli is None else cli.read(r)
        if isinstance(found, m.Passed):
            self._pass(cli, r, found)
            return
        self._out[found] = None
        self.last_ms[found.session] = _later(self.last_ms.get(found.session), r.ended_ms)
        if tags := of_resource(r.resource):
            self._claim(found, tags, r.ended_ms if isinstance(found, Call) else None)

    def _claim(self, found: Call | Part, tags: Tags, at: int | None) -> None:
        """The user's word from the first call up to *at*; a point of a metric says it of the whole session, or it would say something
        new each time."""
        word = f"{m.NAME}:{digest([tags.agent, tags.task, sorted(tags.attrs.items())])}"
        before = self._claims.get((found.session, word))
        end = _later(before.end_ms if before else None, at)
        begun = [c for c in (before.start_ms if before else None, found.at_ms if isinstance(found, Call) else None) if c is not None]
        self._claims[found.session, word] = Claim(found.cli, found.session, word, tags, start_ms=min(begun, default=None), end_ms=end)

    def _pass(self, cli: Any, r: m.Record, why: m.Passed) -> None:
        """Names what was passed over by its kind; a record that is broken by itself."""
        kind = [cli.NAME, r.signal] if cli else [r.signal, str(r.resource.get("service.name"))]
        if why.rejected:
            self.rejected[f"{why.reason} in {cli.NAME}'s {r.name}"] += 1
            kind = [*kind, digest(sorted((k, str(v)) for k, v in r.attrs.items())), str(r.time_ns)]
        self._out[Skip(f"{digest([*kind, why.reason])}.{m.NAME}", why.reason)] = None

    def finish(self) -> list[Observation]:
        """All that the records told."""
        return list(self._out)

    @property
    def claims(self) -> list[Claim]:
        """Whose the sessions are, by their resources."""
        return list(self._claims.values())


def _later(a: int | None, b: int | None) -> int | None:
    return max((x for x in (a, b) if x is not None), default=None)


Readers = dict[tuple[str, str], Any]


def take(found: Iterable[m.Record], readers: Readers) -> None:
    """Gives each record to the reader of its CLI in *readers*, made where it is missing.

    Raises:
        MalformedError: *found* is no OTLP from there on.
    """
    for r in found:
        cli = next((c for c in CLIS if is_of(c.MARKS, r)), None)
        key = (cli.NAME if cli else "", m.NAME)
        if key not in readers:
            readers[key] = Reader()
        readers[key].take(cli, r)


def is_of(marks: tuple[str, str, str], r: m.Record) -> bool:
    """Whether *r* is of the CLI whose scope, names and service begin so."""
    scope, name, service = marks
    return r.scope.startswith(scope) or r.name.startswith(name) or str(r.resource.get("service.name", "")).startswith(service)


def take_row(row: dict[str, Any], readers: Readers) -> None:
    """As ``take``, of a line of JSON that is a request or holds one, all of it or none; any other line tells nothing.

    Raises:
        MalformedError: it looks like a request and is no OTLP.
    """
    if (request := jsonform.request_in(row)) is not None:
        take(list(jsonform.records(request)), readers)
