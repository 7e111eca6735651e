"""GitHub Copilot CLI: what ``copilot -p`` prints, its ``--usage-output-file``, and the events it writes to ``~/.copilot``.

Source: measured on copilot 1.0.102; docs/reference/clis.md has the table of what each form can tell.
"""

from __future__ import annotations

from typing import Any

from spendmeter.parsers.fields import count, counts, less, mapping, text, when_ms
from spendmeter.records import NOTHING, Alias, Call, Context, Finish, Level, Moment, Observation, Skip, Usage

NAME = "copilot"
MARKS = (
    b'"exitCode"',
    b'"modelMetrics"',
    b'"model.call_',
    b'"session.start"',
    b'"session.resume"',
    b'"session.usage_record"',
    b'"session.shutdown"',
    b'"session.compaction_complete"',
    b'"session.mcp_servers_loaded"',
)
_STDOUT_TYPES = {"model.call_start", "model.call_final_result", "session.mcp_servers_loaded"}
_FILE_TYPES = {"session.start", "session.resume", "session.usage_record", "session.shutdown", "session.compaction_complete"}


def is_stdout(row: dict[str, Any]) -> bool:
    """Whether *row* is a printed event that ``events.jsonl`` lacks, or a usage file."""
    kind = row.get("type")
    if kind == "result":
        return isinstance(row.get("sessionId"), str) and "exitCode" in row
    if kind is None:
        return isinstance(row.get("modelMetrics"), dict) and "sessionStartTime" in row
    return kind in _STDOUT_TYPES and row.get("ephemeral") is True


def is_file(row: dict[str, Any]) -> bool:
    """Whether *row* is an event of ``events.jsonl`` that this parser needs."""
    return row.get("type") in _FILE_TYPES and isinstance(row.get("data"), dict)


def usage_of(u: dict[str, Any]) -> Usage | None:
    """Usage of a call or a sum: input includes what was cached, output includes reasoning."""
    told = counts(u, "inputTokens", "cacheReadTokens", "cacheWriteTokens", "outputTokens", "reasoningTokens")
    if told is None or (told[0] is None and told[3] is None):
        return None
    whole, read, written, out, reasoning = told
    return Usage(less(whole, read, written), read, written, None, out, reasoning)


def start_alias(at_ms: int) -> str:
    """The name of a session in sources that only tell when it was started."""
    return f"start:{at_ms}"


def _metrics(metrics: dict[str, Any]) -> tuple[dict[str, Usage], bool]:
    """Usage by model, and whether an entry was none."""
    found = {text(m) or "unknown": usage_of(mapping(mapping(v).get("usage"))) for m, v in mapping(metrics.get("modelMetrics")).items()}
    return {m: u for m, u in found.items() if u is not None}, None in found.values()


def _sum(models: dict[str, Usage]) -> Usage:
    out = NOTHING
    for used in models.values():
        out = out.plus(used)
    return out


