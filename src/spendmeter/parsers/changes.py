"""Tells which session files one run of a CLI wrote: those that have changed since it started.

For every CLI but Claude Code, whose ``claude_files.Watch`` knows more and has the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from spendmeter.errors import ParseError
from spendmeter.parsers import read, read_file
from spendmeter.parsers.places import PLACES, companions
from spendmeter.records import Moment, Observation

Mark = tuple[int, int]  # size, mtime in ns, a database's log included
LOGS = frozenset({"usage_record.jsonl"})  # of all sessions there ever were, a row at each run's end: what was added is the run's


class Changes:
    """The session files of *cli* under *home* before and after a run.

    Attributes:
        reason: why ``after`` could not tell, in one line, or None.
        found: sessions of the run.
    """

    def __init__(self, cli: str, home: Path, start_ns: int) -> None:
        """*start_ns* is the file system's time just before the child started."""
        self.cli, self.home, self.start_ns = cli, home, start_ns
        self.reason: str | None = None
        self.found: set[str] = set()
        self._before: dict[str, Mark] = {}

    def snapshot(self) -> None:
        """Notes every file that has not changed since the start; one that has is taken for new."""
        marks = {str(p): _mark(p) for p in PLACES[self.cli].session_files(self.home)}
        self._before = {p: m for p, m in marks.items() if m[1] < self.start_ns}

    def poll(self, is_ours: Callable[[int], bool]) -> set[str]:
        """Sessions known so far."""
        return self.found

    def refresh(self) -> None:
        """Nothing is looked at before the end."""

    def newest(self) -> str | None:
        """The session whose file was the last to change before the run, where its path names one."""
        paths = sorted(self._before, key=lambda p: self._before[p][1])
        return next((s for p in reversed(paths) if (s := PLACES[self.cli].session_of(Path(p)))), None)

    def after(
        self,
        sessions: Iterable[str],
        pids: Iterable[int] = (),
        *,
        maybe: str | None = None,
        parents: Iterable[str] = (),
        guess: bool = True,
    ) -> list[tuple[Path, int]]:
        """Files of this run, each with its size when the run started; sets ``reason`` and adds to ``found``.

        Args:
            sessions: ids that the run is known to have used.
            pids: not used; these CLIs name no process.
            maybe: an id that the run was told to resume.
            parents: ids of which the run made a fork; their files come along.
            guess: whether, where no id is known, the only session that changed (of a database: that took a prompt) is taken.
        """
        del pids
        paths = [p for p in PLACES[self.cli].session_files(self.home) if self._before.get(str(p)) != _mark(p)]
        changed = {p: _sessions(p, self.cli, self._before.get(str(p), (0, 0))[0]) for p in paths}
        single = {p: s for p, s in changed.items() if p.suffix != ".db"}  # a database holds every session there ever was
        self.found |= set(sessions) | ({maybe} if maybe else set())
        if not self.found and guess:
            every = set().union(*single.values(), *(_prompted(p, self.cli, self.start_ns) for p in changed if p not in single))
            if len(every) == 1:
                self.found |= every
            elif every or changed:
                self.reason = f"{len(every) or 'some'} sessions changed, cannot tell which is this run's"
        wanted = self.found | set(parents)
        return [(p, self._before.get(str(p), (0, 0))[0] if p in single else 0) for p, s in changed.items() if s & wanted]

    def state(self) -> dict[str, Any]:
        """The watch as JSON values, for ``restored``."""
        return {"cli": self.cli, "home": str(self.home), "start_ns": self.start_ns, "found": sorted(self.found), "before": self._before}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Changes:
        """The watch that ``state`` gave."""
        made = cls(state["cli"], Path(state["home"]), state["start_ns"])
        made.found = set(state["found"])
        made._before = {p: (m[0], m[1]) for p, m in state["before"].items()}
        return made


def _mark(path: Path) -> Mark:
    size, changed = 0, 0
    for p in (path, *companions(path)):
        try:
            stat = p.stat()
        except OSError:
            continue
        size, changed = size + stat.st_size, max(changed, stat.st_mtime_ns, stat.st_ctime_ns)
    return size, changed


def _prompted(path: Path, cli: str, since_ns: int) -> set[str]:
    """The sessions of the database *path* that took a prompt since then."""
    try:
        told, _ = read_file(path, cli)
    except ParseError:
        return set()
    return {o.session for o in told if isinstance(o, Moment) and o.kind == "prompt" and o.at_ms * 1_000_000 >= since_ns}


def _sessions(path: Path, cli: str, since: int) -> set[str]:
    """The sessions that *path* holds: as its place tells, else as its rows do; of a log those after byte *since*."""
    if named := PLACES[cli].session_of(path):
        return {named}
    try:
        told = _added(path, cli, since) if path.name in LOGS else read_file(path, cli)[0]
    except (ParseError, OSError):
        return set()
    return {o.session for o in told if hasattr(o, "session")}


def _added(path: Path, cli: str, since: int) -> list[Observation]:
    """What *path* tells after byte *since*."""
    with path.open("rb") as file:
        file.seek(since)
        return read(file, cli, str(path))[0]
