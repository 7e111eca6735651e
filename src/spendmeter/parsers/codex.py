"""Codex: what ``codex exec --json`` prints and the rollouts it writes to ``~/.codex/sessions``.

Source: measured on codex-cli 0.169.0; docs/reference/clis.md has the table of what each form can tell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spendmeter.parsers.fields import counts, digest, less, mapping, text, when_ms
from spendmeter.records import NOTHING, Base, Call, Context, Finish, Level, Moment, Observation, Part, Skip, Usage

NAME = "codex"
MARKS = (
    b'"thread.started"',
    b'"turn.completed"',
    b'"turn.failed"',
    b'"session_meta"',
    b'"turn_context"',
    b'"task_started"',
    b'"token_usage_record"',
    b'"token_count"',
)
_STDOUT_TYPES = {"thread.started", "turn.completed", "turn.failed"}
_FILE_TYPES = {"session_meta", "turn_context", "token_usage_record"}
_EVENTS = {"task_started", "token_count"}


def is_stdout(row: dict[str, Any]) -> bool:
    """Whether *row* is an event of ``codex exec --json`` that this parser needs."""
    return row.get("type") in _STDOUT_TYPES and "data" not in row


def is_file(row: dict[str, Any]) -> bool:
    """Whether *row* is a line of a rollout that this parser needs."""
    payload = row.get("payload")
    if not isinstance(payload, dict):
        return False
    return row.get("type") in _FILE_TYPES or (row.get("type") == "event_msg" and str(payload.get("type")) in _EVENTS)


def usage_of(u: dict[str, Any]) -> Usage | None:
    """Usage of one of Codex's counters, whose input includes what was cached; None when a count in it is no count."""
    told = counts(u, "input_tokens", "cached_input_tokens", "cache_write_input_tokens", "output_tokens", "reasoning_output_tokens")
    if told is None or (told[0] is None and told[3] is None):
        return None
    whole, read, written, out, reasoning = told
    return Usage(less(whole, read, written), read, written, None, out, reasoning)


def run_key(session: str, used: Usage) -> str:
    """Key of the run that ended when its thread had used *used*: a later run of the thread has used more."""
    return f"{session}:{'-'.join(str(x or 0) for x in used[:5])}"


def parent_of(meta: dict[str, Any]) -> str | None:
    """The thread that started the thread of *meta* as its subagent."""
    return text(meta.get("parent_thread_id")) or text(_spawn(meta).get("parent_thread_id"))


def _spawn(meta: dict[str, Any]) -> dict[str, Any]:
    return mapping(mapping(mapping(meta.get("source")).get("subagent")).get("thread_spawn"))