class FileReader:
    """Reads ``events.jsonl`` of one session. *session* is its folder's name; the first event says it too."""

    def __init__(self, source: str, session: str = "") -> None:
        self._source, self._session = source, session
        self._process_ms: int | None = None
        self.out: list[Observation] = []
        self.last_ms: dict[str, int] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the event at *line*."""
        data, at, kind = mapping(r.get("data")), when_ms(r.get("timestamp")), r.get("type")
        if kind == "session.start":
            self._session = text(data.get("sessionId")) or self._session
        if not self._session:
            self.out.append(Skip(self._source, "no session", line))
            return
        if kind in ("session.start", "session.resume"):
            self._started(data, at, data.get("startTime") if kind == "session.start" else data.get("resumeTime"))
        elif kind == "session.usage_record":
            self._call(line, r, mapping(data.get("usage")), at)
        elif kind == "session.compaction_complete":
            self._compaction(line, data, at)
        else:
            self._shutdown(line, data, at)
        if at is not None:
            self.last_ms[self._session] = max(at, self.last_ms.get(self._session, at))

    def _started(self, data: dict[str, Any], at: int | None, started: object) -> None:
        """A process begins: what it uses is a segment, however it ends."""
        session, begun = self._session, when_ms(started)
        if "startTime" in data and begun is not None:
            self.out.append(Alias(NAME, start_alias(begun), session))
        begun = begun if begun is not None else at
        if begun is None:
            return
        self._process_ms = begun
        context = mapping(data.get("context"))
        self.out += [
            Moment(NAME, session, "own", begun),
            Moment(NAME, session, "prompt", begun),
            Level(NAME, session, "", NOTHING, "processes", str(begun), begun, begun),
            Context(NAME, session, text(context.get("cwd")), text(context.get("branch")), text(data.get("copilotVersion"))),
        ]

    def _call(self, line: int, r: dict[str, Any], u: dict[str, Any], at: int | None) -> None:
        used, cid = usage_of(u), text(u.get("apiCallId"))
        if used is None or cid is None:
            self.out.append(Skip(self._source, "bad usage" if used is None else "no id", line))
            return
        model = text(u.get("model"))
        self.out.append(Call(NAME, cid, self._session, used, model, model, at, subagent=text(r.get("agentId"))))

    def _compaction(self, line: int, data: dict[str, Any], at: int | None) -> None:
        """What a compaction's calls used together: no record of a call and no total holds it."""
        told = mapping(data.get("compactionTokensUsed"))
        if not told:
            return  # it was given up before it was answered
        used, cid = usage_of(told), text(data.get("compactionAttemptId")) or text(data.get("requestId"))
        if used is None or cid is None:
            self.out.append(Skip(self._source, "bad usage" if used is None else "no id", line))
            return
        model = text(told.get("model"))
        self.out.append(Call(NAME, f"compaction:{cid}", self._session, used, model, model, at, role="hidden"))

    def _shutdown(self, line: int, data: dict[str, Any], at: int | None) -> None:
        """The session's running total at a process' end, subagents included."""
        metrics = mapping(data.get("accountingSnapshot")) or data
        started = when_ms(metrics.get("sessionStartTime"))
        if started is not None:
            self.out.append(Alias(NAME, start_alias(started), self._session))
        models, bad = _metrics(metrics)
        if bad:
            self.out.append(Skip(self._source, "bad usage", line))
        self.out += [Level(NAME, self._session, m, used) for m, used in models.items()]
        if at is not None and self._process_ms is not None:
            begun = self._process_ms
            self.out.append(Level(NAME, self._session, "", _sum(models), "processes", str(begun), begun, begun, at))

    def finish(self) -> list[Observation]:
        """All that the events told."""
        return self.out


class StdoutReader:
    """Reads what ``copilot -p --output-format json`` printed, which tells of runs but of no usage, and usage files, which do.

    Both tell how long the session's calls took so far; that joins them: a run that was answered took some time.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._first_ms: int | None = None
        self._answered = False
        self.out: list[Observation] = []
        self.last_ms: dict[str, int | None] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the event or usage file at *line*."""
        if "type" not in r:
            self._usage_file(line, r)
            return
        at = when_ms(r.get("timestamp"))
        if self._first_ms is None:
            self._first_ms = at
        if r.get("type") == "model.call_final_result" and mapping(r.get("data")).get("result") == "success":
            self._answered = True
        if r.get("type") == "result":
            self._result(r, at)

    def _result(self, r: dict[str, Any], at: int | None) -> None:
        session = text(r["sessionId"]) or "?"
        spent_ms = count(mapping(r.get("usage")).get("totalApiDurationMs"))
        key = f"api:{spent_ms}" if self._answered and spent_ms else f"at:{at}"
        duration = at - self._first_ms if at is not None and self._first_ms is not None and at >= self._first_ms else None
        outcome = "ok" if r.get("exitCode") == 0 else "error"
        self.out.append(Finish(NAME, session, key, key, outcome, duration_ms=duration, ended_ms=at))
        self.last_ms[session] = at
        self._first_ms, self._answered = None, False

    def _usage_file(self, line: int, r: dict[str, Any]) -> None:
        started, spent_ms = when_ms(r.get("sessionStartTime")), count(r.get("totalApiDurationMs"))
        models, bad = _metrics(r)
        if bad or started is None:
            self.out.append(Skip(self._source, "bad usage" if bad else "no session", line))
        if started is None:
            return
        session, key, whole = start_alias(started), f"api:{spent_ms}", _sum(models)
        self.out += [Level(NAME, session, m, used, reading=key) for m, used in models.items()]
        self.last_ms[session] = None
        if spent_ms and models:
            self.out.append(Level(NAME, session, "", whole, reading=key))
            self.out.append(Finish(NAME, session, key, key, "unknown", whole))

    def finish(self) -> list[Observation]:
        """All that was printed."""
        return self.out
