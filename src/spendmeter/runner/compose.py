"""Puts together the value of a run from what was seen of it: at its end, or from the mark that its dead wrapper left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spendmeter.parsers.changes import Changes
from spendmeter.parsers.claude_files import Watch
from spendmeter.records import Observation, Tags
from spendmeter.runner.finished import FinishedRun
from spendmeter.runner.repo import Repo, repo_of
from spendmeter.runner.spool import RUNNING, tags_json

if TYPE_CHECKING:
    from spendmeter.runner.facts import Facts

AnyWatch = Watch | Changes


def mark(facts: Facts, watches: Iterable[AnyWatch], child_pid: int, sessions: Iterable[str], stopped: str | None = None) -> dict[str, Any]:
    """JSON values from which ``finish_mark`` can go on if this process is killed; *stopped* is why the run is being ended."""
    command, options, trace = facts.command, facts.options, facts.trace
    return {
        "state": RUNNING,
        "run_id": facts.run_id,
        "child_pid": child_pid,
        "program": options.command[0].rpartition("/")[2],
        "tags": tags_json(Tags(options.agent, options.task, options.attrs)),
        "cli": command.cli,
        "started_ms": facts.started_ms,
        "trace": [trace.trace_id, trace.span_id, trace.parent_span_id],
        "named": [command.resumed, command.session, command.forked, command.continued],
        "sessions": sorted(sessions),
        "where": [facts.cwd, *_repo(facts.cwd)],
        "watches": [watch.state() for watch in watches],
        "stopped": stopped,
    }


def compose(
    facts: Facts, watches: list[AnyWatch], pids: Iterable[int], sessions: Iterable[str], observations: list[Observation]
) -> FinishedRun:
    """The run as far as it is known when its child has ended; end, exit code and signal are for the caller to set."""
    return _composed(mark(facts, (), 0, sessions), watches, list(pids), observations)


def compose_so_far(
    facts: Facts, watches: list[AnyWatch], pids: Iterable[int], sessions: Iterable[str], observations: list[Observation]
) -> FinishedRun:
    """As ``compose``, of a run that is under way; what its watches find in this moment does not bind them later."""
    probes = [copy(watch) for watch in watches]
    for probe in probes:
        probe.found = set(probe.found)
    return compose(facts, probes, pids, sessions, observations)


def finish_mark(data: Mapping[str, Any]) -> FinishedRun:
    """The run whose wrapper was killed, from its mark: what its session files hold now.

    Raises:
        ValueError: *data* is not a mark.
    """
    try:
        watches = [Changes.restored(state) if "cli" in state else Watch.restored(state) for state in data["watches"]]
        run = _composed(data, watches, [data["child_pid"]], [])
    except (KeyError, TypeError, IndexError) as e:
        raise ValueError(f"not a mark of a run: {type(e).__name__}") from None
    run.ended_ms = max([run.started_ms, *(_mtime_ms(path) for path, _ in run.files)])
    run.notes.insert(0, "its wrapper was killed; taken from its session files")
    return run


def _composed(data: Mapping[str, Any], watches: list[AnyWatch], pids: list[int], observations: list[Observation]) -> FinishedRun:
    resumed, _, forked, continued = data["named"]
    cli = data["cli"] or next((o.cli for o in observations if hasattr(o, "cli")), None)
    cwd, repo, branch, commit = data["where"]
    trace_id, span_id, parent = data["trace"]
    run = FinishedRun(
        run_id=data["run_id"], tags=Tags(**data["tags"]), cli=cli, exit_code=None, signal=None, started_ms=data["started_ms"],
        ended_ms=data["started_ms"], trace_id=trace_id, span_id=span_id, parent_span_id=parent, sessions=set(data["sessions"]),
        resumed=resumed, forked=forked, continued=continued, observations=observations, cwd=cwd, repo=repo, branch=branch, commit=commit,
        stopped=data.get("stopped"),
    )  # fmt: skip
    for watch in watches:
        of = watch.cli if isinstance(watch, Changes) else "claude"
        if cli in (None, of):
            _add_files(run, watch, pids, guess=cli == of)
    return run


def _add_files(run: FinishedRun, watch: AnyWatch, pids: list[int], *, guess: bool) -> None:
    before = run.resumed or (watch.newest() if run.continued else None)
    maybe, parents = (None, [before] if before else []) if run.forked else (before, [])
    run.files += watch.after(run.sessions, pids, maybe=maybe, parents=parents, guess=guess and not run.files)
    run.sessions |= watch.found
    if watch.reason:
        run.notes.append(watch.reason)


@cache
def _repo(cwd: str | None) -> Repo:
    """As it was at the run's start: the run may change branch and commit."""
    return repo_of(cwd)


def _mtime_ms(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0