class FileReader:
    """Reads one rollout, the file of one thread; a subagent's calls belong to the session that started it.

    ``codex exec resume --last`` may take up a subagent's thread: what it uses from then on is that thread's own.
    """

    def __init__(self, source: str, session: str = "") -> None:
        self._source, self._thread = source, session
        self._owner = self._starter = session
        self._context: Context | None = None
        self._model: str | None = None
        self._models: set[str] = set()
        self._is_exec = self._is_sub = self._has_turn = self._is_taken_up = False
        self._role: str | None = None  # of the subagent
        self._turn = ""
        self._turns: dict[str, Level] = {}
        self._started_ms: int | None = None
        self._recorded = self._is_fork = False
        self._counted: list[Usage] = []  # first and highest total of a version that writes no records
        self.out: list[Observation] = []
        self.last_ms: dict[str, int] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the row at *line*."""
        payload, at = mapping(r.get("payload")), when_ms(r.get("timestamp"))
        kind = r.get("type")
        if kind == "session_meta":
            self._meta(payload, at)
        elif kind == "turn_context":
            self._model = text(payload.get("model"))
            self._models.add(self._model or "")
        elif kind == "event_msg" and payload.get("type") == "token_count":
            self._count(line, payload, at)
        elif kind == "event_msg":
            self._turn_started(payload, at)
        else:
            self._record(line, payload, at)

    def _meta(self, meta: dict[str, Any], at: int | None) -> None:
        thread = text(meta.get("id"))
        if not thread or self._started_ms is not None:  # a copied history may repeat its parent's
            return
        self._thread = self._owner = thread
        self._started_ms = at or 0
        self._is_exec = meta.get("source") == "exec"
        self._is_fork = bool(meta.get("forked_from_id"))
        branch = text(mapping(meta.get("git")).get("branch"))
        self._context = Context(NAME, thread, text(meta.get("cwd")), branch, text(meta.get("cli_version")))
        if parent := parent_of(meta):
            root = text(meta.get("session_id"))
            self._is_sub, self._owner = True, root if root and root != thread else parent
            self._starter = self._owner
            self.out.append(Base(NAME, thread, "parent", self._owner, None))
            self._role = text(_spawn(meta).get("agent_role"))
        else:
            self.out.append(self._context)
            if at is not None:
                self.out.append(Moment(NAME, thread, "own", at))

    def _turn_started(self, payload: dict[str, Any], at: int | None) -> None:
        """Each turn of ``codex exec`` is a run of its own; where a person types, nothing tells the processes apart."""
        trigger = mapping(payload.get("turn_attribution")).get("turn_trigger") or ("exec" if self._is_exec else None)
        turn = text(payload.get("turn_id"))
        if self._is_sub:
            self._resumed(mapping(payload.get("turn_attribution")))
        if trigger != "exec" or self._helps or not turn or at is None or not self._thread:
            self._turn = ""
            return
        self._turn = turn
        self.out.append(Moment(NAME, self._thread, "prompt", at))
        self._turns[turn] = Level(NAME, self._thread, "", NOTHING, "turns", turn, at, at)

    @property
    def _helps(self) -> bool:
        """Whether the thread works for another one now."""
        return self._owner != self._thread

    def _resumed(self, begun: dict[str, Any]) -> None:
        """Whose the calls of a turn of a subagent's thread are: its own where somebody took the thread up, which no other's turn began.

        What it did for the other before is in its total as what a fork inherited is.
        """
        is_own = self._has_turn and begun.get("turn_trigger") == "exec" and begun.get("parent_turn_id") is None
        if is_own and not self._is_taken_up and self._context:
            self._is_taken_up = True
            helped = [o for o in self.out if isinstance(o, Call)]
            self.out += [self._context, *(replace(o, copied_to=self._thread) for o in helped if o.subagent == self._thread)]
        self._owner, self._has_turn = self._thread if is_own else self._starter, True

    def _record(self, line: int, payload: dict[str, Any], at: int | None) -> None:
        used, whole = usage_of(mapping(payload.get("usage"))), usage_of(mapping(payload.get("thread_token_usage")))
        thread = text(payload.get("thread_id")) or self._thread
        response = text(payload.get("response_id"))
        if used is None or not thread or not response:
            self.out.append(Skip(self._source, "bad usage" if response else "no id", line))
            return
        if thread != self._thread and self._thread:  # a copy of another thread's row
            self.out.append(Call(NAME, response, thread, used, self._model, self._model, at, copied_to=self._owner))
            return
        sub = thread if self._helps else None
        self.out.append(
            Call(
                NAME, response, self._owner or thread, used, self._model, self._model, at, role="hidden" if sub else "main",
                subagent=sub, copied_to=thread if sub and self._is_taken_up else None, subagent_type=self._role if sub else None,
            )
        )  # fmt: skip
        if at is not None:
            self.last_ms[self._owner or thread] = max(at, self.last_ms.get(self._owner or thread, at))
        if whole is not None and not sub:
            self._reading(thread, used, whole, at, is_first=not self._recorded)
        self._recorded = True

    def _reading(self, thread: str, used: Usage, whole: Usage, at: int | None, *, is_first: bool) -> None:
        """The thread's running total; the first one less its call is what a fork inherited."""
        if is_first:
            inherited = whole.minus(used)
            is_own = not self._is_fork and bool(self._counted) and self._counted[1].join(inherited) == self._counted[1]
            if not is_own:  # else an older version made no records of it
                self.out.append(Base(NAME, thread, "stated", thread, (("", inherited),)))
        self.out.append(Level(NAME, thread, "", whole))
        if turn := self._turns.get(self._turn):
            read_ms = turn.read_ms if turn.read_ms is not None else at
            self._turns[self._turn] = Level(
                NAME, thread, "", turn.usage.join(whole), turn.epoch, turn.reading, turn.epoch_ms, turn.start_ms, read_ms
            )

    def _count(self, line: int, payload: dict[str, Any], at: int | None) -> None:
        """The running total that every version repeats after each call, and after an abort unchanged."""
        told = mapping(payload.get("info")).get("total_token_usage")
        if told is None or self._recorded:
            return
        used = usage_of(mapping(told))
        if used is None:
            self.out.append(Skip(self._source, "bad usage", line))
            return
        self._counted = [self._counted[0], self._counted[1].join(used)] if self._counted else [used, used]
        if at is not None and self._owner:
            self.last_ms[self._owner] = max(at, self.last_ms.get(self._owner, at))

    def _unrecorded(self) -> list[Observation]:
        """The thread's total where no record tells its calls; not a fork's, of which nothing then tells what it inherited."""
        if self._recorded or not self._counted or not self._thread:
            return []
        first, highest = self._counted
        model = next(iter(self._models)) if len(self._models) == 1 else ""
        if self._is_fork:
            return [Skip(self._source, "fork without records")] if highest != first else []
        if self._is_sub:
            return [Part(NAME, self._owner, "subagent", self._thread, model or "unknown", highest, "hidden")]
        return [Level(NAME, self._thread, model, highest)]

    def finish(self) -> list[Observation]:
        """All that the rollout told."""
        return [*self.out, *self._turns.values(), *self._unrecorded()]


class StdoutReader:
    """Reads what ``codex exec --json`` printed. Its usage is the thread's, earlier runs included, subagents left out."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._thread = ""
        self.out: list[Observation] = []
        self.last_ms: dict[str, int | None] = {}

    def row(self, line: int, r: dict[str, Any]) -> None:
        """Takes the event at *line*."""
        if r.get("type") == "thread.started":
            self._thread = text(r.get("thread_id")) or ""
            if self._thread:
                self.last_ms[self._thread] = None  # its events bear no time
        elif not self._thread:
            self.out.append(Skip(self._source, "no session", line))
        elif r.get("type") == "turn.failed":
            key = f"{self._thread}:failed:{digest(r)}"
            self.out.append(Finish(NAME, self._thread, key, key, "error"))
        else:
            self._completed(line, r)

    def _completed(self, line: int, r: dict[str, Any]) -> None:
        used = usage_of(mapping(r.get("usage")))
        if used is None:
            self.out.append(Skip(self._source, "bad usage", line))
            return
        key = run_key(self._thread, used)
        self.out.append(Level(NAME, self._thread, "", used, reading=key))
        self.out.append(Finish(NAME, self._thread, key, key, "ok", used))

    def finish(self) -> list[Observation]:
        """All that was printed."""
        return self.out
