"""For orchestrators that have the log text already, or start the CLI themselves. Nothing here raises for bad input."""

from __future__ import annotations

import io
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

from spendmeter.errors import SpendmeterError
from spendmeter.records import Tags, usd

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What one run, or one log of several, used. A field that nothing tells is None, never 0.

    Attributes:
        runs: keys of the runs in the ledger.
        unknown: what is not known and why, a line each.
        error: why nothing was recorded, or None.
    """

    agent: str = "unknown"
    task: str = "unknown"
    cli: str | None = None
    session: str | None = None
    runs: tuple[str, ...] = ()
    outcome: str = "unknown"
    models: tuple[str, ...] = ()
    tokens_in: int | None = None
    tokens_out: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    cost_usd: Decimal | None = None
    cost_source: str = "unknown"  # reported | estimated | mixed | unknown
    unpriced_tokens: int = 0
    calls: int | None = None
    duration_s: float | None = None
    unknown: tuple[str, ...] = field(default=())
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether usage was found and recorded."""
        return self.error is None and self.tokens_out is not None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the cost as a decimal string."""
        return asdict(self) | {"cost_usd": None if self.cost_usd is None else str(self.cost_usd)}


def record(
    source: object,
    *,
    agent: str = "unknown",
    task: str = "unknown",
    attrs: Mapping[str, str] | None = None,
    ledger: object = None,
    cli: str | None = None,
) -> RunRecord:
    """Records what a CLI printed or wrote.

    Args:
        source: the log as str or bytes, or the path of a log or session file (a Path, or a str that names an existing file).
        ledger: a ``Ledger``, a ledger URL, or None for the configured one.
        cli: which CLI it is of; by default each row tells.

    Returns:
        The usage of the runs in *source*. Never raises: ``error`` says why nothing was recorded, ``unknown`` what is not known.
        Recording the same again changes nothing.
    """
    who = RunRecord(agent=str(agent), task=str(task))
    try:
        return _record(source, Tags(str(agent), str(task), {str(k): str(v) for k, v in (attrs or {}).items()}), ledger, cli)
    except SpendmeterError as e:
        return replace(who, error=str(e))
    except Exception as e:  # noqa: BLE001 - the caller's run must go on; the error's text may hold content
        return replace(who, error=f"{type(e).__name__} while recording; nothing was written")


def _record(source: object, tags: Tags, ledger: object, cli: str | None) -> RunRecord:
    from spendmeter import ingest

    handle, name, seen_ms = _opened(source)
    with handle, _Opened(ledger) as book:
        return _read_back(book, ingest.ingest_handle(book, handle, name, cli=cli, tags=tags, seen_ms=seen_ms), tags)


def _opened(source: object) -> tuple[Any, str, int | None]:
    """(binary handle, name, time of the file or None)."""
    if isinstance(source, str) and "\n" not in source and len(source) < 4096 and "\0" not in source and Path(source).is_file():
        source = Path(source)
    if isinstance(source, Path):
        try:
            return source.open("rb"), source.name, int(source.stat().st_mtime * 1000)
        except OSError as e:
            raise SpendmeterError(f"{source}: cannot be read ({e.strerror}); check the path") from None
    if isinstance(source, str):
        return io.BytesIO(source.encode("utf-8", "surrogatepass")), "text", None
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(bytes(source)), "text", None
    raise SpendmeterError(f"source is a {type(source).__name__}; give the log as str or bytes, or its path")


class _Opened:
    """A ledger given as an object (stays open), a URL or None (opened here)."""

    def __init__(self, given: object) -> None:
        from spendmeter.config import load
        from spendmeter.ledger import Ledger

        self._ours = not isinstance(given, Ledger)
        self._ledger = given if isinstance(given, Ledger) else Ledger(load(ledger=None if given is None else str(given)))

    def __enter__(self) -> Any:
        return self._ledger

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._ledger.close()


def _read_back(ledger: Any, ids: set[int], tags: Tags) -> RunRecord:
    """The record of what the sessions *ids* hold under *tags*; what these leave open, attribution rules may have said."""
    from sqlalchemy import and_, select

    from spendmeter.ledger import schema as t

    said = [t.runs.c[key] == told for key in ("agent", "task") if (told := getattr(tags, key)) != "unknown" or not ledger.rules]
    mine = and_(t.runs.c.session_id.in_(ids), *said)
    with ledger.read() as conn:
        runs = conn.execute(select(t.runs).where(mine).order_by(t.runs.c.ended_ms)).all()
        join = (t.runs.c.session_id == t.entries.c.session_id) & (t.runs.c.run_key == t.entries.c.run_key)
        rows = [r._mapping for r in conn.execute(select(t.entries).join(t.runs, join).where(mine))]
    if not runs:
        return RunRecord(tags.agent, tags.task, unknown=("usage: nothing in the source tells it",))
    import json

    def add(*names: str) -> int | None:
        known = [r[n] for r in rows for n in names if r[n] is not None]
        return sum(known) if known else None

    reported, estimated = add("reported_nusd"), add("estimated_nusd")
    known = [x for x in (reported, estimated) if x is not None]
    last = runs[-1]
    return RunRecord(
        last.agent,
        last.task,
        last.cli,
        last.session,
        tuple(r.run_key for r in runs),
        last.outcome,
        tuple(sorted({r["model"] for r in rows})),
        add("tokens_in"),
        add("tokens_out"),
        add("cache_read"),
        add("cache_write_5m", "cache_write_1h"),
        add("reasoning"),
        usd(sum(known)) if known else None,
        _source(reported, estimated),
        add("unpriced_tokens") or 0,
        add("calls"),
        None if last.duration_ms is None else last.duration_ms / 1000,
        tuple(n for r in runs for n in json.loads(r.notes)),
    )


def _source(reported: int | None, estimated: int | None) -> str:
    if reported is not None:
        return "mixed" if estimated else "reported"
    return "unknown" if estimated is None else "estimated"


class metered:  # noqa: N801 - a context manager that reads as a word
    """Meters whatever CLI is started inside with ``env=m.env``: ``with metered(agent="developer", task="T-1") as m: ...``.

    Usage comes from the session files that Claude Code writes and from what is handed to ``m.output`` (of any CLI). ``m.record`` holds the
    ``RunRecord`` after the block. Nothing that fails here reaches the block.
    """

    def __init__(
        self,
        *,
        agent: str = "unknown",
        task: str = "unknown",
        attrs: Mapping[str, str] | None = None,
        ledger: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        from spendmeter.runner.childenv import Trace, child_env

        self._tags = Tags(agent, task, dict(attrs or {}))
        self._ledger, self._cwd = ledger, os.fspath(cwd or Path.cwd())
        base = dict(os.environ if env is None else env)
        self._run_id = secrets.token_hex(16)
        self._trace = Trace(self._run_id, base.get("TRACEPARENT"))
        self.env: dict[str, str] = child_env(base, self._run_id, self._trace, agent, task)
        self.record = RunRecord(agent, task)
        self._watches: list[Any] = []
        self._stop = threading.Event()
        self._error: str | None = None

    def output(self, data: str | bytes) -> None:
        """Hands over what the CLI printed; pieces of any size, in order."""
        self._stream.feed(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data))

    def __enter__(self) -> metered:
        from spendmeter.parsers import claude_files, open_stream
        from spendmeter.runner.glance import file_time_ns

        self._stream = open_stream(None, "output")
        self._started_ms = time.time_ns() // 1_000_000
        try:
            started_ns = file_time_ns()
            self._watches = [claude_files.Watch(h, self._cwd, started_ns) for h in claude_files.homes(self.env)]
            for watch in self._watches:
                watch.snapshot()
        except Exception as e:  # noqa: BLE001 - the block must go on
            self._error = type(e).__name__
        self._thread = threading.Thread(target=self._look, name="spendmeter", daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        from spendmeter.runner.procs import belongs

        while not self._stop.wait(POLL_S):
            for watch in self._watches:
                watch.poll(lambda pid: belongs(pid, self._run_id))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        who = RunRecord(self._tags.agent, self._tags.task)
        try:
            self.record = self._commit()
        except SpendmeterError as e:
            self.record = replace(who, error=str(e))
        except Exception as e:  # noqa: BLE001 - metering never breaks the run
            self.record = replace(who, error=f"{type(e).__name__} while recording; nothing was written")

    def _commit(self) -> RunRecord:
        from spendmeter import ingest
        from spendmeter.runner.finished import FinishedRun

        observations = self._stream.finish()
        sessions = set(self._stream.sessions)
        files = [pair for w in self._watches for pair in w.after(sessions)]
        notes = [w.reason for w in self._watches if w.reason]
        sessions |= {s for w in self._watches for s in w.found}
        run = FinishedRun(
            self._run_id,
            self._tags,
            None,
            None,
            None,
            self._started_ms,
            time.time_ns() // 1_000_000,
            self._trace.trace_id,
            self._trace.span_id,
            self._trace.parent_span_id,
            sessions,
            files=files,
            observations=observations,
            notes=notes,
            cwd=self._cwd,
        )
        with _Opened(self._ledger) as ledger:
            return _read_back(ledger, ingest.commit_finished(ledger, run), self._tags)
