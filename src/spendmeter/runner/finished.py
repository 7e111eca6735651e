"""What the wrapper knows when a run has ended: the one value that it hands to ``spendmeter.ingest.commit_run``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from spendmeter.records import Observation, Tags


@dataclass
class FinishedRun:
    """One run of a CLI, observed to its end.

    ``exit_code`` and ``signal``: one of them is set, or neither when the wrapper itself was killed. ``sessions`` are the ids that
    standard output, the arguments, the CLI's own process files or the changed transcripts name. ``resumed`` is the session that
    ``--resume`` names, ``forked`` and ``continued`` tell of ``--fork-session`` and ``--continue``. ``files`` are (path, size in
    bytes when the run started); a fork's parent is among them. ``notes`` are one-line reasons why something is not known.
    ``run_id`` is 32 hex digits and names the run for ever: committing the same run again changes nothing.
    """

    run_id: str
    tags: Tags
    cli: str | None
    exit_code: int | None
    signal: int | None
    started_ms: int
    ended_ms: int
    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    sessions: set[str] = field(default_factory=set)
    resumed: str | None = None
    forked: bool = False
    continued: bool = False
    files: list[tuple[Path, int]] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cwd: str | None = None
    repo: str | None = None
    branch: str | None = None
    commit: str | None = None
    stopped: str | None = None  # why the wrapper ended it: "budget NAME" or "max-cost"
